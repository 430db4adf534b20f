"""Connections to the application's database and the one way to run a transaction in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import OperationalError

Result = TypeVar("Result")

_LOCK_WAIT_TIMEOUT = 1205
_DEADLOCK = 1213
_TRANSACTION_ATTEMPTS = 8


def make_engine(url: str, connections: int = 1) -> Engine:
    """An engine with at most ``connections`` open connections, READ COMMITTED, session times in UTC.

    Statement parameters are kept out of error messages: they hold what users sent.
    """
    return create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"connect_timeout": 5, "init_command": "SET time_zone = '+00:00', innodb_lock_wait_timeout = 10"},
    )


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
