"""Route and intake, as the application keeps them in one row of its database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from ..core.errors import StoreError
from ..core.mapping import Intake, Route
from ..core.tasks import Lease
from ..ports.surroundings import Clock, IntakeState, RouteState
from .ledger_sql import lock_lease
from .sql_connect import LOCK_WAIT_SECONDS, place, reading, transaction
from .sql_fence import Account, OpenTransaction, account_locks, account_of, open_transactions, sees_all_sessions
from .system_clock import SystemClock

POLL_SECONDS = 0.2

#: Seconds of one attempt to lock the row. New submissions queue behind it, so it is short; then they may pass.
ATTEMPT_SECONDS = 2
_PAUSE_SECONDS = 0.5
_LOCK_WAIT_TIMEOUT = 1205


class SqlRouter:
    """See :class:`..ports.surroundings.Router`.

    The barrier ``shared_lock``: producers read the row under a shared lock in the transaction that inserts, so our
    exclusive lock is had only when none that read the old share is open. The barrier ``timeout``: after the change,
    ``producer_timeout`` seconds pass and every transaction of the producers that was open has ended. Either is gone
    through again when the share is already as wanted: an earlier call may have died behind the change.

    :param deadline: seconds to wait for producers, beyond ``producer_timeout``
    :param waiting: told the seconds left, now and then, while a barrier is waited for (progress, renewal of the lease)
    """

    def __init__(
        self,
        engine: Engine,
        route: Route,
        *,
        clock: Clock | None = None,
        deadline: float = 30.0,
        waiting: Callable[[float], None] | None = None,
    ) -> None:
        self.engine = engine
        self.route = route
        self.clock = clock or SystemClock()
        self.deadline = deadline
        self.waiting = waiting or (lambda _seconds: None)
        self.producers = tuple(Account.parse(text) for text in route.producer_accounts)
        columns: list[sa.ColumnClause[Any]] = [
            sa.column(name) for name in (route.key, route.share, route.polling, route.emergency) if name
        ]
        self._row = sa.table(route.table, *columns)

    def read(self) -> RouteState:
        """The row as it is committed now."""
        self._require_row()
        with reading(self.engine) as connection:
            row = self._found(connection)
        return RouteState(int(row[0]), bool(row[1]) if self.route.polling else None)

    def set_share(self, lease: Lease, share: int) -> bool:
        """Change the share and go through the barrier.

        :raises StoreError: a producer kept the row or a transaction open to the deadline; the message says which
        :raises LeaseLost: another run holds a newer token
        """
        self._require_row()
        if not 0 <= share <= 100:
            raise StoreError(f"a share of {share} % does not exist.", where="route", next_step="choose 0 to 100.")
        changed = self._write(lease, self.route.share, share)
        if self.route.barrier == "timeout":
            self.wait_for_producers()
        return changed

    def set_polling(self, lease: Lease, on: bool) -> bool:
        """Allow or forbid polling in the row.

        :raises StoreError: the mapping names no such column
        """
        self._require_row()
        if not self.route.polling:
            raise StoreError(
                "the application has no switch for polling.",
                where="mapping.route.polling",
                next_step="rely on the fence.",
            )
        return self._write(lease, self.route.polling, int(on))

    def read_emergency(self) -> bool | None:
        """Whether the flag of an emergency is set; None when the mapping names none."""
        self._require_row()
        if not self.route.emergency:
            return None
        query = sa.select(self._row.c[self.route.emergency]).where(self._row.c[self.route.key] == self.route.key_value)
        with reading(self.engine) as connection:
            return bool(connection.scalar(query))

    def set_emergency(self, lease: Lease, on: bool) -> bool:
        """Send every submission to the source, whatever the share and whether or not the application answers.

        :raises StoreError: the mapping names no such column
        """
        self._require_row()
        if not self.route.emergency:
            raise StoreError(
                "the application has no flag for an emergency.",
                where="mapping.route.emergency",
                next_step="leave the option out; the share is set anyway.",
            )
        return self._write(lease, self.route.emergency, int(on))

    def _write(self, lease: Lease, column: str, value: int) -> bool:
        """Set one column under an exclusive lock of the row, in short attempts up to the deadline."""
        until = self.clock.monotonic() + self.deadline
        while True:
            try:
                with transaction(self.engine) as connection, _short_lock_waits(connection):
                    lock_lease(connection, lease)
                    self._found(connection, exclusive=True)
                    old = connection.scalar(
                        sa.select(self._row.c[column]).where(self._row.c[self.route.key] == self.route.key_value)
                    )
                    if old is not None and int(old) == value:
                        return False
                    connection.execute(
                        sa.update(self._row)
                        .where(self._row.c[self.route.key] == self.route.key_value)
                        .values({column: value})
                    )
                    return True
            except StoreError as error:
                if not _is_lock_wait_timeout(error):
                    raise
                left = until - self.clock.monotonic()
                if left <= 0:
                    raise StoreError(
                        f"a producer has held the row of {self.route.table} for {self.deadline:.0f} s; "
                        f"{column} was not changed.",
                        where=place(self.engine),
                        next_step="find the open transaction (SHOW ENGINE INNODB STATUS), end it, run this again.",
                    ) from error
                self.waiting(left)
                self.clock.wait(_PAUSE_SECONDS)

    def wait_for_producers(self) -> None:
        """The barrier ``timeout``, from now: let the producers' longest request pass, and their open transactions end.

        Without named producer accounts every other connection counts as a producer's.

        :raises StoreError: a transaction stayed open to the deadline, or transactions cannot be seen
        """
        start = self.clock.monotonic()
        until = start + self.route.producer_timeout + self.deadline
        old = self._producer_transactions()
        while True:
            now = self.clock.monotonic()
            if old:
                old &= self._producer_transactions()
            resting = start + self.route.producer_timeout - now
            if not old and resting <= 0:
                return
            if now >= until:
                raise StoreError(
                    f"transactions older than the route change are still open: {', '.join(sorted(map(str, old)))}.",
                    where=place(self.engine),
                    next_step="end them, or wait, and run the same command again.",
                )
            self.waiting(max(resting, 0.0) if not old else until - now)
            self.clock.wait(POLL_SECONDS if old else min(1.0, resting))

    def _producer_transactions(self) -> set[OpenTransaction]:
        with reading(self.engine) as connection:
            if not sees_all_sessions(connection):
                raise StoreError(
                    "our account cannot see the transactions of others, so the barrier cannot be proved.",
                    where=place(self.engine),
                    next_step="GRANT PROCESS ON *.*.",
                )
            found = open_transactions(connection, self.clock)
            if not self.producers:
                own = str(connection.scalar(sa.text("SELECT CURRENT_USER()"))).rpartition("@")[0]
                return {entry for entry in found if entry.user != own}
            known = list(account_locks(connection))
        users = {account.user for account in self.producers}
        return {
            entry
            for entry in found
            if entry.user in users and account_of(entry.user, entry.host, known) in (None, *self.producers)
        }

    def _found(self, connection: Connection, *, exclusive: bool = False) -> tuple[Any, ...]:
        columns = [self._row.c[name] for name in (self.route.share, self.route.polling) if name]
        query = sa.select(*columns).where(self._row.c[self.route.key] == self.route.key_value)
        return _one(connection, query.with_for_update() if exclusive else query, self.engine, self.route.table)

    def _require_row(self) -> None:
        if self.route.kind != "sql_row":
            raise StoreError(
                "the mapping names no route that can be read or changed.",
                where="mapping.route",
                next_step="switch the application by its own configuration.",
            )


class SqlIntake:
    """See :class:`..ports.surroundings.IntakeGate`. A pause has its deadline in the row."""

    def __init__(self, engine: Engine, intake: Intake) -> None:
        self.engine = engine
        self.intake = intake
        columns: list[sa.ColumnClause[Any]] = [
            sa.column(name) for name in (intake.key, intake.state, intake.until) if name
        ]
        self._row = sa.table(intake.table, *columns)
        self._key = self._row.c[intake.key] == intake.key_value

    def read(self) -> IntakeState:
        """Open, or paused with the seconds left. A pause whose deadline has passed reads as open."""
        with reading(self.engine) as connection:
            return self._state(connection)

    def set_open(self, lease: Lease, open_: bool, seconds: float) -> bool:
        """Open intake, or pause it for ``seconds`` from the database's now; pausing again moves the deadline.

        :raises StoreError: a pause without a deadline was asked for, or the application cannot keep one
        :raises LeaseLost: another run holds a newer token
        """
        if not open_ and (not self.intake.until or seconds <= 0):
            raise StoreError(
                "a pause needs a deadline that the application keeps by itself.",
                where="mapping.intake.until",
                next_step="name the column of the deadline and give seconds above 0, or do not pause.",
            )
        values: dict[str, object] = {self.intake.state: self.intake.open_value if open_ else self.intake.paused_value}
        if self.intake.until:
            after = sa.text(f"UTC_TIMESTAMP(6) + INTERVAL {int(seconds * 1_000_000)} MICROSECOND")
            values[self.intake.until] = None if open_ else after
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            before = self._state(connection, exclusive=True)
            connection.execute(sa.update(self._row).where(self._key).values(values))
        return before.open != open_

    def _state(self, connection: Connection, *, exclusive: bool = False) -> IntakeState:
        columns: list[sa.ColumnElement[Any]] = [self._row.c[self.intake.state]]
        if self.intake.until:
            left = sa.func.timestampdiff(
                sa.text("MICROSECOND"), sa.func.utc_timestamp(6), self._row.c[self.intake.until]
            )
            columns.append(left)
        query = sa.select(*columns).where(self._key)
        row = _one(connection, query.with_for_update() if exclusive else query, self.engine, self.intake.table)
        remaining = float(row[1]) / 1e6 if self.intake.until and row[1] is not None else None
        if str(row[0]) == str(self.intake.open_value) or (remaining is not None and remaining <= 0):
            return IntakeState(True, None)
        return IntakeState(False, remaining)


def _one(connection: Connection, query: sa.Select[*tuple[Any, ...]], engine: Engine, table: str) -> tuple[Any, ...]:
    row = connection.execute(query).first()
    if row is None or any(value is None for value in row[:1]):
        raise StoreError(
            f"table {table} has no row with the key of the mapping.",
            where=place(engine),
            next_step="correct 'key' in the mapping.",
        )
    return tuple(row)


@contextmanager
def _short_lock_waits(connection: Connection) -> Iterator[None]:
    """The connection waits ATTEMPT_SECONDS for a row lock while inside, and as long as ever afterwards."""
    connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout={ATTEMPT_SECONDS}")
    try:
        yield
    finally:
        connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout={LOCK_WAIT_SECONDS}")


def _is_lock_wait_timeout(error: StoreError) -> bool:
    cause = error.__cause__
    return isinstance(cause, exc.DBAPIError) and getattr(cause.orig, "args", (0,))[0] == _LOCK_WAIT_TIMEOUT
