"""The commands that the documentation tells people to type: each exists, and its options do."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from ansible.cli.playbook import PlaybookCLI

from guards import tree

FENCE = re.compile(r"^ *```(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^ *```", re.MULTILINE | re.DOTALL)
# People's own tools, which a page may show with a `$`.
TOOLS = frozenset("cd curl eval export git kill mariadb mysql redis-cli sqlite3".split())
SHELLS = frozenset({"bash", "sh", "shell", "zsh"})
PLACEHOLDER = re.compile(r"<[a-z][\w -]*>")
SEPARATORS = frozenset({"|", "||", "&&", ";", "&"})
REDIRECTIONS = frozenset({">", ">>", "<", "2>", ">&"})


def typed(text: str) -> list[str]:
    """The commands of a page: lines of ```console blocks that begin with `$ `, continuation lines joined."""
    commands: list[str] = []
    for block in FENCE.finditer(text):
        if block["language"] != "console":
            continue
        lines = iter(block["body"].splitlines())
        for line in lines:
            if line.strip().startswith("$ "):
                command = line.strip()[2:]
                while command.endswith("\\"):
                    command = command[:-1] + next(lines, "").strip()
                commands.append(command)
    return commands


def unchecked_blocks(text: str) -> list[str]:
    """Fences in a shell language: nothing checks what they say. Commands belong into ```console, after `$ `."""
    return [f"a ```{b['language']} block" for b in FENCE.finditer(text) if b["language"] in SHELLS]


def simple_commands(command: str) -> Iterator[list[str]]:
    """The words of each simple command in a line: pipes and `&&` cut, `$(...)` looked into, redirections dropped."""
    for inner in re.findall(r"\$\(([^()]+)\)", command):
        yield from simple_commands(inner)
    lexer = shlex.shlex(PLACEHOLDER.sub("placeholder", command), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if word in SEPARATORS:
            yield words
            words = []
        elif word in REDIRECTIONS:
            skip = True
        elif skip:
            skip = False
        elif words or not re.match(r"\w+=", word):
            words.append(word)
    yield words


def offences(command: str, root: Path = tree.ROOT) -> list[str]:
    """What in a documented command does not exist: the program, the playbook, the inventory, an option."""
    found: list[str] = []
    for words in simple_commands(command):
        if not words:
            continue
        first = words[0].removeprefix("./")
        if first in {".", "source"}:
            continue
        name = first.removeprefix(".venv/bin/")
        if name == "ansible-playbook":
            found += _playbook_offences(words[1:], root)
        elif first.startswith("scripts/") or first == ".ci/run":
            found += _script_offences(first, words[1:], root)
        elif first not in TOOLS and not (tree.ROOT / ".venv" / "bin" / name).exists():
            found.append(f"'{words[0]}' is no program of this repository")
    return found


def _playbook_offences(arguments: list[str], root: Path) -> list[str]:
    said = io.StringIO()
    cli = PlaybookCLI(["ansible-playbook", *arguments])
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            cli.init_parser()
            options = cli.parser.parse_args(arguments)
    except SystemExit:
        return [f"ansible-playbook refuses the options: {said.getvalue().strip().splitlines()[-1]}"]
    found = [f"playbook '{book}' does not exist" for book in options.args if not (root / book).is_file()]
    for inventory in options.inventory or ():
        if "placeholder" not in inventory and not inventory.endswith(",") and not (root / inventory).exists():
            found.append(f"inventory '{inventory}' does not exist")
    if options.start_at_task:
        found.append("--start-at-task jumps over gates; a run is resumed by the same command")
    return found


def _script_offences(script: str, arguments: list[str], root: Path) -> list[str]:
    path = root / script
    if not path.is_file():
        return [f"'{script}' does not exist"]
    if not os.access(path, os.X_OK):
        return [f"'{script}' is not executable"]
    source = _source(path, root)
    wanted = [argument.split("=", 1)[0] for argument in arguments if argument.startswith("-")]
    if arguments and re.fullmatch(r"[a-z][a-z-]*", arguments[0]) and arguments[0] != "placeholder":
        wanted.append(arguments[0])
    return [
        f"'{script}' knows no '{word}'"
        for word in wanted
        if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", source)
    ]


def _source(path: Path, root: Path) -> str:
    """The text of a script and of the packages of app/ and tests/ that it runs with `-m`."""
    text = path.read_text()
    for package in re.findall(r"-m\s+([a-z_]+)", text):
        for home in ("app", "tests"):
            text += "".join(source.read_text() for source in sorted((root / home / package).rglob("*.py")))
    return text


def playbook_runs(commands: list[str], root: Path = tree.ROOT) -> dict[str, list[str]]:
    """Which existing playbooks the commands name, by the inventory they name ('' = the one of ansible.cfg)."""
    runs: dict[str, set[str]] = {}
    for command in commands:
        for words in simple_commands(command):
            if words and words[0].endswith("ansible-playbook") and not _playbook_offences(words[1:], root):
                cli = PlaybookCLI(words)
                cli.init_parser()
                options = cli.parser.parse_args(words[1:])
                named = [i for i in options.inventory or () if (root / i).exists()]
                runs.setdefault(named[0] if named else "", set()).update(options.args)
    return {inventory: sorted(books) for inventory, books in sorted(runs.items())}
