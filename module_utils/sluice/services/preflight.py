"""Safety checks before anything is prepared: each passed, failed or unknown, with what to do about it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ..core.errors import SluiceError, StoreError
from ..core.figures import size
from ..core.verdicts import Check, Gate, Verdict
from ..ports.preparation import RedisHealth, RedisReadings, SqlHealth, SqlReadings

GATE = "preflight"
OLDEST_REDIS = (6, 2)
#: Seconds by which two clocks may differ.
LARGEST_SKEW = 2.0
#: Memory in Redis per byte of backlog, for allocation and for what arrives meanwhile.
BACKLOG_FACTOR = 1.5
#: Free bytes that the database's disk must have besides twice the tables: the trial restore and the ledger.
SPARE_DISK = 64 << 20

REDIS_CHECKS = (
    "redis_version", "redis_authentication", "redis_role", "redis_cluster", "redis_eviction", "redis_persistence",
    "redis_memory", "redis_fork", "redis_other_keys", "redis_bind",
)  # fmt: skip
SQL_CHECKS = (
    "sql_version", "sql_engine", "sql_durability", "sql_writable", "sql_replica", "sql_privileges", "sql_disk",
)  # fmt: skip
_T = TypeVar("_T")

_HERE = "this host"
CLOCK_CHECKS = ("clock_redis", "clock_sql", "clock_between")


def preflight(
    redis: RedisHealth | None,
    sql: SqlHealth | None,
    *,
    tables: Sequence[str],
    prefixes: Sequence[str],
    backlog_bytes: int | None,
    factor: float = BACKLOG_FACTOR,
    shared_note: str = "",
    attested: Mapping[str, str] | None = None,
) -> Gate:
    """Read both stores once and judge.

    :param prefixes: beginnings of the keys that belong to the application's RQ and to Sluice, e.g. ``rq:``, ``sluice:``
    :param backlog_bytes: what the tasks will take in Redis; None when it could not be estimated
    :param shared_note: why other keys may be in the same Redis database; empty when they may not
    :param attested: check name -> reason, for what cannot be read here. A failed check stays failed.
    :raises SluiceError: an attestation names no check
    """
    checks: list[Check] = []
    redis_readings: RedisReadings | None = None
    sql_readings: SqlReadings | None = None
    if redis is not None:
        try:
            redis_readings = redis.read(prefixes)
        except StoreError as error:
            checks.append(Check("redis_reachable", Verdict.FAILED, str(error), error.next_step))
        else:
            checks.append(Check("redis_reachable", Verdict.PASSED, f"{redis_readings.address} answers"))
            checks += redis_checks(redis_readings, backlog_bytes=backlog_bytes, factor=factor, shared_note=shared_note)
    if sql is not None:
        try:
            sql_readings = sql.read(tables)
        except StoreError as error:
            checks.append(Check("sql_reachable", Verdict.FAILED, str(error), error.next_step))
        else:
            checks.append(
                Check("sql_reachable", Verdict.PASSED, f"{sql_readings.address} answers as {sql_readings.account}")
            )
            checks += sql_checks(sql_readings, tables)
    checks += clock_checks(redis_readings, sql_readings)
    return Gate(GATE, attest(checks, attested or {}))


def attest(checks: Sequence[Check], attested: Mapping[str, str]) -> list[Check]:
    """Turn an unknown check for which the operator stands into a passed one that says so.

    :raises SluiceError: a name is no check's, or its reason is empty
    """
    known = {*REDIS_CHECKS, *SQL_CHECKS, *CLOCK_CHECKS}
    for name, reason in attested.items():
        if name not in known:
            raise SluiceError(
                f"'{name}' is not a check that can be attested.",
                where="attestations",
                next_step=f"known: {', '.join(sorted(known))}.",
            )
        if not reason.strip():
            raise SluiceError(
                f"'{name}' is attested without a reason.", where="attestations", next_step="give the reason."
            )
    return [
        replace(
            check, verdict=Verdict.PASSED, reading=f"attested: {attested[check.name]} ({check.reading})", next_step=""
        )
        if check.verdict is Verdict.UNKNOWN and check.name in attested
        else check
        for check in checks
    ]


def redis_checks(
    seen: RedisReadings, *, backlog_bytes: int | None, factor: float = BACKLOG_FACTOR, shared_note: str = ""
) -> list[Check]:
    """Judge one look at Redis."""
    return [
        _version("redis_version", seen.version, OLDEST_REDIS),
        Check.of(
            "redis_authentication",
            seen.password_needed,
            {
                True: f"logged in as '{seen.user}'; a client without a login is turned away",
                False: "a client without a login is let in",
                None: "whether a login is needed could not be tried",
            }[seen.password_needed],
            "set a password for the user 'default' or switch it off (ACL SETUSER default off)",
        ),
        Check.of(
            "redis_role",
            None if seen.role is None else seen.role == "master",
            _or_unread(seen.role, lambda role: f"the server is a {role}"),
            "point the Redis URL at the primary",
        ),
        Check.of(
            "redis_cluster",
            None if seen.cluster is None else not seen.cluster,
            _or_unread(seen.cluster, lambda on: "cluster mode is on" if on else "cluster mode is off"),
            "RQ needs a server without cluster mode",
        ),
        Check.of(
            "redis_eviction",
            None if seen.policy is None else seen.policy == "noeviction",
            _or_unread(seen.policy, lambda policy: f"maxmemory-policy is {policy}"),
            "set maxmemory-policy noeviction, else full memory deletes tasks",
        ),
        _persistence(seen),
        _memory(seen, backlog_bytes, factor),
        _fork(seen),
        _other_keys(seen, shared_note),
        _bind(seen),
    ]


def sql_checks(seen: SqlReadings, tables: Sequence[str]) -> list[Check]:
    """Judge one look at the database."""
    return [
        _version("sql_version", seen.version, seen.oldest),
        _engine(seen, tables),
        Check.of(
            "sql_durability",
            None if seen.flush_at_commit is None else seen.flush_at_commit == 1,
            _or_unread(seen.flush_at_commit, lambda value: f"innodb_flush_log_at_trx_commit is {value}"),
            "set innodb_flush_log_at_trx_commit = 1, else a crash forgets releases that were committed",
        ),
        Check.of(
            "sql_writable",
            None if seen.read_only is None else not seen.read_only,
            _or_unread(seen.read_only, lambda on: "the server is read-only" if on else "the server takes writes"),
            "point the database URL at the primary",
        ),
        Check.of(
            "sql_replica",
            None if seen.replica is None else not seen.replica,
            _or_unread(
                seen.replica, lambda on: "the server is a replica" if on else "the server replicates from nobody"
            ),
            "point the database URL at the primary; to read it the mover needs SLAVE MONITOR or REPLICATION CLIENT",
        ),
        _privileges(seen),
        _disk(seen),
    ]


def clock_checks(redis: RedisReadings | None, sql: SqlReadings | None) -> list[Check]:
    """Compare the clocks of this host, Redis and the database, as far as they were asked."""
    pairs: list[tuple[str, str, str, float | None, float]] = []
    if redis is not None:
        pairs.append(("clock_redis", redis.address, _HERE, redis.clock_offset, redis.clock_error))
    if sql is not None:
        pairs.append(("clock_sql", sql.address, _HERE, sql.clock_offset, sql.clock_error))
    if redis is not None and sql is not None:
        both = None if redis.clock_offset is None or sql.clock_offset is None else sql.clock_offset - redis.clock_offset
        pairs.append(("clock_between", sql.address, redis.address, both, redis.clock_error + sql.clock_error))
    step = _clock_step(redis, sql)
    checks: list[Check] = []
    for name, one, other, offset, error in pairs:
        # One message: what is to be done is said once.
        said = next((check.name for check in checks if check.verdict is Verdict.FAILED), None)
        checks.append(_skew(name, one, other, offset, error, f"as for {said}" if said else step))
    return checks


def _clock_step(redis: RedisReadings | None, sql: SqlReadings | None) -> str:
    """What to do about clocks that differ, naming the one that differs from the two others when it can be told."""
    synchronise = "synchronise {} (chrony or systemd-timesyncd), then run the same command again"
    if redis is None or sql is None or redis.clock_offset is None or sql.clock_offset is None:
        return synchronise.format("both clocks")
    clocks = {_HERE: 0.0, redis.address: redis.clock_offset, sql.address: sql.clock_offset}
    for host, at in clocks.items():
        one, other = (value for name, value in clocks.items() if name != host)
        if abs(one - other) < LARGEST_SKEW <= min(abs(at - one), abs(at - other)):
            off = _ahead(at - (one + other) / 2)
            return f"the clock of {host} is the one that is off, {off} the two others: {synchronise.format('it')}"
    return synchronise.format("all three clocks")


def _ahead(seconds: float) -> str:
    return f"{abs(seconds):.2f} s {'ahead of' if seconds >= 0 else 'behind'}"


def _or_unread(value: _T | None, say: Callable[[_T], str]) -> str:
    return "could not be read" if value is None else say(value)


def _version(name: str, version: tuple[int, ...] | None, oldest: tuple[int, ...]) -> Check:
    floor = ".".join(map(str, oldest))
    return Check.of(
        name,
        None if version is None else version >= oldest,
        _or_unread(version, lambda found: f"version {'.'.join(map(str, found))}, at least {floor}"),
        f"upgrade to {floor} or newer",
    )


def _persistence(seen: RedisReadings) -> Check:
    name, step = "redis_persistence", "set appendonly yes; with an error, look at the server's log and its disk"
    if seen.aof_enabled is None:
        return Check(name, Verdict.UNKNOWN, "whether AOF is on could not be read", step)
    if not seen.aof_enabled:
        return Check(name, Verdict.FAILED, "AOF is off: a crash loses tasks", step)
    statuses = (seen.aof_write_status, seen.aof_rewrite_status)
    reading = f"AOF is on; last write {statuses[0] or 'unread'}, last rewrite {statuses[1] or 'unread'}"
    if any(status is not None and status != "ok" for status in statuses):
        return Check(name, Verdict.FAILED, reading, step)
    return Check.of(name, None if None in statuses else True, reading, step)


def _memory(seen: RedisReadings, backlog_bytes: int | None, factor: float) -> Check:
    name = "redis_memory"
    if backlog_bytes is None or seen.used_memory is None or seen.max_memory is None:
        return Check(name, Verdict.UNKNOWN, "the backlog's size or the server's memory could not be read")
    limit = seen.max_memory or seen.host_memory
    if limit is None:
        return Check(
            name, Verdict.UNKNOWN, "maxmemory is not set and the host's memory could not be read", "set maxmemory"
        )
    needed = seen.used_memory + int(backlog_bytes * factor)
    of_what = "maxmemory" if seen.max_memory else "the host's memory (maxmemory is not set)"
    reading = (
        f"{size(seen.used_memory)} used and {size(backlog_bytes)} of backlog times {factor:g} make {size(needed)}, "
        f"of {size(limit)} of {of_what}"
    )
    return Check.of(name, needed <= limit, reading, "raise maxmemory or move to a larger server")


def _fork(seen: RedisReadings) -> Check:
    """A snapshot or rewrite forks: pages written meanwhile are copied, at worst all of them."""
    name = "redis_fork"
    step = "free memory on the Redis host, or set vm.overcommit_memory = 1; on another host attest it"
    if seen.used_memory is None:
        return Check(name, Verdict.UNKNOWN, "used memory could not be read", step)
    if seen.free_memory is not None:
        reading = f"{size(seen.used_memory)} used, {size(seen.free_memory)} free for a fork"
        return Check.of(name, seen.free_memory >= seen.used_memory, reading, step)
    if seen.host_memory is not None and seen.used_memory * 2 > seen.host_memory:
        reading = f"{size(seen.used_memory)} used fit less than twice into the host's {size(seen.host_memory)}"
        return Check(name, Verdict.FAILED, reading, step)
    if seen.overcommit == 1:
        return Check(name, Verdict.PASSED, "vm.overcommit_memory is 1")
    return Check(name, Verdict.UNKNOWN, "the Redis host's free memory cannot be read from here", step)


def _other_keys(seen: RedisReadings, shared_note: str) -> Check:
    name = "redis_other_keys"
    step = (
        "if the database number in the Redis URL is right, give the tasks a database of their own, "
        "or note why it is shared (the note is kept)"
    )
    if seen.foreign_seen:
        examples = ", ".join(seen.foreign_examples)
        reading = (
            f"{seen.foreign_seen} of {seen.keys_seen} keys seen in database {seen.database} are of others: {examples}"
        )
        if shared_note.strip():
            return Check(name, Verdict.PASSED, f"{reading}; shared by setting: {shared_note.strip()}")
        return Check(name, Verdict.FAILED, reading, step)
    if seen.keys is None:
        return Check(name, Verdict.UNKNOWN, "DBSIZE could not be read", step)
    # Keys come and go while they are looked at; a few less than counted is no gap.
    complete = seen.keys_seen >= seen.keys * 0.99
    reading = f"none among {seen.keys_seen} of {seen.keys} keys in database {seen.database}"
    return Check.of(name, True if complete else None, reading, "look for longer, or note why it is shared")


def _bind(seen: RedisReadings) -> Check:
    name = "redis_bind"
    step = "bind Redis to private addresses"
    if seen.bind is None:
        why = f"CONFIG GET is refused ({seen.config_refused})" if seen.config_refused else "'bind' could not be read"
        return Check(name, Verdict.UNKNOWN, why, f"attest '{name}': that no public network reaches the server")
    addresses = [word.lstrip("-") for word in seen.bind.split()] or ["*"]
    wild = [address for address in addresses if address in ("*", "0.0.0.0", "::", "::*")]  # noqa: S104  it is looked for
    public = [address for address in addresses if address not in wild and _is_public(address)]
    reading = f"listens on {' '.join(addresses)}; protected-mode {seen.protected or 'unread'}"
    if public:
        return Check(name, Verdict.FAILED, f"{reading}: {', '.join(public)} is a public address", step)
    if wild and not seen.password_needed:
        return Check(name, Verdict.FAILED, f"{reading}: every address, and no login is needed", step)
    if wild:
        return Check(
            name,
            Verdict.UNKNOWN,
            f"{reading}: every address; whether a firewall stands before it cannot be read from here",
            f"{step}, or attest '{name}'",
        )
    return Check(name, Verdict.PASSED, reading)


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False  # a name; its address is not known here


def _engine(seen: SqlReadings, tables: Sequence[str]) -> Check:
    name = "sql_engine"
    if seen.engines is None:
        return Check(name, Verdict.UNKNOWN, "the engines of the tables could not be read")
    absent = [table for table in tables if not seen.engines.get(table)]
    if absent:
        return Check(
            name, Verdict.FAILED, f"no such table: {', '.join(absent)}", "correct the mapping or the database URL"
        )
    other = [f"{table} is {engine}" for table, engine in seen.engines.items() if engine != "InnoDB"]
    reading = "; ".join(other) if other else f"{', '.join(tables)}: InnoDB"
    return Check.of(
        name, not other, reading, "ALTER TABLE ... ENGINE=InnoDB: without transactions nothing can be moved safely"
    )


def _privileges(seen: SqlReadings) -> Check:
    name = "sql_privileges"
    if seen.missing_privileges is None:
        return Check(name, Verdict.UNKNOWN, "SHOW GRANTS could not be read")
    missing = seen.missing_privileges
    reading = f"{seen.account} lacks: {'; '.join(missing)}" if missing else f"{seen.account} has every privilege needed"
    return Check.of(name, not missing, reading, "; ".join(f"GRANT {one} TO the mover" for one in missing))


def _disk(seen: SqlReadings) -> Check:
    name, step = "sql_disk", "free space there; when it cannot be read from here, attest it"
    if seen.disk_free is None or seen.data_bytes is None:
        return Check(name, Verdict.UNKNOWN, "free space on the database's disk cannot be read from here", step)
    needed = 2 * seen.data_bytes + SPARE_DISK
    return Check.of(name, seen.disk_free >= needed, f"{size(seen.disk_free)} free, {size(needed)} needed", step)


def _skew(name: str, one: str, other: str, offset: float | None, error: float, step: str) -> Check:
    if offset is None:
        return Check(name, Verdict.UNKNOWN, f"the clock of {one} or {other} could not be read", step)
    reading = f"{one} is {_ahead(offset)} {other} (give or take {error:.2f} s), at most {LARGEST_SKEW:g} s are allowed"
    if abs(offset) + error < LARGEST_SKEW:
        return Check(name, Verdict.PASSED, reading)
    if abs(offset) - error >= LARGEST_SKEW:
        return Check(name, Verdict.FAILED, reading, step)
    return Check(name, Verdict.UNKNOWN, reading, "the way there is too slow to tell; run the same command again")
