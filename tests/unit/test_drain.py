"""A drain in slices: who ended by themselves, who was killed, what was left; with a clock that only tests move."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
from ansible.module_utils.sluice.core.errors import StoreError
from ansible.module_utils.sluice.ports.surroundings import Supervisor, WorkerProcess
from ansible.module_utils.sluice.services.drain import SAMPLE_SECONDS, Drained, drain

START = 1_000_000.0


class FakeClock:
    """Time that passes by waiting only; `at` gets things done when their moment comes."""

    def __init__(self) -> None:
        self.time = 0.0
        self.at: dict[float, Callable[[], None]] = {}

    def now(self) -> float:
        return START + self.time

    def monotonic(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        assert seconds > 0, "a wait for nothing would spin"
        self.time += seconds
        for moment in sorted(moment for moment in self.at if moment <= self.time):
            self.at.pop(moment)()


class FakeSupervisor:
    """Workers that end when a test says so."""

    def __init__(self, host: str, *names: str) -> None:
        self.processes = {name: WorkerProcess(name, host, 100, "RUNNING", None, True) for name in names}
        self.calls: list[str] = []
        self.unreachable = False
        self.left: dict[str, WorkerProcess] = {}

    def leave(self, name: str, *, unknown: bool = False) -> None:
        """Something that a dead worker left running, or that cannot be read."""
        self.left[name] = WorkerProcess(name, "app1", 200, "LEFTOVER", None, True, leftover=True, unknown=unknown)

    def leftovers(self, group: str) -> Sequence[WorkerProcess]:
        self._answer("leftovers")
        return [*self.left.values()]

    def ask_leftovers(self, group: str) -> bool:
        self._answer("ask_leftovers")
        return bool(self.left)

    def end(self, name: str, status: int | None) -> None:
        self.processes[name] = dataclasses.replace(
            self.processes[name], pid=0, state="STOPPED", exit=status, alive=False
        )

    def list(self, group: str) -> Sequence[WorkerProcess]:
        self._answer("list")
        return [*self.processes.values()]

    def start(self, group: str) -> bool:
        raise AssertionError("a drain starts nothing")

    def request_stop(self, group: str) -> bool:
        self._answer("request_stop")
        return any(process.alive for process in self.processes.values())

    def reload(self, group: str) -> bool:
        raise AssertionError("a drain reloads nothing")

    def kill(self, group: str) -> Sequence[WorkerProcess]:
        self._answer("kill")
        left = [process for process in self.processes.values() if process.alive]
        for process in left:
            self.end(process.name, -1)
        left += [process for process in self.left.values() if not process.unknown]
        self.left = {name: process for name, process in self.left.items() if process.unknown}
        return left

    def _answer(self, call: str) -> None:
        if self.unreachable:
            raise StoreError("no answer.", where="supervisord of gone")
        self.calls.append(call)


class Site:
    """One supervisor or more, a number of leased rows, a clock."""

    def __init__(self, *supervisors: FakeSupervisor) -> None:
        self.clock = FakeClock()
        self.supervisors: list[Supervisor] = [*supervisors]
        self.leased = 0

    def slice(self, seconds: float = 5.0, deadline: float = 60.0, before: Drained | None = None) -> Drained:
        counts = {"high": {"leased": self.leased, "ready": 7}, "low": {"ready": 3}}
        return drain(
            lambda: counts | {"high": {"leased": self.leased, "ready": 7}},
            self.supervisors,
            "legacy",
            self.clock,
            deadline=START + deadline,
            slice_seconds=seconds,
            leased_ids=lambda: [f"task-{number}" for number in range(self.leased)],
            first=before is None,
            leftovers=before.leftovers if before else (),
        )


def names(processes: Sequence[WorkerProcess]) -> list[str]:
    return [process.name for process in processes]


def test_workers_are_asked_first_and_end_by_themselves() -> None:
    workers = FakeSupervisor("app1", "w1", "w2")
    site = Site(workers)
    site.leased = 2

    def finish() -> None:
        site.leased = 0
        workers.end("w1", 0)
        workers.end("w2", 0)

    site.clock.at[2.0] = finish
    drained = site.slice()
    assert workers.calls[0] == "request_stop"
    assert "kill" not in workers.calls
    assert drained.clean
    assert drained.remaining_seconds == pytest.approx(60 - 2.0 - SAMPLE_SECONDS)


def test_a_slice_ends_and_the_next_goes_on() -> None:
    workers = FakeSupervisor("app1", "w1")
    site = Site(workers)
    site.leased = 1
    first = site.slice(seconds=3)
    assert (first.done, first.leased, names(first.running)) == (False, 1, ["w1"])
    assert first.remaining_seconds == pytest.approx(57)
    assert site.clock.time == pytest.approx(3)
    site.leased = 0
    workers.end("w1", 0)
    assert site.slice(seconds=3).clean


def test_quiet_needs_two_looks() -> None:
    """A worker that leases a row between two looks is seen by the second."""
    workers = FakeSupervisor("app1", "w1")
    workers.end("w1", 0)
    site = Site(workers)

    def lease() -> None:
        site.leased = 1

    site.clock.at[SAMPLE_SECONDS] = lease
    drained = site.slice(seconds=1)
    assert (drained.done, drained.leased) == (False, 1)


@pytest.mark.parametrize("seconds", [0.0, SAMPLE_SECONDS / 2])
def test_a_short_slice_still_gets_its_second_look(seconds: float) -> None:
    workers = FakeSupervisor("app1", "w1")
    workers.end("w1", 0)
    assert Site(workers).slice(seconds=seconds).clean


def test_what_is_left_at_the_deadline_is_killed_and_named() -> None:
    workers = FakeSupervisor("app1", "w1", "w2", "w3")
    workers.end("w1", 0)
    site = Site(workers)
    site.leased = 2
    drained = site.slice(seconds=100, deadline=10)
    assert drained.done
    assert not drained.clean
    assert names(drained.killed) == ["w2", "w3"]
    assert names(drained.unproved) == ["w2", "w3"]
    assert [process.exit for process in drained.unproved] == [-1, -1]
    assert (drained.leased, list(drained.leased_ids)) == (2, ["task-0", "task-1"])
    assert names(drained.running) == []
    assert site.clock.time == pytest.approx(10)


@pytest.mark.parametrize("status", [-1, 1, None])
def test_an_exit_that_is_not_zero_is_not_proved_graceful(status: int | None) -> None:
    """Killed by its supervisor, failed, or not known: also when an earlier command did it."""
    workers = FakeSupervisor("app1", "w1", "w2")
    workers.end("w1", 0)
    workers.end("w2", status)
    drained = Site(workers).slice()
    assert drained.done
    assert names(drained.unproved) == ["w2"]
    assert not drained.clean


def test_a_killed_worker_is_unproved_even_if_its_supervisor_says_zero() -> None:
    class Forgetful(FakeSupervisor):
        def kill(self, group: str) -> Sequence[WorkerProcess]:
            left = super().kill(group)
            for process in left:
                self.end(process.name, 0)
            return left

    drained = Site(Forgetful("app1", "w1")).slice(seconds=100, deadline=1)
    assert names(drained.unproved) == ["w1"]


def test_what_a_dead_worker_left_runs_until_it_has_ended_and_is_unproved() -> None:
    """Also when it ended between two slices: only the first slice asks it to end."""
    workers = FakeSupervisor("app1", "w1")
    workers.end("w1", 0)
    workers.leave("w1/200")
    site = Site(workers)
    first = site.slice(seconds=3)
    assert (first.done, names(first.running), names(first.leftovers)) == (False, ["w1/200"], ["w1/200"])
    workers.left.clear()
    last = site.slice(seconds=3, before=first)
    assert last.done and not last.clean
    assert (names(last.unproved), names(last.killed)) == (["w1/200"], [])
    assert workers.calls.count("ask_leftovers") == 1


def test_what_a_dead_worker_left_and_ended_when_asked_is_unproved() -> None:
    """However fast it was: a scheduler may be gone before the first look."""

    class Obedient(FakeSupervisor):
        def ask_leftovers(self, group: str) -> bool:
            asked = super().ask_leftovers(group)
            self.left.clear()
            return asked

    workers = Obedient("app1", "w1")
    workers.end("w1", 0)
    workers.leave("w1/200")
    drained = Site(workers).slice()
    assert drained.done and not drained.clean
    assert (names(drained.unproved), names(drained.killed)) == (["w1/200"], [])


def test_what_a_dead_worker_left_is_killed_at_the_deadline() -> None:
    workers = FakeSupervisor("app1", "w1")
    workers.end("w1", 0)
    workers.leave("w1/200")
    drained = Site(workers).slice(seconds=100, deadline=10)
    assert (names(drained.killed), names(drained.unproved), names(drained.running)) == (["w1/200"], ["w1/200"], [])


def test_what_cannot_be_read_is_unproved_and_not_waited_for() -> None:
    workers = FakeSupervisor("app1", "w1")
    workers.end("w1", 0)
    workers.leave("process 200", unknown=True)
    drained = Site(workers).slice()
    assert drained.done and not drained.clean
    assert (names(drained.unproved), names(drained.running)) == (["process 200"], [])
    assert "kill" not in workers.calls


def test_leased_rows_of_nobody_are_waited_for_and_named() -> None:
    workers = FakeSupervisor("app1", "w1")
    workers.end("w1", 0)
    site = Site(workers)
    site.leased = 1
    drained = site.slice(seconds=100, deadline=20)
    assert site.clock.time == pytest.approx(20)
    assert (drained.done, drained.leased, list(drained.leased_ids)) == (True, 1, ["task-0"])
    assert list(drained.unproved) == []


def test_unreachable_is_not_dead() -> None:
    workers, gone = FakeSupervisor("app1", "w1"), FakeSupervisor("app2", "w2")
    gone.unreachable = True
    workers.end("w1", 0)
    site = Site(gone, workers)
    first = site.slice(seconds=1)
    assert not first.done
    assert list(first.unreachable) == ["supervisord of gone: no answer."]
    last = site.slice(seconds=100, deadline=5)
    assert last.done
    assert not last.clean
    assert list(last.unreachable) == ["supervisord of gone: no answer."]
    assert "request_stop" in workers.calls  # the others were asked all the same


def test_a_command_repeated_after_the_deadline_ends_at_once() -> None:
    workers = FakeSupervisor("app1", "w1")
    site = Site(workers)
    site.clock.time = 100
    assert site.slice(deadline=60).killed
    assert site.clock.time == 100


def test_rows_that_cannot_be_counted_are_an_error() -> None:
    def counts() -> dict[str, dict[str, int]]:
        raise StoreError("gone away.", where="database")

    with pytest.raises(StoreError, match="gone away"):
        drain(counts, [FakeSupervisor("a", "w")], "legacy", FakeClock(), deadline=START + 5, slice_seconds=5)
