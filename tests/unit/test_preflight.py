"""The safety checks judge readings: passed, failed or unknown, and unknown never passes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from ansible.module_utils.sluice.adapters.sql_dialect import MARIADB
from ansible.module_utils.sluice.adapters.sql_health import missing_privileges, parse_grants
from ansible.module_utils.sluice.core.errors import SluiceError, StoreError
from ansible.module_utils.sluice.core.verdicts import Check, Verdict
from ansible.module_utils.sluice.ports.preparation import RedisReadings, SqlReadings
from ansible.module_utils.sluice.services import preflight

GIB = 1 << 30
GOOD_REDIS = RedisReadings(
    "Redis database 0 at h:6379", "sluice", 0, (7, 0, 15), True, "master", False, "noeviction", True, "ok", "ok",
    2 * GIB, 100, 8 * GIB, 4 * GIB, 0, 10, 10, 0, (), "127.0.0.1 -::1", "yes", "", 0.1, 0.01,
)  # fmt: skip
GOOD_SQL = SqlReadings(
    "database d at h",
    "sluice@%",
    (10, 5),
    (10, 11, 19),
    {"tasks": "InnoDB"},
    1,
    False,
    False,
    (),
    0.1,
    0.01,
    10 * GIB,
    GIB,
)


def redis_check(name: str, backlog: int | None = GIB, note: str = "", **changes: object) -> Check:
    readings = replace(GOOD_REDIS, **changes)  # type: ignore[arg-type]
    checks = {check.name: check for check in preflight.redis_checks(readings, backlog_bytes=backlog, shared_note=note)}
    return checks[name]


def sql_check(name: str, **changes: object) -> Check:
    readings = replace(GOOD_SQL, **changes)  # type: ignore[arg-type]
    return {check.name: check for check in preflight.sql_checks(readings, ["tasks"])}[name]


def test_good_readings_pass_and_every_check_has_a_name_that_can_be_attested() -> None:
    redis = preflight.redis_checks(GOOD_REDIS, backlog_bytes=GIB)
    sql = preflight.sql_checks(GOOD_SQL, ["tasks"])
    clocks = preflight.clock_checks(GOOD_REDIS, GOOD_SQL)
    assert [check for check in [*redis, *sql, *clocks] if check.verdict is not Verdict.PASSED] == []
    assert tuple(check.name for check in redis) == preflight.REDIS_CHECKS
    assert tuple(check.name for check in sql) == preflight.SQL_CHECKS
    assert tuple(check.name for check in clocks) == preflight.CLOCK_CHECKS


P, F, U = Verdict.PASSED, Verdict.FAILED, Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("name", "changes", "verdict"),
    [
        ("redis_version", {"version": (6, 2)}, P),
        ("redis_version", {"version": (6, 0, 16)}, F),
        ("redis_version", {"version": None}, U),
        ("redis_authentication", {"password_needed": False}, F),
        ("redis_authentication", {"password_needed": None}, U),
        ("redis_role", {"role": "slave"}, F),
        ("redis_role", {"role": None}, U),
        ("redis_cluster", {"cluster": True}, F),
        ("redis_eviction", {"policy": "allkeys-lru"}, F),
        ("redis_eviction", {"policy": None}, U),
        ("redis_persistence", {"aof_enabled": False}, F),
        ("redis_persistence", {"aof_write_status": "err"}, F),
        ("redis_persistence", {"aof_rewrite_status": "err"}, F),
        ("redis_persistence", {"aof_rewrite_status": None}, U),
        ("redis_persistence", {"aof_enabled": None}, U),
        ("redis_memory", {"max_memory": GIB}, F),  # 1.5 GiB do not fit
        ("redis_memory", {"max_memory": 0}, P),
        ("redis_memory", {"max_memory": 0, "host_memory": GIB}, F),
        ("redis_memory", {"max_memory": 0, "host_memory": None}, U),
        ("redis_memory", {"used_memory": None}, U),
        ("redis_memory", {"backlog": None}, U),
        ("redis_fork", {"used_memory": 5 * GIB}, F),
        ("redis_fork", {"free_memory": None}, U),
        ("redis_fork", {"free_memory": None, "overcommit": 1}, P),
        ("redis_fork", {"free_memory": None, "overcommit": 1, "used_memory": 5 * GIB}, F),
        ("redis_other_keys", {"foreign_seen": 1, "foreign_examples": ("'session:1'",)}, F),
        ("redis_other_keys", {"foreign_seen": 1, "note": "sessions, agreed in CHG-1"}, P),
        ("redis_other_keys", {"foreign_seen": 1, "note": " "}, F),
        ("redis_other_keys", {"keys": 1000}, U),
        ("redis_other_keys", {"keys": None}, U),
        ("redis_bind", {"bind": None, "config_refused": "unknown command"}, U),
        ("redis_bind", {"bind": "* -::*"}, U),
        ("redis_bind", {"bind": ""}, U),
        ("redis_bind", {"bind": "*", "password_needed": False}, F),
        ("redis_bind", {"bind": "10.0.0.5 127.0.0.1"}, P),
        ("redis_bind", {"bind": "8.8.8.8"}, F),
        ("redis_bind", {"bind": "-2606:4700::1111"}, F),
    ],
)
def test_redis(name: str, changes: dict[str, object], verdict: Verdict) -> None:
    check = redis_check(name, **changes)  # type: ignore[arg-type]
    assert check.verdict is verdict, check
    assert verdict is P or name == "redis_memory" or check.next_step


@pytest.mark.parametrize(
    ("name", "changes", "verdict"),
    [
        ("sql_version", {"version": (10, 4)}, F),
        ("sql_version", {"version": (8, 0, 36), "oldest": (8, 0)}, P),
        ("sql_version", {"version": (5, 7), "oldest": (8, 0)}, F),
        ("sql_version", {"version": None}, U),
        ("sql_engine", {"engines": {"tasks": "MyISAM"}}, F),
        ("sql_engine", {"engines": {"tasks": ""}}, F),
        ("sql_engine", {"engines": None}, U),
        ("sql_durability", {"flush_at_commit": 2}, F),
        ("sql_durability", {"flush_at_commit": None}, U),
        ("sql_writable", {"read_only": True}, F),
        ("sql_writable", {"read_only": None}, U),
        ("sql_replica", {"replica": True}, F),
        ("sql_replica", {"replica": None}, U),
        ("sql_privileges", {"missing_privileges": ("PROCESS ON *.*",)}, F),
        ("sql_privileges", {"missing_privileges": None}, U),
        ("sql_disk", {"disk_free": GIB}, F),
        ("sql_disk", {"disk_free": None}, U),
        ("sql_disk", {"data_bytes": None}, U),
    ],
)
def test_sql(name: str, changes: dict[str, object], verdict: Verdict) -> None:
    assert sql_check(name, **changes).verdict is verdict


@pytest.mark.parametrize(
    ("redis", "sql", "verdicts"),
    [
        ((0.0, 0.0), (0.0, 0.0), (P, P, P)),
        ((3.0, 0.1), (0.0, 0.0), (F, P, F)),
        ((1.5, 0.0), (-1.5, 0.0), (P, P, F)),  # each near us, but not near each other
        ((1.9, 0.5), (1.9, 0.0), (U, P, P)),  # too slow a way to tell
        ((None, 0.0), (0.0, 0.0), (U, P, U)),
    ],
)
def test_clocks(
    redis: tuple[float | None, float], sql: tuple[float | None, float], verdicts: tuple[Verdict, ...]
) -> None:
    checks = preflight.clock_checks(
        replace(GOOD_REDIS, clock_offset=redis[0], clock_error=redis[1]),
        replace(GOOD_SQL, clock_offset=sql[0], clock_error=sql[1]),
    )
    assert tuple(check.verdict for check in checks) == verdicts


def test_an_attestation_answers_for_unknown_and_never_for_failed() -> None:
    checks = [redis_check("redis_bind", bind=None), redis_check("redis_eviction", policy="allkeys-lru")]
    after = preflight.attest(checks, {"redis_bind": "private subnet, CHG-7", "redis_eviction": "trust me"})
    assert [check.verdict for check in after] == [P, F]
    assert after[0].reading.startswith("attested: private subnet, CHG-7")


@pytest.mark.parametrize("words", [{"redis_bnd": "x"}, {"redis_bind": " "}])
def test_an_attestation_without_meaning_is_refused(words: dict[str, str]) -> None:
    with pytest.raises(SluiceError):
        preflight.attest([], words)


class Unreachable:
    """A Redis that does not answer."""

    def read(self, names: Sequence[str]) -> RedisReadings:
        raise StoreError("no answer: refused.", where="Redis database 0 at h:6379", next_step="check host and port.")


class Good:
    """A database in good order."""

    def read(self, names: Sequence[str]) -> SqlReadings:
        return GOOD_SQL


def test_an_unreachable_store_is_one_failed_check_and_the_other_is_still_looked_at() -> None:
    gate = preflight.preflight(Unreachable(), Good(), tables=["tasks"], prefixes=["rq:"], backlog_bytes=1)
    assert gate.verdict is F
    assert [check.name for check in gate.blocking()] == ["redis_reachable"]
    assert "check host and port" in gate.explain()


def test_nothing_looked_at_is_not_passed() -> None:
    assert preflight.preflight(None, None, tables=[], prefixes=[], backlog_bytes=0).verdict is U


MOVER = [
    "GRANT PROCESS, CREATE USER, CONNECTION ADMIN, SLAVE MONITOR ON *.* TO `sluice`@`%` IDENTIFIED BY PASSWORD '*X'",
    "GRANT ALL PRIVILEGES ON `captions`.* TO `sluice`@`%` WITH GRANT OPTION",
    "GRANT ALL PRIVILEGES ON `captions\\_%`.* TO `sluice`@`%`",
    "GRANT SELECT ON `mysql`.* TO `sluice`@`%`",
]


def test_the_movers_privileges_are_found_complete() -> None:
    assert missing_privileges(parse_grants(MOVER), "captions", MARIADB) == []


@pytest.mark.parametrize(
    ("line", "changed", "missing"),
    [
        (0, "GRANT CREATE USER, CONNECTION ADMIN, SLAVE MONITOR ON *.* TO `s`@`%`", ["PROCESS ON *.*"]),
        (1, "GRANT ALL PRIVILEGES ON `captions`.* TO `s`@`%`", ["GRANT OPTION ON `captions`.*"]),
        (2, "GRANT ALL PRIVILEGES ON `caption_`.* TO `s`@`%`", None),
        (3, "GRANT SELECT ON `mysql`.`user` TO `s`@`%`", ["SELECT ON `mysql`.*"]),
        (3, "GRANT USAGE ON *.* TO `s`@`%`", ["SELECT ON `mysql`.*"]),
    ],
)
def test_each_missing_privilege_is_named(line: int, changed: str, missing: list[str] | None) -> None:
    grants = [changed if number == line else text for number, text in enumerate(MOVER)]
    found = missing_privileges(parse_grants(grants), "captions", MARIADB)
    if missing is None:
        assert "CREATE ON `captions\\_sluice\\_verify\\_%`.*" in found
    else:
        assert found == missing


def test_root_has_everything_and_column_grants_are_read() -> None:
    root = parse_grants(
        [
            "GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION",
            "GRANT PROXY ON ''@'%' TO `root`@`localhost`",
        ]
    )
    assert missing_privileges(root, "captions", MARIADB) == []
    [grant] = parse_grants(["GRANT SELECT (`a`, `b`), UPDATE (`a`) ON `d`.`t` TO `u`@`%`"])
    assert grant.privileges == {"SELECT", "UPDATE"}
    assert (grant.database, grant.table) == ("d", "t")
