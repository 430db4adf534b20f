"""The way back by its playbooks, under traffic: partial, planned, and an emergency with Redis dead and coming back.

One lab goes through all of it, so that each way back begins where a real one does: in a system that was migrated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import pytest

from faults.playbook_lab import Outcome, PlaybookLab, lab_in
from oracle.patience import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
FOREIGN = b"\n# ours\nUMLAUT=\xc3\xa4\nLAST=no newline"
#: Where nothing listens.
NOBODY = "http://127.0.0.1:1/"
QUICK = {"queue_soak_seconds": 0, "queue_soak_sample_min": 4}


@dataclass
class Story:
    """The lab and what each command said, in the order of the tests."""

    lab: PlaybookLab
    settings: bytes

    def alive_again(self) -> None:
        """AssertionError unless the old system has everything, as it was before."""
        lab = self.lab
        assert lab.route == (0, 1)
        assert lab.count("custody <> 'db' AND status IN ('queued', 'running')") == 0
        assert not lab.legacy_locked and lab.running("legacy") == 1 and lab.running("rqworkers") == 0
        assert lab.layout.env_file.read_bytes() == self.settings

    def nothing_left_in_redis(self) -> None:
        """AssertionError when a key of ours, a job or a queue is left."""
        redis = self.lab.redis
        keys = cast("list[bytes]", redis.keys("*"))
        left = [key for key in keys if key.startswith((b"sluice:", b"rq:job", b"rq:queue", b"rq:wip"))]
        redis.close()
        assert left == []


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with lab_in(tmp_path_factory.mktemp("back"), rq=1, work_ms=10) as lab:
        with lab.layout.env_file.open("ab") as file:
            file.write(FOREIGN)
        settings = lab.layout.env_file.read_bytes()
        with lab.traffic(rate=4, hz=4):
            yield Story(lab, settings)
        lab.clean()


def _backlog_in_rq(lab: PlaybookLab, count: int) -> None:
    """Live submissions pile up in RQ, because its workers end."""
    lab.lab.supervisor.stop_group("rqworkers")
    until(lambda: lab.count("custody = 'rq' AND status = 'queued'") >= count, "a backlog in RQ")


def test_the_source_is_let_in_again_beside_the_target(story: Story) -> None:
    lab = story.lab
    lab.seed(200, delayed_share=0.5, delay=100)
    lab.run("migrate").done()
    assert (lab.legacy_locked, lab.running("legacy")) == (True, 0)

    lab.run("hybrid", queue_share=25, **QUICK).done()

    assert lab.phase == "hybrid"
    assert lab.route == (25, 1)
    assert (lab.legacy_locked, lab.running("legacy"), lab.running("rqworkers")) == (False, 1, 1)
    assert b"\nDATABASE_POLLING_ENABLED=true\n" in lab.layout.env_file.read_bytes()


def test_a_planned_rollback_brings_everything_home(story: Story) -> None:
    lab = story.lab
    _backlog_in_rq(lab, 110)
    waiting = lab.count("custody = 'rq' AND status = 'queued'")

    outcome = lab.run("planned-rollback", queue_run_reason="the test says so").done()

    assert lab.phase == "cleaned"
    assert lab.count("closed_at IS NULL", "sluice_run") == 0, "the forward run has not ended"
    assert lab.count("mark = 'returned'", "sluice_task") >= waiting * 0.9
    assert "of two at once 1 accepted, 1 refused" in outcome.output
    assert "the test says so" in _evidence(lab)["reason"]
    story.alive_again()
    story.nothing_left_in_redis()
    lab.run("planned-rollback").refused("nothing to take back")


def test_an_emergency_without_redis_serves_again_and_reconciles_when_it_is_back(story: Story) -> None:
    lab = story.lab
    lab.seed(200, delayed_share=0.5, delay=90, users_from=20_000_000)
    lab.run("migrate").done()
    _backlog_in_rq(lab, 100)
    lab.lab.supervisor.stop_group("redis")

    outcome = lab.run("emergency-rollback", queue_run_started="requeue", queue_notify_url=NOBODY).done()

    assert lab.phase == "validated"
    assert outcome.output.count("the message was not taken") == 2, "it goes on, and says so"
    story.alive_again()
    _within_budget(outcome)
    assert "Redis cannot be used" in outcome.output
    assert "when it answers, type the same command again" in outcome.output
    lab.run("migrate").refused("playbooks/emergency-rollback.yml")

    # Somebody starts everything again, with its data, before the same command: what lives again has nothing to run.
    lab.lab.supervisor.start_group("redis")
    again = lab.run("emergency-rollback").done()

    assert lab.phase == "cleaned"
    assert "did not answer" not in again.output
    story.alive_again()
    story.nothing_left_in_redis()


def _evidence(lab: PlaybookLab) -> dict[str, str]:
    (path,) = lab.layout.backups.glob("*/evidence.json")
    content: dict[str, str] = json.loads(path.read_text())
    return content


def _within_budget(outcome: Outcome) -> None:
    report = outcome.output.partition("phase         reached")[2]
    for phase in ("prepared", "routed", "fenced", "transferred", "verified", "validated", "in service"):
        line = next((line for line in report.splitlines() if line.strip().startswith(phase)), "")
        assert line.endswith(("within", "OVER")), f"{phase}: {line!r} in\n{report}"
