"""The task table as the target of a run that goes back: where tasks come home.

A row is taken from the target's custody into the hold, under the token; release gives it its own words again, and the
ledger's row says so in the same commit. Since the ledger lies beside the rows, release and activation are one.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ..core.homecoming import Decision, Policy, Step, decide
from ..core.mapping import Assignment, TaskMapping
from ..core.tasks import (
    ENDED_MEANWHILE,
    Claim,
    Home,
    Lease,
    Mark,
    Place,
    Refused,
    Released,
    Sighting,
    Staged,
    Task,
    job_id_for,
)
from .ledger_sql import lock_lease, task_table
from .sql_connect import again_after_deadlock, reading, transaction
from .sql_dialect import skip_locked
from .sql_table import HOMEWARD, READ_AHEAD, SqlTable, plain

#: The meta of a task that tells where its job was found, as a :class:`Home`.
FOUND = "sluice_home"
#: The meta of a task that RQ gave up, with its error.
ERROR = "sluice_error"
#: The meta of a task whose job cannot be read, with the reason. Its row decides whether that matters.
UNREADABLE = "sluice_unreadable"
#: The meta of a task whose job lies among the ended ones and does not say so itself. Where it has a row, that decides.
ASTRAY = "sluice_astray"
#: Where a row is the table's own business.
ENDED = (Place.FINISHED, Place.FAILED, Place.CANCELLED)
NOT_OURS = frozenset({Place.READY, Place.DELAYED, Place.LEASED, *ENDED})
#: RQ keeps whole seconds: a smaller difference is no other time.
_SECOND = 1_000_000


class _Row(NamedTuple):
    """What is read of a row, under its lock."""

    key: object
    place: str
    pending: bool
    mark: str
    queue: object
    available: int | None
    attempts: int
    allowed: int | None
    args: tuple[object, ...]


class SqlHome(SqlTable):
    """See :class:`..ports.stores.TargetEnd`; a task without a row is held, since nothing is invented for it.

    :param policy: what becomes of a task that a fenced worker had begun
    """

    def __init__(self, engine: Engine, mapping: TaskMapping, policy: Policy = Policy.HOLD) -> None:
        super().__init__(engine, mapping)
        self.policy = policy
        self._queue_values = _inverse(mapping.target.queues)
        #: Ids of staged tasks whose job has another; and jobs whose id does not follow from their task's.
        self._task_ids: dict[str, str] = {}
        self._odd_jobs: dict[str, str] = {}

    # -- staging ------------------------------------------------------------------------------------------------

    @again_after_deadlock
    def stage(self, lease: Lease, tasks: Sequence[Task]) -> Staged:
        """See the port. Rows that the target still owns are held for us; what has ended or is at home stays so."""
        _ = self.live
        if not tasks:
            return Staged({})
        with transaction(self.engine) as connection:
            now = lock_lease(connection, lease)
            rows = self._rows(connection, [task.id for task in tasks])
            taken: list[tuple[Task, _Row]] = []
            over: list[str] = []
            refused: list[Refused] = []
            ended: dict[tuple[Step, str], list[object]] = defaultdict(list)
            for task in tasks:
                row = rows.get(task.id)
                decision = self._decision(task, row)
                if task.job_id != task.id:
                    self._task_ids[task.job_id] = task.id
                if task.job_id != job_id_for(self.mapping.system, task.id):
                    self._odd_jobs[task.id] = task.job_id
                unreadable = dict(task.meta).get(UNREADABLE)
                # A job of an earlier attempt does not matter to a row that waits for its next one.
                if unreadable and decision.step in (Step.TAKE, Step.MAKE) and not (row and row.pending):
                    refused.append(Refused(task.id, unreadable))
                    continue
                astray = dict(task.meta).get(ASTRAY)
                if astray and row is None and decision.step is Step.OVER:
                    refused.append(Refused(task.id, astray))
                    continue
                match decision.step:
                    case Step.TAKE if row is not None:
                        taken.append((task, row))
                    case Step.OVER:
                        over.append(task.job_id)
                    case Step.FAIL | Step.CANCEL if row is not None and self._words(decision.step):
                        ended[decision.step, _reason(task, decision)].append(row.key)
                        over.append(task.job_id)
                    case Step.MAKE:
                        refused.append(Refused(task.id, NO_ROW))
                    case _:
                        refused.append(Refused(task.id, _reason(task, decision)))
            self._hold_rows(connection, lease, taken, now)
            for (step, reason), keys in ended.items():
                self._end_rows(connection, lease, step, reason, keys)
        return Staged(
            # A job without its hash has nothing to be compared with.
            {task.job_id: _digest(task.id, row.args if task.args else ()) for task, row in taken},
            over=tuple(over),
            refused=tuple(refused),
        )

    def _decision(self, task: Task, row: _Row | None) -> Decision:
        found = dict(task.meta).get(FOUND)
        return decide(
            None if row is None else Place(row.place),
            Home(found) if found else None,
            policy=self.policy,
            witness=self.source.started is not None,
            pending=row is not None and row.pending,
            held=row is not None and row.mark == Mark.HELD.value,
        )

    def _rows(self, connection: Connection, ids: Sequence[str]) -> dict[str, _Row]:
        """The rows of these ids, locked."""
        query = sa.select(*self._row_columns()).select_from(self._joined()).where(self._among())
        found = connection.execute(query.with_for_update(of=self._clause), {"ids": self._keys(ids)})
        return {str(row[0]): _Row._make((*row[:8], tuple(row[8:]))) for row in found}

    def _joined(self) -> sa.FromClause:
        """The table with what the ledger says of each row."""
        _, tables = self._place()
        if self.companion:
            return tables
        return tables.outerjoin(
            task_table,
            sa.and_(task_table.c.system == self.mapping.system, task_table.c.task_id == self._task_id()),
        )

    def _row_columns(self) -> list[sa.ColumnElement[Any]]:
        place, _ = self._place()
        columns = self.source.columns
        pending = self._compiler.compile(self.source.pending) if self.source.pending is not None else sa.false()
        return [
            self._id,
            place,
            sa.func.coalesce(pending, sa.false()),
            sa.func.coalesce(task_table.c.mark, ""),
            self._clause.c[columns.queue] if columns.queue else sa.null(),
            self._compiler.micros(columns.available) if columns.available else sa.null(),
            sa.func.coalesce(self._clause.c[columns.attempts], 0) if columns.attempts else sa.literal(0),
            self._clause.c[columns.attempts_allowed] if columns.attempts_allowed else sa.null(),
            *[self._clause.c[name] for name in self._argument_columns()],
        ]

    def _words(self, step: Step) -> tuple[Assignment, ...]:
        return self.source.hold.fail if step is Step.FAIL else self.source.hold.cancel

    def _hold_rows(self, connection: Connection, lease: Lease, taken: Sequence[tuple[Task, _Row]], now: int) -> None:
        """Take rows out of the target's custody; what the job knows better than the row goes with it."""
        begun = [row.key for _, row in taken if row.place == Place.RUNNING]
        plain_keys = [row.key for _, row in taken if row.place != Place.RUNNING]
        if self.companion:
            self._mark_claimed(connection, lease, [row.key for _, row in taken])
        else:
            for keys, words in ((plain_keys, ()), (begun, self.source.hold.requeue)):
                if keys:
                    values = self._values((*self.source.hold.claim, *words))
                    connection.execute(
                        sa.update(self._clause).where(self._among()).values(values), {"ids": keys, "token": lease.token}
                    )
        columns = self.source.columns
        for task, row in taken:
            changes: dict[str, object] = {}
            value = self._queue_values.get(task.queue)
            if columns.queue and value is not None and self.mapping.target.queues.get(str(row.queue)) != task.queue:
                changes[columns.queue] = value
            if columns.available and task.eta is not None and row.available is not None:
                due = int(task.eta * 1_000_000)
                # RQ's own retries move a job's time; what is due by now needs none.
                if due > now and abs(due - row.available) >= _SECOND:
                    changes[columns.available] = self._compiler.at_micros(columns.available, due)
            if columns.attempts and self.mapping.target.retries == "carry" and row.allowed is not None:
                used = int(row.allowed) - task.attempts_allowed
                if task.attempts_allowed and used > row.attempts:
                    changes[columns.attempts] = used
            if changes:
                connection.execute(sa.update(self._clause).where(self._id == row.key).values(changes))

    def _mark_claimed(self, connection: Connection, lease: Lease, keys: Iterable[object]) -> None:
        connection.exec_driver_sql(
            "INSERT INTO sluice_task (`system`, task_id, run_id, mark, token, at) "
            "VALUES (%s, %s, %s, 'claimed', %s, UTC_TIMESTAMP(6)) "
            "ON DUPLICATE KEY UPDATE run_id = VALUES(run_id), mark = VALUES(mark), token = VALUES(token), "
            "at = VALUES(at)",
            [(self.mapping.system, str(key), lease.run_id, lease.token) for key in keys],
        )

    def _end_rows(self, connection: Connection, lease: Lease, step: Step, reason: str, keys: Sequence[object]) -> None:
        """Give rows the end that their job had at the target; the compare-and-set was the read under the row's lock."""
        connection.execute(
            sa.update(self._clause).where(self._among()).values(self._values(self._words(step))),
            {"ids": keys, "token": lease.token, "reason": reason[:400]},
        )
        for key in keys:
            self._mark(connection, lease, str(key), Mark.SETTLED, reason)

    def digests(self, tasks: Sequence[Task]) -> dict[str, str]:
        """See the port: what the job would be called with, against what the row holds."""
        return {task.job_id: _digest(task.id, task.args) for task in tasks}

    def supersede(self, lease: Lease, job_ids: Sequence[str]) -> Sequence[str]:
        """See the port. A row is never in the way of its own task."""
        return ()

    @again_after_deadlock
    def discard(self, lease: Lease, job_ids: Sequence[str]) -> int:
        """Give rows that we hold back to the target's custody; returns how many were held."""
        _ = self.live
        if not job_ids:
            return 0
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            ids = [self._task_ids.get(job_id, job_id) for job_id in job_ids]
            parameters: dict[str, object] = {"ids": self._keys(ids), "token": lease.token}
            if self.companion:
                done = connection.execute(
                    sa.update(task_table)
                    .where(
                        task_table.c.system == self.mapping.system,
                        task_table.c.task_id.in_(ids),
                        task_table.c.mark == Mark.CLAIMED.value,
                    )
                    .values(mark=Mark.MOVED.value)
                )
            else:
                done = connection.execute(
                    sa.update(self._clause)
                    .where(self._among(), self._own(Place.CLAIMED), ~self._decided())
                    .values(self._values(self.source.hold.moved)),
                    parameters,
                )
            return int(done.rowcount)

    def put_back(self, lease: Lease) -> int:
        """Undo before the first release: every row that this run holds is the target's again."""
        self.let_ended_go(lease, ours=True)
        held = list(self.ids_at(Place.CLAIMED, limit=1_000_000))
        return sum(self.discard(lease, held[start : start + 1000]) for start in range(0, len(held), 1000))

    @again_after_deadlock
    def hold(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """See the port. A row that has ended, or is at home, by now is let be: nothing about it is uncertain."""
        _ = self.live
        if not ids:
            return 0
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            rows = self._rows(connection, ids)
            over = {task_id for task_id, row in rows.items() if Place(row.place) in NOT_OURS}
            already = set(self._held_among(connection, ids))
            fresh = [i for i in dict.fromkeys(ids) if i not in over and i not in already]
            for task_id in fresh:
                self._mark(connection, lease, task_id, Mark.HELD, reason)
                if task_id in self._odd_jobs:  # the balance finds the mark by its job
                    ours = sa.and_(task_table.c.system == self.mapping.system, task_table.c.task_id == task_id)
                    connection.execute(sa.update(task_table).where(ours).values(job_id=self._odd_jobs[task_id]))
            if fresh and not self.companion:
                values = self._values(self.source.hold.claim)
                # Rows of just these ids: to the column's collation another case may be the same.
                keys = [rows[task_id].key for task_id in fresh if task_id in rows]
                parameters = {"ids": keys, "token": lease.token}
                connection.execute(sa.update(self._clause).where(self._among()).values(values), parameters)
        return len(fresh)

    @again_after_deadlock
    def let_ended_go(self, lease: Lease, *, ours: bool = False) -> int:
        """Take the hold of a dead mover off rows that ended under it (a user cancelled); returns how many.

        :param ours: also a hold of this very token (undo)
        """
        token = lease.token + 1 if ours else lease.token
        place, _ = self._place()
        if self.companion:
            claimed = task_table.c.mark == Mark.CLAIMED.value
            ended = sa.and_(claimed, task_table.c.token < token, place.in_([p.value for p in ENDED]))
        else:
            ended = self._left_behind(self._ended_under_hold())
        query = sa.select(self._id).select_from(self._joined()).where(ended)
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            # What somebody else works on is no row that has ended under a dead mover's hold.
            query = query.with_for_update(of=self._clause, skip_locked=bool(skip_locked(connection)))
            keys = [row[0] for row in connection.execute(query, {"token": token})]
            for key in keys:
                self._mark(connection, lease, str(key), Mark.SETTLED, ENDED_MEANWHILE)
            if keys and not self.companion:
                values = self._values(self.source.hold.back)
                parameters = {"ids": keys, "token": lease.token}
                connection.execute(sa.update(self._clause).where(self._among()).values(values), parameters)
        return len(keys)

    def make_ready(self) -> None:
        """Give every row the hold's words of a task that waits. For a table of our own, never for the application's."""
        _ = self.live
        words = self._values((*self.source.hold.back, *self.source.hold.requeue))
        if words:
            with transaction(self.engine) as connection:
                connection.execute(sa.update(self._clause).values(words))

    def exposed(self) -> int:
        """Rows that look ready to the source's claimers by their own words, and are not theirs by the ledger."""
        _ = self.live
        theirs = self._marked(*(mark for mark in Mark if mark is not Mark.RETURNED))
        query = (
            sa.select(sa.func.count())
            .select_from(self._clause)
            .where(sa.or_(self._own(Place.READY), self._own(Place.DELAYED)), theirs)
        )
        with reading(self.engine) as connection:
            return int(connection.scalar(query) or 0)

    # -- release ------------------------------------------------------------------------------------------------

    def release(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> Released:
        """Custody passes here: the rows say again that they are the table's own, and the ledger that they returned."""
        return self._let_go(lease, tasks, digests, batch, HOMEWARD)

    def activate(self, lease: Lease, tasks: Sequence[Task], batch: int) -> int:
        """See the port. The release has made them runnable in the same commit."""
        return len(tasks)

    def last_batch(self) -> int:
        """See the port. Nothing released is ever still to be activated."""
        return sys.maxsize

    def marked(self, job_ids: Sequence[str]) -> Sequence[bool]:
        """See the port. A row needs no marker: it says itself whose it is."""
        return [False] * len(job_ids)


class SqlJournal:
    """See :class:`..ports.stores.SourceEnd`: the rows of the target's tasks, where no job answers for them.

    Redis is dead or was emptied, or the application had still to enqueue them: the row alone tells. Staging is what
    takes a row, and one batch is claimed while the one before is staged: what was given is remembered until it is
    released, held or left, so that no row is given twice.
    """

    def __init__(self, home: SqlHome) -> None:
        self.home = home
        self._ahead: deque[object] = deque()
        self._given: set[str] = set()
        self._lock = threading.Lock()

    def fit(self) -> Sequence[Any]:
        """See the port."""
        return self.home.fit()

    @again_after_deadlock
    def claim(self, lease: Lease, limit: int) -> Claim:
        """The next rows that are the target's and have not ended, in the source's own order. Staging takes them."""
        home = self.home
        looked = False
        while self._ahead or not looked:
            if not self._ahead:
                # Ids are read many at a time: a search and a sort for each batch would cost as much as for all.
                looked = True
                self._read_ahead(lease)
            keys = [self._ahead.popleft() for _ in range(min(limit, len(self._ahead)))]
            if not keys:
                break
            with transaction(home.engine) as connection:
                now = lock_lease(connection, lease)
                query = self._query(home._task_columns(), home._among()).order_by(*home._order)
                query = query.with_for_update(skip_locked=bool(skip_locked(connection)), of=home._clause)
                rows = connection.execute(query, {"ids": keys, "token": lease.token}).all()
            if rows:
                with self._lock:
                    self._given |= {str(row[0]) for row in rows}
                return home._read(rows, now)
        home.let_ended_go(lease)
        return Claim((), ())

    def _query(self, columns: Sequence[sa.ColumnElement[Any]], *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Rows that are the target's, have not ended, are not held, and that no batch of this token holds."""
        home = self.home
        _ = home.live
        place, _ = home._place()
        wanted = [Place.CLAIMED.value, Place.MOVED.value, Place.RUNNING.value]
        claimed_before = sa.or_(place != Place.CLAIMED.value, home._left_behind(home._own(Place.CLAIMED)))
        return (
            sa.select(*columns)
            .select_from(home._joined())
            .where(place.in_(wanted), claimed_before, ~home._marked(Mark.HELD), *conditions)
        )

    def _read_ahead(self, lease: Lease) -> None:
        with self._lock:
            given = set(self._given)
        _ = self.home.live
        query = self._query([self.home._id]).order_by(*self.home._order).limit(READ_AHEAD + len(given))
        with reading(self.home.engine) as connection:
            found = connection.execute(query, {"token": lease.token})
            self._ahead.extend(row[0] for row in found if str(row[0]) not in given)

    def _forget(self, ids: Iterable[str]) -> None:
        with self._lock:
            self._given.difference_update(ids)

    def release(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> Released:
        """See the port."""
        released = self.home.release(lease, tasks, digests, batch)
        self._forget(task.id for task in tasks)
        return released

    def hold(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """See the port."""
        held = self.home.hold(lease, ids, reason)
        self._forget(ids)
        return held

    def leave(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """Nothing is claimed before staging, so nothing has to be let go."""
        self._forget(ids)
        return 0

    def renewed(self, ids: Sequence[str]) -> set[str]:
        """See the port."""
        return self.home.renewed(ids)

    def reread(self, ids: Sequence[str]) -> Claim:
        """See the port."""
        return self.home.reread(ids)

    def place_again(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> set[str]:
        """See the port."""
        return self.home.place_again(lease, tasks, digests, batch)

    def put_back(self, lease: Lease) -> int:
        """See the port."""
        return self.home.put_back(lease)

    def census(self) -> Iterator[Sighting]:
        """See the port."""
        return self.home.census()

    def counts(self) -> dict[str, dict[str, int]]:
        """See the port."""
        return self.home.counts()

    def in_hand(self, processes: int) -> Sequence[str]:
        """See the port."""
        return ()

    def waiting(self) -> int:
        """Rows that are the target's and neither ended nor held."""
        home = self.home
        _ = home.live
        place, tables = home._place()
        wanted = [Place.CLAIMED.value, Place.MOVED.value, Place.RUNNING.value]
        query = sa.select(sa.func.count()).select_from(tables).where(place.in_(wanted), ~home._marked(Mark.HELD))
        with reading(home.engine) as connection:
            return int(connection.scalar(query) or 0)


#: Why a task that was born at the target is held.
NO_ROW = "born at the target without a row: its job does not hold all that a row needs"


def _reason(task: Task, decision: Decision) -> str:
    error = dict(task.meta).get(ERROR, "")
    return f"{decision.reason}: {error}" if error else decision.reason


def _digest(task_id: str, args: Sequence[object]) -> str:
    text = repr((task_id, tuple(plain(value) for value in args)))
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _inverse(queues: Any) -> dict[str, str]:
    """RQ queue to the table's own value, where exactly one value leads there."""
    found: dict[str, list[str]] = defaultdict(list)
    for value, queue in queues.items():
        found[queue].append(value)
    return {queue: values[0] for queue, values in found.items() if len(values) == 1}
