"""Stores that tell different stories, and operators who both think the run is theirs: refused, with the reason."""

from __future__ import annotations

import pytest
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.services import run as runs

from modules.site import OWNER, Site
from modules.test_refusals import WRITERS, WRITING, at_the_right_phase

pytestmark = pytest.mark.real

SECOND = "second@host:2"


def moved(site: Site, count: int = 8) -> list[str]:
    """A run that has moved every task and stands at `transferred`."""
    ids = site.seed(count)
    site.open(Phase.ROUTED)
    site.call("queue_fence").assert_done()
    site.stand(Phase.FENCED)
    assert site.drive("queue_transfer").assert_done().result["moved"] == count
    site.stand(Phase.TRANSFERRED)
    return ids


def queues(site: Site) -> dict[str, list[bytes]]:
    """The job ids of each queue."""
    return {queue: site.client.lrange(f"rq:queue:{queue}", 0, -1) for queue in ("urgent", "high", "normal", "low")}


# -- restored ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "queue_intake"])
def test_a_ledger_older_than_its_mirror(site: Site, name: str) -> None:
    """Every writing step compares, so that no step's own lease lifts the token past the mirror.

    Intake is left out: it may have to be opened while the target is dead.
    """
    site.seed(3)
    lease = site.open(at_the_right_phase(name))
    site.client.set("sluice:{captions}:token", lease.token + 5)
    with site.unchanged():
        site.call(name, **WRITING.get(name, {})).assert_refused("restored from a backup", f"{lease.token + 5}")


@pytest.mark.parametrize("state", ["opened", "undone"])
def test_a_run_of_a_ledger_older_than_its_mirror(site: Site, state: str) -> None:
    lease = site.open()
    site.client.set("sluice:{captions}:token", lease.token + 5)
    with site.unchanged():
        site.call("queue_run", state=state).assert_refused("restored from a backup")


def test_the_task_table_was_restored_from_an_older_dump(site: Site) -> None:
    """Rows that were moved are ready again, and their markers are in Redis: moving them would run them twice."""
    ids = moved(site)
    before = queues(site)
    site.sql("UPDATE caption_tasks SET custody = 'db', custody_token = 0, enqueued_at = NULL")
    reason = "restored from a backup"
    with site.unchanged(lease=False):
        outcome = site.call("queue_run").assert_refused(reason, "restore both stores to one moment")
    assert any(task in outcome.message for task in ids)
    # Nor by walking past the play that opens the run: the transfer sees the markers.
    site.stand(Phase.FENCED)
    site.lease()
    for _ in range(2):
        site.call("queue_transfer").assert_refused(reason, "restore both stores to one moment")
        assert queues(site) == before
    assert site.sql("SELECT COUNT(*) FROM sluice_task WHERE mark = 'moved'") == [(8,)]


def test_a_recovery_after_the_task_table_was_restored_doubles_nothing(site: Site) -> None:
    moved(site)
    before = queues(site)
    site.sql("UPDATE caption_tasks SET custody = 'db', custody_token = 0, enqueued_at = NULL")
    site.call("queue_accounts").assert_refused("is over")
    site.call("queue_recover", target_sql_accounts=[], target_redis_users=[])
    assert queues(site) == before


@pytest.mark.parametrize("what", ["the whole database, before the run", "the ledger alone"])
def test_a_database_from_before_the_run(site: Site, what: str) -> None:
    """No ledger is there, and Redis carries a run's stamp."""
    moved(site)
    for table in [row[0] for row in site.sql("SHOW TABLES LIKE 'sluice\\_%'")]:
        site.sql(f"DROP TABLE {table}")
    if what != "the ledger alone":
        site.sql("UPDATE caption_tasks SET custody = 'db', custody_token = 0, enqueued_at = NULL")
    with site.unchanged():
        site.call("queue_run").assert_refused("the stamp of another run", "the database was restored")


def test_a_ledger_of_another_version(site: Site) -> None:
    site.open()
    site.sql("UPDATE sluice_meta SET v = '99' WHERE k = 'version'")
    with site.unchanged():
        for name in [*WRITERS, "queue_status", "queue_report", "queue_holds", "queue_plan"]:
            outcome = site.call(name, **WRITING.get(name, {}))
            outcome.assert_refused("table layout 99; this one has 1", "finish the run with the Sluice that began it")
        site.call("queue_run").assert_refused("table layout 99")


def test_a_stamp_that_another_run_left(site: Site) -> None:
    site.client.set("sluice:{captions}:generation", "someone-elses")
    with site.unchanged():
        site.call("queue_run").assert_refused("the stamp of another run", "playbooks/cleanup.yml")


def test_a_stamp_that_changed_under_the_run(site: Site) -> None:
    site.open(Phase.ROUTED)
    site.call("queue_fence").assert_done()
    site.stand(Phase.FENCED)
    site.client.set("sluice:{captions}:generation", "someone-elses")
    with site.unchanged(lease=False):
        site.call("queue_transfer").assert_refused("no longer carries the stamp of this run")
    site.stand(Phase.TRANSFERRED)
    site.call("queue_verify").assert_refused("stamp of the run failed", "playbooks/recover.yml")


@pytest.mark.parametrize("database", [1])
def test_another_database_of_the_same_redis(site: Site, database: int) -> None:
    """The balance sees that the stamp is not there."""
    moved(site)
    outcome = site.call("queue_verify", redis_url=site.redis_url.rsplit("/", 1)[0] + f"/{database}")
    outcome.assert_refused("stamp of the run failed", "missing or different in Redis")
    assert outcome.result["fault_count"] == 8


# -- two operators -------------------------------------------------------------------------------------------------


def test_a_second_operator_is_refused_while_the_lease_is_renewed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LEASE_WAIT", -1.0)
    site.open()
    with site.unchanged():
        site.call("queue_run", owner=SECOND).assert_refused(f"'{OWNER}' holds the lease and renews it")


def test_a_second_operator_waits_visibly_and_takes_over_what_expired(site: Site) -> None:
    site.open()
    site.sql("UPDATE sluice_lease SET expires_at = UTC_TIMESTAMP(6) + INTERVAL 60 SECOND")
    first = site.call("queue_run", owner=SECOND, sliced=True).assert_done()
    assert f"waiting for the lease of '{OWNER}'" in first.result["lines"][0]
    site.sql("UPDATE sluice_lease SET expires_at = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND")
    taken = site.call("queue_run", owner=SECOND, sliced=True, cursor=first.result["cursor"]).assert_done()
    assert "cursor" not in taken.result
    assert taken.result["owner"] == SECOND
    assert site.sql("SELECT owner FROM sluice_lease") == [(SECOND,)]
    assert site.sql("SELECT COUNT(*) FROM sluice_run") == [(1,)]


@pytest.mark.parametrize("name", WRITERS)
def test_the_first_operator_is_refused_everywhere_after_that(site: Site, name: str) -> None:
    """The second one also finished and gave the lease up: it is still not the first one's."""
    site.open(at_the_right_phase(name))
    site.sql("UPDATE sluice_lease SET expires_at = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND")
    site.call("queue_run", owner=SECOND).assert_done()
    site.call("queue_run", owner=SECOND, state="released").assert_done()
    with site.unchanged():
        site.call(name, **WRITING.get(name, {})).assert_refused(f"belongs to '{SECOND}', not to '{OWNER}'")


def test_a_run_in_the_other_direction(site: Site) -> None:
    site.open(Phase.PREPARED)
    site.call("queue_run", direction="back").assert_done()
    site.stand(Phase.FENCED)
    with site.unchanged():
        refused = site.call("queue_run", direction="forward")
    refused.assert_refused("(back) of 'tester' is open and stands at 'fenced'", "planned-rollback.yml")
