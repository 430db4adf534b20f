"""What every source promises: order, one holder per task, nothing written under an old token, custody by one commit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from ansible.module_utils.sluice.adapters.sql_home import SqlJournal
from ansible.module_utils.sluice.core.conditions import Among
from ansible.module_utils.sluice.core.errors import LeaseLost, SluiceError
from ansible.module_utils.sluice.core.tasks import Place, Task
from sqlalchemy.exc import DBAPIError

from .rigs import BASE, CompanionRig, HomewardRig, SourceRig, plain_mapping

#: Seconds from now at which what was never delayed was due.
LONG_PAST = -1e9

Source = SourceRig


# -- claim ------------------------------------------------------------------------------------------------------------


def test_the_mapping_fits_the_schema(source: Source) -> None:
    assert [check.name for check in source.end.fit() if check.verdict != "passed"] == []


def test_claims_by_priority_then_age_then_id(source: Source) -> None:
    source.add("9", "low", created=0)
    source.add("8", "normal", created=5)
    source.add("7", "urgent", created=9)
    source.add("6", "high", created=1)
    source.add("5", "normal", created=5)
    source.add("4", "normal", created=3)
    assert source.claimed(2) == ["7", "6"]
    assert source.claimed(3) == ["4", "5", "8"]
    assert source.claimed(3) == ["9"]
    assert source.claimed(3) == []


def test_a_task_carries_what_the_row_says(source: Source) -> None:
    source.add("1", "high", created=7)
    [task] = source.end.claim(source.lease, 5).tasks
    assert (task.id, task.job_id, task.queue, task.created, task.eta) == ("1", "1", "high", BASE + 7, None)


def test_ready_ones_before_delayed_ones_and_those_with_their_time(source: Source) -> None:
    source.add("1", "urgent", created=0, delay=3600)
    source.add("2", "low", created=9)
    first = source.end.claim(source.lease, 5)
    assert [(task.id, task.eta) for task in first.tasks] == [("2", None)]
    [delayed] = source.end.claim(source.lease, 5).tasks
    assert delayed.id == "1"
    assert delayed.eta is not None
    assert abs(delayed.eta - source.now() - 3600) < 60
    assert source.claimed() == []


def test_a_straggler_is_found_after_an_empty_claim(source: Source) -> None:
    source.add("1", delay=3600)
    assert source.claimed() == ["1"]
    assert source.claimed() == []
    source.add("2")
    source.add("3", delay=3600)
    assert source.claimed() == ["2"]
    assert source.claimed() == ["3"]
    assert source.claimed() == []


def test_adopts_what_an_older_token_claimed_before_anything_new(source: Source) -> None:
    source.add("5", "low", created=5)
    source.add("6", "low", created=6)
    assert source.claimed() == ["5", "6"]
    source.add("1", "urgent")
    later = source.another()
    assert later.claimed() == ["5", "6"]
    assert later.claimed() == ["1"]
    assert later.claimed() == []


def test_two_claims_of_one_token_never_overlap(source: Source) -> None:
    ids = [str(number) for number in range(1, 61)]
    for task_id in ids:
        source.add(task_id)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda _: source.claimed(7), range(12)))
    found = [task_id for part in parts for task_id in part]
    found += source.claimed()  # rows that were locked at that moment were passed over, not lost
    assert sorted(found) == sorted(ids)


def test_only_tasks_in_circulation_are_claimed(source: Source) -> None:
    for task_id, word in enumerate(("leased", "finished", "failed", "cancelled", "odd"), start=1):
        source.add(str(task_id))
        source.touch(str(task_id), word)
    source.add("9")
    assert source.claimed() == ["9"]


def test_a_queue_that_is_not_mapped_is_refused_with_its_value(source: Source) -> None:
    if not source.any_queue:
        with pytest.raises(DBAPIError, match="priority"):
            source.add("1", "elsewhere")  # the table itself keeps such a row out
        return
    source.add("1", "elsewhere")
    claim = source.end.claim(source.lease, 5)
    assert (list(claim.tasks), [entry.id for entry in claim.refused]) == ([], ["1"])
    assert "'elsewhere' is not mapped" in claim.refused[0].reason


# -- an old token -----------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Source, list[Task]], object]] = {
    "claim": lambda rig, _: rig.end.claim(rig.lease, 5),
    "release": lambda rig, tasks: rig.end.release(rig.lease, tasks, ["d"] * len(tasks), 1),
    "hold": lambda rig, _: rig.end.hold(rig.lease, ["1", "2"], "why"),
    "leave": lambda rig, _: rig.end.leave(rig.lease, ["1"], "why"),
    "put_back": lambda rig, _: rig.end.put_back(rig.lease),
    "give_back": lambda rig, _: rig.end.give_back(rig.lease, ["3"]),
    "settle": lambda rig, _: rig.end.settle(rig.lease, ["3"], "why"),
}


@pytest.mark.parametrize("call", WRITES)
def test_an_old_token_writes_nothing(source: Source, call: str) -> None:
    for task_id in ("1", "2", "3"):
        source.add(task_id)
    tasks = list(source.end.claim(source.lease, 1).tasks)
    source.end.hold(source.lease, ["3"], "kept")
    source.another()
    before = (source.places(), source.marks(), source.ledger.held())
    with pytest.raises(LeaseLost, match="Nothing was written"):
        WRITES[call](source, tasks)
    assert (source.places(), source.marks(), source.ledger.held()) == before


# -- release ----------------------------------------------------------------------------------------------------------


def test_release_moves_custody_and_writes_the_ledger_together(source: Source) -> None:
    source.add("1", "urgent")
    source.add("2", "low", delay=3600)
    tasks = [*source.end.claim(source.lease, 5).tasks, *source.end.claim(source.lease, 5).tasks]
    assert source.places() == {"1": "claimed", "2": "claimed"}
    assert source.release(tasks, batch=4) == (["1", "2"], [])
    assert source.places() == {"1": "moved", "2": "moved"}
    assert source.marks() == {"1": "moved", "2": "moved"}
    assert source.ledger.moved_by_queue("run-1") == {"urgent": 1, "low": 1}
    assert source.ledger.next_batch(source.lease) == 5
    assert source.claimed() == []


def test_a_release_whose_record_fails_moves_nothing(source: Source) -> None:
    source.add("1")
    source.add("2")
    tasks = source.end.claim(source.lease, 5).tasks
    with pytest.raises(ValueError, match="zip"):
        source.end.release(source.lease, tasks, ["only one digest"], 1)
    assert source.places() == {"1": "claimed", "2": "claimed"}
    assert "moved" not in source.marks().values()


def test_the_first_release_is_the_point_of_no_return(source: Source) -> None:
    source.add("1")
    source.add("2")
    run = source.ledger.open_run()
    assert run is not None
    assert run.point_of_no_return_at is None
    source.release(source.end.claim(source.lease, 1).tasks)
    run = source.ledger.open_run()
    assert run is not None
    assert run.point_of_no_return_at is not None
    first = run.point_of_no_return_at
    source.release(source.end.claim(source.lease, 1).tasks, batch=2)
    run = source.ledger.open_run()
    assert run is not None
    assert run.point_of_no_return_at == first


def test_a_row_cancelled_meanwhile_is_lost_and_keeps_its_outcome(source: Source) -> None:
    for task_id in ("1", "2", "3"):
        source.add(task_id)
    tasks = source.end.claim(source.lease, 5).tasks
    source.touch("2", "cancelled")
    assert source.release(tasks) == (["1", "3"], ["2"])
    assert source.places() == {"1": "moved", "2": "cancelled", "3": "moved"}
    assert source.marks() == {"1": "moved", "2": "settled", "3": "moved"}
    assert source.another().claimed() == []


def test_a_row_cancelled_under_an_older_claim_is_given_back_to_the_application(source: Source) -> None:
    source.add("1")
    source.add("2")
    assert source.claimed() == ["1", "2"]
    source.touch("1", "cancelled")
    later = source.another()
    moved, _ = later.release(later.end.claim(later.lease, 5).tasks)
    assert moved == ["2"]
    assert later.places() == {"1": "cancelled", "2": "moved"}


def test_undo_gives_a_cancelled_row_back_to_the_application(source: Source) -> None:
    source.add("1")
    assert source.claimed() == ["1"]
    source.touch("1", "cancelled")
    source.end.put_back(source.lease)
    source.touch("1", "retried")
    assert source.places() == {"1": "ready"}


def test_the_stages_of_tasks_that_ended_meanwhile_can_be_found(source: Source) -> None:
    source.add("1")
    source.add("2")
    tasks = source.end.claim(source.lease, 5).tasks
    source.touch("2", "cancelled")
    assert list(source.ledger.ended_meanwhile(source.lease)) == []
    source.release(tasks)
    assert list(source.ledger.ended_meanwhile(source.lease)) == ["2"]


def test_a_batch_that_was_cancelled_whole_moves_nothing(source: Source) -> None:
    source.add("1")
    tasks = source.end.claim(source.lease, 5).tasks
    source.touch("1", "cancelled")
    assert source.release(tasks) == ([], ["1"])
    run = source.ledger.open_run()
    assert run is not None
    assert run.point_of_no_return_at is None


def test_a_task_is_released_once(source: Source) -> None:
    source.add("1")
    tasks = source.end.claim(source.lease, 5).tasks
    assert source.release(tasks) == (["1"], [])
    moved, _ = source.release(tasks, batch=2)
    assert moved == []


def test_what_an_older_token_claimed_is_not_released_before_it_is_claimed_anew(source: Source) -> None:
    source.add("1")
    tasks = source.end.claim(source.lease, 5).tasks
    later = source.another()
    with contextlib.suppress(SluiceError):  # refused as a whole, or named as not ours: both are right
        moved, _ = later.release(tasks)
        assert moved == []
    assert later.places() == {"1": "claimed"}
    assert later.claimed() == ["1"]


def test_released_tasks_are_listed_by_batch_in_claim_order(source: Source) -> None:
    for task_id in ("4", "3", "2", "1"):
        source.add(task_id, created=10 - int(task_id))
    source.release(source.end.claim(source.lease, 2).tasks, batch=1)
    source.add("9", "urgent", delay=3600)
    source.release(source.end.claim(source.lease, 2).tasks, batch=2)
    source.release(source.end.claim(source.lease, 2).tasks, batch=3)
    found = [(batch, [task.id for task in tasks]) for batch, tasks in source.ledger.moved_since(source.lease, 0)]
    assert found == [(1, ["4", "3"]), (2, ["2", "1"]), (3, ["9"])]
    [(batch, [task])] = list(source.ledger.moved_since(source.lease, 2))
    assert (batch, task.id, task.job_id, task.queue) == (3, "9", "9", "urgent")
    assert task.eta is not None


# -- undo and holds ---------------------------------------------------------------------------------------------------


def test_put_back_returns_claimed_tasks_and_leaves_held_ones(source: Source) -> None:
    for task_id in ("1", "2", "3"):
        source.add(task_id)
    assert source.claimed(2) == ["1", "2"]
    source.end.hold(source.lease, ["2"], "why")
    assert source.end.put_back(source.lease) == 1
    assert source.marks() == {"2": "held"}
    assert source.claimed() == ["1", "3"]


def test_put_back_by_a_later_token_and_not_of_moved_ones(source: Source) -> None:
    source.add("1")
    source.add("2")
    source.release(source.end.claim(source.lease, 1).tasks)
    assert source.claimed() == ["2"]
    later = source.another()
    assert later.end.put_back(later.lease) == 1
    assert later.places() == {"1": "moved", "2": "ready"}


def test_a_held_task_is_given_to_nobody_until_it_is_decided(source: Source) -> None:
    source.add("1")
    source.add("2")
    assert source.end.hold(source.lease, ["1", "2"], "uncertain effect") == 2
    assert source.end.hold(source.lease, ["1"], "again") == 0
    assert [(seen.id, seen.where) for seen in source.ledger.held()] == [
        ("1", "uncertain effect"),
        ("2", "uncertain effect"),
    ]
    later = source.another()
    assert later.claimed() == []
    assert list(later.unguarded().in_hand(5)) == []
    assert later.end.give_back(later.lease, ["1", "7"]) == 1
    assert later.claimed() == ["1"]
    assert [seen.id for seen in later.ledger.held()] == ["2"]


def test_a_claimed_task_that_is_held_is_not_released(source: Source) -> None:
    source.add("1")
    source.add("2")
    assert source.claimed() == ["1", "2"]
    source.end.hold(source.lease, ["1"], "why")
    later = source.another()
    assert later.claimed() == ["2"]


def test_a_settled_task_stays_out_of_circulation_for_good(source: Source) -> None:
    source.add("1")
    source.add("2")
    source.end.hold(source.lease, ["1"], "why")
    assert source.end.settle(source.lease, ["1", "2"], "failed by decision") == 1
    assert list(source.ledger.held()) == []
    later = source.another()
    assert later.claimed() == ["2"]
    assert later.end.put_back(later.lease) == 1
    assert source.another().claimed() == ["2"]


def test_a_row_that_is_left_is_never_claimed_again(source: Source) -> None:
    source.add("1")
    source.add("2")
    assert source.claimed(1) == ["1"]
    assert source.end.leave(source.lease, ["1"], "born at the target") == 1
    later = source.another()
    assert later.claimed() == ["2"]
    # Where rows record what is born at the target the job is theirs; else it is a stranger, and someone must decide.
    assert later.marks()["1"] == ("settled" if source.journal else "held")


def test_an_orphan_of_a_dead_poller_can_be_held_and_given_back(source: Source) -> None:
    source.add("1")
    source.touch("1", "leased")
    assert source.end.hold(source.lease, ["1"], "its worker is gone") == 1
    assert source.claimed() == []
    assert source.end.give_back(source.lease, ["1"]) == 1
    assert source.places() == {"1": "leased"}


# -- reading ----------------------------------------------------------------------------------------------------------


def test_reread_gives_released_tasks_that_neither_started_nor_ended(source: Source) -> None:
    for task_id in "12345":
        source.add(task_id, "high", created=9 - int(task_id))
    source.release(source.end.claim(source.lease, 5).tasks)
    source.add("6")
    source.touch("2", "started")
    source.touch("3", "finished")
    source.touch("4", "cancelled")
    claim = source.end.reread(["1", "2", "3", "4", "5", "6", "7"])
    assert [(task.id, task.queue, task.eta) for task in claim.tasks] == [("5", "high", None), ("1", "high", None)]
    assert source.end.reread([]).tasks == []


def test_the_census_names_every_place(source: Source) -> None:
    for task_id in "123456789":
        source.add(task_id, created=int(task_id))
    source.release(source.end.claim(source.lease, 2).tasks)
    assert source.claimed(1) == ["3"]
    source.touch("2", "started")
    source.touch("4", "leased")
    source.touch("5", "finished")
    source.touch("6", "failed")
    source.touch("7", "cancelled")
    source.touch("8", "odd")
    source.add("10", delay=3600)
    expected = {
        "1": "moved",
        "2": "running",
        "3": "claimed",
        "4": "leased",
        "5": "finished",
        "6": "failed",
        "7": "cancelled",
        "8": "unknown",
        "9": "ready",
        "10": "delayed",
    }
    assert source.places() == expected
    assert {task_id: str(seen.place) for task_id, seen in source.end.look(["1", "8", "77"]).items()} == {
        "1": "moved",
        "8": "unknown",
    }


@pytest.mark.real
def test_a_row_that_meets_two_predicates_is_unknown(database_url: str) -> None:
    mapping = plain_mapping()
    places = {**mapping.source.places, Place.FAILED: Among("state", ("broken", "done"))}
    rig = CompanionRig(database_url, replace(mapping, source=replace(mapping.source, places=places)))
    for task_id, word in (("1", "finished"), ("2", "failed")):
        rig.add(task_id)
        rig.touch(task_id, word)
    assert rig.places() == {"1": "unknown", "2": "failed"}
    rig.close()


def test_the_census_names_rows_that_the_application_has_still_to_enqueue(source: Source) -> None:
    source.add("1")
    if source.journal:
        source.born_in_target("2")
        assert {seen.id: seen.where for seen in source.end.census()} == {"1": "", "2": "pending"}
        assert source.claimed() == ["1"]
    else:
        assert {seen.id: seen.where for seen in source.end.census()} == {"1": ""}


def test_counts_by_queue_and_place(source: Source) -> None:
    for task_id in "123":
        source.add(task_id, "urgent")
    source.add("4", "low", delay=3600)
    source.release(source.end.claim(source.lease, 1).tasks)
    assert source.end.counts() == {"urgent": {"moved": 1, "ready": 2}, "low": {"delayed": 1}}


def test_what_claimers_that_mark_nothing_may_have_in_hand(source: SourceRig) -> None:
    """The first of each kind that is older than what now stands before it, and the first row of each process."""
    source.add("3", "high", created=30, delay=LONG_PAST)
    source.add("5", "high", created=50, delay=LONG_PAST)
    source.add("1", "low", created=10, delay=LONG_PAST)
    source.add("6", "low", created=60, delay=LONG_PAST)
    source.add("7", "urgent", created=0, delay=3600)
    assert list(source.unguarded().in_hand(1)) == ["3", "1"]
    assert list(source.unguarded().in_hand(2)) == ["3", "5", "1"]
    source.add("9", "urgent", created=90, delay=LONG_PAST)
    assert list(source.unguarded().in_hand(1)) == ["9", "3", "1"]
    source.end.hold(source.lease, ["9", "3"], "uncertain effect")
    assert list(source.unguarded().in_hand(1)) == ["5", "1"]
    assert source.claimed(1) == ["5"]
    assert list(source.unguarded().in_hand(1)) == ["1"]


def test_what_became_due_later_stood_behind(source: SourceRig) -> None:
    source.add("1", "high", created=-1e8, delay=LONG_PAST)
    source.add("2", "urgent", created=-1e8 - 10, delay=-1)
    assert list(source.unguarded().in_hand(1)) == ["2", "1"]


# -- the same promises on the way back: RQ's jobs, and rows that no job answers for -----------------------------------


@pytest.mark.real
def test_home_claims_by_priority_then_age(homeward: HomewardRig) -> None:
    homeward.add("4", "normal", created=3)
    homeward.add("5", "normal", created=5)
    homeward.add("9", "low", created=0)
    homeward.add("7", "urgent", created=9)
    assert homeward.claimed(2) == ["7", "4"]
    assert homeward.claimed(3) == ["5", "9"]
    assert homeward.claimed(3) == []


@pytest.mark.real
def test_home_gives_a_task_once_also_before_it_is_staged(homeward: HomewardRig) -> None:
    """One batch is claimed while the one before is still on its way."""
    for number in range(30):
        homeward.add(str(number), created=number)
    claims = [homeward.end.claim(homeward.lease, 10) for _ in range(4)]
    given = [task.id for claim in claims for task in claim.tasks]
    assert given == [str(number) for number in range(30)]


@pytest.mark.real
def test_home_adopts_what_an_older_token_claimed(homeward: HomewardRig) -> None:
    homeward.add("5", created=5)
    homeward.add("6", created=6)
    assert homeward.claimed() == ["5", "6"]
    homeward.add("7", created=7)
    later = homeward.another()
    assert sorted(later.claimed() + later.claimed()) == ["5", "6", "7"]
    assert later.claimed() == []


@pytest.mark.real
def test_home_finds_a_straggler_after_an_empty_claim(homeward: HomewardRig) -> None:
    homeward.add("1", delay=3600)
    assert homeward.claimed() == ["1"]
    assert homeward.claimed() == []
    homeward.add("2")
    assert homeward.claimed() == ["2"]


HOMEWARD: dict[str, Callable[[HomewardRig, list[Task]], object]] = {
    "claim": lambda rig, _: rig.end.claim(rig.lease, 5),
    "stage": lambda rig, tasks: rig.home.stage(rig.lease, tasks),
    "release": lambda rig, tasks: rig.end.release(rig.lease, tasks, ["d"] * len(tasks), 1),
    "hold": lambda rig, _: rig.end.hold(rig.lease, ["1", "2"], "why"),
    "discard": lambda rig, _: rig.home.discard(rig.lease, ["1"]),
    "put_back": lambda rig, _: rig.end.put_back(rig.lease),
}


@pytest.mark.real
@pytest.mark.parametrize("call", HOMEWARD)
def test_home_an_old_token_writes_nothing(homeward: HomewardRig, call: str) -> None:
    for task_id in ("1", "2", "3"):
        homeward.add(task_id)
    tasks = homeward.claim(1)
    assert [task.id for task in tasks] == ["1"]
    homeward.another()

    def found() -> object:
        client = homeward.client
        keys = (homeward.leaving.claimed_key, homeward.leaving.returned_key, "rq:queue:normal")
        return homeward.places(), homeward.marks(), [client.dump(key) for key in keys]

    before = found()
    with pytest.raises(LeaseLost, match="Nothing was written"):
        HOMEWARD[call](homeward, tasks)
    assert found() == before


@pytest.mark.real
def test_home_release_gives_custody_and_writes_the_ledger_together(homeward: HomewardRig) -> None:
    homeward.add("1", "urgent")
    homeward.add("2", "low", delay=3600)
    tasks = [*homeward.claim(), *homeward.claim()]
    assert homeward.places() == {"1": "claimed", "2": "claimed"}
    with pytest.raises(ValueError, match="zip"):
        homeward.end.release(homeward.lease, tasks, ["only one digest"], 1)
    assert homeward.places() == {"1": "claimed", "2": "claimed"}
    assert homeward.release(tasks, batch=4) == (["1", "2"], [])
    assert homeward.places() == {"1": "ready", "2": "delayed"}
    assert homeward.marks() == {"1": "returned", "2": "returned"}
    assert homeward.ledger.moved_by_queue("run-2") == {"urgent": 1, "low": 1}
    assert homeward.ledger.next_batch(homeward.lease) == 5
    assert homeward.claimed() == []


@pytest.mark.real
def test_home_the_first_release_is_the_point_of_no_return(homeward: HomewardRig) -> None:
    homeward.add("1")
    tasks = homeward.claim()
    run = homeward.ledger.open_run()
    assert run is not None
    assert (run.id, run.point_of_no_return_at) == ("run-2", None)
    homeward.release(tasks)
    run = homeward.ledger.open_run()
    assert run is not None
    assert run.point_of_no_return_at is not None


@pytest.mark.real
def test_home_a_row_cancelled_meanwhile_is_lost_and_keeps_its_outcome(homeward: HomewardRig) -> None:
    for task_id in ("1", "2", "3"):
        homeward.add(task_id)
    tasks = homeward.claim()
    homeward.touch("2", "cancelled")
    assert homeward.release(tasks) == (["1", "3"], ["2"])
    assert homeward.places() == {"1": "ready", "2": "cancelled", "3": "ready"}
    assert homeward.marks() == {"1": "returned", "2": "settled", "3": "returned"}
    assert homeward.another().claimed() == []


@pytest.mark.real
def test_home_a_row_cancelled_under_an_older_claim_is_given_back_to_the_application(homeward: HomewardRig) -> None:
    homeward.add("1")
    homeward.add("2")
    assert homeward.claimed() == ["1", "2"]
    homeward.touch("1", "cancelled")
    later = homeward.another()
    later.release(later.claim())
    while later.claimed():
        pass
    SqlJournal(later.home).claim(later.lease, 5)  # the rows are always looked at last
    later.touch("1", "retried")
    assert later.places() == {"1": "ready", "2": "ready"}


@pytest.mark.real
def test_home_undo_gives_everything_back_to_rq(homeward: HomewardRig) -> None:
    for task_id in ("1", "2", "3"):
        homeward.add(task_id, created=int(task_id))
    before = homeward.client.lrange("rq:queue:normal", 0, -1)
    assert homeward.claimed(2) == ["1", "2"]
    later = homeward.another()
    later.end.put_back(later.lease)
    assert later.places() == {"1": "moved", "2": "moved", "3": "moved"}
    assert homeward.client.lrange("rq:queue:normal", 0, -1) == before


@pytest.mark.real
def test_home_undo_keeps_the_order_also_when_some_of_what_was_claimed_is_over(homeward: HomewardRig) -> None:
    for number in range(1, 8):
        homeward.add(str(number), created=number)
    for task_id in ("1", "2", "3"):
        homeward.touch(task_id, "finished")
    before = homeward.client.lrange("rq:queue:normal", 3, -1)
    assert homeward.claimed(4)[0] == "4"
    assert homeward.claimed(2) == (["5", "6"] if homeward.kind == "rq" else [])
    later = homeward.another()
    later.end.put_back(later.lease)
    assert later.places() == {**dict.fromkeys("123", "finished"), **dict.fromkeys("4567", "moved")}
    if homeward.kind == "rq":
        assert homeward.client.lrange("rq:queue:normal", 0, -1) == before


@pytest.mark.real
def test_home_what_is_held_stays_held_and_what_ended_is_not_held(homeward: HomewardRig) -> None:
    for task_id in ("1", "2", "3"):
        homeward.add(task_id)
    homeward.touch("2", "finished")
    homeward.end.claim(homeward.lease, 5)
    assert homeward.end.hold(homeward.lease, ["1", "2", "no-row"], "uncertain effect") == 2
    assert homeward.end.hold(homeward.lease, ["1"], "again") == 0
    assert {seen.id: seen.where for seen in homeward.ledger.held()} == {
        "1": "uncertain effect",
        "no-row": "uncertain effect",
    }
    assert homeward.execute("SELECT custody, status FROM caption_tasks WHERE id = '2'") == [("rq", "completed")]
    later = homeward.another()
    assert later.claimed() == ["3"]
    assert later.claimed() == []
    assert homeward.home.give_back(later.lease, ["1"], requeue=True) == 1
    assert later.places()["1"] == "ready"
