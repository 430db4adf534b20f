"""What every target promises: stages nobody can reach, each task runnable at most once, nothing under an old stamp."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from ansible.module_utils.sluice.core.errors import GenerationMismatch, LeaseLost, StagesGone
from ansible.module_utils.sluice.core.tasks import Home
from rq.job import Job
from rq.serializers import JSONSerializer

from .rigs import HomewardRig, RqRig, TargetRig, make_task

Target = TargetRig
THREE = [make_task("a"), make_task("b"), make_task("c")]
IDS = ["a", "b", "c"]


# -- staging ----------------------------------------------------------------------------------------------------------


def test_what_is_staged_reads_back_as_promised_and_cannot_be_reached(target: Target) -> None:
    staged = target.end.stage(target.lease, THREE)
    assert staged.digests == target.end.digests(THREE)
    assert sorted(staged.digests) == IDS
    assert (list(staged.foreign), list(staged.marked)) == ([], [])
    assert target.queued("normal") == []
    assert target.seen() == {(job_id, "hash", "created") for job_id in IDS}


def test_digests_tell_tasks_apart(target: Target) -> None:
    task = make_task("a")
    variants = [
        task,
        task._replace(args=("other",)),
        task._replace(queue="high"),
        task._replace(created=task.created + 1),
    ]
    assert len({target.end.digests([variant])["a"] for variant in variants}) == 4


def test_staging_again_is_staging_once(target: Target) -> None:
    first = target.end.stage(target.lease, THREE)
    again = target.end.stage(target.lease, THREE)
    assert again == first
    assert len(target.seen()) == 3
    newer = replace(target.lease, token=6)
    assert target.end.stage(newer, THREE).digests == first.digests


def test_a_job_that_is_not_ours_is_named_and_left_alone(target: Target) -> None:
    target.enter(Home.QUEUED, "normal", "a")
    target.enter(Home.STAGED, "normal", "b")  # staged by someone else: other bytes under our id
    before = target.seen()
    staged = target.end.stage(target.lease, THREE)
    assert sorted(staged.foreign) == ["a", "b"]
    assert list(staged.digests) == ["c"]
    assert target.seen() == before | {("c", "hash", "created")}
    assert target.end.activate(target.lease, [THREE[2]], 1) == 1
    assert target.queued("normal") == ["a", "c"]


def test_what_was_activated_before_is_named_as_marked(target: Target) -> None:
    target.stage_and_activate(THREE[:1])
    staged = target.end.stage(target.lease, THREE[:2])
    assert list(staged.marked) == ["a"]
    assert list(staged.digests) == ["b"]
    assert target.queued("normal") == ["a"]


# -- activation -------------------------------------------------------------------------------------------------------


def test_activation_keeps_the_order_in_every_queue(target: Target) -> None:
    tasks = [make_task("5", "high"), make_task("4"), make_task("3", "high"), make_task("2"), make_task("1", "high")]
    assert target.stage_and_activate(tasks) == 5
    assert target.queued("high") == ["5", "3", "1"]
    assert target.queued("normal") == ["4", "2"]
    more = [make_task("9"), make_task("8", "high")]
    assert target.stage_and_activate(more, 2) == 2
    assert target.queued("high") == ["5", "3", "1", "8"]


def test_each_task_is_made_runnable_at_most_once(target: Target) -> None:
    assert target.stage_and_activate(THREE) == 3
    assert target.end.activate(target.lease, THREE, 1) == 0
    newer = replace(target.lease, token=6)
    target.end.stage(newer, THREE)
    assert target.end.activate(newer, THREE, 2) == 0
    assert target.queued("normal") == IDS


def test_a_task_that_a_worker_has_finished_is_not_made_runnable_again(target: Target) -> None:
    target.stage_and_activate(THREE[:1])
    target.lose("a")  # the result expired
    assert target.end.activate(target.lease, THREE[:1], 1) == 0
    assert list(target.end.stage(target.lease, THREE[:1]).marked) == ["a"]


def test_delayed_tasks_are_scheduled_and_overdue_ones_are_queued(target: Target) -> None:
    later = target.now() + 3600
    tasks = [make_task("a", eta=later), make_task("b", eta=target.now() - 5), make_task("c")]
    assert target.stage_and_activate(tasks) == 3
    # RQ keeps whole seconds; a task never starts before its time.
    assert target.scheduled("normal") == {"a": math.ceil(later)}
    assert target.queued("normal") == ["b", "c"]
    assert ("a", "hash", "scheduled") in target.seen()


def test_the_last_batch_is_mirrored(target: Target) -> None:
    assert target.end.last_batch() == 0
    target.stage_and_activate(THREE[:1], 7)
    assert target.end.last_batch() == 7


def test_markers_tell_what_was_activated(target: Target) -> None:
    target.stage_and_activate(THREE[:2])
    assert list(target.end.marked(["b", "c", "a"])) == [True, False, True]
    assert list(target.end.marked([])) == []


def test_stages_that_are_gone_are_named_and_the_others_made_runnable(target: Target) -> None:
    target.stage_and_activate([make_task("x")], 3)
    target.end.stage(target.lease, THREE)
    target.lose("b")
    with pytest.raises(StagesGone) as caught:
        target.end.activate(target.lease, THREE, 4)
    assert (caught.value.activated, caught.value.job_ids) == (2, ["b"])
    assert target.queued("normal") == ["x", "a", "c"]
    assert target.end.last_batch() == 3
    assert target.stage_and_activate(THREE, 4) == 1
    assert target.queued("normal") == ["x", "a", "c", "b"]
    assert target.end.last_batch() == 4


def test_discard_deletes_stages_and_leaves_the_rest_alone(target: Target) -> None:
    target.stage_and_activate(THREE[:1])
    target.end.stage(target.lease, THREE[1:])
    target.enter(Home.QUEUED, "normal", "theirs")
    assert target.end.discard(target.lease, ["a", "b", "theirs", "nowhere"]) == 1
    assert target.seen() == {
        ("a", "queued", "normal"),
        ("a", "hash", "queued"),
        ("theirs", "queued", "normal"),
        ("theirs", "hash", "queued"),
        ("c", "hash", "created"),
    }
    assert target.end.discard(target.lease, []) == 0


# -- an old token, another stamp --------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Target], object]] = {
    "stage": lambda rig: rig.end.stage(rig.lease, [make_task("new")]),
    "activate": lambda rig: rig.end.activate(rig.lease, THREE[1:], 2),
    "discard": lambda rig: rig.end.discard(rig.lease, ["b"]),
}


@pytest.mark.parametrize("call", WRITES)
def test_an_old_token_writes_nothing(target: Target, call: str) -> None:
    target.stage_and_activate(THREE[:1])
    target.end.stage(target.lease, THREE[1:])
    target.end.discard(replace(target.lease, token=6), ["nowhere"])  # someone with a newer token was here
    before = target.seen()
    with pytest.raises(LeaseLost, match=r"our token 5 is lower than the mirrored one \(6\)"):
        WRITES[call](target)
    assert target.seen() == before
    assert target.queued("normal") == ["a"]
    assert target.end.last_batch() == 1


@pytest.mark.parametrize("call", WRITES)
def test_a_store_that_was_emptied_takes_nothing(target: Target, call: str) -> None:
    target.stage_and_activate(THREE[:1])
    target.empty()
    with pytest.raises(GenerationMismatch, match="emptied, restored or replaced"):
        WRITES[call](target)
    assert target.seen() == set()
    assert target.end.last_batch() == 0


@pytest.mark.parametrize("call", WRITES)
def test_the_stamp_of_another_run_is_refused(target: Target, call: str) -> None:
    target.end.stage(target.lease, THREE)
    before = target.seen()
    target.lease = replace(target.lease, generation="stamp-2", token=9)
    with pytest.raises(GenerationMismatch):
        WRITES[call](target)
    assert target.seen() == before
    with pytest.raises(GenerationMismatch, match="another run"):
        target.end.stamp(target.lease)


def test_a_stamp_is_written_once(target: Target) -> None:
    assert target.end.stamp(target.lease) is False
    target.empty()
    assert target.end.stamp(target.lease) is True


# -- census -----------------------------------------------------------------------------------------------------------


def test_the_census_names_every_home(target: Target) -> None:
    homes = [Home.QUEUED, Home.INTERMEDIATE, Home.STARTED, Home.SCHEDULED, Home.DEFERRED, Home.FINISHED, Home.FAILED]
    homes.append(Home.CANCELLED)
    for home in homes:
        target.enter(home, "low", f"job-{home}")
    target.enter(Home.QUEUED, "high", "job-bodiless", body=False)
    target.enter(Home.QUEUED, "high", "job-queued")  # a second entry of a job that is in 'low' already
    found = target.seen()
    for home in homes:
        assert (f"job-{home}", str(home), "low") in found
    assert ("job-queued", "queued", "high") in found
    assert ("job-bodiless", "queued", "high") in found
    bodies = {job_id for job_id, place, _ in found if place == "hash"}
    assert bodies == {f"job-{home}" for home in homes}


def test_the_census_counts_an_entry_as_often_as_it_is_there(target: Target) -> None:
    target.enter(Home.QUEUED, "high", "twice")
    target.enter(Home.QUEUED, "high", "twice", body=False)
    places = [str(seen.place) for seen in target.end.census() if seen.id == "twice"]
    assert sorted(places) == ["hash", "queued", "queued"]


# -- RQ itself --------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_rq_reads_the_job_as_its_own(rq_target: RqRig) -> None:
    task = make_task("a", "high")._replace(args=("a", 3, None))
    rq_target.stage_and_activate([task])
    job = Job.fetch("a", connection=rq_target.client, serializer=JSONSerializer)
    assert (job.func_name, job.args, job.kwargs) == ("captions.jobs.run_caption", ["a", 3, None], {})
    assert (job.origin, job.timeout, job.get_status()) == ("high", 300, "queued")
    assert job.created_at is not None
    assert job.created_at.timestamp() == task.created


@pytest.mark.real
def test_a_census_reads_and_changes_nothing(rq_target: RqRig) -> None:
    rq_target.stage_and_activate(THREE)
    rq_target.enter(Home.STARTED, "normal", "s", body=False)
    before = rq_target.client.info("persistence")["rdb_changes_since_last_save"]
    assert rq_target.seen()
    assert rq_target.client.info("persistence")["rdb_changes_since_last_save"] == before


# -- the table as the target of a run that goes back ------------------------------------------------------------------


@pytest.fixture
def home(homeward: HomewardRig) -> HomewardRig:
    """Three tasks in RQ's custody."""
    for job_id in IDS:
        homeward.add(job_id)
    return homeward


@pytest.mark.real
def test_home_what_is_staged_reads_back_as_promised_and_no_claimer_reaches_it(home: HomewardRig) -> None:
    staged = home.home.stage(home.lease, THREE)
    assert staged.digests == home.home.digests(THREE)
    assert (list(staged.foreign), list(staged.marked), list(staged.over), list(staged.refused)) == ([], [], [], [])
    assert home.places() == dict.fromkeys(IDS, "claimed")
    assert home.ready() == []


@pytest.mark.real
def test_home_staging_again_is_staging_once(home: HomewardRig) -> None:
    first = home.home.stage(home.lease, THREE)
    assert home.home.stage(home.lease, THREE) == first
    later = home.another()
    assert later.home.stage(later.lease, THREE).digests == first.digests
    assert later.release(THREE) == (IDS, [])
    assert home.places() == dict.fromkeys(IDS, "ready")


@pytest.mark.real
def test_home_digests_tell_tasks_apart(home: HomewardRig) -> None:
    task = THREE[0]
    variants = [task, task._replace(args=("other",)), task._replace(args=())]
    assert len({home.home.digests([variant])["a"] for variant in variants}) == 3
    kept = home.home.stage(home.lease, [variants[1]])
    assert kept.digests != home.home.digests([variants[1]]), "the row would be called with something else"


@pytest.mark.real
def test_home_what_is_over_is_named_and_what_cannot_be_known_is_refused(home: HomewardRig) -> None:
    home.touch("a", "finished")
    home.touch("b", "started")
    staged = home.home.stage(home.lease, [*THREE, make_task("stranger")])
    assert list(staged.over) == ["a"]
    assert list(staged.digests) == ["c"]
    assert {entry.id for entry in staged.refused} == {"b", "stranger"}
    assert home.places() == {"a": "finished", "b": "running", "c": "claimed"}


@pytest.mark.real
def test_home_discard_gives_rows_back_and_leaves_the_rest_alone(home: HomewardRig) -> None:
    home.home.stage(home.lease, THREE[:2])
    home.release(THREE[:1])
    assert home.home.discard(home.lease, [*IDS, "nowhere"]) == 1
    assert home.places() == {"a": "ready", "b": "moved", "c": "moved"}


@pytest.mark.real
def test_home_what_is_released_needs_no_activation(home: HomewardRig) -> None:
    home.home.stage(home.lease, THREE)
    home.release(THREE)
    assert home.ready() == IDS
    assert list(home.ledger.moved_since(home.lease, home.home.last_batch())) == []
    assert home.home.activate(home.lease, THREE, 1) == 3
    assert home.ready() == IDS
    assert list(home.home.marked(IDS)) == [False, False, False]
    assert list(home.home.supersede(home.lease, IDS)) == []
