"""Connections to MariaDB or MySQL, and their errors in an operator's words."""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import pymysql.connections
import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import Connection, Engine, RootTransaction

from ..core.errors import StoreError
from .sql_dialect import ACCOUNT_LOCKED, dialect_of

#: Seconds a statement waits for a row lock: shorter than the interval between two progress lines.
LOCK_WAIT_SECONDS = 8
#: Seconds after which MariaDB ends a writing transaction whose client has fallen silent: a frozen mover must not keep
#: the lease and its rows locked. Shorter than a lock wait, so that whoever takes over gets through at the first try.
SILENCE_SECONDS = 6
#: Seconds that a COMMIT may take. MariaDB does not refuse one whose binary log has no room: it waits for somebody to
#: free space, for ever, and whoever asked would wait as long. Our largest transaction, the baseline, is far below.
COMMIT_SECONDS = 60.0

_DEADLOCK = 1213
_DEADLOCKS_BORNE = 5
_LOCK_WAIT_TIMEOUT = 1205
#: A frozen mover's transactions are ended one behind the other: one may have waited for another's locks until then.
_LOCK_WAITS_BORNE = 1

#: The pool writes the traceback of a lost connection to stderr, unless somebody listens. Our own errors say it all.
logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())

P = ParamSpec("P")
R = TypeVar("R")

# InnoDB ends its own server when a rollback finds no room.
_CLOSED = (
    "see that the server runs (a full disk may end it: its log says so, and then wants space), "
    "then run the same command again."
)
_ADVICE = {
    1044: "check the database name of the URL; grant the account the rights listed in docs/mapping.md.",
    1045: "check user and password of the database URL.",
    1049: "check the database name of the URL.",
    1142: "grant the account the rights listed in docs/mapping.md.",
    1180: "look at the server's log and at the space on its disk, then run the same command again.",
    1205: "another transaction holds the rows; find it with SHOW PROCESSLIST and run the same command again.",
    1213: "run the same command again.",
    1227: "grant the account the rights listed in docs/mapping.md.",
    1290: "the server is read-only: point the URL at the primary.",
    2003: "check host and port of the database URL, and that the server runs; its log says why it ended, if it did.",
    2006: _CLOSED,
    2013: _CLOSED,
    **dict.fromkeys(ACCOUNT_LOCKED, "the account is locked: the side it belongs to is fenced."),
}

#: The numbers with which a server says that a table, or all of its disk, has no room left, and the operating system's
#: words for it, inside messages whose number says less (3, 1005, 1030, ...).
_FULL = re.compile(
    r"\bERROR (?:20|1021|1114)\b|No space left|Disk quota exceeded|\b(?:error|errno|Errcode):? \"?(?:28|122)\b",
    re.IGNORECASE,
)
NO_ROOM_NEXT = (
    "free space on the database host, where its data and its temporary files lie (SELECT @@datadir, @@tmpdir; "
    "df -h, df -i), then run the same command again."
)


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
    engine = sa.create_engine(
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
    event.listen(engine, "do_connect", lambda _dialect, _record, args, options: _Connection(*args, **options))
    return engine


class _Connection(pymysql.connections.Connection):
    """A connection whose TLS, where the URL asks for nothing, costs no more than it is worth.

    PyMySQL then takes any certificate that the server shows, if it shows one, and reads all certificates of the system
    before it connects: 50 ms of processor each time, of the 600 that a short step takes in all.
    """

    def _create_ssl_ctx(self, asked: Any) -> ssl.SSLContext:
        return super()._create_ssl_ctx(asked) if asked else _takes_any_certificate()  # type: ignore[misc]


@lru_cache(maxsize=1)
def _takes_any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def place(engine: Engine) -> str:
    """The database's address without its secrets, for messages."""
    url = engine.url
    return f"database {url.database} at {url.host}:{url.port or 3306}"


def says_full(text: str) -> bool:
    """Whether a server's message, in the form ``ERROR <number> <words>``, is about space on its disk."""
    return _FULL.search(text) is not None


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
        if says_full(f"ERROR {code} {text}"):
            raise StoreError(
                f"its disk is full, or a tablespace at its limit: {text} (error {code}).",
                where=place(engine),
                next_step=NO_ROOM_NEXT,
            ) from error
        raise StoreError(f"{text} (error {code})", where=place(engine), next_step=_ADVICE.get(code, "")) from error


@contextlib.contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on any error, and by MariaDB when its client falls silent."""
    with speaking(engine), engine.connect() as connection:
        dialect = dialect_of(connection)
        try:
            with connection.begin() as begun:
                if dialect.silence:
                    connection.exec_driver_sql(dialect.silence.format(seconds=SILENCE_SECONDS))
                yield connection
                _commit(connection, begun)
            if dialect.silence:
                # Snapshots that are meant to stay open take their connections from the same pool.
                connection.exec_driver_sql(dialect.silence_over)
        except BaseException:
            connection.invalidate()
            raise


def _commit(connection: Connection, begun: RootTransaction) -> None:
    """Commit, and wait for the answer at most ``COMMIT_SECONDS``.

    :raises StoreError: no answer came; the server may still carry the commit out, as after any lost connection
    """
    driver: Any = connection.connection.driver_connection
    # PyMySQL has no public way to bound one statement; its option read_timeout would bound the long reads as well.
    before = driver._read_timeout
    driver._read_timeout = COMMIT_SECONDS
    try:
        begun.commit()
    except exc.DBAPIError as error:
        if "timed out" not in str(error.orig):
            raise
        raise StoreError(
            f"a COMMIT had no answer within {COMMIT_SECONDS:g} s; so does MariaDB when the disk of its binary log is "
            "full.",
            where=place(connection.engine),
            next_step="look for 'Waiting for someone to free space' in SHOW PROCESSLIST and free space there; MariaDB "
            "goes on within a minute; then run the same command again.",
        ) from error
    finally:
        driver._read_timeout = before


def again_after_deadlock(write: Callable[P, R]) -> Callable[P, R]:
    """Run a method that is one transaction again when the server chose it as a deadlock's victim: nothing of it stands.

    On live traffic that is nobody's fault; after several in a row the error is the operator's to see. A lock that was
    waited for in vain is waited for once more.
    """

    @wraps(write)
    def repeated(*arguments: P.args, **named: P.kwargs) -> R:
        borne = {_DEADLOCK: _DEADLOCKS_BORNE, _LOCK_WAIT_TIMEOUT: _LOCK_WAITS_BORNE}
        while True:
            try:
                return write(*arguments, **named)
            except StoreError as error:
                cause = error.__cause__
                code = _code(cause) if isinstance(cause, exc.DBAPIError) else 0
                if not borne.get(code):
                    raise
                borne[code] -= 1

    return repeated


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection for reads; nothing is kept of it."""
    with speaking(engine), engine.connect() as connection:
        yield connection
