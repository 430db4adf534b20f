"""Workers as systemd units, against a systemctl that only tests have."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from ansible.module_utils.sluice.adapters.processes import Processes
from ansible.module_utils.sluice.adapters.systemd import SystemdWorkers
from ansible.module_utils.sluice.core.errors import StoreError

from oracle.patience import PATIENCE_SECONDS

ONE, TWO = "worker@1.service", "worker@2.service"


class FakeSystemctl:
    """Units as systemctl shows them; stop and kill change them."""

    def __init__(self) -> None:
        self.units = {name: self.unit("active", "running", 42) for name in (ONE, TWO)}
        self.calls: list[list[str]] = []
        self.error = ""
        self.obeys_kill = True

    @staticmethod
    def unit(
        active: str, sub: str, pid: int = 0, code: int = 0, status: int = 0, result: str = "success"
    ) -> dict[str, str]:
        words = {"LoadState": "loaded", "ActiveState": active, "SubState": sub, "MainPID": pid, "ExecMainCode": code}
        words |= {"ExecMainStatus": status, "Result": result, "FragmentPath": "/usr/lib/systemd/system/worker@.service"}
        return {key: str(value) for key, value in words.items()}

    def __call__(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        assert arguments[:2] == ["systemctl", "--no-ask-password"]
        verb, names = arguments[2], arguments[arguments.index("--") + 1 :]
        self.calls.append(list(arguments[2:]))
        if self.error:
            return 1, "", self.error
        if verb == "kill" and self.obeys_kill:
            self.units |= {name: self.unit("failed", "failed", 0, 2, 9, "signal") for name in names}
        if verb in ("mask", "unmask"):
            for name in names:
                self.units[name]["LoadState"] = "masked" if verb == "mask" else "loaded"
        blocks = ["\n".join(f"{k}={v}" for k, v in {"Id": name, **self.units[name]}.items()) for name in names]
        return 0, "\n\n".join(blocks) + "\n" if verb == "show" else "", ""

    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls if call[0] != "show"]


class FakeClock:
    """Time that passes by waiting only."""

    time = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += seconds


def workers(systemctl: FakeSystemctl) -> SystemdWorkers:
    return SystemdWorkers({"legacy": ["worker@1", TWO]}, "app1", runner=systemctl, clock=FakeClock())


def test_what_runs_is_listed() -> None:
    first, second = workers(FakeSystemctl()).list("legacy")
    assert (first.name, first.host, first.pid, first.alive, first.exit) == (ONE, "app1", 42, True, None)
    assert second.name == TWO


@pytest.mark.parametrize(
    ("unit", "status", "graceful"),
    [
        (("inactive", "dead", 0, 1, 0, "success"), 0, True),
        (("failed", "failed", 0, 1, 3, "exit-code"), 3, False),
        (("inactive", "dead", 0, 2, 15, "success"), -15, False),
        (("failed", "failed", 0, 2, 9, "timeout"), -9, False),
        (("failed", "failed", 0, 1, 0, "timeout"), -9, False),
        (("inactive", "dead", 0, 0, 0, "success"), None, False),
    ],
)
def test_how_a_unit_ended(unit: tuple[str, str, int, int, int, str], status: int | None, graceful: bool) -> None:
    systemctl = FakeSystemctl()
    systemctl.units[ONE] = systemctl.unit(*unit)
    process = workers(systemctl).list("legacy")[0]
    assert (process.exit, process.graceful, process.alive) == (status, graceful, False)


def test_a_unit_that_waits_for_its_restart_is_alive() -> None:
    systemctl = FakeSystemctl()
    systemctl.units[ONE] = systemctl.unit("activating", "auto-restart", 0, 2, 9, "signal")
    assert workers(systemctl).list("legacy")[0].alive


def test_a_stop_masks_and_does_not_wait() -> None:
    systemctl = FakeSystemctl()
    assert workers(systemctl).request_stop("legacy") is True
    assert systemctl.calls[1:] == [["mask", "--", ONE, TWO], ["stop", "--no-block", "--", ONE, TWO]]
    for name in (ONE, TWO):
        systemctl.units[name] |= {"ActiveState": "inactive", "MainPID": "0"}
    assert workers(systemctl).request_stop("legacy") is False
    assert systemctl.verbs() == ["mask", "stop"]


def test_a_unit_of_the_administrator_is_stopped_without_a_mask() -> None:
    systemctl = FakeSystemctl()
    systemctl.units[ONE]["FragmentPath"] = "/etc/systemd/system/worker@.service"
    workers(systemctl).request_stop("legacy")
    assert systemctl.calls[1] == ["mask", "--", TWO]


def test_a_start_unmasks() -> None:
    systemctl = FakeSystemctl()
    systemctl.units[ONE] = systemctl.unit("inactive", "dead") | {"LoadState": "masked"}
    assert workers(systemctl).start("legacy") is True
    assert systemctl.calls[1:] == [["unmask", "--", ONE], ["start", "--", ONE]]


def test_a_reload_asks_what_runs() -> None:
    systemctl = FakeSystemctl()
    systemctl.units[ONE] = systemctl.unit("inactive", "dead", 0, 1, 0)
    assert workers(systemctl).reload("legacy") is True
    assert systemctl.calls[1:] == [["reload-or-restart", "--", TWO]]
    systemctl.units[TWO] = systemctl.unit("inactive", "dead", 0, 1, 0)
    with pytest.raises(StoreError, match="nothing of 'legacy' runs"):
        workers(systemctl).reload("legacy")


def test_a_kill_says_what_it_killed() -> None:
    systemctl = FakeSystemctl()
    systemctl.units[ONE] = systemctl.unit("inactive", "dead", 0, 1, 0)
    adapter = workers(systemctl)
    assert [process.name for process in adapter.kill("legacy")] == [TWO]
    assert systemctl.verbs() == ["mask", "stop", "kill"]
    assert [process.exit for process in adapter.list("legacy")] == [0, -9]
    assert adapter.kill("legacy") == []


def test_a_kill_masks_what_did_not_run_too() -> None:
    """A boot, or a host that lost its power at that moment, must not start it again."""
    systemctl = FakeSystemctl()
    dead(systemctl)
    assert workers(systemctl).kill("legacy") == []
    assert systemctl.calls[1] == ["mask", "--", ONE, TWO]
    assert systemctl.verbs() == ["mask"]
    workers(systemctl).kill("legacy")
    assert systemctl.verbs() == ["mask"], "what is masked is not masked again"


def test_what_outlives_a_kill_is_an_error() -> None:
    systemctl = FakeSystemctl()
    systemctl.obeys_kill = False
    with pytest.raises(StoreError, match="outlived SIGKILL"):
        workers(systemctl).kill("legacy")


def test_errors_name_host_and_unit() -> None:
    systemctl = FakeSystemctl()
    systemctl.units[TWO]["LoadState"] = "not-found"
    with pytest.raises(StoreError, match=f"systemd of app1: there is no such unit.*{TWO}"):
        workers(systemctl).list("legacy")
    with pytest.raises(StoreError, match="no unit is named for the group 'rq'"):
        workers(systemctl).list("rq")
    systemctl.error = "Interactive authentication required."
    with pytest.raises(StoreError, match="Interactive authentication required"):
        workers(systemctl).list("legacy")


# -- what a dead main process left running: real processes, in control groups that only tests have --

FAMILY = "import subprocess, sys, time\nprint(subprocess.Popen(['sleep', '60']).pid, flush=True)\ntime.sleep(60)"


class Tree:
    """Control groups as files, and the processes that a test put into them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: list[subprocess.Popen[str]] = []
        self.strays: list[int] = []

    def process(self, *command: str) -> subprocess.Popen[str]:
        self.started.append(subprocess.Popen(command or ("sleep", "60"), stdout=subprocess.PIPE, text=True))
        return self.started[-1]

    def family(self) -> tuple[int, int]:
        """A process and its child."""
        parent = self.process(sys.executable, "-c", FAMILY)
        assert parent.stdout is not None
        self.strays.append(int(parent.stdout.readline()))
        return parent.pid, self.strays[-1]

    def put(self, group: str, *pids: int) -> Path:
        folder = self.root / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        return folder


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path / "cgroup")
    made.root.mkdir()
    yield made
    for pid in made.strays:  # first: they hold the pipes that are read to their end below
        stray = Processes().look(pid)
        if stray is not None:
            Processes().send(stray, signal.SIGKILL)
    for process in made.started:
        process.kill()
        process.communicate()


def supervised(systemctl: FakeSystemctl, tree: Tree) -> SystemdWorkers:
    return SystemdWorkers({"legacy": [ONE, TWO]}, "app1", runner=systemctl, clock=FakeClock(), cgroups=tree.root)


def left(systemctl: FakeSystemctl, tree: Tree) -> list[tuple[str, int]]:
    found = supervised(systemctl, tree).leftovers("legacy")
    assert all(process.alive and process.leftover and not process.unknown for process in found)
    return [(process.name, process.pid) for process in found]


def dead(systemctl: FakeSystemctl, *names: str) -> None:
    for name in names or (ONE, TWO):
        systemctl.units[name] = systemctl.unit("failed", "failed", 0, 2, 9, "signal")


def test_what_a_dead_unit_left_is_in_its_control_group(tree: Tree) -> None:
    systemctl = FakeSystemctl()
    dead(systemctl)
    assert left(systemctl, tree) == []
    horse, deeper, other = tree.process().pid, tree.process().pid, tree.process().pid
    tree.put(f"system.slice/{ONE}", horse)
    tree.put(f"system.slice/{ONE}/deeper", deeper)
    tree.put("system.slice/other.service", other)
    systemctl.units[ONE]["ControlGroup"] = f"/system.slice/{ONE}"
    assert left(systemctl, tree) == [(f"{ONE}/{pid}", pid) for pid in sorted((horse, deeper))]


def test_a_unit_that_systemd_forgot_is_found_by_its_name_below_slices_only(tree: Tree) -> None:
    systemctl = FakeSystemctl()
    dead(systemctl)
    mine, theirs = tree.process().pid, tree.process().pid
    tree.put(f"system.slice/system-worker.slice/{ONE}", mine)
    tree.put(f"system.slice/docker-1.scope/system.slice/{TWO}", theirs)  # a container's unit of the same name
    assert left(systemctl, tree) == [(f"{ONE}/{mine}", mine)]


def test_systemds_own_hierarchy_of_the_older_layout(tree: Tree) -> None:
    systemctl = FakeSystemctl()
    dead(systemctl)
    horse = tree.process().pid
    tree.put(f"systemd/system.slice/{ONE}", horse)
    tree.put(f"memory/system.slice/{ONE}", tree.process().pid)
    assert left(systemctl, tree) == [(f"{ONE}/{horse}", horse)]


def test_the_children_of_a_living_main_process_are_none(tree: Tree) -> None:
    """Only what an earlier main process of the unit left is."""
    systemctl = FakeSystemctl()
    dead(systemctl, TWO)
    main, child = tree.family()
    horse = tree.process().pid
    systemctl.units[ONE]["MainPID"] = str(main)
    tree.put(f"system.slice/{ONE}", main, child, horse)
    assert left(systemctl, tree) == [(f"{ONE}/{horse}", horse)]
    systemctl.units[ONE]["MainPID"] = "0"  # it runs without a main process: all of them are its own
    assert left(systemctl, tree) == []


def test_a_kill_ends_what_dead_units_left_and_nothing_else(tree: Tree) -> None:
    systemctl = FakeSystemctl()
    dead(systemctl)
    parent, child = tree.family()
    beside = tree.process()
    tree.put(f"system.slice/{ONE}", parent, child)
    tree.put("system.slice/other.service", beside.pid)
    adapter = supervised(systemctl, tree)
    assert {process.pid for process in adapter.kill("legacy")} == {parent, child}
    assert [Processes().look(pid) for pid in (parent, child)] == [None, None]
    assert beside.poll() is None
    assert adapter.kill("legacy") == []
    assert systemctl.verbs() == ["mask"]  # systemd itself had nothing to end


def test_a_control_group_that_cannot_be_read_is_reported(tree: Tree) -> None:
    systemctl = FakeSystemctl()
    dead(systemctl)
    nowhere = SystemdWorkers(
        {"legacy": [ONE]}, "app1", runner=systemctl, clock=FakeClock(), cgroups=tree.root / "nowhere"
    )
    [unknown] = nowhere.leftovers("legacy")
    assert (unknown.unknown, unknown.state) == (True, "UNREADABLE")
    assert ONE in unknown.name and "nowhere cannot be read" in unknown.name
    assert nowhere.kill("legacy") == []


@pytest.mark.parametrize(("source", "ends"), [("signal.SIG_DFL", False), ("lambda *_: sys.exit(0)", True)])
def test_only_those_who_know_how_to_end_are_asked(tree: Tree, source: str, ends: bool) -> None:
    """The request would end RQ's horse in the middle of its job."""
    systemctl = FakeSystemctl()
    dead(systemctl)
    program = (
        f"import signal, sys, time\nsignal.signal(signal.SIGTERM, {source})\nprint('up', flush=True)\ntime.sleep(60)"
    )
    process = tree.process(sys.executable, "-c", program)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    tree.put(f"system.slice/{ONE}", process.pid)
    assert supervised(systemctl, tree).ask_leftovers("legacy") is ends
    if ends:
        assert process.wait(PATIENCE_SECONDS) == 0
    else:
        assert process.poll() is None
