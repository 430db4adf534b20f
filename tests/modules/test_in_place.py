"""A module runs from the files of the project where the playbook itself runs, and from an archive anywhere else.

There it is a fork of a Python that stands by, with its imports done.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import ROOT
from oracle.patience import PATIENCE_SECONDS, until

PLUGIN = ROOT / "plugins" / "action" / "queue_transfer.py"

#: Another Python than the playbook's: of the same version, and without what a virtual environment adds.
OTHER = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"


def play(
    folder: Path, interpreter: str, *tasks: dict[str, Any], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run tasks on this host; what Ansible sends for them is kept in ``folder``."""
    book = folder / "play.yml"
    book.write_text(
        json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]),
        encoding="utf-8",
    )
    given = [
        "ansible_connection=local",
        f"ansible_python_interpreter={interpreter}",
        f"ansible_remote_tmp={folder}/sent",
    ]
    return subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "here,", str(book)]
        + [word for variable in given for word in ("-e", variable)],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_KEEP_REMOTE_FILES": "1",
            "ANSIBLE_NOCOLOR": "1",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def sent(folder: Path) -> str:
    """The one program that Ansible wrote for the task."""
    (program,) = (folder / "sent").rglob("AnsiballZ_*.py")
    return program.read_text(encoding="utf-8")


def the_plugin() -> Any:
    """The action plugin, as Ansible loads it: by its path."""
    spec = importlib.util.spec_from_file_location("plugin_of_queue_modules", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    return plugin


def settings(folder: Path) -> dict[str, Any]:
    """A task that writes a file and returns what it did."""
    values = {"GREETING": "grüß 'Gott', {{ 1 + 1 }} times", "EMPTY": ""}
    return {"queue_config": {"path": f"{folder}/app.env", "run_id": "run-1", "values": values}, "diff": True}


@pytest.mark.parametrize(("interpreter", "archive"), [(sys.executable, False), (str(OTHER), True)])
def test_both_ways_do_the_same(tmp_path: Path, interpreter: str, archive: bool) -> None:
    (tmp_path / "app.env").write_text("OTHER=1\n")
    (tmp_path / "app.env").chmod(0o600)
    done = play(tmp_path, interpreter, settings(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=1" in done.stdout
    assert "grüß 'Gott', 2 times" in done.stdout
    assert "grüß 'Gott', 2 times" in (tmp_path / "app.env").read_text(encoding="utf-8")
    program = sent(tmp_path)
    assert ("_ANSIBALLZ_WRAPPER" in program) == archive
    assert (str(ROOT / "library") in program) != archive


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "sqlalchemy.py").write_text("raise ModuleNotFoundError(\"No module named 'sqlalchemy'\")\n")
    task = {"queue_status": {"db_url": "mysql://x", "redis_url": "redis://x", "mapping": "/x"}}
    done = play(tmp_path, sys.executable, task, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "No module named 'sqlalchemy'" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("transport", "become", "interpreter", "delegated", "expected"),
    [
        ("local", None, sys.executable, "", True),
        ("ansible.builtin.local", None, sys.executable, "", True),
        ("local", object(), sys.executable, "", False),
        ("ssh", None, sys.executable, "", False),
        ("local", None, "/usr/bin/python3", "", False),
        ("local", None, None, "", False),
        ("local", None, "/usr/bin/python3", sys.executable, True),
        ("local", None, sys.executable, "/usr/bin/python3", False),
    ],
)
def test_where_it_may(transport: str, become: object, interpreter: str | None, delegated: str, expected: bool) -> None:
    plugin = the_plugin()
    action = object.__new__(plugin.ActionModule)
    action._connection = SimpleNamespace(transport=transport, become=become)
    action._templar = SimpleNamespace(template=lambda value: value)
    action._task = SimpleNamespace(delegate_to="there" if delegated else None)
    variables: dict[str, Any] = {"ansible_delegated_vars": {"there": {"ansible_python_interpreter": delegated}}}
    if interpreter:
        variables["ansible_python_interpreter"] = interpreter
    assert action._in_place(variables) is expected


#: Says of the Python that runs it: what it has imported of the drivers, what it was lent, what it read, and its parent.
ASKED = """
import json, os, sys
said = {
    "drivers": "sqlalchemy" in sys.modules, "folder": os.getcwd(), "word": os.environ.get("WORD"),
    "home": "HOME" in os.environ, "path": sys.path[0], "arguments": sys.argv, "name": __name__, "parent": os.getppid(),
}
print(json.dumps(said), flush=True)
"""


class Standby:
    """One that stands by for a process of ours, as the plugin starts it for that of ansible-playbook."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.plugin = the_plugin()
        self.playbook = subprocess.Popen(["sleep", "300"])
        monkeypatch.setattr(self.plugin.constants, "DEFAULT_LOCAL_TMP", str(folder))
        monkeypatch.setattr(self.plugin.os, "getppid", lambda: self.playbook.pid)

    def ask(self, program: str, **environment: str) -> subprocess.Popen[str]:
        """Have it run a program, as Ansible has it run a module."""
        process = subprocess.Popen(
            [sys.executable],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], **environment},
        )
        assert process.stdin is not None
        process.stdin.write(self.plugin.by_standby(textwrap.dedent(program), ROOT / "module_utils"))
        process.stdin.close()
        process.stdin = None
        return process

    def says(self, program: str, **environment: str) -> tuple[int, str, str]:
        """How the program ended and what it wrote."""
        process = self.ask(program, **environment)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, out, err

    def servers(self) -> list[int]:
        """The processes that stand by for our process."""
        mark = f"\0{self.folder}/standby\0{self.playbook.pid}\0".encode()
        return [int(entry.parent.name) for entry in Path("/proc").glob("[0-9]*/cmdline") if mark in _read(entry)]

    def end(self) -> None:
        """End the process for which it stands by; with it goes what stands by."""
        self.playbook.kill()
        self.playbook.wait()
        until(lambda: not self.servers(), "the end of the one on standby")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def standby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standby]:
    made = Standby(tmp_path, monkeypatch)
    yield made
    made.end()


def test_the_one_on_standby_runs_the_program_as_if_fresh(standby: Standby) -> None:
    code, out, err = standby.says(ASKED + "import sys; sys.stderr.write('aside'); sys.exit(7)", WORD="grüß\n\tGott")
    said = json.loads(out)
    assert (code, err) == (7, "aside")
    assert said["drivers"] is True
    assert (said["folder"], said["word"], said["home"]) == (str(standby.folder), "grüß\n\tGott", False)
    assert said["path"] != str(ROOT / "plugins")
    assert (said["arguments"], said["name"]) == (["-"], "__main__")
    (server,) = standby.servers()
    assert server != said["parent"], "it would have to wait for it"
    # What one program does to its process is not seen by the next.
    assert standby.says("import sqlalchemy; sqlalchemy.left = 1; import os; os.environ['WORD'] = 'x'")[0] == 0
    code, out, _ = standby.says(ASKED + "import sqlalchemy; print(hasattr(sqlalchemy, 'left'))")
    first, second = out.splitlines()
    assert json.loads(first)["word"] is None
    assert second == "False"
    assert standby.servers() == [server]


def test_programs_run_side_by_side_and_a_failure_is_the_programs_own(standby: Standby) -> None:
    waits = standby.ask("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    assert waits.stdout is not None
    pid = int(waits.stdout.readline())
    code, out, err = standby.says("raise ValueError('mine')")
    assert (code, out) == (1, "")
    assert err.endswith("ValueError: mine\n")
    assert waits.poll() is None
    os.kill(pid, signal.SIGKILL)
    waits.communicate(timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGKILL, 137), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_alone(standby: Standby, number: signal.Signals, expected: int) -> None:
    process = standby.ask("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.kill(pid, number)
    assert process.wait(PATIENCE_SECONDS) == expected
    process.communicate()
    assert json.loads(standby.says(ASKED)[1])["drivers"] is True


def test_a_program_that_was_begun_is_not_begun_again(standby: Standby) -> None:
    process = standby.ask(
        "import os, time\nparent = os.getppid()\nprint(parent, flush=True)\n"
        "while os.getppid() == parent:\n    time.sleep(0.01)\nprint('over')"
    )
    assert process.stdout is not None
    os.kill(int(process.stdout.readline()), signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert err == "what waited for this module is gone; whether the module goes on is not known\n"
    assert out == "over\n", "it went on, once"


@pytest.mark.parametrize("trouble", ["nobody listens", "an import fails", "no folder for the address"])
def test_a_fresh_python_runs_it_when_nobody_can(
    standby: Standby, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    if trouble == "nobody listens":
        (standby.folder / "standby").touch()
    elif trouble == "an import fails":
        (standby.folder / "sqlalchemy.py").write_text("raise ModuleNotFoundError(\"No module named 'sqlalchemy'\")\n")
        monkeypatch.setenv("PYTHONPATH", str(standby.folder))
    else:
        monkeypatch.setattr(standby.plugin.constants, "DEFAULT_LOCAL_TMP", str(standby.folder / ("long" * 40)))
    code, out, err = standby.says(ASKED + "import sys; sys.exit(3)", WORD="mine")
    said = json.loads(out)
    assert (code, err) == (3, "")
    assert (said["drivers"], said["word"], said["name"]) == (False, "mine", "__main__")


def test_it_goes_with_the_playbook(standby: Standby) -> None:
    assert standby.says("pass")[0] == 0
    (server,) = standby.servers()
    standby.end()
    assert server not in standby.servers()


def test_a_playbook_has_one_and_each_module_is_its_fork(tmp_path: Path) -> None:
    """By what the one on standby says when it forks: to leave its parent; for each module who waits, and the module."""
    (tmp_path / "app.env").write_text("OTHER=1\n")
    (tmp_path / "app.env").chmod(0o600)
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(
            f"""\
            import os, sys
            if any(word.endswith("standby.py") for word in sys.orig_argv):
                def say(word):
                    with open({str(tmp_path / "said")!r}, "a") as file:
                        file.write(word + "\\n")
                say("start")
                os.register_at_fork(after_in_child=lambda: say("fork"))
            """
        )
    )
    task = settings(tmp_path)
    done = play(tmp_path, sys.executable, task, task, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok=2    changed=1" in done.stdout
    assert (tmp_path / "said").read_text().split() == ["start", *["fork"] * (1 + 2 * 2)]
