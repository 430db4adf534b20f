"""A module runs from the files of the project where the playbook itself runs, and from an archive anywhere else."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import ROOT

PLUGIN = ROOT / "plugins" / "action" / "queue_transfer.py"

#: Another Python than the playbook's: of the same version, and without what a virtual environment adds.
OTHER = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"


def play(folder: Path, interpreter: str, task: dict[str, Any], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one task on this host; what Ansible sends for it is kept in ``folder``."""
    book = folder / "play.yml"
    book.write_text(
        json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]),
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
        timeout=120,
        check=False,
    )


def sent(folder: Path) -> str:
    """The one program that Ansible wrote for the task."""
    (program,) = (folder / "sent").rglob("AnsiballZ_*.py")
    return program.read_text(encoding="utf-8")


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
    spec = importlib.util.spec_from_file_location("plugin_of_queue_modules", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    action = object.__new__(plugin.ActionModule)
    action._connection = SimpleNamespace(transport=transport, become=become)
    action._templar = SimpleNamespace(template=lambda value: value)
    action._task = SimpleNamespace(delegate_to="there" if delegated else None)
    variables: dict[str, Any] = {"ansible_delegated_vars": {"there": {"ansible_python_interpreter": delegated}}}
    if interpreter:
        variables["ansible_python_interpreter"] = interpreter
    assert action._in_place(variables) is expected
