"""Two hosts without power, one command, and the same command again when they are back: in the order of the tests."""

from __future__ import annotations

import pytest

from faults.playbook_lab import CANARY_USERS
from hosts.site import LEGACY, RQ, WEB, Site
from oracle.judge import Allowances

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def site() -> Site:
    """The hosts after playbooks/migrate.yml, under traffic."""
    return Site()


def test_it_begins_with_everything_at_the_target(site: Site) -> None:
    assert site.phase == "validated"
    assert site.legacy_locked
    assert all(site.is_active(name, RQ) and not site.is_active(name, LEGACY) for name in ("app1", "app2"))


def test_the_old_system_serves_again_without_redis_and_without_a_host(site: Site) -> None:
    for name in ("app1", "app2"):
        site.ssh(name, "systemctl", "stop", RQ)  # so that something waits in the queues that die now
    site.until(lambda: site.count("custody = 'rq' AND status = 'queued'") >= 8, "a backlog in RQ")
    for name in ("redis", "app2"):
        site.machine(name).kill()

    outcome = site.run("emergency-rollback", queue_run_reason="no power", queue_run_started="requeue").done()

    assert site.phase == "validated"
    assert site.route == (0, 1)
    assert not site.legacy_locked
    assert site.count("custody <> 'db' AND status IN ('queued', 'running')") == 0
    for words in ("Redis cannot be used", "app2", "type the same command again"):
        assert words in outcome.output
    app1 = site.host("app1")
    assert app1.service(LEGACY).is_running and app1.service(WEB).is_running
    assert not app1.service(RQ).is_running and app1.service(RQ).is_masked


def test_a_host_that_comes_back_runs_nothing_for_the_target(site: Site) -> None:
    site.group.power_on("redis")
    before = len(site.effects("app2"))
    site.group.power_on("app2")
    # Its RQ worker starts with the host, as its unit says, and is turned away by the stores.
    log = site.layout.root("app2") / "srv/captions/logs/rq-1.log"
    at = log.stat().st_size
    site.until(lambda: log.stat().st_size > at, "a word of the RQ worker of the host that came back")
    assert [line for line in site.effects("app2")[before:] if line["side"] == "rq"] == []


def test_the_same_command_again_settles_both(site: Site) -> None:
    site.run("emergency-rollback", queue_run_reason="no power").done()
    assert site.phase == "cleaned"
    for name in ("app1", "app2"):
        assert site.is_active(name, LEGACY) and not site.is_active(name, RQ)
    with site.redis as redis:
        assert [key for key in redis.keys("*") if key.startswith((b"sluice:", b"rq:job", b"rq:queue"))] == []


def test_nothing_was_lost_or_doubled(site: Site) -> None:
    site.stop_users()
    # Each RQ worker that lost its power, and each that was ended, may have been in the middle of one task.
    site.clean(Allowances(kills=2, canary_users=CANARY_USERS))
