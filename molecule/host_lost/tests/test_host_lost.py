"""app2 loses its network twice: on the way there, and on the way back. In the order of the tests."""

from __future__ import annotations

import pytest

from faults.playbook_lab import CANARY_USERS
from hosts.site import LEGACY, RQ, Site
from oracle.judge import Allowances
from oracle.patience import until

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def site() -> Site:
    """The hosts with a backlog in the table, under traffic."""
    return Site()


def popped_for_nobody(site: Site) -> set[str]:
    """Tasks whose job Redis gave to a connection that had lost its other end: it is in no list any more."""
    waiting = site.sql(
        "SELECT id FROM caption_tasks WHERE custody = 'rq' AND status = 'queued' AND available_at < UTC_TIMESTAMP(6)"
        " AND enqueued_at < UTC_TIMESTAMP(6) - INTERVAL 20 SECOND"
    )
    ids = {str(row[0]) for row in waiting}
    with site.redis as redis:
        for queue in ("urgent", "high", "normal", "low"):
            for waits in (f"rq:queue:{queue}", f"rq:queue:{queue}:intermediate"):
                ids -= {job.decode() for job in redis.lrange(waits, 0, -1)}
            for home in ("scheduled", "wip", "failed"):
                ids -= {job.decode().partition(":")[0] for job in redis.zrange(f"rq:{home}:{queue}", 0, -1)}
        return {task for task in ids if redis.exists(f"rq:job:{task}")}


def test_a_host_that_is_lost_before_the_drain_takes_the_run_back(site: Site) -> None:
    run = site.start("migrate")
    site.until(lambda: site.phase == "routed", "the route to the target")
    site.machine("app2").cut_off()
    outcome = run.wait()
    outcome.refused("app2", "unreachable")
    # Unreachable is not dead: its legacy worker may still have a task in hand, so nothing was moved.
    assert site.phase == "aborted"
    assert site.route == (0, 1)
    assert site.moved_of_users == 0
    assert site.is_active("app1", LEGACY)
    assert not site.legacy_locked


def test_the_same_command_goes_on_when_the_host_is_back(site: Site) -> None:
    site.machine("app2").put_back()
    site.until(lambda: site.is_active("app2", LEGACY), "app2 answers")
    site.until(lambda: site.count("custody = 'rq' AND status = 'running'") == 0, "app2 ended what it had in hand")
    # The pollers may have worked the backlog off by now; half of these are not due before they are moved.
    site.seed(60, delayed_share=0.5, delay=150.0, first=20_000_000)
    outcome = site.run("migrate")
    if outcome.status != 0:
        # Redis gave a job to app2 while nobody listened. It arrives late, or app2 has given that connection up.
        outcome.refused("its job lives in no queue and no registry of the target", "run playbooks/recover.yml")
        site.run("recover", queue_recover_reason="app2 was cut off").done()
        outcome = site.run("migrate")
    outcome.done()
    site.until(lambda: popped_for_nobody(site) == set(), "no job is out of every list")
    assert site.phase == "validated"
    assert site.moved_of_users > 0
    assert all(site.is_active(name, RQ) and not site.is_active(name, LEGACY) for name in ("app1", "app2"))


def test_the_way_back_fences_a_lost_host_at_the_stores(site: Site) -> None:
    # In the middle of a task: its end, which is written right before its commit, is 100 ms away.
    begun = [("rq", "start")]
    until(lambda: [(e["side"], e["event"]) for e in site.effects("app2")[-1:]] == begun, "app2 at work", every=0.01)
    site.machine("app2").cut_off()
    outcome = site.run("emergency-rollback", queue_run_reason="app2 is lost", queue_run_started="requeue").done()
    assert "app2" in outcome.output
    assert site.phase == "validated"
    assert site.count("custody <> 'db' AND status IN ('queued', 'running')") == 0
    assert site.is_active("app1", LEGACY) and not site.is_active("app1", RQ)
    ((locked,),) = site.sql(
        "SELECT JSON_VALUE(Priv, '$.account_locked') FROM mysql.global_priv WHERE User = 'captions_rq'"
    )
    assert locked in ("1", "true", 1)


def test_the_host_that_is_back_processes_nothing_it_no_longer_owns(site: Site) -> None:
    before = len(site.effects("app2"))
    site.machine("app2").put_back()
    site.until(lambda: site.is_active("app2", RQ), "app2 with its RQ worker, which nobody could stop")
    # It asks the stores again, and is turned away by both, while the other host works off what came home.
    done = len(site.effects("app1"))
    site.until(lambda: len(site.effects("app1")) >= done + 10, "work of app1 for the source")
    assert [line for line in site.effects("app2")[before:] if line["side"] == "rq" and line["event"] == "start"] == []


def test_the_same_command_settles_it(site: Site) -> None:
    site.run("emergency-rollback", queue_run_reason="app2 is lost").done()
    assert site.phase == "cleaned"
    for name in ("app1", "app2"):
        assert site.is_active(name, LEGACY) and not site.is_active(name, RQ)


def test_nothing_was_lost_or_doubled(site: Site) -> None:
    site.stop_users()
    site.clean(Allowances(kills=2, canary_users=CANARY_USERS))
