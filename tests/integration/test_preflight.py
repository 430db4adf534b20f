"""The safety checks on real servers, and the one clear message for each wrong setting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import redis_connect, sql_connect
from ansible.module_utils.sluice.adapters.redis_health import RedisServerHealth
from ansible.module_utils.sluice.adapters.sql_health import SqlServerHealth
from ansible.module_utils.sluice.core.errors import StoreError
from ansible.module_utils.sluice.core.verdicts import Check, Verdict
from ansible.module_utils.sluice.ports.preparation import RedisReadings
from ansible.module_utils.sluice.services.preflight import preflight, redis_checks

from lab.stores import PrivateMariaDB, PrivateRedis, free_port

pytestmark = pytest.mark.real
PREFIXES = ("rq:", "sluice:")


def _blocking(checks: list[Check]) -> dict[str, Verdict]:
    return {check.name: check.verdict for check in checks if check.verdict is not Verdict.PASSED}


def _look(client: redis.Redis) -> RedisReadings:
    return RedisServerHealth(client).read(PREFIXES)


def test_good_servers_pass(database_url: str, redis_url: str) -> None:
    engine = sql_connect.connect(database_url)
    client = redis_connect.connect(redis_url, read_only=True)
    redis_connect.connect(redis_url).hset("rq:job:1", "status", "queued")
    gate = preflight(
        RedisServerHealth(client),
        SqlServerHealth(engine),
        tables=["caption_tasks"],
        prefixes=PREFIXES,
        backlog_bytes=1 << 20,
    )
    engine.dispose()
    assert gate.open, gate.explain()


def test_looking_changes_nothing(database_url: str, redis_url: str) -> None:
    client = redis_connect.connect(redis_url)
    before = int(client.info()["rdb_changes_since_last_save"])
    _look(client)
    assert int(client.info()["rdb_changes_since_last_save"]) == before


def test_what_is_wrong_with_a_redis_is_named(redis_url: str, redis_server: PrivateRedis) -> None:
    client = redis_connect.connect(redis_url)
    client.set("session:1", "x")
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    try:
        checks = redis_checks(_look(client), backlog_bytes=1)
        assert _blocking(checks) == dict.fromkeys(
            ("redis_eviction", "redis_persistence", "redis_other_keys"), Verdict.FAILED
        )
        assert "session:1" in next(check.reading for check in checks if check.name == "redis_other_keys")
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
        client.delete("session:1")


def test_a_redis_without_a_login_is_seen(tmp_path: Path) -> None:
    server = PrivateRedis(tmp_path, free_port(), "pw")
    server.start()
    try:
        client = redis_connect.connect(server.url())
        assert _look(client).password_needed is True
        client.execute_command("ACL", "SETUSER", "default", "nopass")
        assert _blocking(redis_checks(_look(client), backlog_bytes=1)) == {"redis_authentication": Verdict.FAILED}
        client.execute_command("ACL", "SETUSER", "default", "resetpass", ">pw")
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        assert _blocking(redis_checks(_look(client), backlog_bytes=1))["redis_role"] is Verdict.FAILED
        client.execute_command("REPLICAOF", "NO", "ONE")
    finally:
        server.stop()


def test_a_redis_that_refuses_config_leaves_the_bind_unknown(redis_url: str, redis_server: PrivateRedis) -> None:
    admin = redis_connect.connect(redis_url)
    admin.execute_command("ACL", "SETUSER", "noconfig", "on", ">p", "~*", "&*", "+@all", "-config")
    try:
        client = redis_connect.connect(f"redis://noconfig:p@127.0.0.1:{redis_server.port}/0")
        readings = _look(client)
        assert "permission" in readings.config_refused.lower()
        assert _blocking(redis_checks(readings, backlog_bytes=1)) == {"redis_bind": Verdict.UNKNOWN}
    finally:
        admin.execute_command("ACL", "DELUSER", "noconfig")


@pytest.mark.parametrize(
    ("user", "password", "database", "message", "advice"),
    [
        ("default", "wrong", "0", "login refused", "check user and password"),
        ("default", "test-password", "99", "no database of that number", "correct the number"),
        ("nobody", "x", "0", "login refused", "check user and password"),
    ],
)
def test_a_wrong_redis_setting_is_one_message(
    redis_url: str, redis_server: PrivateRedis, user: str, password: str, database: str, message: str, advice: str
) -> None:
    with pytest.raises(StoreError, match=message) as error:
        redis_connect.connect(f"redis://{user}:{quote(password)}@127.0.0.1:{redis_server.port}/{database}")
    assert advice in str(error.value)
    assert f"127.0.0.1:{redis_server.port}" in str(error.value)
    if password != "x":
        assert password not in str(error.value)


def test_a_database_with_other_keys_asks_whether_its_number_is_right(
    redis_server: PrivateRedis, redis_url: str
) -> None:
    other = redis_connect.connect(redis_server.url(3))
    other.set("cart:7", "x")
    try:
        [check] = [c for c in redis_checks(_look(other), backlog_bytes=1) if c.name == "redis_other_keys"]
        assert check.verdict is Verdict.FAILED
        assert "database 3" in check.reading
        assert "database number" in check.next_step
    finally:
        other.flushdb()


def test_a_server_that_is_not_there_is_one_message() -> None:
    engine = sql_connect.connect("mysql+pymysql://u:hidden@127.0.0.1:1/d")
    with pytest.raises(StoreError, match=r"database d at 127\.0\.0\.1:1.*check host and port") as error:
        SqlServerHealth(engine).read(["t"])
    assert "hidden" not in str(error.value)
    with pytest.raises(StoreError, match=r"no answer.*check host, port") as error:
        redis_connect.connect("redis://:hidden@127.0.0.1:1/0")
    assert "hidden" not in str(error.value)


@pytest.fixture
def poor(mariadb: PrivateMariaDB, database_url: str) -> Iterator[sa.Engine]:
    """An account that may only read the application's tables."""
    name = str(sa.make_url(database_url).database)
    root = sa.create_engine(mariadb.root_url("mysql"))
    with root.begin() as connection:
        connection.exec_driver_sql("CREATE OR REPLACE USER poor@127.0.0.1 IDENTIFIED BY 'p'")
        connection.exec_driver_sql(f"GRANT SELECT ON `{name}`.* TO poor@127.0.0.1")
    engine = sql_connect.connect(mariadb.url("poor", "p", name))
    yield engine
    engine.dispose()
    with root.begin() as connection:
        connection.exec_driver_sql("DROP USER poor@127.0.0.1")
    root.dispose()


def test_missing_privileges_are_named_and_what_they_hide_is_unknown(poor: sa.Engine) -> None:
    readings = SqlServerHealth(poor).read(["caption_tasks"])
    assert readings.missing_privileges is not None
    assert readings.missing_privileges[:4] == [
        "PROCESS ON *.*", "CREATE USER ON *.*", "CONNECTION ADMIN ON *.*", "SLAVE MONITOR ON *.*",
    ]  # fmt: skip
    assert f"INSERT ON `{poor.url.database}`.*" in readings.missing_privileges
    assert f"SELECT ON `{poor.url.database}`.*" not in readings.missing_privileges
    assert readings.replica is None


def test_what_is_wrong_with_a_database_is_named(database_url: str) -> None:
    engine = sql_connect.connect(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE old (id INT PRIMARY KEY) ENGINE=MyISAM")
        connection.exec_driver_sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
        connection.exec_driver_sql("SET GLOBAL read_only = 1")
    try:
        gate = preflight(None, SqlServerHealth(engine), tables=["old", "gone"], prefixes=[], backlog_bytes=0)
        failed = {check.name for check in gate.blocking() if check.verdict is Verdict.FAILED}
        assert {"sql_engine", "sql_durability", "sql_writable"} <= failed
        assert "gone" in gate.explain()
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
            connection.exec_driver_sql("SET GLOBAL read_only = 0")
        engine.dispose()


@pytest.mark.parametrize(
    ("user", "password", "database", "message"),
    [
        ("root", "wrong", "mysql", "check user and password"),
        ("poor", "p", "nowhere", "check the database name|grant the account"),
    ],
)
def test_a_wrong_sql_setting_is_one_message(
    poor: sa.Engine, mariadb: PrivateMariaDB, user: str, password: str, database: str, message: str
) -> None:
    engine = sql_connect.connect(mariadb.url(user, password, database))
    with pytest.raises(StoreError, match=message):
        SqlServerHealth(engine).read(["t"])
    engine.dispose()
