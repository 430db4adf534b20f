"""What README and docs/ tell people to type exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from guards import commands, tree

PAGES = tree.documents()
TYPED = [(page, command) for page in PAGES for command in commands.typed(page.read_text())]
RUNS = commands.playbook_runs([command for _, command in TYPED])
LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)#\s]+)[^)]*\)")


def dead_links(page: Path) -> list[str]:
    """Relative links of a page whose file does not exist."""
    targets = [match["target"] for match in LINK.finditer(page.read_text())]
    return [target for target in targets if "://" not in target and not (page.parent / target).exists()]


@pytest.mark.parametrize(("page", "command"), TYPED, ids=[f"{tree.shown(p)}: {c}" for p, c in TYPED])
def test_a_documented_command_exists(page: Path, command: str) -> None:
    assert commands.offences(command) == [], tree.shown(page)


@pytest.mark.parametrize("page", PAGES, ids=tree.shown)
def test_a_page_has_no_unchecked_command_and_no_dead_link(page: Path) -> None:
    assert commands.unchecked_blocks(page.read_text()) == []
    assert dead_links(page) == []


@pytest.mark.parametrize(("inventory", "books"), RUNS.items(), ids=[i or "ansible.cfg" for i in RUNS])
def test_documented_playbooks_pass_the_syntax_check(inventory: str, books: list[str]) -> None:
    program = Path(sys.executable).with_name("ansible-playbook")
    where = ["-i", inventory] if inventory else []
    done = subprocess.run(
        [str(program), "--syntax-check", *where, *books],
        cwd=tree.ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A repository with a playbook, an inventory and two scripts."""
    for name, text in {
        "playbooks/migrate.yml": "[]",
        "inventories/lab/hosts.yml": "{}",
        "scripts/lab": '#!/bin/sh\nexec python -m lab "$@"\n',
        "app/lab/cli.py": 'parser.add_argument("--json")\ncommands = ["up", "down"]\n',
        "scripts/notes": "not executable",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "scripts/lab").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("scripts/demon", "'scripts/demon' does not exist"),
        ("scripts/notes", "not executable"),
        ("scripts/lab up --yaml", "knows no '--yaml'"),
        ("scripts/lab upp", "knows no 'upp'"),
        ('eval "$(scripts/labb env)"', "'scripts/labb' does not exist"),
        ("cd x && scripts/labb up", "'scripts/labb' does not exist"),
        ("make install", "'make' is no program of this repository"),
        ("ansible-playbook playbooks/migrat.yml", "playbook 'playbooks/migrat.yml' does not exist"),
        ("ansible-playbook playbooks/migrate.yml --chek", "unrecognized arguments: --chek"),
        ("ansible-playbook -i inventories/x playbooks/migrate.yml", "inventory 'inventories/x' does not exist"),
        ("ansible-playbook playbooks/migrate.yml --start-at-task Move", "jumps over gates"),
        (".venv/bin/ansible-playbook playbooks/migrat.yml", "does not exist"),
    ],
)
def test_a_command_that_does_not_exist_is_seen(small_tree: Path, command: str, reason: str) -> None:
    assert reason in "\n".join(commands.offences(command, small_tree))


@pytest.mark.parametrize(
    "command",
    [
        "scripts/lab up --json",
        'eval "$(scripts/lab up)" && redis-cli -u "$SLUICE_LAB_REDIS_URL" ping',
        "ansible-playbook playbooks/migrate.yml --check --diff -e queue_confirm=<run id> > plan.txt",
        "ansible-playbook -i inventories/<yours>/hosts.yml playbooks/migrate.yml",
        "QUEUE=1 ./scripts/lab down",
        "git clone <address> sluice",
    ],
)
def test_a_command_that_exists_is_not_reported(small_tree: Path, command: str) -> None:
    assert commands.offences(command, small_tree) == []


def test_commands_are_read_from_console_blocks_only() -> None:
    page = "```console\n$ scripts/demo \\\n    --json\nok\n$ scripts/test\n```\n"
    page += "```yaml\n$ no\n```\n```bash\nscripts/x\n```\n"
    assert commands.typed(page) == ["scripts/demo --json", "scripts/test"]
    assert commands.unchecked_blocks(page) == ["a ```bash block"]


def test_playbooks_are_gathered_by_inventory(small_tree: Path) -> None:
    lines = [
        "ansible-playbook playbooks/migrate.yml",
        "ansible-playbook -i inventories/lab playbooks/migrate.yml --check",
    ]
    assert commands.playbook_runs(lines, small_tree) == {
        "": ["playbooks/migrate.yml"],
        "inventories/lab": ["playbooks/migrate.yml"],
    }


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("[a](docs/x.md) [b](README.md#top) [c](https://example.org/) [d](#here)")
    assert dead_links(page) == ["docs/x.md"]
