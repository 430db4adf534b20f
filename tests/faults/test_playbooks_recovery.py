"""A recovery while RQ's workers live and are in the middle of tasks: only what was lost is touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from faults.playbook_lab import CANARY_USERS, PlaybookLab, lab_in
from oracle.patience import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REASON = "the test lost jobs"
#: The workers are in the middle of tasks nearly all the time.
WORK_MS = 800
TASKS = 60


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaybookLab]:
    """A validated run, and two workers."""
    with lab_in(tmp_path_factory.mktemp("recovery"), rq=2, rq_simple=False, work_ms=WORK_MS) as made:
        made.lab.supervisor.stop_group("legacy")
        made.run("migrate").done()
        yield made


def pids(lab: PlaybookLab) -> set[int]:
    """The processes of the target's workers that run."""
    processes = lab.lab.supervisor.processes()
    return {process.pid for process in processes if process.group == "rqworkers" and process.state == "RUNNING"}


def at_work(lab: PlaybookLab) -> int:
    """How many tasks of the target are being worked on."""
    return lab.count("custody = 'rq' AND status = 'running'")


def begun_after_the_recovery(lab: PlaybookLab) -> int:
    """How many of the users' tasks waited while the target was fenced."""
    later = f"event.name = 'recovery' AND started_at > event.at AND user_id < {CANARY_USERS[0]}"
    return lab.count(later, "caption_tasks JOIN sluice_event AS event")


def test_workers_stay_where_the_recovery_is_refused(lab: PlaybookLab) -> None:
    before = pids(lab)
    assert len(before) == 2
    lab.run("recover").refused("no reason is given")
    told = {"queue_recover_reason": REASON}
    task = "queue_workers : See to the processes*"
    lab.run("recover", "--start-at-task", task, **told).refused("play 1 did not run")
    lab.run("recover", "--limit", "workers", **told).refused("run the whole playbook, no --limit")
    assert pids(lab) == before


def test_it_lets_them_end_their_tasks_and_places_again_what_was_lost(lab: PlaybookLab) -> None:
    lab.submit(TASKS)
    until(lambda: at_work(lab) == 2, "both at work")
    redis = Redis.from_url(lab.settings["redis_url"], decode_responses=True)
    lost = [str(job) for job in redis.lrange("rq:queue:normal", -2, -1)]
    assert len(lost) == 2
    for job in lost:
        redis.lrem("rq:queue:normal", 0, job)
    redis.close()

    recovered = lab.run("recover", queue_recover_reason=REASON).done()

    assert "waiting for the lease" not in recovered.output, "the one that was refused had taken it"
    assert "2 placed again, 0 held" in recovered.output
    look = recovered.output.partition("PLAY [2/6")[0]
    assert "the stamp in Redis is there" in look and "changed: [" not in look
    lab.run("migrate").done()
    assert begun_after_the_recovery(lab) > 2, "the workers had nothing to do when they were fenced"
    assert lab.phase == "validated"
    lab.clean()
