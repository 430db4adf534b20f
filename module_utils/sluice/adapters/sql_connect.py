"""Connections to MariaDB or MySQL, their dialect differences, and their errors in an operator's words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from ..core.errors import StoreError

#: Seconds a statement waits for a row lock: shorter than the interval between two progress lines.
LOCK_WAIT_SECONDS = 8
#: Seconds after which MariaDB ends a writing transaction whose client has fallen silent: a frozen mover must not keep
#: the lease and its rows locked. Shorter than a lock wait, so that whoever takes over gets through at the first try.
SILENCE_SECONDS = 6

_DEADLOCK = 1213
_DEADLOCKS_BORNE = 5

P = ParamSpec("P")
R = TypeVar("R")

_ADVICE = {
    1044: "grant the account the rights listed in docs/mapping.md.",
    1045: "check user and password of the database URL.",
    1049: "check the database name of the URL.",
    1142: "grant the account the rights listed in docs/mapping.md.",
    1205: "another transaction holds the rows; find it with SHOW PROCESSLIST and run the same command again.",
    1213: "run the same command again.",
    1227: "grant the account the rights listed in docs/mapping.md.",
    1290: "the server is read-only: point the URL at the primary.",
    1021: "free disk space on the database host and run the same command again.",
    2003: "check host and port of the database URL, and that the server runs.",
    2006: "the connection was closed: run the same command again.",
    2013: "the connection was closed: run the same command again.",
    4151: "the account is locked: the side it belongs to is fenced.",
}


def connect(url: str, *, pool_size: int = 4) -> Engine:
    """Make an engine for ``mysql+pymysql://user:password@host:port/database``.

    READ COMMITTED everywhere, UTF-8, UTC session clock, lock waits of at most ``LOCK_WAIT_SECONDS``.

    :raises StoreError: the URL is malformed or not for PyMySQL
    """
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):  # the latter for a port that is no number
        raise StoreError(
            "the database URL cannot be read.", next_step="write mysql+pymysql://user:password@host:port/database."
        ) from None
    if parsed.drivername != "mysql+pymysql" or not parsed.database:
        raise StoreError(
            f"the database URL has the form '{parsed.drivername}' or names no database.",
            next_step="write mysql+pymysql://user:password@host:port/database.",
        )
    return sa.create_engine(
        parsed,
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        pool_pre_ping=True,
        connect_args={
            "charset": "utf8mb4",
            "connect_timeout": 5,
            "init_command": f"SET innodb_lock_wait_timeout={LOCK_WAIT_SECONDS}, lock_wait_timeout={LOCK_WAIT_SECONDS}",
        },
    )


def place(engine: Engine) -> str:
    """The database's address without its secrets, for messages."""
    url = engine.url
    return f"database {url.database} at {url.host}:{url.port or 3306}"


def _code(error: exc.DBAPIError) -> int:
    """The server's number for an error, 0 when it has none."""
    args: tuple[object, ...] = getattr(error.orig, "args", ())
    return args[0] if args and isinstance(args[0], int) else 0


@contextlib.contextmanager
def speaking(engine: Engine) -> Iterator[None]:
    """Turn driver errors into a StoreError that says where it happened and what to do."""
    try:
        yield
    except exc.DBAPIError as error:
        args: tuple[object, ...] = getattr(error.orig, "args", ())
        code = _code(error)
        text = str(args[1]) if len(args) > 1 else str(error.orig)
        raise StoreError(f"{text} (error {code})", where=place(engine), next_step=_ADVICE.get(code, "")) from error


@contextlib.contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on any error, and by MariaDB when its client falls silent."""
    with speaking(engine), engine.connect() as connection:
        bounded = is_mariadb(connection)
        try:
            with connection.begin():
                if bounded:
                    connection.exec_driver_sql(f"SET SESSION idle_transaction_timeout = {SILENCE_SECONDS}")
                yield connection
            if bounded:
                # Snapshots that are meant to stay open take their connections from the same pool.
                connection.exec_driver_sql("SET SESSION idle_transaction_timeout = DEFAULT")
        except BaseException:
            connection.invalidate()
            raise


def again_after_deadlock(write: Callable[P, R]) -> Callable[P, R]:
    """Run a method that is one transaction again when the server chose it as a deadlock's victim: nothing of it stands.

    On live traffic that is nobody's fault; after several in a row the error is the operator's to see.
    """

    @wraps(write)
    def repeated(*arguments: P.args, **named: P.kwargs) -> R:
        for _ in range(_DEADLOCKS_BORNE):
            try:
                return write(*arguments, **named)
            except StoreError as error:
                cause = error.__cause__
                if not isinstance(cause, exc.DBAPIError) or _code(cause) != _DEADLOCK:
                    raise
        return write(*arguments, **named)

    return repeated


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection for reads; nothing is kept of it."""
    with speaking(engine), engine.connect() as connection:
        yield connection


def is_mariadb(connection: Connection) -> bool:
    """True on MariaDB, False on MySQL."""
    return bool(getattr(connection.dialect, "is_mariadb", False))


def server_version(connection: Connection) -> tuple[int, ...]:
    """The server's version as numbers, e.g. (10, 11, 19)."""
    info = connection.dialect.server_version_info
    return tuple(part for part in (info or ()) if isinstance(part, int))


def skip_locked(connection: Connection) -> str:
    """The words that make a locking read pass over locked rows; empty where the server has none."""
    floor = (10, 6) if is_mariadb(connection) else (8, 0, 1)
    return " SKIP LOCKED" if server_version(connection) >= floor else ""
