"""The transfer over the memory adapters: batch by batch, resumable at every arrow, undone before the first release."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn

import pytest
from ansible.module_utils.sluice.adapters.memory import MemoryClock, MemoryLedger, MemorySource, MemoryTarget, Row
from ansible.module_utils.sluice.core.errors import (
    FenceOpen,
    GenerationMismatch,
    LeaseLost,
    RunConflict,
    StagesGone,
    StoreError,
)
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.core.tasks import Claim, Home, Lease, Refused, Released, Staged, Task
from ansible.module_utils.sluice.core.verdicts import Check, Gate, Verdict
from ansible.module_utils.sluice.ports.ledger import Run
from ansible.module_utils.sluice.services.transfer import Moved, Pace, Transfer, abort

FENCED = Gate("fence", [Check("accounts", Verdict.PASSED, "2 locked")])
RUN = Run("run-1", "memory", "forward", "tester", Phase.OPENED, "", "", "stamp-1", datetime.now(UTC), None, {})
SMALL = Pace(batch=10, smallest=2, largest=10)


class Crash(Exception):
    """The process ends here."""


class TamperingTarget(MemoryTarget):
    """Keeps other bytes than it was sent for the job ids in ``spoiled``."""

    spoiled: frozenset[str] = frozenset()

    def kept(self, task: Task) -> str:
        return "spoiled" if task.job_id in self.spoiled else super().kept(task)


class World:
    """Both stores, the ledger, and the process that moves tasks. ``hooks`` run as a step begins."""

    def __init__(self) -> None:
        self.clock = MemoryClock()
        self.ledger = MemoryLedger(self.clock)
        self.ledger.install()
        self.ledger.start_run(RUN)
        self.source = MemorySource(self.ledger)
        self.target = TamperingTarget(self.clock)
        self.lease = self.ledger.take_lease(RUN, "first", 60)
        self.target.stamp(self.lease)
        self.fence = FENCED

    def add(self, count: int, queue: str = "normal", *, first: int = 1, delay: float = 0.0) -> list[str]:
        """Tasks of rising age."""
        ids = [f"t{number:04d}" for number in range(first, first + count)]
        for number, task_id in enumerate(ids, start=first):
            self.source.rows[task_id] = Row(task_id, queue, float(number), self.clock.now() + delay)
        return ids

    def transfer(self, *, pace: Pace = SMALL, custody_in_row: bool = True) -> Transfer:
        """The service over this world."""
        return Transfer(
            self.source,
            self.target,
            self.ledger,
            self.clock,
            prove_fence=lambda: self.fence,
            custody_in_row=custody_in_row,
            pace=pace,
        )

    def run(self, seconds: float = 600.0, *, pace: Pace = SMALL, custody_in_row: bool = True) -> Moved:
        """One slice."""
        return self.transfer(pace=pace, custody_in_row=custody_in_row).slice(self.lease, seconds)

    def restart(self) -> None:
        """Another process, by the same command."""
        self.lease = self.ledger.take_lease(RUN, self.lease.owner, 60)

    def places(self) -> dict[str, str]:
        """Where the source sees each id."""
        return {seen.id: str(seen.place) for seen in self.source.census()}

    def held(self) -> dict[str, str]:
        """Held ids with their reasons."""
        return {seen.id: seen.where for seen in self.ledger.held()}


@pytest.fixture
def world() -> World:
    """Two empty stores, a run, its lease and stamp."""
    return World()


def crash(*_: object) -> None:
    """A step at which the process ends."""
    raise Crash


# -- the way of a task ------------------------------------------------------------------------------------------------


def test_moves_everything_in_order(world: World) -> None:
    normal = world.add(35)
    urgent = world.add(7, "urgent", first=100)
    delayed = world.add(3, "low", first=200, delay=3600)
    moved = world.run()
    assert (moved.moved, moved.held, moved.lost, moved.done, moved.stopped) == (45, 0, 0, True, False)
    assert world.target.queued("normal") == normal
    assert world.target.queued("urgent") == urgent
    assert world.target.queued("low") == []
    assert sorted(world.target.etas) == delayed
    assert set(world.places().values()) == {"moved"}
    assert world.ledger.moved_by_queue("run-1") == {"urgent": 7, "normal": 35, "low": 3}
    assert moved.batches == world.target.last_batch()


def test_nothing_to_move_is_done(world: World) -> None:
    assert world.run() == Moved(done=True)
    run = world.ledger.open_run()
    assert run is not None
    assert run.point_of_no_return_at is None


def test_again_moves_nothing_more(world: World) -> None:
    ids = world.add(12)
    world.run()
    world.restart()
    assert world.run() == Moved(done=True)
    assert world.target.queued("normal") == ids


def test_progress_is_told_after_each_batch(world: World) -> None:
    world.add(35)
    told: list[int] = []
    world.transfer().slice(world.lease, 600, on_batch=lambda moved: told.append(moved.moved))
    assert told == sorted(told)
    assert told[0] == 10
    assert len(told) >= 3


def test_a_slice_ends_between_two_batches_and_the_next_goes_on(world: World) -> None:
    ids = world.add(35)
    first = world.run(seconds=0)
    assert (first.done, first.stopped, first.moved) == (False, False, 10)
    assert set(world.places().values()) == {"moved", "ready"}
    rest = world.run()
    assert (rest.done, rest.moved) == (True, 25)
    assert world.target.queued("normal") == ids


def test_an_open_fence_stops_it_before_anything_is_touched(world: World) -> None:
    world.add(3)
    world.fence = Gate("fence", [Check("sessions", Verdict.UNKNOWN, "cannot be read", "grant PROCESS")])
    with pytest.raises(FenceOpen, match="sessions unknown: cannot be read") as refused:
        world.run()
    assert (refused.value.where, refused.value.next_step) == ("fence", "run the same command again: it fences first.")
    assert set(world.places().values()) == {"ready"}
    assert world.target.jobs == {}


def test_an_old_lease_moves_nothing(world: World) -> None:
    world.add(3)
    old = world.lease
    world.restart()
    with pytest.raises(LeaseLost):
        world.transfer().slice(old, 600)
    assert set(world.places().values()) == {"ready"}
    assert world.target.jobs == {}


def test_an_emptied_target_stops_it_before_custody_passes(world: World) -> None:
    world.add(3)
    world.target.empty()
    with pytest.raises(GenerationMismatch):
        world.run()
    assert set(world.places().values()) == {"claimed"}
    assert dict(world.ledger.entries) == {}


# -- what does not go through -----------------------------------------------------------------------------------------


def test_what_the_target_did_not_keep_as_sent_is_held_and_its_stage_deleted(world: World) -> None:
    ids = world.add(5)
    world.target.spoiled = frozenset({ids[2]})
    moved = world.run()
    assert (moved.moved, moved.held, moved.done) == (4, 1, True)
    assert world.held() == {ids[2]: "the target did not keep what was staged (digests differ)"}
    assert world.target.queued("normal") == [ids[0], ids[1], ids[3], ids[4]]
    assert ids[2] not in world.target.jobs


def test_a_queue_that_is_not_mapped_is_held_with_its_reason(world: World) -> None:
    world.add(2)
    [odd] = world.add(1, "elsewhere", first=9)
    moved = world.run()
    assert (moved.moved, moved.held, moved.done) == (2, 1, True)
    assert world.held() == {odd: "queue value 'elsewhere' is not mapped"}


def test_a_stranger_of_the_same_id_is_left_alone_and_ours_is_held(world: World) -> None:
    ids = world.add(3)
    world.target.enter(Home.QUEUED, "normal", ids[1])
    moved = world.run()
    assert (moved.moved, moved.held) == (2, 1)
    assert world.held() == {ids[1]: "another job of this id exists at the target"}
    assert world.target.queued("normal") == [ids[1], ids[0], ids[2]]


def test_without_custody_in_the_row_such_a_job_was_born_at_the_target(world: World) -> None:
    ids = world.add(3)
    world.target.enter(Home.QUEUED, "normal", ids[1])
    moved = world.run(custody_in_row=False)
    assert (moved.moved, moved.held, moved.done) == (2, 0, True)
    assert world.held() == {}
    assert str(world.ledger.entries[ids[1]].mark) == "settled"
    world.restart()
    assert world.run(custody_in_row=False) == Moved(done=True)
    assert world.target.queued("normal") == [ids[1], ids[0], ids[2]]


def test_a_source_restored_from_a_backup_is_refused(world: World) -> None:
    ids = world.add(3)
    world.run()
    world.source.rows[ids[0]].custody = "source"  # the table went back in time; the target did not
    world.ledger.entries.clear()
    world.restart()
    with pytest.raises(RunConflict, match=r"from a backup\. Nothing more was moved\.") as refused:
        world.run()
    assert refused.value.where == "source"
    assert refused.value.next_step == (
        "restore both stores to one moment, or settle these ids by hand; see playbooks/status.yml."
    )
    assert world.target.queued("normal") == ids
    assert world.places()[ids[0]] == "claimed"


def test_a_task_cancelled_while_it_was_claimed_is_lost_and_its_stage_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = world.add(5)
    stage = world.target.stage

    def cancelling(lease: Lease, tasks: Sequence[Task]) -> Staged:
        world.source.rows[ids[3]].status = "cancelled"
        return stage(lease, tasks)

    monkeypatch.setattr(world.target, "stage", cancelling)
    moved = world.run()
    assert (moved.moved, moved.lost, moved.done) == (4, 1, True)
    assert world.places()[ids[3]] == "cancelled"
    assert ids[3] not in world.target.jobs
    assert ids[3] not in world.target.queued("normal")


# -- pace -------------------------------------------------------------------------------------------------------------


def test_the_stop_flag_ends_it_between_two_batches(world: World) -> None:
    world.add(35)
    world.ledger.request_stop()
    moved = world.run()
    assert (moved.stopped, moved.done, moved.moved) == (True, False, 10)
    assert set(world.places().values()) == {"moved", "ready"}
    world.ledger.request_stop(False)
    assert world.run().done


@pytest.mark.parametrize("rate", [0.5, 10, 200, 5000])
def test_the_rate_caps_what_is_moved(world: World, rate: float) -> None:
    world.add(400)
    moved = world.run(3600, pace=Pace(batch=1000, rate=rate))
    assert (moved.moved, moved.done) == (400, True)
    # What is under way when the last wait begins comes on top: three batches of at most one second's worth.
    allowed = 3 * max(1.0, rate)
    assert moved.seconds >= (400 - allowed) / rate
    assert moved.seconds <= 400 / rate + 2


def test_a_long_wait_for_the_rate_keeps_the_lease_and_ends_with_the_slice(world: World) -> None:
    world.add(50)
    moved = world.run(60, pace=Pace(batch=10, rate=0.1, lease_seconds=25))
    assert not moved.done
    assert 60 <= moved.seconds < 90
    state = world.ledger.lease_state()
    assert state is not None
    assert state.remaining > 0


def test_without_a_rate_it_waits_for_nothing(world: World) -> None:
    world.add(400)
    assert world.run().seconds == 0


def test_a_slow_store_gets_smaller_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(60)
    claim = world.source.claim
    sizes: list[int] = []

    def slow(lease: Lease, limit: int) -> Claim:
        sizes.append(limit)
        world.clock.wait(0.3)
        return claim(lease, limit)

    monkeypatch.setattr(world.source, "claim", slow)
    assert world.run(pace=Pace(batch=32, smallest=4, largest=64)).moved == 60
    assert sizes[:4] == [32, 16, 8, 4]
    assert min(sizes) == 4


def renewals(world: World, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moments at which the lease is renewed, in seconds waited so far."""
    moments: list[float] = []
    renew = world.ledger.renew

    def noted(lease: Lease, seconds: float) -> None:
        moments.append(world.clock.monotonic())
        renew(lease, seconds)

    monkeypatch.setattr(world.ledger, "renew", noted)
    return moments


def test_the_lease_is_renewed_each_quarter_of_its_time_and_not_each_batch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add(100)
    claim = world.source.claim

    def slow(lease: Lease, limit: int) -> Claim:
        world.clock.wait(2.5)  # a quarter of the lease is 5 s: a third batch begins after it
        return claim(lease, limit)

    monkeypatch.setattr(world.source, "claim", slow)
    moments = renewals(world, monkeypatch)
    moved = world.run(pace=Pace(batch=10, smallest=10, largest=10, lease_seconds=20))
    assert (moved.moved, moved.done) == (100, True)
    assert moments[0] == 0.0
    assert 2 <= len(moments) <= 6, "by the clock, not by the batch"
    assert all(later - earlier <= 10 for earlier, later in zip(moments, [*moments[1:], moved.seconds], strict=True))
    assert all(later - earlier > 5 for earlier, later in itertools.pairwise(moments))


def test_a_slice_begins_with_a_fresh_lease(world: World) -> None:
    world.clock.wait(50)
    assert world.run().done
    state = world.ledger.lease_state()
    assert state is not None
    assert state.remaining == SMALL.lease_seconds


def test_a_long_wait_renews_the_lease_each_fifth_of_its_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(10)
    moments = renewals(world, monkeypatch)
    moved = world.run(30, pace=Pace(batch=1, rate=0.05, lease_seconds=10))
    assert 30 <= moved.seconds <= 32
    assert max(later - earlier for earlier, later in itertools.pairwise(moments)) <= 2.0


def test_short_waits_renew_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(20)
    moments = renewals(world, monkeypatch)
    assert world.run(pace=Pace(batch=1, rate=10, lease_seconds=100)).done
    assert moments == [0.0]


def test_what_is_held_counts_for_the_rate_too(world: World) -> None:
    world.add(10, "nowhere")
    moved = world.run(3600, pace=Pace(batch=1, rate=1))
    assert (moved.held, moved.done) == (10, True)
    assert moved.seconds >= 7


def test_a_quick_store_gets_larger_batches_by_a_quarter_up_to_the_largest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add(100)
    claim = world.source.claim
    sizes: list[int] = []

    def noted(lease: Lease, limit: int) -> Claim:
        sizes.append(limit)
        return claim(lease, limit)

    monkeypatch.setattr(world.source, "claim", noted)
    assert world.run(pace=Pace(batch=8, smallest=4, largest=13)).moved == 100
    assert sizes[:4] == [8, 10, 12, 13]
    assert max(sizes) == 13


def test_the_default_pace() -> None:
    """The bound on lock time and the room for progress lines were chosen for these."""
    assert Pace() == Pace(batch=1000, smallest=50, largest=1000, rate=0.0, lease_seconds=25.0)
    assert Moved() == Moved(0, 0, 0, 0, 0, False, False, 0.0)


# -- resume -----------------------------------------------------------------------------------------------------------

STEPS: dict[str, Callable[[World, pytest.MonkeyPatch], None]] = {
    "before stage": lambda world, patch: patch.setattr(world.target, "stage", crash),
    "after stage": lambda world, patch: patch.setattr(world.target, "stage", _then_crash(world.target.stage)),
    "before release": lambda world, patch: patch.setattr(world.source, "release", crash),
    "after release": lambda world, patch: patch.setattr(world.source, "release", _then_crash(world.source.release)),
    "before activate": lambda world, patch: patch.setattr(world.target, "activate", crash),
    "after activate": lambda world, patch: patch.setattr(world.target, "activate", _then_crash(world.target.activate)),
}


def _then_crash(step: Callable[..., object]) -> Callable[..., object]:
    def done(*arguments: object) -> object:
        step(*arguments)
        raise Crash

    return done


@pytest.mark.parametrize("step", STEPS)
def test_the_same_command_again_loses_and_doubles_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ids = world.add(35)
    delayed = world.add(2, "low", first=100, delay=3600)
    with monkeypatch.context() as patch:
        STEPS[step](world, patch)
        with pytest.raises(Crash):
            world.run()
    world.restart()
    moved = world.run()
    assert moved.done
    assert sorted(world.target.queued("normal")) == ids
    assert sorted(world.target.etas) == delayed
    assert set(world.places().values()) == {"moved"}
    assert world.held() == {}


def test_resume_activates_what_was_released_and_not_marked(world: World) -> None:
    ids = world.add(4)
    tasks = world.source.claim(world.lease, 2).tasks
    world.target.stage(world.lease, tasks)
    world.source.release(world.lease, tasks, ["d", "d"], 1)
    world.restart()
    moved = world.run()
    assert (moved.reactivated, moved.moved, moved.done) == (2, 2, True)
    assert world.target.queued("normal") == ids


def test_resume_deletes_the_stages_of_tasks_that_ended_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = world.add(3)
    release = world.source.release

    def cancelled_then_crash(lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> Released:
        world.source.rows[ids[1]].status = "cancelled"
        release(lease, tasks, digests, batch)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(world.source, "release", cancelled_then_crash)
        with pytest.raises(Crash):
            world.run()
    assert world.target.jobs[ids[1]].status == "created"
    world.restart()
    assert world.run().done
    assert ids[1] not in world.target.jobs
    assert world.target.queued("normal") == [ids[0], ids[2]]


def test_stages_lost_after_the_release_are_made_again_from_their_rows(world: World) -> None:
    ids = world.add(4)
    tasks = world.source.claim(world.lease, 4).tasks
    world.target.stage(world.lease, tasks)
    world.source.release(world.lease, tasks, ["d"] * 4, 1)
    world.target.lose(ids[0])
    world.target.lose(ids[2])
    world.source.rows[ids[2]].status = "running"  # the witness: it has started, whatever the target forgot
    world.restart()
    moved = world.run()
    assert (moved.reactivated, moved.done) == (3, True)
    assert sorted(world.target.queued("normal")) == [ids[0], ids[1], ids[3]]
    assert ids[2] not in world.target.jobs
    assert world.target.last_batch() == 1


def test_a_target_that_keeps_losing_stages_is_an_error_and_no_silence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add(3)
    stage = world.target.stage

    def forgetful(lease: Lease, tasks: Sequence[Task]) -> Staged:
        staged = stage(lease, tasks)
        for task in tasks:
            world.target.lose(task.job_id)
        return staged

    monkeypatch.setattr(world.target, "stage", forgetful)
    with pytest.raises(StagesGone, match="3 released tasks have no staged job"):
        world.run()
    monkeypatch.undo()
    world.restart()
    assert world.run().reactivated == 3


# -- undo -------------------------------------------------------------------------------------------------------------


def test_abort_puts_back_what_was_claimed_and_deletes_its_stages(world: World) -> None:
    ids = world.add(5)
    tasks = world.source.claim(world.lease, 3).tasks
    world.target.stage(world.lease, tasks)
    world.target.enter(Home.QUEUED, "normal", "theirs")
    asked: list[Sequence[str]] = []
    discard = world.target.discard
    world.target.discard = lambda lease, ids: (asked.append(list(ids)), discard(lease, ids))[1]  # type: ignore[method-assign]
    world.restart()
    assert abort(world.source, world.target, world.lease) == (3, 3)
    assert asked == [ids[:3]], "nothing but stages is to be deleted"
    assert set(world.places().values()) == {"ready"}
    assert list(world.target.jobs) == ["theirs"]
    assert world.source.in_hand(9) == ids


def test_abort_leaves_what_was_activated_alone(world: World) -> None:
    ids = world.add(12)
    world.run(seconds=0)
    tasks = world.source.claim(world.lease, 10).tasks
    world.target.stage(world.lease, tasks)
    assert abort(world.source, world.target, world.lease) == (2, 2)
    assert world.target.queued("normal") == ids[:10]
    assert [place for place in world.places().values() if place == "ready"] == ["ready"] * 2


def test_abort_under_an_old_lease_changes_nothing(world: World) -> None:
    world.add(3)
    world.target.stage(world.lease, world.source.claim(world.lease, 3).tasks)
    old = world.lease
    world.restart()
    with pytest.raises(LeaseLost):
        abort(world.source, world.target, old)
    assert set(world.places().values()) == {"claimed"}
    assert len(world.target.jobs) == 3


def test_another_run_cannot_move_over_this_target(world: World) -> None:
    world.add(3)
    other = replace(world.lease, generation="stamp-2")
    with pytest.raises(GenerationMismatch):
        world.transfer().slice(other, 600)
    assert world.target.jobs == {}


# -- what the target refuses, knows as over, or has from an earlier life of the task -----------------------------------


class AnsweringTarget(TamperingTarget):
    """Answers for some job ids as a table of RQ's past would: ended already, or not to be had there."""

    ended: frozenset[str] = frozenset()
    refusing: frozenset[str] = frozenset()

    def stage(self, lease: Lease, tasks: Sequence[Task]) -> Staged:
        settled = self.ended | self.refusing
        staged = super().stage(lease, [task for task in tasks if task.job_id not in settled])
        refused = [Refused(task.id, "the target has no word for it") for task in tasks if task.job_id in self.refusing]
        over = [task.job_id for task in tasks if task.job_id in self.ended]
        return replace(staged, over=over, refused=refused)


def test_what_is_over_at_the_target_is_left_and_what_it_refuses_is_held(world: World) -> None:
    ids = world.add(4)
    target = AnsweringTarget(world.clock)
    target.stamp(world.lease)
    target.ended, target.refusing = frozenset({ids[0]}), frozenset({ids[1]})
    world.target = target
    moved = world.run()
    assert (moved.moved, moved.held) == (2, 1)
    assert world.held() == {ids[1]: "the target has no word for it"}
    assert target.queued("normal") == ids[2:]
    marks = {seen.id: str(seen.place) for seen in world.ledger.marks()}
    assert marks == {ids[0]: "settled", ids[1]: "held", ids[2]: "moved", ids[3]: "moved"}
    assert world.ledger.entries[ids[0]].reason == "ended, or at the target already"


def queued_again(world: World, monkeypatch: pytest.MonkeyPatch, again: Sequence[str]) -> list[str]:
    """Three tasks that were moved and are ready at the source once more; some of them by their users' wish."""
    ids = world.add(3)
    world.run()
    for task_id in ids:
        row = world.source.rows[task_id]
        row.custody, row.token = "source", 0
    world.restart()
    monkeypatch.setattr(world.source, "renewed", lambda wanted: set(again) & set(wanted))
    return ids


def test_a_task_queued_again_whose_first_job_has_ended_is_moved_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = queued_again(world, monkeypatch, ["t0001", "t0002", "t0003"])
    for task_id in ids:
        world.target.jobs[task_id].status = Home.FAILED.value
        world.target._contents.places[Home.QUEUED, "normal"].remove(task_id)
    moved = world.run()
    assert (moved.moved, moved.held) == (3, 0)
    assert world.target.queued("normal") == ids
    assert set(world.places().values()) == {"moved"}


def test_a_task_queued_again_whose_first_job_still_waits_is_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = queued_again(world, monkeypatch, ["t0001", "t0002", "t0003"])
    world.target.jobs[ids[0]].status = Home.CANCELLED.value
    world.target._contents.places[Home.QUEUED, "normal"].remove(ids[0])
    moved = world.run()
    assert (moved.moved, moved.held) == (1, 2)
    reason = "queued again, and the job it had before is still at the target"
    assert world.held() == {ids[1]: reason, ids[2]: reason}
    assert sorted(world.target.queued("normal")) == ids


def test_one_that_nobody_queued_again_still_tells_of_a_restored_source(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = queued_again(world, monkeypatch, ["t0001", "t0002"])
    with pytest.raises(RunConflict, match=r"1 tasks were activated .* \(first: t0003\): .*restored from a backup"):
        world.run()
    assert world.target.queued("normal") == ids


def test_a_stage_that_is_lost_again_while_it_is_made_again_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of the batch is sound, so nothing is activated, and the next command finds the batch released."""
    world.add(2)
    tasks = world.source.claim(world.lease, 2).tasks
    world.source.release(world.lease, tasks, ["d"] * 2, 1)
    world.target.spoiled = frozenset(task.job_id for task in tasks)
    world.restart()
    assert world.run().reactivated == 0
    assert world.target.queued("normal") == []
    world.target.spoiled = frozenset()
    world.target.jobs.clear()
    world.restart()
    assert world.run().reactivated == 2


def test_a_batch_of_cancelled_tasks_alone_activates_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = world.add(2)
    stage = world.target.stage

    def cancelled_meanwhile(lease: Lease, tasks: Sequence[Task]) -> Staged:
        for task_id in ids:
            world.source.rows[task_id].status = "cancelled"
        return stage(lease, tasks)

    monkeypatch.setattr(world.target, "stage", cancelled_meanwhile)
    activated: list[int] = []
    monkeypatch.setattr(world.target, "activate", lambda _lease, _tasks, batch: activated.append(batch) or 0)
    moved = world.run()
    assert (moved.moved, moved.lost) == (0, 2)
    assert activated == []
    assert world.target.jobs == {}


def test_abort_deletes_more_stages_than_one_call_takes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(2000)
    world.target.stage(world.lease, world.source.claim(world.lease, 2000).tasks)
    calls: list[int] = []
    discard = world.target.discard

    def counted(lease: Lease, job_ids: Sequence[str]) -> int:
        calls.append(len(job_ids))
        return discard(lease, job_ids)

    monkeypatch.setattr(world.target, "discard", counted)
    assert abort(world.source, world.target, world.lease) == (2000, 2000)
    assert calls == [1000, 1000]
    assert world.target.jobs == {}


def test_abort_of_a_run_that_staged_nothing_deletes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(2)
    monkeypatch.setattr(world.target, "discard", crash)
    assert abort(world.source, world.target, world.lease) == (0, 0)


@pytest.mark.parametrize("hanging", ["claim", "release"])
def test_of_two_failures_the_one_that_the_other_waited_for_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    """What hangs in its COMMIT keeps the other waiting for its locks: that wait is over sooner, and not the cause."""
    world.add(30)
    claim, numbers = world.source.claim, itertools.count(1)
    begun, waited, exception = threading.Event(), threading.Event(), Future.exception

    def hangs() -> NoReturn:
        begun.set()
        assert waited.wait(60)
        raise StoreError("a COMMIT had no answer")

    def waits() -> NoReturn:
        assert begun.wait(60)
        raise StoreError("Lock wait timeout exceeded")

    def asked(future: Future[object], timeout: float | None = None) -> BaseException | None:
        waited.set()  # this failure was seen, and the other's end is waited for
        return exception(future, timeout)

    def claims(lease: Lease, limit: int) -> Claim:
        # The first batch's release is looked at when the third is being claimed.
        if next(numbers) < (3 if hanging == "claim" else 2):
            return claim(lease, limit)
        return hangs() if hanging == "claim" else waits()

    monkeypatch.setattr(Future, "exception", asked)
    monkeypatch.setattr(world.source, "claim", claims)
    monkeypatch.setattr(world.source, "release", lambda *_: waits() if hanging == "claim" else hangs())
    with pytest.raises(StoreError, match="a COMMIT had no answer"):
        world.run()


def test_a_claim_that_fails_alone_is_told_and_the_release_beside_it_stands(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add(30)
    claim, claims = world.source.claim, itertools.count(1)

    def fails_at_last(lease: Lease, limit: int) -> Claim:
        if next(claims) == 3:
            raise StoreError("the connection was lost")
        return claim(lease, limit)

    monkeypatch.setattr(world.source, "claim", fails_at_last)
    with pytest.raises(StoreError, match="the connection was lost"):
        world.run()
    assert Counter(world.places().values()) == {"moved": 20, "ready": 10}


def test_a_batch_of_which_nothing_can_go_is_held_and_counts_as_one(world: World) -> None:
    ids = world.add(2, "unheard-of")
    assert world.run() == Moved(held=2, batches=1, done=True)
    assert set(world.held()) == set(ids)
