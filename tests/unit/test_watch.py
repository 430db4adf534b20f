"""The lines that the action plugin shows while a module works in one call."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from conftest import ROOT
from oracle.patience import PATIENCE_SECONDS, until

AT_WORK = re.compile(r"  still at work after \d+ s")
PLUGIN = ROOT / "plugins" / "action" / "queue_transfer.py"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin with short intervals, in the proportions of the real ones."""
    spec = importlib.util.spec_from_file_location("watched_plugin", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, seconds in (
        ("LINE_SECONDS", 0.10),
        ("SILENT_SECONDS", 0.18),
        ("LOOK_SECONDS", 0.02),
        ("LAST_LOOK_SECONDS", 0.2),
    ):
        monkeypatch.setattr(module, name, seconds)
    return module


class FakeConnection:
    """Runs each command as a process of its own, as the connections of Ansible do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shell = SimpleNamespace(
            tmpdir=None, join_path=lambda *parts: "/".join(parts), quote=lambda text: f"'{text}'"
        )
        self.commands: list[str] = []
        self.error: Exception | None = None
        self.at_hand = "the module's"

    def exec_command(self, command: str, in_data: bytes | None, sudoable: bool) -> tuple[int, bytes, bytes]:
        assert in_data is None
        assert not sudoable
        self.commands.append(command)
        self.at_hand = command
        if self.error is not None:
            raise self.error
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr


def action_of(
    plugin: ModuleType, name: str, folder: Path, work: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[Any, list[str], list[str]]:
    """The action of a module that does `work` with its options; what is shown, and what is shown with -vvv."""
    shown: list[str] = []
    told: list[str] = []
    action = plugin.ActionModule.__new__(plugin.ActionModule)
    action._task = SimpleNamespace(args={}, action=name, async_val=0, check_mode=False, diff=False)
    action._connection = FakeConnection(folder)
    action._display = SimpleNamespace(display=shown.append, vvv=told.append, verbosity=0)
    action._templar = SimpleNamespace(available_variables={})

    def make_tmp_path() -> str:
        action._connection._shell.tmpdir = str(folder)
        return str(folder)

    action._make_tmp_path = make_tmp_path
    action._execute_module = lambda module_args, **_: work(module_args)
    return action, shown, told


def run(plugin: ModuleType, action: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(plugin.ActionBase, "run", lambda *_: {})
    before = threading.active_count()
    try:
        found: dict[str, Any] = action.run(None, {})
        return found
    finally:
        assert threading.active_count() == before, "the thread ends with the module"


@pytest.mark.parametrize("name", ["queue_verify", "queue_backup"])
def test_the_newest_line_is_shown_while_the_module_works(
    plugin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = [f"  balance: {number} of 4" for number in range(1, 5)]

    def work(arguments: dict[str, Any]) -> dict[str, Any]:
        path = Path(arguments["progress_file"])
        with path.open("a") as file:
            for line in expected:
                file.write(f"{line.strip()}\n")
                file.flush()
                until(lambda line=line: line in shown, line)  # type: ignore[misc]
        path.unlink()
        return {"lines": ["done"], "changed": False}

    action, shown, _ = action_of(plugin, name, tmp_path, work)
    assert run(plugin, action, monkeypatch) == {"changed": False}
    assert shown[-1] == "  done"
    # On a slow machine it may be said in between that the module is still at work.
    assert [line for line in shown[:-1] if "still at work" not in line] == expected
    assert action._connection.commands
    assert action._connection.at_hand == "the module's", "a look leaves the connection of the module as it was"


def test_silence_is_broken_and_a_torn_line_is_not_shown(
    plugin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(arguments: dict[str, Any]) -> dict[str, Any]:
        Path(arguments["progress_file"]).write_text("backup, sql\n")
        until(lambda: len(shown) >= 2, "the silence is broken")
        Path(arguments["progress_file"]).write_text("backup, sql: 12 of 4")
        before = len(shown)
        until(lambda: len(shown) > before, "it is broken again")
        return {"changed": True}

    action, shown, _ = action_of(plugin, "queue_backup", tmp_path, work)
    run(plugin, action, monkeypatch)
    assert shown[0] == "  backup, sql"
    assert len(shown) >= 3
    assert all(re.fullmatch(r"  backup, sql, still at work after \d+ s", line) for line in shown[1:]), shown


def test_a_short_step_is_not_looked_at(plugin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    monkeypatch.setattr(FakeConnection, "exec_command", lambda _, command, **__: looks.append(command))
    action, shown, told = action_of(plugin, "queue_verify", tmp_path, lambda _: {"lines": ["done"]})
    run(plugin, action, monkeypatch)
    assert (looks, shown, told) == ([], ["  done"], [])


@pytest.mark.parametrize("how", ["missing", "unreachable"])
def test_a_look_that_fails_is_told_with_vvv_and_silence_is_broken(
    plugin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def work(arguments: dict[str, Any]) -> dict[str, Any]:
        until(lambda: bool(shown and told), "a look that fails, and a word that it is at work")
        return {"changed": False}

    action, shown, told = action_of(plugin, "queue_verify", tmp_path, work)
    if how == "unreachable":
        action._connection.error = AnsibleConnectionFailure("the host does not answer")
    assert run(plugin, action, monkeypatch) == {"changed": False}
    assert all(AT_WORK.fullmatch(line) for line in shown)
    assert all(line.startswith("progress cannot be read: ") for line in told)
    assert ("does not answer" if how == "unreachable" else "No such file") in told[0]


@pytest.mark.parametrize("name", ["queue_plan", "queue_baseline", "queue_cleanup", "queue_recover"])
def test_a_module_that_reports_nothing_is_said_to_be_at_work(
    plugin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given: list[dict[str, Any]] = []

    def work(arguments: dict[str, Any]) -> dict[str, Any]:
        given.append(dict(arguments))
        until(lambda: bool(shown), "a word that it is at work")
        return {"changed": False}

    action, shown, _ = action_of(plugin, name, tmp_path, work)
    run(plugin, action, monkeypatch)
    assert all(AT_WORK.fullmatch(line) for line in shown)
    assert "progress_file" not in given[0]
    assert action._connection._shell.tmpdir is None


@pytest.mark.parametrize("name", ["queue_transfer", "queue_drain", "queue_soak", "queue_validate", "queue_workers"])
def test_steps_in_slices_go_on_as_they_were(
    plugin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls: list[dict[str, Any]] = []

    def work(arguments: dict[str, Any]) -> dict[str, Any]:
        assert not [thread for thread in threading.enumerate() if thread.name == "progress"]
        calls.append(dict(arguments))
        return {"lines": [f"slice {len(calls)}"]} | ({"cursor": {"done": len(calls)}} if len(calls) < 3 else {})

    action, shown, _ = action_of(plugin, name, tmp_path, work)
    run(plugin, action, monkeypatch)
    assert shown == ["  slice 1", "  slice 3"]
    assert [call.get("cursor") for call in calls] == [None, {"done": 1}, {"done": 2}]


def test_the_thread_ends_when_the_module_fails(
    plugin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(arguments: dict[str, Any]) -> dict[str, Any]:
        raise AnsibleConnectionFailure("cut off")

    action, _, _ = action_of(plugin, "queue_verify", tmp_path, work)
    with pytest.raises(AnsibleConnectionFailure, match="cut off"):
        run(plugin, action, monkeypatch)


def test_nothing_is_shown_when_nobody_is_left_to_see_it(plugin: ModuleType) -> None:
    shown: list[str] = []
    with plugin.Watch(lambda: "a line", shown.append, lambda: True) as watch:
        watch._thread.join(PATIENCE_SECONDS)
        assert not watch._thread.is_alive()
    assert shown == []


def test_a_look_that_hangs_shows_nothing_later_and_does_not_hold_up_the_step(plugin: ModuleType) -> None:
    shown: list[str] = []
    looking, go_on = threading.Event(), threading.Event()

    def newest() -> str:
        looking.set()
        go_on.wait(60)
        return "late"

    with plugin.Watch(newest, shown.append, lambda: False) as watch:
        assert looking.wait(PATIENCE_SECONDS)
        begun = time.monotonic()
    assert time.monotonic() - begun < 1
    go_on.set()
    watch._thread.join(PATIENCE_SECONDS)
    assert not watch._thread.is_alive()
    assert shown == []
