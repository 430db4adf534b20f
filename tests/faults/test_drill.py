"""The drill: there, partly back, there, back as planned, there, back in an emergency; one verdict over all of it.

``scripts/demo drill`` is the same on the checkout's own lab, for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from faults.playbook_lab import CANARY_USERS, PlaybookLab, family_of, lab_in
from faults.scene import only_full
from oracle.crash import crash
from oracle.judge import Allowances

#: Each of its steps has a test of its own in every run (test_playbooks_forward, test_playbooks_back).
pytestmark = [pytest.mark.real, pytest.mark.slow, only_full, pytest.mark.timeout(1800)]

TASKS = 800


def kill_all_of_rq(lab: PlaybookLab) -> int:
    """kill -9 of every RQ worker with all that it started; how many."""
    workers = [p.pid for p in lab.lab.supervisor.processes() if p.group == "rqworkers" and p.state == "RUNNING"]
    assert workers
    family = [pid for worker in workers for pid in (*family_of(worker), worker)]

    def running(tasks: Sequence[str]) -> int:
        marks = ", ".join(["%s"] * len(tasks))
        ((number,),) = lab.sql(
            f"SELECT COUNT(*) FROM caption_tasks WHERE status = 'running' AND id IN ({marks})", *tasks
        )
        return int(number)

    return crash(family, lab.layout.effects_file, running)


def routed(lab: PlaybookLab) -> tuple[int, int]:
    """Share for RQ, and whether legacy workers may poll."""
    return lab.route


def locked(lab: PlaybookLab) -> bool:
    """Whether the legacy workers' account is."""
    return lab.legacy_locked


def left_in_redis(lab: PlaybookLab) -> list[bytes]:
    """Keys of ours, and jobs."""
    with lab.redis as client:
        return [*client.scan_iter(match="sluice:*"), *client.scan_iter(match="rq:job:*")]


def test_there_and_back_again_and_once_more_in_an_emergency(tmp_path: Path) -> None:
    with lab_in(tmp_path, legacy=3, rq=4, rq_simple=True, work_ms=60) as lab:
        # Two thirds are due only later: RQ still holds them at every turn.
        lab.seed(TASKS, delayed_share=0.66, delay=150)
        with lab.traffic(rate=6, hz=4):
            lab.run("migrate").done()
            lab.run("hybrid", queue_share=25, queue_soak_seconds=0).done()
            assert routed(lab) == (25, 1)
            lab.run("migrate").done()
            assert routed(lab) == (100, 0)

            home = lab.run("planned-rollback", queue_run_reason="a drill").done()
            assert "brought home" in home.output
            assert routed(lab) == (0, 1)
            assert locked(lab) is False
            assert lab.count("custody <> 'db' AND status IN ('queued', 'running')") == 0
            assert left_in_redis(lab) == []

            lab.run("migrate").done()
            assert locked(lab) is True
            kills = kill_all_of_rq(lab)
            lab.run("emergency-rollback", queue_run_reason="a drill, RQ killed").done()
            assert routed(lab) == (0, 1)
            assert lab.running("rqworkers") == 0

        held = [str(row[0]) for row in lab.sql("SELECT task_id FROM sluice_task WHERE mark = 'held'")]
        if held:
            lab.run(
                "holds",
                queue_holds_state="released",
                queue_holds_to="source",
                queue_holds_ids=held,
                queue_holds_reason="the drill killed their workers",
            ).done()
            lab.run("emergency-rollback", queue_run_reason="a drill, RQ killed").done()
        assert lab.phase == "cleaned"
        assert left_in_redis(lab) == []
        phases = lab.sql("SELECT direction, phase FROM sluice_run ORDER BY seq")
        assert list(phases) == [("forward", "rolled_back"), ("back", "cleaned")] * 2
        lab.clean(Allowances(kills=kills, canary_users=CANARY_USERS))
