"""Route and intake in a real MariaDB: a change waits for every submission that read the old share."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pymysql
import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import sql_connect
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.sql_route import SqlIntake, SqlRouter
from ansible.module_utils.sluice.core.errors import LeaseLost, StoreError
from ansible.module_utils.sluice.core.mapping import Intake, Route
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.core.verdicts import Verdict
from ansible.module_utils.sluice.ports.ledger import Run
from ansible.module_utils.sluice.ports.surroundings import IntakeState, RouteState
from ansible.module_utils.sluice.services.route import change_polling, change_share, prove_share

from lab.stores import PrivateMariaDB
from oracle.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.real

HOST = "127.0.0.1"
PASSWORD = "secret-of-a-test"
ROUTE = Route("sql_row", "captions_control", "rq_share", "id", 1, "polling")
INTAKE = Intake("captions_control", "id", 1, "intake", "open", "paused", "intake_until")
_numbers = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Site:
    """A database with a lease taken, and an account of the producers."""

    server: PrivateMariaDB
    engine: sa.Engine
    producer: str
    lease: Lease
    ledger: SqlLedger
    run: Run
    logins: list[pymysql.connections.Connection[pymysql.cursors.Cursor]] = dataclasses.field(default_factory=list)

    def login(self) -> pymysql.connections.Connection[pymysql.cursors.Cursor]:
        """A producer's connection, autocommit off."""
        made = pymysql.connect(
            host=HOST, port=self.server.port, user=self.producer, password=PASSWORD, database=self.engine.url.database
        )
        self.logins.append(made)
        return made

    def timeout_route(self, seconds: float) -> Route:
        """A route whose producers take no lock."""
        return dataclasses.replace(
            ROUTE, barrier="timeout", producer_timeout=seconds, producer_accounts=(f"{self.producer}@{HOST}",)
        )


@pytest.fixture
def site(mariadb: PrivateMariaDB, database_url: str) -> Iterator[Site]:
    producer = f"route{next(_numbers)}"
    engine = sql_connect.connect(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE USER '{producer}'@'{HOST}' IDENTIFIED BY '{PASSWORD}'")
        connection.exec_driver_sql(f"GRANT ALL ON {engine.url.database}.* TO '{producer}'@'{HOST}'")
    ledger = SqlLedger(engine, "captions")
    ledger.install()
    run = Run("run-1", "captions", "forward", "tester", Phase.OPENED, "", "", "stamp", datetime.now(UTC), None, {})
    ledger.start_run(run)
    made = Site(mariadb, engine, producer, ledger.take_lease(run, "first", 60), ledger, run)
    yield made
    for login in made.logins:  # an open transaction would keep the database from being dropped
        if login.open:
            login.close()
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP USER '{producer}'@'{HOST}'")
    engine.dispose()


def submit(connection: pymysql.connections.Connection[pymysql.cursors.Cursor], *, locking: bool) -> int:
    """Read the share as a submission does and insert by it, without a commit."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rq_share FROM captions_control WHERE id = 1" + (" LOCK IN SHARE MODE" if locking else "")
        )
        row = cursor.fetchone()
        assert row is not None
        cursor.execute(
            "INSERT INTO caption_tasks (id, user_id, image_path, available_at, created_at, custody) "
            "VALUES ('slow', 1, 'x', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), %s)",
            ("rq" if row[0] else "db",),
        )
    return int(row[0])


class Change(threading.Thread):
    """A change of the share in another thread, with the moment at which it was through."""

    def __init__(self, router: SqlRouter, lease: Lease) -> None:
        super().__init__(daemon=True)
        self.router, self.lease = router, lease
        self.done_at: float | None = None
        self.failed: StoreError | None = None

    def run(self) -> None:
        """Change it."""
        try:
            self.router.set_share(self.lease, 100)
            self.done_at = time.monotonic()
        except StoreError as error:
            self.failed = error


def row(site: Site) -> tuple[int, str, int]:
    """Share, intake and polling, as committed."""
    with site.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT rq_share, intake, polling FROM captions_control WHERE id = 1").one()
    return found[0], found[1], found[2]


def test_the_barrier_waits_for_a_producer_that_holds_the_lock(site: Site) -> None:
    producer = site.login()
    assert submit(producer, locking=True) == 0
    change = Change(SqlRouter(site.engine, ROUTE), site.lease)
    change.start()
    change.join(3)  # longer than one attempt
    assert change.is_alive()
    assert row(site)[0] == 0
    committing_at = time.monotonic()
    producer.commit()
    change.join(PATIENCE_SECONDS)
    assert change.failed is None
    assert change.done_at is not None
    assert change.done_at > committing_at
    with site.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT custody FROM caption_tasks WHERE id = 'slow'")) == "db"
    assert submit_after(site) == 100
    producer.close()


def test_the_barrier_is_gone_through_again_by_the_same_command(site: Site) -> None:
    assert SqlRouter(site.engine, ROUTE).set_share(site.lease, 100) is True
    producer = site.login()
    assert submit(producer, locking=True) == 100
    change = Change(SqlRouter(site.engine, ROUTE), site.lease)
    change.start()
    change.join(1)
    assert change.is_alive()
    producer.commit()
    change.join(PATIENCE_SECONDS)
    assert change.done_at is not None
    producer.close()


def submit_after(site: Site) -> int:
    """What a submission reads that begins now."""
    connection = site.login()
    with connection.cursor() as cursor:
        cursor.execute("SELECT rq_share FROM captions_control WHERE id = 1 LOCK IN SHARE MODE")
        found = cursor.fetchone()
    connection.close()
    assert found is not None
    return int(found[0])


def test_a_producer_that_never_commits_is_one_clear_message(site: Site) -> None:
    producer = site.login()
    submit(producer, locking=True)
    told: list[float] = []
    gate = change_share(SqlRouter(site.engine, ROUTE, deadline=1.0, waiting=told.append), site.lease, 100)
    assert [c.verdict for c in gate.checks] == [Verdict.FAILED, Verdict.FAILED]
    assert "a producer has held the row of captions_control" in gate.explain()
    assert row(site)[0] == 0
    with site.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT @@innodb_lock_wait_timeout")) == sql_connect.LOCK_WAIT_SECONDS
    producer.close()


def test_the_timeout_barrier_waits_for_the_old_transaction(site: Site) -> None:
    producer = site.login()
    assert submit(producer, locking=False) == 0
    change = Change(SqlRouter(site.engine, site.timeout_route(0.5)), site.lease)
    change.start()
    change.join(2)
    assert change.is_alive()  # the timeout is over, the transaction is not
    assert row(site)[0] == 100
    other = site.login()  # a transaction of the new route holds nobody up
    with other.cursor() as cursor:
        cursor.execute("SELECT * FROM caption_tasks FOR UPDATE SKIP LOCKED")
    committing_at = time.monotonic()
    producer.commit()
    change.join(PATIENCE_SECONDS)
    assert change.failed is None
    assert change.done_at is not None
    assert change.done_at > committing_at
    producer.close()
    other.close()


def test_the_timeout_barrier_lets_the_longest_request_pass_also_without_transactions(site: Site) -> None:
    router = SqlRouter(site.engine, site.timeout_route(1.0))
    for expected in (True, False):  # again: an earlier call may have died before its barrier
        start = time.monotonic()
        assert router.set_share(site.lease, 50) is expected
        assert time.monotonic() - start >= 1.0


def test_the_timeout_barrier_names_what_stays_open(site: Site) -> None:
    producer = site.login()
    submit(producer, locking=False)
    with pytest.raises(StoreError, match=f"still open: .*{site.producer}"):
        SqlRouter(site.engine, site.timeout_route(0.1), deadline=0.5).set_share(site.lease, 100)
    producer.close()


def test_a_barrier_that_cannot_be_read_does_not_pass(site: Site) -> None:
    blind = sql_connect.connect(site.server.url(site.producer, PASSWORD, str(site.engine.url.database)))
    gate = change_share(SqlRouter(blind, site.timeout_route(0.0)), site.lease, 100)
    assert not gate.open
    assert "PROCESS" in gate.explain()
    blind.dispose()


def test_the_gate_reads_back(site: Site) -> None:
    router = SqlRouter(site.engine, ROUTE)
    assert change_share(router, site.lease, 25).open
    assert row(site)[0] == 25
    assert router.read() == RouteState(25, True)
    assert prove_share(router, 25).open
    assert prove_share(router, 30).verdict is Verdict.FAILED
    assert change_polling(router, site.lease, False).open
    assert row(site) == (25, "open", 0)
    assert router.set_polling(site.lease, False) is False


def test_an_old_token_changes_neither_route_nor_intake(site: Site) -> None:
    before = row(site)
    with site.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE sluice_lease SET expires_at = '2000-01-01'")
    site.ledger.take_lease(site.run, "someone else", 60)
    router = SqlRouter(site.engine, ROUTE)
    with pytest.raises(LeaseLost):
        change_share(router, site.lease, 100)
    with pytest.raises(LeaseLost):
        change_polling(router, site.lease, False)
    with pytest.raises(LeaseLost):
        SqlIntake(site.engine, INTAKE).set_open(site.lease, False, 10)
    assert row(site) == before


@pytest.mark.parametrize("route", [dataclasses.replace(ROUTE, key_value=9), Route("none")], ids=["no row", "no route"])
def test_a_route_that_is_not_there_is_unknown(site: Site, route: Route) -> None:
    assert prove_share(SqlRouter(site.engine, route), 0).verdict is Verdict.UNKNOWN
    assert not change_share(SqlRouter(site.engine, route), site.lease, 0).open


def test_without_a_switch_for_polling_the_verdict_is_unknown(site: Site) -> None:
    router = SqlRouter(site.engine, dataclasses.replace(ROUTE, polling=""))
    assert router.read() == RouteState(0, None)
    assert change_polling(router, site.lease, False).verdict is Verdict.UNKNOWN


def test_a_pause_has_a_deadline_and_ends_by_itself(site: Site) -> None:
    intake = SqlIntake(site.engine, INTAKE)
    assert intake.read() == IntakeState(True, None)
    assert intake.set_open(site.lease, False, 30) is True
    paused = intake.read()
    assert not paused.open
    assert paused.remaining is not None
    assert 25 < paused.remaining <= 30
    assert intake.set_open(site.lease, False, 0.2) is False  # still paused, to an earlier deadline
    until = time.monotonic() + 5
    while not intake.read().open:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert intake.set_open(site.lease, False, 30) is True
    assert intake.set_open(site.lease, True, 0) is True
    assert row(site)[1] == "open"
    for bad in (SqlIntake(site.engine, dataclasses.replace(INTAKE, until="")), intake):
        with pytest.raises(StoreError, match="deadline"):
            bad.set_open(site.lease, False, 30 if bad is not intake else 0)
