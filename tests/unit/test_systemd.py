"""Workers as systemd units, against a systemctl that only tests have."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from ansible.module_utils.sluice.adapters.systemd import SystemdWorkers
from ansible.module_utils.sluice.core.errors import StoreError

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
    assert systemctl.verbs() == ["stop", "kill"]
    assert [process.exit for process in adapter.list("legacy")] == [0, -9]
    assert adapter.kill("legacy") == []


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
