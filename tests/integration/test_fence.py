"""Fences on a real MariaDB and a real Redis: what is closed cannot claim, start or commit, and nothing else suffers."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pymysql
import pytest
import redis
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import redis_connect, sql_connect
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.redis_fence import RedisFence
from ansible.module_utils.sluice.adapters.sql_fence import SqlFence
from ansible.module_utils.sluice.adapters.strangers import rq_strangers, sql_strangers
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.errors import FenceOpen, GenerationMismatch, LeaseLost, StoreError
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.core.verdicts import Verdict
from ansible.module_utils.sluice.ports.ledger import Run
from ansible.module_utils.sluice.services.fence import close_side, prove_side
from redis.backoff import NoBackoff
from redis.retry import Retry

from lab.stores import PrivateMariaDB, PrivateRedis
from oracle.patience import PATIENCE_SECONDS, until

pytestmark = pytest.mark.real

HOST = "127.0.0.1"
PASSWORD = "secret-of-a-test"
_numbers = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Site:
    """A database with a lease taken, an account of the workers and one of the producers, and the mover's engine."""

    server: PrivateMariaDB
    engine: sa.Engine
    database: str
    worker: str
    producer: str
    lease: Lease
    ledger: SqlLedger
    run: Run
    logins: list[pymysql.connections.Connection[pymysql.cursors.Cursor]] = dataclasses.field(default_factory=list)

    def login(self, user: str) -> pymysql.connections.Connection[pymysql.cursors.Cursor]:
        """A connection of a worker or producer, with autocommit off."""
        made = pymysql.connect(
            host=HOST, port=self.server.port, user=user, password=PASSWORD, database=self.database, connect_timeout=5
        )
        self.logins.append(made)
        return made

    def newer_lease(self) -> Lease:
        """Someone else takes the lease, after ours has expired."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE sluice_lease SET expires_at = '2000-01-01'")
        return self.ledger.take_lease(self.run, "someone else", 60)

    def fence(self, *accounts: str) -> SqlFence:
        """A fence around accounts; the workers' when none is named."""
        named = accounts or (f"{self.worker}@{HOST}",)
        return SqlFence(self.engine, named, producer_accounts=[f"{self.producer}@{HOST}"])


@pytest.fixture
def site(mariadb: PrivateMariaDB, database_url: str) -> Iterator[Site]:
    number = next(_numbers)
    worker, producer, mover = (f"{word}{number}" for word in ("worker", "producer", "mover"))
    database = str(sa.make_url(database_url).database)
    root = mariadb.connect_as_root()
    with root.cursor() as cursor:
        for user in (worker, producer, mover):
            cursor.execute("CREATE USER %s@%s IDENTIFIED BY %s", (user, HOST, PASSWORD))
            cursor.execute(f"GRANT ALL ON {database}.* TO %s@%s", (user, HOST))
        cursor.execute("GRANT CREATE USER, PROCESS, CONNECTION ADMIN ON *.* TO %s@%s", (mover, HOST))
        cursor.execute("GRANT SELECT ON mysql.* TO %s@%s", (mover, HOST))
    engine = sql_connect.connect(mariadb.url(mover, PASSWORD, database))
    ledger = SqlLedger(engine, "captions")
    ledger.install()
    run = Run("run-1", "captions", "forward", "tester", Phase.OPENED, "", "", "stamp", datetime.now(UTC), None, {})
    ledger.start_run(run)
    lease = ledger.take_lease(run, "first", 60)
    made = Site(mariadb, engine, database, worker, producer, lease, ledger, run)
    yield made
    end_sessions(made.logins)
    engine.dispose()
    with root.cursor() as cursor:
        for user in (worker, producer, mover):
            cursor.execute("DROP USER %s@%s", (user, HOST))
    root.close()


def end_sessions(connections: list[pymysql.connections.Connection[pymysql.cursors.Cursor]]) -> None:
    """Close what a failed test left open: an open transaction would keep its database from being dropped."""
    for connection in connections:
        if connection.open:
            connection.close()


def insert(connection: pymysql.connections.Connection[pymysql.cursors.Cursor], task: str) -> None:
    """A row, not committed."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO caption_tasks (id, user_id, image_path, available_at, created_at) "
            "VALUES (%s, %s, 'x', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))",
            (task, next(_numbers)),
        )


def rows(site: Site) -> list[str]:
    """The ids that are committed."""
    with site.engine.connect() as connection:
        return list(connection.scalars(sa.text("SELECT id FROM caption_tasks ORDER BY id")))


def is_locked(site: Site, user: str) -> bool:
    """Asked of the server in another way than the fence asks: by its own statement of the account."""
    root = site.server.connect_as_root()
    with root.cursor() as cursor:
        cursor.execute("SHOW CREATE USER %s@%s", (user, HOST))
        row = cursor.fetchone()
    root.close()
    assert row is not None
    return "ACCOUNT LOCK" in str(row[0])


class Claimer(threading.Thread):
    """A worker that writes for ever and logs in again whenever its connection is lost."""

    def __init__(self, site: Site) -> None:
        super().__init__(daemon=True)
        self.site = site
        self.stop = threading.Event()
        self.commits = 0
        self.refused: list[int] = []

    def run(self) -> None:
        """Insert, commit, and again."""
        connection = None
        while not self.stop.is_set():
            try:
                if connection is None:
                    connection = self.site.login(self.site.worker)
                insert(connection, f"claimer-{next(_numbers)}")
                connection.commit()
                self.commits += 1
            except pymysql.err.Error as error:
                connection = None
                self.refused.append(error.args[0])
            self.stop.wait(0.01)
        if connection is not None:
            connection.close()


def test_a_worker_in_full_swing_is_shut_out_and_let_in_again(site: Site) -> None:
    claimer = Claimer(site)
    claimer.start()
    until(lambda: claimer.commits > 3)

    gate = close_side([site.fence()], site.lease, "legacy")

    assert gate.open, gate.explain()
    assert is_locked(site, site.worker)
    frozen = rows(site)
    turned_away = len(claimer.refused)
    until(lambda: len(claimer.refused) > turned_away + 3)  # it goes on trying to log in
    assert rows(site) == frozen
    assert 4151 in claimer.refused  # the account is locked
    assert prove_side([site.fence()], "legacy").open
    assert site.fence().close(site.lease) is False  # nothing left to change

    assert site.fence().lift(site.lease) is True
    before = claimer.commits
    until(lambda: claimer.commits > before)
    assert prove_side([site.fence()], "legacy").verdict is Verdict.FAILED
    claimer.stop.set()
    claimer.join(PATIENCE_SECONDS)
    assert not claimer.is_alive()


def test_an_open_transaction_cannot_commit(site: Site) -> None:
    worker = site.login(site.worker)
    insert(worker, "late")
    assert [c.verdict for c in site.fence().prove()] == [Verdict.FAILED] * 3  # unlocked, connected, in a transaction

    assert site.fence().close(site.lease) is True

    with pytest.raises(pymysql.err.Error):
        worker.commit()
    assert rows(site) == []
    assert [c.verdict for c in site.fence().prove()] == [Verdict.PASSED] * 3


def test_a_transaction_is_seen_however_soon_after_another_look_it_began(site: Site) -> None:
    """InnoDB answers from what it remembers of the last look, for a tenth of a second after it."""
    worker = site.login(site.worker)
    for number in range(4):
        insert(worker, f"late {number}")
        *_, transaction = site.fence().prove()
        assert transaction.verdict is Verdict.FAILED
        worker.rollback()
        *_, transaction = site.fence().prove()
        assert transaction.verdict is Verdict.PASSED


def test_the_producers_go_on(site: Site) -> None:
    producer = site.login(site.producer)
    insert(producer, "accepted")
    site.fence().close(site.lease)
    producer.commit()
    assert rows(site) == ["accepted"]
    producer.close()


def test_an_old_token_changes_nothing(site: Site) -> None:
    worker = site.login(site.worker)
    insert(worker, "kept")
    newer = site.newer_lease()

    with pytest.raises(LeaseLost):
        site.fence().close(site.lease)

    assert not is_locked(site, site.worker)
    worker.commit()
    assert rows(site) == ["kept"]
    worker.close()
    site.fence().close(newer)
    with pytest.raises(LeaseLost):
        site.fence().lift(site.lease)
    assert is_locked(site, site.worker)


def test_a_session_that_came_back_while_unlocked_breaks_the_proof(site: Site) -> None:
    site.fence().close(site.lease)
    with site.engine.connect() as connection:
        connection.exec_driver_sql(f"ALTER USER '{site.worker}'@'{HOST}' ACCOUNT UNLOCK")
    worker = site.login(site.worker)
    verdicts = [check.verdict for check in site.fence().prove()]
    assert verdicts == [Verdict.FAILED, Verdict.FAILED, Verdict.PASSED]
    worker.close()


@pytest.mark.parametrize(
    ("account", "reason"),
    [("producer", "the producers use it too"), ("mover", "the mover's own account"), ("nobody", "no such account")],
)
def test_what_cannot_be_fenced_is_named_and_left_alone(site: Site, account: str, reason: str) -> None:
    names = {"producer": site.producer, "mover": str(site.engine.url.username), "nobody": "nobody"}
    fence = site.fence(f"{names[account]}@{HOST}")

    failed = [check for check in fence.ability() if check.verdict is Verdict.FAILED]
    assert any(reason in check.reading for check in failed), failed
    gate = close_side([fence], site.lease, "legacy")

    assert gate.verdict is Verdict.FAILED
    assert account == "nobody" or not is_locked(site, names[account])
    site.login(site.producer).close()


def test_ability_passes_when_everything_is_there(site: Site) -> None:
    checks = site.fence().ability()
    assert {check.name for check in checks} >= {"may lock accounts", "may end sessions", "sees all sessions"}
    assert [check for check in checks if check.verdict is not Verdict.PASSED] == []


@pytest.mark.parametrize("right", ["CREATE USER", "PROCESS", "CONNECTION ADMIN"])
def test_a_dry_run_knows_what_the_mover_may_do(site: Site, right: str) -> None:
    """A reader with nothing but mysql.global_priv tells which right the mover lacks."""
    mover = f"{site.engine.url.username}@{HOST}"
    root = site.server.connect_as_root()
    with root.cursor() as cursor:
        cursor.execute("GRANT SELECT ON mysql.global_priv TO %s@%s", (site.producer, HOST))
    reader = sql_connect.connect(site.server.url(site.producer, PASSWORD, site.database))
    fence = SqlFence(reader, [f"{site.worker}@{HOST}"], mover=mover)
    assert [check for check in fence.ability() if check.verdict is not Verdict.PASSED] == []
    with root.cursor() as cursor:
        cursor.execute(f"REVOKE {right} ON *.* FROM %s@%s", (site.engine.url.username, HOST))
    root.close()
    [check] = [c for c in fence.ability() if c.verdict is not Verdict.PASSED]
    assert check.verdict is Verdict.FAILED
    assert right in check.reading
    reader.dispose()


def test_a_second_account_of_the_same_user_is_a_way_in(site: Site) -> None:
    with site.engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE USER '{site.worker}'@'10.1.2.3'")
    [check] = [c for c in site.fence().ability() if c.verdict is not Verdict.PASSED]
    assert check.name == "no second way in"
    assert f"{site.worker}@10.1.2.3" in check.reading
    with site.engine.connect() as connection:
        connection.exec_driver_sql(f"DROP USER '{site.worker}'@'10.1.2.3'")


def test_an_account_name_cannot_inject(site: Site) -> None:
    name = "o'wn`er\\ --"
    with site.engine.begin() as connection:
        connection.execute(sa.text("CREATE USER :u@:h IDENTIFIED BY 'x'"), {"u": name, "h": "10.%"})
    fence = site.fence(f"{name}@10.%")
    assert fence.close(site.lease) is True
    assert [check.verdict for check in fence.prove()] == [Verdict.PASSED] * 3
    assert fence.lift(site.lease) is True
    with site.engine.begin() as connection:
        connection.execute(sa.text("DROP USER :u@:h"), {"u": name, "h": "10.%"})


def test_what_cannot_be_read_is_unknown(site: Site) -> None:
    """An account without PROCESS sees no other session, which must not pass for silence."""
    blind = sql_connect.connect(site.server.url(site.producer, PASSWORD, site.database))
    fence = SqlFence(blind, [f"{site.worker}@{HOST}"])
    assert {check.verdict for check in fence.prove()} == {Verdict.UNKNOWN}
    root = site.server.connect_as_root()
    with root.cursor() as cursor:
        cursor.execute("GRANT SELECT ON mysql.* TO %s@%s", (site.producer, HOST))
    root.close()
    site.fence().close(site.lease)
    assert [check.verdict for check in fence.prove()] == [Verdict.PASSED, Verdict.UNKNOWN, Verdict.UNKNOWN]
    with pytest.raises(StoreError):
        fence.close(site.lease)
    blind.dispose()


def test_no_account_is_unknown(site: Site) -> None:
    fence = SqlFence(site.engine, [])
    assert [check.verdict for check in [*fence.prove(), *fence.ability()]] == [Verdict.UNKNOWN] * 2
    with pytest.raises(FenceOpen):
        fence.close(site.lease)


# -- Redis ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def workers(redis_server: PrivateRedis, redis_url: str) -> Iterator[redis.Redis]:
    """The mover's client, beside an ACL user `rqworker`."""
    client = redis_connect.connect(redis_url)
    client.execute_command("ACL SETUSER", "rqworker", "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    client.set("sluice:{captions}:token", 7)
    yield client
    client = redis_connect.connect(redis_url)
    client.execute_command("ACL DELUSER", "rqworker")
    client.execute_command("ACL SAVE")
    client.close()


def worker_client(server: PrivateRedis) -> redis.Redis:
    """A client that logs in as the worker, does not try twice, and waits longer than any fence."""
    return redis.Redis(
        host=HOST,
        port=server.port,
        username="rqworker",
        password=PASSWORD,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=60,
    )


def redis_lease(token: int = 7) -> Lease:
    return Lease("captions", "run-1", "first", token, "stamp")


def test_a_redis_user_is_shut_out_also_after_a_restart(workers: redis.Redis, redis_server: PrivateRedis) -> None:
    worker = worker_client(redis_server)
    waiting: list[Exception] = []

    def wait_for_work() -> None:
        try:
            worker.blpop(["work"], timeout=30)
        except redis.RedisError as error:
            waiting.append(error)

    thread = threading.Thread(target=wait_for_work)
    thread.start()
    until(lambda: any(entry["user"] == "rqworker" for entry in workers.client_list()))
    fence = RedisFence(workers, ["rqworker"])
    assert [check.verdict for check in fence.ability()] == [Verdict.PASSED] * 4
    assert [check.verdict for check in fence.prove()] == [Verdict.FAILED] * 2

    gate = close_side([fence], redis_lease(), "rq")

    assert gate.open, gate.explain()
    thread.join(PATIENCE_SECONDS)
    assert waiting, "the blocked worker kept its connection"
    with pytest.raises(redis.AuthenticationError):
        worker_client(redis_server).ping()
    assert fence.close(redis_lease()) is False

    redis_server.restart()
    with pytest.raises(redis.AuthenticationError):
        worker_client(redis_server).ping()
    again = RedisFence(redis_connect.connect(redis_server.url()), ["rqworker"])
    assert prove_side([again], "rq").open
    assert again.lift(redis_lease()) is True
    assert worker_client(redis_server).ping()


def test_an_old_token_cannot_switch_a_redis_user(workers: redis.Redis, redis_server: PrivateRedis) -> None:
    fence = RedisFence(workers, ["rqworker"])
    with pytest.raises(LeaseLost):
        fence.close(redis_lease(6))
    assert worker_client(redis_server).ping()


def test_an_emptied_redis_can_be_closed_and_not_opened(workers: redis.Redis, redis_server: PrivateRedis) -> None:
    workers.flushall()
    fence = RedisFence(workers, ["rqworker"])
    assert fence.close(redis_lease()) is True
    with pytest.raises(GenerationMismatch):
        fence.lift(redis_lease())
    with pytest.raises(redis.AuthenticationError):
        worker_client(redis_server).ping()


def test_the_movers_own_redis_user_is_not_switched_off(workers: redis.Redis) -> None:
    fence = RedisFence(workers, ["default"])
    assert Verdict.FAILED in {check.verdict for check in fence.ability()}
    with pytest.raises(FenceOpen):
        fence.close(redis_lease())
    assert workers.ping()
    assert [c.verdict for c in RedisFence(workers, []).prove()] == [Verdict.UNKNOWN]


# -- strangers ------------------------------------------------------------------------------------------------------


def test_an_unknown_session_in_our_database_is_a_stranger(site: Site) -> None:
    known = [f"{site.worker}@{HOST}"]
    # The fixture's own session of root uses no database: whether it touches ours cannot be told.
    assert [c.verdict for c in sql_strangers(site.engine, known)] == [Verdict.UNKNOWN]
    known.append("root@localhost")
    assert [c.verdict for c in sql_strangers(site.engine, known)] == [Verdict.PASSED]
    stranger = site.login(site.producer)
    [check] = sql_strangers(site.engine, known)
    assert check.verdict is Verdict.FAILED
    assert site.producer in check.reading
    both = [*known, f"{site.producer}@{HOST}"]
    assert [c.verdict for c in sql_strangers(site.engine, both)] == [Verdict.PASSED]
    # A known account from a host that the inventory does not name is a forgotten worker.
    assert [c.verdict for c in sql_strangers(site.engine, both, hosts=["10.9.9.9"])] == [Verdict.FAILED]
    assert [c.verdict for c in sql_strangers(site.engine, both, hosts=["127.0.0.1"])] == [Verdict.PASSED]
    stranger.close()


def test_a_short_visit_is_seen_over_several_samples(site: Site) -> None:
    visits: list[pymysql.connections.Connection[pymysql.cursors.Cursor]] = []

    class BetweenSamples(SystemClock):
        """Somebody comes after the second sample and leaves after the third."""

        number = 0

        def wait(self, seconds: float) -> None:
            self.number += 1
            if self.number == 2:
                visits.append(site.login(site.producer))
            elif self.number == 3:
                visits[0].close()
            super().wait(seconds)

    clock = BetweenSamples()
    [check] = sql_strangers(site.engine, ["root@localhost"], seconds=1.5, interval=0.1, clock=clock)
    assert clock.number >= 3, "nobody left before the last sample"
    assert check.verdict is Verdict.FAILED
    assert site.producer in check.reading


def test_sessions_that_cannot_be_seen_are_unknown(site: Site) -> None:
    blind = sql_connect.connect(site.server.url(site.worker, PASSWORD, site.database))
    assert [c.verdict for c in sql_strangers(blind, [])] == [Verdict.UNKNOWN]
    blind.dispose()


def test_a_worker_on_an_unnamed_host_is_a_stranger(redis_url: str) -> None:
    client = redis_connect.connect(redis_url)
    reader = redis_connect.connect(redis_url, read_only=True)
    assert [c.verdict for c in rq_strangers(reader, ["app1"])] == [Verdict.PASSED]
    for name, host in (("a", "app1"), ("b", "app9")):
        client.sadd("rq:workers", f"rq:worker:{name}")
        worker = {"hostname": host, "pid": 12, "queues": "high,low", "last_heartbeat": "2026-11-21T10:00:00.000000Z"}
        client.hset(f"rq:worker:{name}", mapping=worker)
    client.sadd("rq:workers", "rq:worker:expired")
    before = client.dbsize()
    [check] = rq_strangers(reader, ["app1"])
    assert (check.verdict, "b on app9 (pid 12" in check.reading) == (Verdict.FAILED, True)
    assert "app1" not in check.reading
    assert [c.verdict for c in rq_strangers(reader, ["app1"], queues=["other"])] == [Verdict.PASSED]
    assert [c.verdict for c in rq_strangers(reader, ["app1", "app9"])] == [Verdict.PASSED]
    assert (client.dbsize(), client.scard("rq:workers")) == (before, 3)
    client.sadd("rq:workers", "rq:worker:odd")
    client.set("rq:worker:odd", "x")
    assert [c.verdict for c in rq_strangers(reader, ["app1", "app9"])] == [Verdict.UNKNOWN]
