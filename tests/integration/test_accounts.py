"""Accounts per side in real stores: made once, least rights, kept over a restart, never taken out of a fence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import redis_connect, sql_connect
from ansible.module_utils.sluice.adapters.redis_accounts import RedisAccounts, producer_rules, worker_rules
from ansible.module_utils.sluice.adapters.sql_accounts import SqlAccounts, parse_rights
from ansible.module_utils.sluice.core.errors import StoreError
from ansible.module_utils.sluice.core.verdicts import Verdict
from ansible.module_utils.sluice.services import accounts
from rq import Queue, Retry, Worker
from rq.job import Job
from rq.serializers import JSONSerializer

from lab.stores import PrivateMariaDB, PrivateRedis
from oracle.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.real
RIGHTS = ("SELECT, UPDATE ON caption_tasks", "SELECT ON captions_control")


# -- SQL ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    made = sql_connect.connect(database_url)
    yield made
    with made.begin() as connection:
        connection.exec_driver_sql("DROP USER IF EXISTS captions_rq@127.0.0.1, 'captions_rq'@'%%', far@10.9.8.7")
    made.dispose()


def test_an_account_is_made_once_and_may_do_only_what_was_granted(engine: sa.Engine, mariadb: PrivateMariaDB) -> None:
    store = SqlAccounts(engine)
    planned = store.ensure("captions_rq@127.0.0.1", "one", RIGHTS, check_mode=True)
    assert planned.changed
    assert planned.actions[0] == "create the account"
    made = store.ensure("captions_rq@127.0.0.1", "one", RIGHTS)
    assert made.changed
    assert list(made.actions) == list(planned.actions)
    assert all(check.verdict is Verdict.PASSED for check in made.checks), made.checks
    assert [check.reading for check in made.checks][-1] == "logged in"
    again = store.ensure("captions_rq@127.0.0.1", "one", RIGHTS)
    assert (again.changed, again.actions) == (False, [])
    mine = sql_connect.connect(mariadb.url("captions_rq", "one", str(engine.url.database)))
    with mine.connect() as connection:
        connection.exec_driver_sql("UPDATE caption_tasks SET attempts = 1")
        with pytest.raises(sa.exc.DBAPIError, match="denied"):
            connection.exec_driver_sql("DELETE FROM caption_tasks")
    mine.dispose()


def test_check_mode_makes_nothing(engine: sa.Engine) -> None:
    SqlAccounts(engine).ensure("captions_rq@%", "one", RIGHTS, check_mode=True)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT COUNT(*) FROM mysql.global_priv WHERE User = 'captions_rq'")) == 0


def test_another_password_and_a_lost_right_are_put_right(engine: sa.Engine) -> None:
    store = SqlAccounts(engine)
    store.ensure("captions_rq@127.0.0.1", "one", RIGHTS)
    with engine.begin() as connection:
        connection.exec_driver_sql("REVOKE UPDATE ON caption_tasks FROM captions_rq@127.0.0.1")
        connection.exec_driver_sql("GRANT DELETE ON captions_control TO captions_rq@127.0.0.1")
    done = store.ensure("captions_rq@127.0.0.1", "two", RIGHTS)
    assert list(done.actions) == ["set its password", f"grant UPDATE ON {engine.url.database}.caption_tasks"]
    assert all(check.verdict is Verdict.PASSED for check in done.checks)
    assert "it also has DELETE" in done.checks[0].reading


def test_a_locked_account_stays_locked(engine: sa.Engine) -> None:
    store = SqlAccounts(engine)
    store.ensure("captions_rq@127.0.0.1", "one", RIGHTS)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER USER captions_rq@127.0.0.1 ACCOUNT LOCK")
    for password in ("one", "two"):
        done = store.ensure("captions_rq@127.0.0.1", password, RIGHTS)
        assert done.changed == (password == "two")
        assert "it was left locked" in done.checks[-1].reading
    with engine.connect() as connection:
        locked = connection.scalar(
            sa.text("SELECT JSON_VALUE(Priv, '$.account_locked') FROM mysql.global_priv WHERE User = 'captions_rq'")
        )
    assert str(locked).lower() in ("1", "true")


def test_an_account_for_other_hosts_is_proved_by_its_digest(engine: sa.Engine) -> None:
    done = SqlAccounts(engine).ensure("far@10.9.8.7", "one", RIGHTS)
    assert all(check.verdict is Verdict.PASSED for check in done.checks)
    assert "other hosts" in done.checks[-1].reading


def test_a_right_on_a_whole_database_does_not_reach_into_a_similar_name(
    engine: sa.Engine, mariadb: PrivateMariaDB
) -> None:
    with engine.begin() as connection:
        for name in ("a_b", "axb"):
            connection.exec_driver_sql(f"CREATE DATABASE IF NOT EXISTS {name}")
            connection.exec_driver_sql(f"CREATE TABLE IF NOT EXISTS {name}.t (i INT)")
    try:
        store = SqlAccounts(engine)
        store.ensure("captions_rq@127.0.0.1", "one", ["SELECT ON a_b.*"])
        assert not store.ensure("captions_rq@127.0.0.1", "one", ["SELECT ON a_b.*"]).changed
        mine = sql_connect.connect(mariadb.url("captions_rq", "one", "a_b"))
        with mine.connect() as connection:
            connection.exec_driver_sql("SELECT * FROM a_b.t")
            with pytest.raises(sa.exc.DBAPIError, match="denied"):
                connection.exec_driver_sql("SELECT * FROM axb.t")
        mine.dispose()
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP DATABASE a_b")
            connection.exec_driver_sql("DROP DATABASE axb")


def test_no_password_reaches_a_message_or_the_servers_log(
    engine: sa.Engine, mariadb: PrivateMariaDB, planted_secrets: object
) -> None:
    secret = planted_secrets.plant("account")  # type: ignore[attr-defined]
    with engine.begin() as connection:
        connection.exec_driver_sql("SET GLOBAL log_output = 'TABLE'")
        connection.exec_driver_sql("SET GLOBAL general_log = ON")
    try:
        done = SqlAccounts(engine).ensure("captions_rq@127.0.0.1", secret, RIGHTS)
        with engine.connect() as connection:
            log = "\n".join(
                connection.scalars(sa.text("SELECT CONVERT(argument USING utf8mb4) FROM mysql.general_log"))
            )
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("SET GLOBAL general_log = OFF")
            connection.exec_driver_sql("SET GLOBAL log_output = 'FILE'")
    assert "CREATE USER" in log
    planted_secrets.assert_absent(log, "the general log")  # type: ignore[attr-defined]
    planted_secrets.assert_absent(repr(done), "the outcome")  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", ["SELECT", "SELECT ON t; DROP TABLE x", "SELECT ON `t`", "SELECT ON *.*.*", ""])
def test_a_line_that_is_no_right_is_refused(line: str) -> None:
    with pytest.raises(StoreError, match="not a right"):
        parse_rights([line], "captions")


def test_the_movers_own_account_is_refused(engine: sa.Engine) -> None:
    with pytest.raises(StoreError, match="own account"):
        SqlAccounts(engine).ensure("root@localhost", "x", RIGHTS)


# -- Redis ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    made = redis_connect.connect(redis_url)
    yield made
    made.execute_command("ACL", "DELUSER", "captions_rq", "captions_web")
    made.execute_command("ACL", "SAVE")


def test_a_user_is_made_once_and_survives_a_restart(client: redis.Redis, redis_server: PrivateRedis) -> None:
    store = RedisAccounts(client)
    planned = store.ensure("captions_rq", "one", worker_rules(), check_mode=True)
    assert planned.changed
    assert client.execute_command("ACL", "GETUSER", "captions_rq") is None
    made = store.ensure("captions_rq", "one", worker_rules())
    assert made.changed
    assert all(check.verdict is Verdict.PASSED for check in made.checks), made.checks
    assert not store.ensure("captions_rq", "one", worker_rules()).changed
    assert not store.ensure("captions_rq", "one", worker_rules(), check_mode=True).changed
    redis_server.restart()
    again = RedisAccounts(redis_connect.connect(redis_server.url())).ensure("captions_rq", "one", worker_rules())
    assert not again.changed


@pytest.mark.parametrize(
    ("words", "action"),
    [
        (["+flushall"], "set its commands (- flushall)"),
        (["-hset"], "set its commands (+ hset)"),
        (["~*"], "set its keys"),
        (["allchannels"], "set its channels"),
        ([">another"], "set its password"),
        (["nopass"], "set its password"),
        (["(~x +get)"], "remove its selectors"),
    ],
)
def test_a_user_that_was_changed_is_put_right(client: redis.Redis, words: list[str], action: str) -> None:
    store = RedisAccounts(client)
    store.ensure("captions_rq", "one", worker_rules())
    client.execute_command("ACL", "SETUSER", "captions_rq", *words)
    done = store.ensure("captions_rq", "one", worker_rules())
    assert len(done.actions) == 1
    assert done.actions[0].startswith(action)
    assert all(check.verdict is Verdict.PASSED for check in done.checks), done.checks


def test_a_user_behind_a_fence_stays_off(client: redis.Redis) -> None:
    store = RedisAccounts(client)
    store.ensure("captions_rq", "one", worker_rules())
    client.execute_command("ACL", "SETUSER", "captions_rq", "off")
    done = store.ensure("captions_rq", "two", worker_rules())
    assert done.changed
    assert "fenced" in done.checks[-1].reading
    assert "off" in client.acl_getuser("captions_rq")["flags"]


def test_without_acl_file_it_is_kept_in_the_configuration_or_said_not_to_be(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisAccounts(client)
    monkeypatch.setattr(store, "_saving", lambda: ((), "not durable: neither"))
    done = store.ensure("captions_rq", "one", worker_rules())
    assert [check.verdict for check in done.checks if check.name == "redis_accounts_saved"] == [Verdict.UNKNOWN]


@pytest.mark.parametrize("name", ["default", "a b", ""])
def test_a_user_that_is_not_the_sides_own_is_refused(client: redis.Redis, name: str) -> None:
    with pytest.raises(StoreError):
        RedisAccounts(client).ensure(name, "x", worker_rules())


def test_a_rule_for_users_is_refused_as_a_right(client: redis.Redis) -> None:
    with pytest.raises(StoreError, match="not a rule"):
        RedisAccounts(client).ensure("captions_rq", "x", ["nopass", "+get"])


#: A forking worker until its queue is empty, or one that does not fork and waits for the one task that is scheduled.
WORKER = """
import os, sys, redis
from rq import SimpleWorker, Worker
from rq.serializers import JSONSerializer
rq = redis.Redis(port=int(os.environ["PORT"]), username="captions_rq", password="r")
waits = {"max_jobs": 1, "with_scheduler": True}
kind, how = (Worker, {"burst": True}) if sys.argv[1] == "high" else (SimpleWorker, waits)
worker = kind([sys.argv[1]], connection=rq, serializer=JSONSerializer)
worker.work(**how)
"""


def test_rq_works_within_the_least_rights_and_not_beyond(client: redis.Redis, redis_server: PrivateRedis) -> None:
    store = RedisAccounts(client)
    assert store.ensure("captions_web", "w", producer_rules()).changed
    assert store.ensure("captions_rq", "r", worker_rules()).changed
    client.execute_command("ACL", "LOG", "RESET")
    address = {"host": "127.0.0.1", "port": redis_server.port}
    web = redis.Redis(username="captions_web", password="w", **address)
    rq = redis.Redis(username="captions_rq", password="r", **address)
    queue = Queue("high", connection=web, serializer=JSONSerializer)
    queue.enqueue("builtins.abs", -1, job_id="a", unique=True, retry=Retry(2, [1, 1]))
    later = Queue("later", connection=web, serializer=JSONSerializer)
    later.enqueue_at(datetime.now(UTC) + timedelta(seconds=4), "builtins.abs", -2, job_id="late", unique=True)
    queue.enqueue_many([Queue.prepare_data("builtins.abs", (i,)) for i in range(3)])
    queue.enqueue("builtins.abs", -3, job_id="cancelled").cancel()
    queue.enqueue("builtins.abs", -4, job_id="deleted").delete()
    queue.enqueue("builtins.abs", -5, depends_on=Job.fetch("a", web, JSONSerializer))
    queue.enqueue("builtins.int", "no number", job_id="bad", retry=Retry(1))
    assert queue.fetch_job("a") is not None
    assert queue.count > 0
    assert queue.get_job_position("a") == 0
    Worker.all(connection=web)

    # In a process of their own, since workers take over the signals of theirs.
    settings = {**os.environ, "PORT": str(redis_server.port)}
    for name in ("high", "later"):
        subprocess.run(
            [sys.executable, "-c", WORKER, name],
            env=settings,
            check=True,
            timeout=PATIENCE_SECONDS,
            capture_output=True,
        )
    assert Job.fetch("a", web, JSONSerializer).return_value() == 1
    assert Job.fetch("late", web, JSONSerializer).return_value() == 2
    assert Job.fetch("bad", web, JSONSerializer).is_failed
    assert client.execute_command("ACL", "LOG") == [], "nothing that RQ sent was refused"

    for other in (web, rq):
        for command in (["GET", "session:1"], ["FLUSHALL"], ["KEYS", "*"], ["CONFIG", "GET", "*"], ["ACL", "LIST"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                other.execute_command(*command)
    with pytest.raises(redis.exceptions.NoPermissionError):
        web.blpop(["rq:queue:high"], timeout=1)


# -- both -----------------------------------------------------------------------------------------------------------


def test_the_gate_tells_done_from_to_be_done(engine: sa.Engine, client: redis.Redis) -> None:
    wishes = [
        (SqlAccounts(engine), accounts.Wish("captions_rq@127.0.0.1", "one", RIGHTS)),
        (RedisAccounts(client), accounts.Wish("captions_rq", "one", tuple(worker_rules()))),
    ]
    planned = accounts.ensure(wishes, check_mode=True)
    assert planned.gate.verdict is Verdict.UNKNOWN
    assert "not reached" in planned.gate.explain()
    done = accounts.ensure(wishes)
    assert (done.gate.open, done.changed) == (True, True), done.gate.explain()
    again = accounts.ensure(wishes)
    assert (again.gate.open, again.changed) == (True, False)
    assert accounts.ensure(wishes, check_mode=True).gate.open
    assert "one" not in repr(wishes[0][1])
    refused = accounts.ensure([(SqlAccounts(engine), accounts.Wish("nobody", "x", RIGHTS))])
    assert refused.gate.verdict is Verdict.FAILED
