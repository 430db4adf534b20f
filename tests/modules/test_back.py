"""Runs that go back, module by module: planned, emergency with and without Redis, partial, and taken off again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.sluice.core.phases import Phase

from modules.site import Site

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 40
DEAD = "redis://default:none@127.0.0.1:1/0"


def advance(site: Site, phase: str, **options: object) -> None:
    site.call("queue_run", state="advanced", phase=phase, **options).assert_done()


def forward(site: Site, phase: Phase = Phase.VALIDATED) -> list[str]:
    """A forward run that has moved every task and stands at a phase."""
    ids = site.seed(TASKS, delayed=5)
    site.open(Phase.OPENED)
    site.call("queue_accounts").assert_done()
    site.stand(Phase.ROUTED)
    site.call("queue_route").assert_done()
    site.call("queue_fence").assert_done()
    site.stand(Phase.FENCED)
    assert site.drive("queue_transfer").assert_done().result["moved"] == TASKS
    site.stand(phase)
    return ids


def rows(site: Site) -> dict[str, int]:
    found = site.sql("SELECT CONCAT(custody, ' ', status), COUNT(*) FROM caption_tasks GROUP BY 1")
    return {str(name): int(number) for name, number in found}


def home(site: Site, *, redis_url: str = "", emergency: bool = False) -> dict[str, object]:
    """A run that goes back, from its opening to 'validated'; what the transfer said."""
    more = {"redis_url": redis_url} if redis_url else {}
    opened = site.drive("queue_run", direction="back", emergency=emergency, reason="a test", **more).assert_done()
    assert opened.result["direction"] == "back"
    assert opened.result["target_usable"] is not bool(redis_url)
    evidence = site.call("queue_evidence", **more).assert_done().result
    assert json.loads(Path(str(evidence["file"])).read_text())["rows"]
    advance(site, "prepared", **more)
    site.call("queue_fence", state="lifted", **more).assert_done()
    site.call("queue_route", share=0, polling=True, emergency=emergency or None, **more).assert_done()
    advance(site, "routed", **more)
    site.drive("queue_drain", **more).assert_done()
    site.call("queue_fence", **more).assert_done()
    advance(site, "fenced", **more)
    moved = site.drive("queue_transfer", **more).assert_done().result
    advance(site, "transferred", **more)
    assert site.call("queue_verify", **more).assert_done().result["fault_count"] == 0
    advance(site, "verified", **more)
    site.call("queue_intake", state="read", **more).assert_done()
    site.drive("queue_validate", **more).assert_done()
    advance(site, "validated", **more)
    return moved


def test_a_planned_way_back(site: Site) -> None:
    ids = forward(site)
    before = site.ledger.open_run()
    assert before is not None

    assert home(site)["moved"] == TASKS

    site.application.forget_jobs()
    cleaned = site.call("queue_cleanup").assert_done().result
    assert any("jobs" in str(entry) for entry in cleaned["removed"])
    waiting = site.sql("SELECT COUNT(*) FROM caption_tasks WHERE status = 'queued' AND custody = 'db'")
    assert waiting == [(TASKS,)]
    assert site.client.keys("sluice:*") == site.client.keys("rq:job:*") == []
    undone = site.ledger.find_run(before.id)
    assert undone is not None
    assert undone.phase is Phase.ROLLED_BACK
    assert site.ledger.open_run() is None
    assert set(site.sql("SELECT task_id FROM sluice_task WHERE mark = 'returned'")) == {(i,) for i in ids}
    report = site.call("queue_report", directory=str(site.folder / "reports"), budgets={"fenced": 60}).assert_done()
    text = Path(str(report.result["report_file"])).read_text()
    assert "## Timeline" in text
    assert before.id in text
    # And away again: the markers and the jobs of the first time are gone.
    site.call("queue_run").assert_done()


def test_an_emergency_without_redis_and_what_it_still_holds_afterwards(site: Site) -> None:
    forward(site)
    moved = home(site, redis_url=DEAD, emergency=True)
    assert moved["moved"] == TASKS
    refused = site.call("queue_cleanup", redis_url=DEAD).assert_refused("unusable")
    assert refused.result["removed"] == []
    site.call("queue_run", direction="forward").assert_refused("emergency-rollback.yml")

    # Redis is back with all its jobs: the same command reconciles, and replays nothing.
    site.call("queue_run", state="released", redis_url=DEAD).assert_done()
    again = site.drive("queue_run", direction="back", emergency=True).assert_done().result
    assert again["phase"] == "fenced"
    site.call("queue_fence").assert_done()
    assert site.drive("queue_transfer").assert_done().result["moved"] == 0
    for phase, module in (("transferred", "queue_verify"), ("verified", "queue_intake")):
        advance(site, phase)
        site.call(module).assert_done()
    advance(site, "validated")
    site.application.forget_jobs()
    site.call("queue_cleanup").assert_done()
    assert site.client.keys("sluice:*") == site.client.keys("rq:job:*") == []
    assert rows(site)["db queued"] == TASKS


def test_a_planned_way_back_needs_redis(site: Site) -> None:
    forward(site)
    site.call("queue_run", direction="back", redis_url=DEAD).assert_refused("Redis")


def test_a_way_back_that_is_taken_off_again_leaves_the_forward_run_where_it_stood(site: Site) -> None:
    forward(site)
    before = site.ledger.open_run()
    site.drive("queue_run", direction="back").assert_done()
    site.call("queue_evidence").assert_done()
    advance(site, "prepared")
    site.call("queue_fence", state="lifted").assert_done()
    site.call("queue_route", share=0, polling=True).assert_done()

    undone = site.call("queue_run", state="undone", reason="second thoughts").assert_done().result

    assert undone["undone"] is True
    after = site.ledger.open_run()
    assert after is not None
    assert before is not None
    assert (after.id, after.phase) == (before.id, Phase.VALIDATED)
    assert site.sql("SELECT rq_share, polling FROM captions_control") == [(100, 0)]
    assert rows(site) == {"rq queued": TASKS}
    # The forward run's own steps work again on the same stamp.
    site.call("queue_run").assert_done()
    assert site.call("queue_verify").assert_done().result["fault_count"] == 0


def test_an_emergency_is_never_taken_off_again(site: Site) -> None:
    forward(site)
    site.drive("queue_run", direction="back", emergency=True).assert_done()
    assert site.call("queue_run", state="undone").assert_done().result["undone"] is False


def test_the_partial_way_back_lets_the_source_in_beside_the_target(site: Site) -> None:
    forward(site)
    site.call("queue_run").assert_done()
    reopened = site.call("queue_run", state="reopened").assert_done().result
    assert reopened["changed"] is True
    run = site.ledger.open_run()
    assert run is not None
    assert run.phase is Phase.ROUTED
    site.call("queue_route", share=25, polling=True).assert_done()
    assert site.sql("SELECT rq_share, polling FROM captions_control") == [(25, 1)]
    assert site.call("queue_run", state="reopened").assert_done().result["changed"] is False


@pytest.mark.parametrize("phase", [Phase.FENCED])
def test_the_middle_of_a_transfer_is_no_place_for_a_partial_way_back(site: Site, phase: Phase) -> None:
    forward(site, phase)
    site.call("queue_run").assert_done()
    site.call("queue_run", state="reopened").assert_refused("middle of its transfer")


def test_nothing_goes_back_where_nothing_was_ever_moved(site: Site) -> None:
    with site.unchanged():
        site.call("queue_run", direction="back").assert_refused("nothing to take back")


def test_before_a_forward_run_is_taken_back_its_evidence_is_bundled(site: Site) -> None:
    site.seed(3)
    site.open(Phase.ROUTED)
    site.call("queue_run", state="undone", reason="a test", evidence_directory=str(site.folder / "e")).assert_done()
    run = site.ledger.last_run()
    assert run is not None
    bundle = json.loads((site.folder / "e" / run.id / "evidence.json").read_text())
    assert bundle["rows"]["urgent"] == {"ready": 1}
    assert bundle["undone"]["phase"] == "routed"
    assert bundle["reason"] == "a test"


def test_a_bundle_that_cannot_be_written_does_not_keep_a_run_from_being_taken_back(site: Site) -> None:
    site.open(Phase.ROUTED)
    (site.folder / "file").write_text("")
    done = site.call(
        "queue_run", state="undone", reason="a test", evidence_directory=str(site.folder / "file")
    ).assert_done()
    assert done.result["undone"] is True
    assert "cannot be written" in "\n".join(done.result["lines"])


def test_two_operators_at_once_one_waits_and_is_refused(site: Site) -> None:
    forward(site)
    site.drive("queue_run", direction="back").assert_done()
    site.take_over()
    waiting = site.call("queue_run", direction="back", sliced=True, cursor={}).assert_done()
    assert "waiting for the lease" in waiting.result["lines"][0]
    long_ago = {**waiting.result["cursor"], "since": 0}
    with site.unchanged():
        refused = site.call("queue_run", direction="back", sliced=True, cursor=long_ago)
    refused.assert_refused("another run is at work")
    site.call("queue_transfer").assert_refused("Nothing was written")


def test_a_cleanup_proves_the_fence_again_before_it_deletes_anything(site: Site) -> None:
    forward(site)
    home(site)
    site.application.forget_jobs()
    site.client.acl_setuser(site.accounts["rq_user"], enabled=True)  # somebody lets RQ's workers in again
    jobs = len(site.client.keys("rq:job:*"))

    refused = site.call("queue_cleanup").assert_refused("switched off")

    assert refused.result["removed"] == []
    assert len(site.client.keys("rq:job:*")) == jobs > 0
    site.call("queue_fence").assert_done()
    site.call("queue_cleanup").assert_done()


def test_a_way_back_is_never_recovered_towards_the_target(site: Site) -> None:
    forward(site)
    site.drive("queue_run", direction="back", emergency=True).assert_done()
    site.stand(Phase.FENCED)
    with site.unchanged(lease=False):
        site.call("queue_recover").assert_refused("goes back", "emergency-rollback.yml")
