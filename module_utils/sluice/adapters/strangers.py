"""Who works on the stores without being known: SQL sessions and RQ workers. Reads only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ..core.errors import StoreError
from ..core.verdicts import Check, Verdict
from ..ports.surroundings import Clock
from .redis_connect import speaking
from .sql_connect import place, reading
from .sql_fence import Account, Session, sees_all_sessions, sessions
from .sql_fence import account_of as account_in
from .system_clock import SystemClock

SQL_CHECK = "no unknown SQL session"
RQ_CHECK = "no unknown RQ worker"

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_OWN_THREADS = frozenset({"system user", "event_scheduler"})
_LOGGING_IN = "unauthenticated user"
_SHOWN = 10


@dataclass(slots=True)
class _Stranger:
    """What was seen of one user from one host over all samples."""

    user: str
    host: str
    commands: set[str]
    seconds: int
    certain: bool  # it works on our database; otherwise it may

    def __str__(self) -> str:
        return f"{self.user} from {self.host} ({'/'.join(sorted(self.commands))}, up to {self.seconds} s)"


def sql_strangers(
    engine: Engine,
    known: Sequence[str],
    *,
    tables: Sequence[str] = (),
    hosts: Collection[str] = (),
    seconds: float = 0.0,
    interval: float = 1.0,
    clock: Clock | None = None,
) -> Sequence[Check]:
    """Look for SQL sessions of unknown accounts, every ``interval`` seconds for ``seconds``; at least once.

    A session in the application's database, or with one of its tables in the statement, is a stranger: failed. One
    in no database may be: unknown. One in another database is none of ours.

    :param known: ``user@host`` of every account of the application and of Sluice
    :param tables: the application's tables
    :param hosts: the addresses sessions of known accounts may come from; empty: any
    """
    clock = clock or SystemClock()
    accounts = [Account.parse(text) for text in known]
    until = clock.monotonic() + seconds
    found: dict[tuple[str, str], _Stranger] = {}
    samples = 0
    while True:
        try:
            with reading(engine) as connection:
                _sample(connection, accounts, frozenset(tables), frozenset(hosts), found)
        except StoreError as error:
            return [Check(SQL_CHECK, Verdict.UNKNOWN, str(error), "grant this account PROCESS.")]
        samples += 1
        left = until - clock.monotonic()
        if left <= 0:
            break
        clock.wait(min(interval, left))
    if not found:
        return [Check(SQL_CHECK, Verdict.PASSED, f"none in {samples} samples over {seconds:.0f} s")]
    certain = [str(stranger) for stranger in found.values() if stranger.certain]
    named = certain or [str(stranger) for stranger in found.values()]
    words = "on our tables" if certain else "in no database, so perhaps on our tables"
    return [
        Check(
            SQL_CHECK,
            Verdict.FAILED if certain else Verdict.UNKNOWN,
            f"{words}: {', '.join(sorted(named)[:_SHOWN])}"
            + (f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""),
            "name the account in the mapping and its host in the inventory, or end what uses it.",
        )
    ]


def _sample(
    connection: Connection,
    accounts: Sequence[Account],
    tables: frozenset[str],
    hosts: frozenset[str],
    found: dict[tuple[str, str], _Stranger],
) -> None:
    if not sees_all_sessions(connection):
        raise StoreError(
            "this account sees its own sessions only.",
            where=place(connection.engine),
            next_step="GRANT PROCESS ON *.*.",
        )
    own = str(connection.scalar(sa.text("SELECT CURRENT_USER()"))).rpartition("@")[0]
    database = connection.engine.url.database or ""
    for session in sessions(connection):
        if session.user in _OWN_THREADS or session.command in ("Daemon", "Binlog Dump") or session.user == own:
            continue
        if session.user == _LOGGING_IN or _is_known(session, accounts, hosts):
            continue
        ours = session.database == database or any(table in session.statement for table in tables)
        if not ours and session.database:
            continue
        seen = found.setdefault((session.user, session.host), _Stranger(session.user, session.host, set(), 0, False))
        seen.commands.add(session.command)
        seen.seconds = max(seen.seconds, session.seconds)
        seen.certain |= ours


def _is_known(session: Session, accounts: Sequence[Account], hosts: frozenset[str]) -> bool:
    if account_in(session.user, session.host, accounts) is None:
        return False
    if not hosts or session.host in hosts:
        return True
    return session.host in _LOOPBACK and bool(hosts & _LOOPBACK)


def rq_strangers(
    client: redis.Redis, hosts: Collection[str], *, prefix: str = "rq", queues: Collection[str] = ()
) -> Sequence[Check]:
    """Look for registered RQ workers on hosts that the inventory does not name.

    Reads the sets and hashes themselves: RQ's own functions clean up while they count.

    :param hosts: the host names the workers may have, as ``hostname`` prints them
    :param prefix: RQ's key prefix
    :param queues: only workers that listen to one of these; empty: all
    """
    strangers, unreadable, alive = [], [], 0
    try:
        for key in sorted(_text(member) for member in _ask(client, "SMEMBERS", f"{prefix}:workers")):
            kind = _text(_ask(client, "TYPE", key))
            if kind not in ("hash", "none"):
                unreadable.append(f"{key} (a {kind})")
                continue
            worker = {_text(field): value for field, value in _ask(client, "HGETALL", key).items()}
            if not worker or worker.get("death"):
                continue  # it expired, or said goodbye
            alive += 1
            listens = set(_text(worker.get("queues", b"")).split(","))
            host = _text(worker.get("hostname", b""))
            if host in hosts or (queues and not listens & set(queues)):
                continue
            name = key.removeprefix(f"{prefix}:worker:")
            pid = _text(worker.get("pid", b"?"))
            strangers.append(f"{name} on {host or 'an unnamed host'} (pid {pid}, {_heard(worker)})")
    except StoreError as error:
        return [Check(RQ_CHECK, Verdict.UNKNOWN, str(error), "check the address and the rights of the Redis user.")]
    if strangers:
        return [
            Check(
                RQ_CHECK,
                Verdict.FAILED,
                ", ".join(strangers[:_SHOWN])
                + (f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""),
                "add the host to the inventory, or stop the worker.",
            )
        ]
    if unreadable:
        return [
            Check(
                RQ_CHECK,
                Verdict.UNKNOWN,
                f"not a worker of RQ: {', '.join(unreadable[:_SHOWN])}",
                "look at these keys.",
            )
        ]
    return [
        Check(
            RQ_CHECK,
            Verdict.PASSED,
            f"{alive} workers, all on hosts of the inventory" if alive else "no worker is registered",
        )
    ]


def _ask(client: redis.Redis, *words: str) -> Any:
    with speaking(client):
        return client.execute_command(*words)


def _heard(worker: dict[str, Any]) -> str:
    beat = _text(worker.get("last_heartbeat", b""))
    try:
        return f"last heard {datetime.fromisoformat(beat):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return "never heard"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
