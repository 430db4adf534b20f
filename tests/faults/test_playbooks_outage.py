"""Redis is killed for a minute under load, in the middle of a migration and of a rollback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.playbook_lab import Outcome, PlaybookLab, Run, lab_in
from oracle.patience import until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1800)]

TASKS = 600
OUTAGE_SECONDS = 60
#: The transfer takes a quarter of a minute, so that the kill finds it in its middle.
SLOW = {"queue_transfer_rate": 40, "queue_transfer_batch": 50}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[PlaybookLab]:
    with lab_in(tmp_path, legacy=1, rq=2, rq_simple=True, work_ms=5) as made:
        yield made


def without_redis(lab: PlaybookLab, run: Run, reached: Callable[[], bool], what: str) -> Outcome:
    """Kill Redis when ``reached`` holds, and leave it away for a minute; how the command ended meanwhile or afterwards.

    Tasks are submitted all the time.
    """
    until(lambda: reached() or run.process.poll() is not None, what)
    assert run.process.poll() is None, run.log.read_text()
    lab.lab.supervisor.signal("redis", "KILL")
    lab.lab.supervisor.stop_group("redis")
    began, before = time.monotonic(), lab.layout.accepted_file.read_bytes().count(b"\n")
    until(lambda: time.monotonic() - began >= OUTAGE_SECONDS, "the end of the outage", every=0.5)
    accepted = lab.layout.accepted_file.read_bytes().count(b"\n") - before
    assert accepted > OUTAGE_SECONDS, "submissions did not go on"
    lab.lab.supervisor.start_group("redis")
    return run.wait()


def test_the_same_commands_finish_and_no_task_is_lost_or_doubled(lab: PlaybookLab) -> None:
    # Half are due only when the way back is over: it has something to bring home.
    lab.seed(TASKS, delayed_share=0.5, delay=600)
    with lab.traffic(rate=5, hz=2):
        begun = lab.start("migrate", **SLOW)
        broken = without_redis(lab, begun, lambda: lab.moved_of_users > TASKS // 6, "the middle of the migration")
        broken.refused("Redis")
        assert lab.moved_of_users < TASKS, "it was over before the kill"
        lab.run("migrate").done()
        assert (lab.phase, lab.route) == ("validated", (100, 0))

        at_home = lab.count("custody = 'db' AND status = 'queued'")
        begun = lab.start("planned-rollback", queue_run_reason="the test says so", **SLOW)
        broken = without_redis(
            lab,
            begun,
            lambda: lab.count("custody = 'db' AND status = 'queued'") > at_home + TASKS // 8,
            "the middle of the rollback",
        )
        broken.refused("Redis")
        assert lab.count("custody <> 'db' AND status = 'queued'") > 0, "it was over before the kill"
        lab.run("planned-rollback", queue_run_reason="the test says so").done()
        assert lab.route == (0, 1)
        assert lab.count("custody <> 'db' AND status IN ('queued', 'running')") == 0
    lab.sql("UPDATE caption_tasks SET available_at = UTC_TIMESTAMP(6) WHERE status = 'queued'")
    lab.clean()
