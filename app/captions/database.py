"""Connections to the application's database and the one way to run a transaction in it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import pymysql.connections
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

Result = TypeVar("Result")

_LOCK_WAIT_TIMEOUT = 1205
_DEADLOCK = 1213
_TRANSACTION_ATTEMPTS = 8


def make_engine(url: str, connections: int = 1) -> Engine:
    """An engine with at most ``connections`` open connections, READ COMMITTED, session times in UTC.

    Statement parameters are kept out of error messages: they hold what users sent.
    """
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"connect_timeout": 5, "init_command": "SET time_zone = '+00:00', innodb_lock_wait_timeout = 10"},
    )
    event.listen(engine, "do_connect", lambda _dialect, _record, args, options: _Connection(*args, **options))
    return engine


class _Connection(pymysql.connections.Connection):
    """Where the URL asks for no TLS, PyMySQL takes any certificate, and yet reads all of the system's: 50 ms each time.

    A work horse connects once for each job, so that was more than half of what a small job took.
    """

    def _create_ssl_ctx(self, asked: Any) -> ssl.SSLContext:
        return super()._create_ssl_ctx(asked) if asked else _takes_any_certificate()  # type: ignore[misc]


@lru_cache(maxsize=1)
def _takes_any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def error_code(error: Exception) -> int | None:
    """The server's number for a database error, None when there is none."""
    original = getattr(error, "orig", None)
    arguments = getattr(original, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


def in_transaction(engine: Engine, work: Callable[[Connection], Result]) -> Result:
    """Run ``work`` in one transaction and commit it.

    A transaction that lost a deadlock or waited too long for a lock was rolled back whole and is run again, so
    ``work`` must do nothing outside the database that may not be repeated, except as its very last step.
    """
    for attempt in range(1, _TRANSACTION_ATTEMPTS + 1):
        try:
            with engine.connect() as connection, connection.begin():
                return work(connection)
        except OperationalError as error:
            if error_code(error) not in (_DEADLOCK, _LOCK_WAIT_TIMEOUT) or attempt == _TRANSACTION_ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")
