"""A polled SQL task table as the source of a run."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ..core.errors import MappingError
from ..core.in_hand import Waiting, perhaps_in_hand
from ..core.mapping import Assignment, TaskMapping
from ..core.tasks import ENDED_MEANWHILE, Claim, Lease, Mark, Place, Refused, Released, Sighting, Task, job_id_for
from ..core.verdicts import Check
from .ledger_sql import baseline_table, lock_lease, run_table, task_table
from .sql_conditions import Clause, Compiler, LiveTable, read_table
from .sql_connect import again_after_deadlock, reading, transaction
from .sql_connect import place as address
from .sql_dialect import skip_locked
from .sql_fit import SchemaFit

_IDS = "ids"
#: An id that a column of whole numbers shows as it is.
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,19})\Z")
_TASK_IDS = "task_ids"
#: How many ids are read ahead at once, some MiB of them.
READ_AHEAD = 50_000
#: A search for the next batch that took longer has no index to follow (seconds).
_SLOW_PICK = 0.25
#: One INSERT into the ledger for a whole batch: its rows go between the two halves.
_LEDGER_INSERT = (
    "INSERT INTO sluice_task "
    "(`system`, task_id, run_id, mark, token, batch, position, queue, job_id, eta, digest, reason, at) "
    "VALUES "
)
_LEDGER_AGAIN = (
    " ON DUPLICATE KEY UPDATE run_id = VALUES(run_id), mark = VALUES(mark), token = VALUES(token), "
    "batch = VALUES(batch), position = VALUES(position), queue = VALUES(queue), job_id = VALUES(job_id), "
    "eta = VALUES(eta), digest = VALUES(digest), "
    "reason = VALUES(reason), at = VALUES(at)"
)


@dataclass(frozen=True, slots=True)
class _Way:
    """What a release writes: which words of the hold go into the row, and which mark into the ledger."""

    words: str  # a field of core.mapping.Hold
    mark: Mark


_AWAY = _Way("moved", Mark.MOVED)
HOMEWARD = _Way("back", Mark.RETURNED)


class SqlTable:
    """See :class:`..ports.stores.SourceEnd`.

    With a hold by columns, a claimed row carries the token itself; with a companion hold, ``sluice_task`` does, and
    the row keeps its own words.
    """

    def __init__(self, engine: Engine, mapping: TaskMapping) -> None:
        self.engine = engine
        self.mapping = mapping
        self.source = mapping.source
        self._live: LiveTable | None = None
        self._exhausted: set[Place] = set()
        self._reads_ahead = mapping.source.hold.kind == "companion"
        self._ahead: dict[Place, deque[object]] = {Place.READY: deque(), Place.DELAYED: deque()}
        self._looked: set[Place] = set()
        self._past_return = False

    # -- shape --------------------------------------------------------------------------------------------------

    @property
    def live(self) -> LiveTable:
        """The table as the database has it, read once."""
        if self._live is None:
            live = read_table(self.engine, self.source.table)
            self._compiler = Compiler(live, self.source.clocks)
            self._clause = self._compiler.clause
            self._id = self._compiler.column(self.source.columns.id, "source.columns.id")
            self._numeric_id = live.columns[self.source.columns.id].family == "number"
            self._order = self._compiler.order(self.source.order, self.source.columns.id)
            self._live = live
        return self._live

    @property
    def companion(self) -> bool:
        """Whether holds live in the ledger's companion table."""
        return self.source.hold.kind == "companion"

    def fit(self) -> Sequence[Check]:
        """See the port, and :mod:`.sql_fit`."""
        return SchemaFit(self.engine, self.mapping).checks()

    # -- predicates ---------------------------------------------------------------------------------------------

    def _own(self, place: Place) -> Clause:
        """The row's own words for a place; false where the mapping has none."""
        _ = self.live
        condition = self.source.places.get(place)
        return sa.false() if condition is None else self._compiler.compile(condition)

    def _task_id(self) -> sa.ColumnElement[Any]:
        """The row's id as the ledger keeps it."""
        _ = self.live
        return sa.collate(sa.func.convert(self._id.op("USING")(sa.literal_column("utf8mb4"))), "utf8mb4_bin")

    def _marked(self, *marks: Mark, among: bool = False) -> Clause:
        """Whether the ledger has marked this row with one of the marks.

        With ``among`` only the marks of the statement's own ids are read: a server that looks them all up first would
        take longer with every row moved.
        """
        mark = sa.select(sa.literal(1)).where(
            task_table.c.system == self.mapping.system,
            task_table.c.task_id == self._task_id(),
            task_table.c.mark.in_([m.value for m in marks]),
        )
        if among:
            mark = mark.where(task_table.c.task_id.in_(sa.bindparam(_TASK_IDS, expanding=True)))
        return sa.exists(mark).correlate(self._clause)

    def _decided(self) -> Clause:
        """Held, or settled since the row was claimed: a hold by columns that no resume and no undo touches."""
        settled = sa.and_(
            task_table.c.mark == Mark.SETTLED.value,
            # What had ended was given back with this mark; a retry of it may since have been claimed anew.
            task_table.c.reason != ENDED_MEANWHILE,
            task_table.c.token >= self._clause.c[self.source.hold.token_column],
        )
        return sa.exists(
            sa.select(sa.literal(1)).where(
                task_table.c.system == self.mapping.system,
                task_table.c.task_id == self._task_id(),
                sa.or_(task_table.c.mark == Mark.HELD.value, settled),
            )
        ).correlate(self._clause)

    def _hold_stands(self) -> Sequence[Clause]:
        """The words of the hold itself, as the claim set them; none when the release would leave them as they are."""
        moved = {a.column: a.value for a in self.source.hold.moved}
        words = [a for a in self.source.hold.claim if not str(a.value).startswith("$")]
        if all(moved.get(a.column, a.value) == a.value for a in words):
            return ()
        return [self._clause.c[a.column] == a.value for a in words]

    def _ended_under_hold(self) -> Clause:
        """Rows that ended (a user cancelled) while the hold stood: it has to be taken off them."""
        words = self._hold_stands()
        ended = sa.or_(*[self._own(place) for place in (Place.FINISHED, Place.FAILED, Place.CANCELLED)])
        return sa.and_(*words, ended) if words else sa.false()

    def _circulating(self, place: Place, *, among: bool = False) -> Clause:
        """Rows that a claim may take from: the place, less what the ledger has already taken (companion holds)."""
        own = self._own(place)
        if self.companion:
            own = sa.and_(own, ~self._marked(*(mark for mark in Mark if mark is not Mark.RETURNED), among=among))
        return sa.and_(own, self._among()) if among else own

    def _own_place(self) -> sa.ColumnElement[str]:
        """The one place whose predicate holds; 'unknown' when none or several do."""
        _ = self.live
        tests = [(p, sa.func.coalesce(self._compiler.compile(c), sa.false())) for p, c in self.source.places.items()]
        held = sum((sa.cast(test, sa.Integer) for _, test in tests[1:]), start=sa.cast(tests[0][1], sa.Integer))
        return sa.case(
            (held != 1, Place.UNKNOWN.value), *[(test, p.value) for p, test in tests], else_=Place.UNKNOWN.value
        )

    def _place(self) -> tuple[sa.ColumnElement[str], sa.FromClause]:
        """The place of each row, with the companion's word taken into account."""
        own = self._own_place()
        if not self.companion:
            return own, self._clause
        joined = self._clause.outerjoin(
            task_table,
            sa.and_(task_table.c.system == self.mapping.system, task_table.c.task_id == self._task_id()),
        )
        moved = task_table.c.mark == Mark.MOVED.value
        place = sa.case(
            (sa.and_(task_table.c.mark == Mark.CLAIMED.value, own.in_(["ready", "delayed"])), Place.CLAIMED.value),
            (sa.and_(moved, own.in_(["ready", "delayed"])), Place.MOVED.value),
            (sa.and_(moved, own == Place.LEASED.value), Place.RUNNING.value),
            else_=own,
        )
        return place, joined

    def _key(self, task_id: str) -> object:
        return int(task_id) if self._numeric_id else task_id

    def _keys(self, ids: Sequence[str]) -> list[object]:
        """The keys of ids; without those that the column cannot hold, which have no row."""
        if self._numeric_id:
            return [int(i) for i in ids if _NUMBER.match(i)]
        column = self.live.columns[self.source.columns.id]
        return [i for i in ids if column.holds(i)]

    def _keys_of(self, connection: Connection, ids: Sequence[str]) -> list[object]:
        """The keys of the rows that have just these ids: a collation may take others for equal, as it does cases."""
        wanted = set(ids)
        found = connection.execute(sa.select(self._id).where(self._among()), {_IDS: self._keys(ids)})
        return [row[0] for row in found if str(row[0]) in wanted]

    def _among(self) -> Clause:
        return self._id.op("IN")(sa.bindparam(_IDS, type_=_Keys()))

    # -- claim --------------------------------------------------------------------------------------------------

    @again_after_deadlock
    def claim(self, lease: Lease, limit: int) -> Claim:
        """See the port. A locking read picks rows, an update by id takes them: a compare-and-set under row locks."""
        _ = self.live
        self._look_ahead()
        with transaction(self.engine) as connection:
            now = lock_lease(connection, lease)
            for place in (Place.CLAIMED, Place.READY, Place.DELAYED):
                if place in self._exhausted:
                    continue
                rows = self._pick(connection, lease, place, limit)
                if not rows:
                    self._exhausted.add(place)
                    continue
                self._take(connection, lease, [row[0] for row in rows], place)
                return self._read(rows, now)
            if Place.READY in self._exhausted:
                # A straggler may have come while the delayed ones were moved: look once more from the start next time.
                self._exhausted -= {Place.READY, Place.DELAYED}
                rows = self._pick(connection, lease, Place.READY, limit)
                if rows:
                    self._take(connection, lease, [row[0] for row in rows], Place.READY)
                    return self._read(rows, now)
        return Claim((), ())

    def _pick(self, connection: Connection, lease: Lease, place: Place, limit: int) -> Sequence[Sequence[Any]]:
        if place is not Place.CLAIMED:
            return self._pick_circulating(connection, lease, place, limit)
        rows = self._select(connection, lease, self._left_behind(self._own(place)), limit, "")
        if not rows and not self.companion:
            rows = self._select(connection, lease, self._left_behind(self._ended_under_hold()), limit, "")
        return rows

    def _pick_circulating(
        self, connection: Connection, lease: Lease, place: Place, limit: int
    ) -> Sequence[Sequence[Any]]:
        """The next rows in claim order, locked; by ids read ahead where the order cannot be had from an index.

        Rows of a companion hold keep their words: a search from the start passes all that were moved before, and a
        sort reads and locks every ready row. Both would cost the same for a small batch as for a large one.
        """
        hint = skip_locked(connection)
        if not self._reads_ahead:
            begun = time.monotonic()
            rows = self._select(connection, lease, self._circulating(place), limit, hint)
            if hint and rows:
                rows = self._in_order(connection, lease, place, limit, rows)
            self._reads_ahead = time.monotonic() - begun > _SLOW_PICK
            return rows
        ahead, condition = self._ahead[place], self._circulating(place, among=True)
        while ahead or place not in self._looked:
            if not ahead:
                self._read_ahead(place)
            keys = [ahead.popleft() for _ in range(min(limit, len(ahead)))]
            # What was read ahead is only a hint: the row must still be there to take.
            rows = self._select(connection, lease, condition, limit, hint, keys) if keys else ()
            if rows:
                return rows
        return ()

    def _in_order(
        self, connection: Connection, lease: Lease, place: Place, limit: int, rows: Sequence[Sequence[Any]]
    ) -> Sequence[Sequence[Any]]:
        """The rows without a gap: what SKIP LOCKED passed over is asked for once more by its key.

        The server passes over an index entry whose neighbour our own release is changing at this moment; by its key
        such a row is free. What somebody really locks stays out, and comes with a later batch.
        """
        query = sa.select(self._id).where(self._circulating(place)).order_by(*self._order).limit(limit)
        wanted = [row[0] for row in connection.execute(query)]
        found = {row[0]: row for row in rows}
        missed = [key for key in wanted if key not in found]
        if not missed:
            return rows
        again = self._select(
            connection, lease, self._circulating(place, among=True), limit, skip_locked(connection), missed
        )
        found |= {row[0]: row for row in again}
        return [found[key] for key in wanted if key in found] or rows

    def _search_anew(self) -> None:
        """Rows came back into circulation: what was read before says nothing about them."""
        self._exhausted.clear()
        for ahead in self._ahead.values():
            ahead.clear()

    def _look_ahead(self) -> None:
        """Read ahead before the transaction, so that nothing is locked meanwhile."""
        self._looked.clear()
        for place in (Place.READY, Place.DELAYED):
            if self._reads_ahead and place not in self._exhausted:
                if not self._ahead[place]:
                    self._read_ahead(place)
                if self._ahead[place]:
                    return

    def _read_ahead(self, place: Place) -> None:
        self._looked.add(place)
        query = sa.select(self._id).where(self._circulating(place)).order_by(*self._order).limit(READ_AHEAD)
        with reading(self.engine) as connection:
            self._ahead[place].extend(row[0] for row in connection.execute(query))

    def _select(
        self,
        connection: Connection,
        lease: Lease,
        condition: Clause,
        limit: int,
        hint: str,
        keys: Sequence[object] = (),
    ) -> Sequence[Sequence[Any]]:
        query = sa.select(*self._task_columns()).where(condition).order_by(*self._order).limit(sa.bindparam("n"))
        query = query.with_for_update(skip_locked=bool(hint), of=self._clause if self.companion and not hint else None)
        parameters: dict[str, object] = {"n": limit, "token": lease.token}
        if keys:
            parameters |= {_IDS: keys, _TASK_IDS: [str(key) for key in keys]}
        return connection.execute(query, parameters).all()

    def _task_columns(self) -> list[sa.ColumnElement[Any]]:
        """What :meth:`_read` makes a task of, in its order."""
        columns = self.source.columns
        absent = sa.null()
        return [
            self._id,
            self._clause.c[columns.queue] if columns.queue else absent,
            self._compiler.micros(columns.created) if columns.created else absent,
            self._compiler.micros(columns.available) if columns.available else absent,
            self._clause.c[columns.attempts] if columns.attempts else absent,
            self._clause.c[columns.attempts_allowed] if columns.attempts_allowed else absent,
            *[self._clause.c[name] for name in self._argument_columns()],
        ]

    def _argument_columns(self) -> tuple[str, ...]:
        target = self.mapping.target
        return (*target.args, target.opaque) if target.opaque else target.args

    def _left_behind(self, held: Clause) -> Clause:
        """What an earlier attempt claimed and never released; ``held``: how its rows look, if they carry the hold."""
        if self.companion:
            return sa.exists(
                sa.select(sa.literal(1)).where(
                    task_table.c.system == self.mapping.system,
                    task_table.c.task_id == self._task_id(),
                    task_table.c.mark == Mark.CLAIMED.value,
                    task_table.c.token < sa.bindparam("token"),
                )
            ).correlate(self._clause)
        token = self._clause.c[self.source.hold.token_column]
        return sa.and_(held, token < sa.bindparam("token"), ~self._decided())

    def _take(self, connection: Connection, lease: Lease, keys: Sequence[object], place: Place) -> None:
        if self.companion:
            connection.exec_driver_sql(
                "INSERT INTO sluice_task (`system`, task_id, run_id, mark, token, at) "
                "VALUES (%s, %s, %s, 'claimed', %s, UTC_TIMESTAMP(6)) "
                "ON DUPLICATE KEY UPDATE run_id = VALUES(run_id), mark = VALUES(mark), token = VALUES(token), "
                "at = VALUES(at)",
                [(self.mapping.system, str(key), lease.run_id, lease.token) for key in keys],
            )
            return
        statement = sa.update(self._clause).where(self._among()).values(self._values(self.source.hold.claim))
        done = connection.execute(statement, {_IDS: keys, "token": lease.token})
        if done.rowcount != len(keys):
            raise MappingError(
                f"claiming {len(keys)} locked rows changed {done.rowcount}: 'claim' does not change every {place} row.",
                where="source.hold.claim",
            )

    def _values(self, assignments: Sequence[Assignment]) -> dict[str, object]:
        values: dict[str, object] = {}
        for assignment in assignments:
            if assignment.value == "$token":
                values[assignment.column] = sa.bindparam("token")
            elif assignment.value == "$reason":
                values[assignment.column] = sa.bindparam("reason")
            elif assignment.value == "$null":
                values[assignment.column] = sa.null()
            elif assignment.value == "$now":
                clock = self._compiler.clock(assignment.column)
                values[assignment.column] = self._compiler.instant(clock)
            else:
                values[assignment.column] = assignment.value
        return values

    def _read(self, rows: Sequence[Sequence[Any]], now: int) -> Claim:
        """Rows to tasks. The hot path: one pass, no queries."""
        target = self.mapping.target
        queues, default_queue, system = target.queues, target.default_queue, self.mapping.system
        tasks: list[Task] = []
        refused: list[Refused] = []
        carried = (str, int, float, type(None)) if target.serializer == "json" else (str, int, float, type(None), bytes)
        for row in rows:
            task_id = str(row[0])
            queue = queues.get(row[1] if type(row[1]) is str else str(row[1]), default_queue)
            if not queue:
                refused.append(Refused(task_id, f"queue value {row[1]!r} is not mapped"))
                continue
            args = tuple(row[6:])
            odd = [value for value in args if not isinstance(value, carried)]
            if odd:
                converted = tuple(plain(value) for value in args)
                if any(not isinstance(value, carried) for value in converted):
                    refused.append(
                        Refused(task_id, f"an argument of type {type(odd[0]).__name__} cannot be carried as JSON")
                    )
                    continue
                args = converted
            job_id = job_id_for(system, task_id)
            available = row[3]
            tasks.append(
                Task(
                    task_id,
                    job_id,
                    queue,
                    args,
                    (row[2] if row[2] is not None else now) / 1e6,
                    available / 1e6 if available is not None and available > now else None,
                    row[4] or 0,
                    row[5] if row[5] is not None else 1,
                    () if job_id == task_id else (("sluice_task_id", task_id),),
                )
            )
        return Claim(tasks, refused)

    # -- release ------------------------------------------------------------------------------------------------

    def release(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> Released:
        """See the port. The fast path is one update whose row count must match; else each row is looked at."""
        return self._let_go(lease, tasks, digests, batch, _AWAY)

    def _let_go(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int, way: _Way) -> Released:
        _ = self.live
        try:
            self._release_all(lease, tasks, digests, batch, way)
        except _NotAllOurs:
            return self._release_ours(lease, tasks, digests, batch, way)
        self._past_return = True  # only once it is committed
        return Released(tasks, ())

    @again_after_deadlock
    def _release_all(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int, way: _Way) -> None:
        keys = [self._key(task.id) for task in tasks]
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            if self._give(connection, lease, keys, way) != len(keys):
                raise _NotAllOurs
            self._write_ledger(connection, lease, tasks, digests, batch, way.mark)

    @again_after_deadlock
    def _release_ours(
        self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int, way: _Way
    ) -> Released:
        """The slow path: some rows are no longer ours (cancelled meanwhile)."""
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            ours = self._still_ours(connection, lease, [self._key(task.id) for task in tasks])
            kept = [(task, digest) for task, digest in zip(tasks, digests, strict=True) if task.id in ours]
            lost = [task for task in tasks if task.id not in ours]
            if kept:
                given = self._give(connection, lease, [self._key(task.id) for task, _ in kept], way)
                if given != len(kept):
                    raise MappingError(
                        f"releasing {len(kept)} locked rows changed {given}: "
                        f"'{way.words}' does not change every claimed row.",
                        where=f"source.hold.{way.words}",
                    )
                self._write_ledger(connection, lease, [t for t, _ in kept], [d for _, d in kept], batch, way.mark)
            self._settle(connection, lease, [task.id for task in lost])
            return Released([task for task, _ in kept], lost)

    def _give(self, connection: Connection, lease: Lease, keys: Sequence[object], way: _Way) -> int:
        parameters: dict[str, object] = {_IDS: keys, "token": lease.token}
        if self.companion:
            # A join, from the rows by their keys to their marks by theirs: the rows are locked while they are judged.
            statement = (
                sa.update(task_table)
                .where(
                    self._among(),
                    sa.or_(self._own(Place.READY), self._own(Place.DELAYED)),
                    task_table.c.system == self.mapping.system,
                    task_table.c.task_id == self._task_id(),
                    task_table.c.mark == Mark.CLAIMED.value,
                    task_table.c.token == sa.bindparam("held_token"),
                )
                .values(mark=way.mark.value)
            )
            parameters["held_token"] = lease.token
        else:
            token = self._clause.c[self.source.hold.token_column]
            statement = (
                sa.update(self._clause)
                .where(self._among(), self._own(Place.CLAIMED), token == sa.bindparam("held_token"))
                .values(self._values(getattr(self.source.hold, way.words)))
            )
            parameters["held_token"] = lease.token
        return int(connection.execute(statement, parameters).rowcount)

    def _still_ours(self, connection: Connection, lease: Lease, keys: Sequence[object]) -> set[str]:
        if self.companion:
            condition = sa.and_(
                self._among(),
                sa.or_(self._own(Place.READY), self._own(Place.DELAYED)),
                self._marked(Mark.CLAIMED),
            )
        else:
            token = self._clause.c[self.source.hold.token_column]
            condition = sa.and_(self._among(), self._own(Place.CLAIMED), token == sa.bindparam("token"))
        query = sa.select(self._id).where(condition).with_for_update()
        return {str(row[0]) for row in connection.execute(query, {_IDS: keys, "token": lease.token})}

    def _write_ledger(
        self,
        connection: Connection,
        lease: Lease,
        tasks: Sequence[Task],
        digests: Sequence[str],
        batch: int,
        mark: Mark,
    ) -> None:
        # The driver would send row by row, since not every value is a parameter; it still does the quoting.
        quote = connection.connection.driver_connection.escape  # type: ignore[union-attr]
        head = f"({quote(self.mapping.system)},"
        middle = f",{quote(lease.run_id)},'{mark}',{lease.token},{batch},"
        queues = {queue: quote(queue) for queue in {task.queue for task in tasks}}
        rows = []
        for position, (task, digest) in enumerate(zip(tasks, digests, strict=True)):
            task_id = quote(task.id)
            job_id = task_id if task.job_id == task.id else quote(task.job_id)
            eta = "NULL" if task.eta is None else repr(float(task.eta))
            rows.append(
                f"{head}{task_id}{middle}{position},{queues[task.queue]},{job_id},{eta},{quote(digest)},'',UTC_TIMESTAMP(6))"
            )
        connection.exec_driver_sql(
            f"{_LEDGER_INSERT}{','.join(rows)}{_LEDGER_AGAIN}", execution_options={"no_parameters": True}
        )
        run_id = lease.run_id
        if not self._past_return:
            connection.execute(
                sa.update(run_table)
                .where(run_table.c.id == run_id, run_table.c.point_of_no_return_at.is_(None))
                .values(point_of_no_return_at=sa.text("UTC_TIMESTAMP(6)"))
            )

    def _settle(self, connection: Connection, lease: Lease, ids: Sequence[str]) -> None:
        """Claimed rows that ended meanwhile (a user cancelled): their outcome is kept, our mark taken off."""
        for task_id in ids:
            self._mark(connection, lease, task_id, Mark.SETTLED, ENDED_MEANWHILE)
        if ids and not self.companion:
            token = self._clause.c[self.source.hold.token_column]
            connection.execute(
                sa.update(self._clause)
                # Where the hold was the status itself, the cancellation has replaced it and must not be undone.
                .where(self._among(), token == sa.bindparam("held_token"), *self._hold_stands())
                .values(self._values(self.source.hold.back)),
                {_IDS: [self._key(i) for i in ids], "held_token": lease.token, "token": lease.token},
            )

    def reread(self, ids: Sequence[str]) -> Claim:
        """The tasks of released rows that the witness shows neither started nor ended, as a claim would give them.

        Without a witness of the start nothing is known of any, and all are refused.
        """
        _ = self.live
        if self.source.started is None:
            return Claim((), [Refused(i, "released, and no witness tells whether it has started") for i in ids])
        started = self._compiler.compile(self.source.started)
        ended = self._compiler.compile(self.source.ended) if self.source.ended is not None else sa.false()
        place, tables = self._place()
        query = (
            sa.select(*self._task_columns())
            .select_from(tables)
            .where(
                self._among(),
                place == Place.MOVED.value,
                sa.func.coalesce(sa.or_(started, ended), sa.false()) == sa.false(),
            )
            .order_by(*self._order)
        )
        with reading(self.engine) as connection:
            now = int(
                connection.execute(
                    sa.text("SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))")
                ).scalar_one()
            )
            rows = connection.execute(query, {_IDS: [self._key(i) for i in ids]}).all()
        return self._read(rows, now)

    def place_again(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> set[str]:
        """Record tasks of lost jobs as moved anew, where their rows still say unstarted; returns the ids recorded."""
        _ = self.live
        place, tables = self._place()
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            query = sa.select(self._id).select_from(tables).where(self._among(), place == Place.MOVED.value)
            keys = [self._key(task.id) for task in tasks]
            still = {str(row[0]) for row in connection.execute(query.with_for_update(), {_IDS: keys})}
            kept = [(t, d) for t, d in zip(tasks, digests, strict=True) if t.id in still]
            if kept:
                self._write_ledger(connection, lease, [t for t, _ in kept], [d for _, d in kept], batch, Mark.MOVED)
        return still

    # -- holds --------------------------------------------------------------------------------------------------

    def _mark(self, connection: Connection, lease: Lease, task_id: str, mark: Mark, reason: str) -> int:
        return int(
            connection.exec_driver_sql(
                "INSERT INTO sluice_task (`system`, task_id, run_id, mark, token, job_id, reason, at) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, UTC_TIMESTAMP(6)) "
                "ON DUPLICATE KEY UPDATE run_id = VALUES(run_id), mark = VALUES(mark), token = VALUES(token), "
                "job_id = VALUES(job_id), reason = VALUES(reason), at = VALUES(at)",
                (
                    self.mapping.system, task_id, lease.run_id, mark.value, lease.token,
                    job_id_for(self.mapping.system, task_id), reason[:500],
                ),
            ).rowcount
        )  # fmt: skip

    @again_after_deadlock
    def hold(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """See the port. The row's own hold is set too where it has one, so that no lifted fence frees it."""
        if not ids:
            return 0
        _ = self.live
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            already = {
                row[0]
                for row in connection.execute(
                    sa.select(task_table.c.task_id).where(
                        task_table.c.system == self.mapping.system,
                        task_table.c.task_id.in_(list(ids)),
                        task_table.c.mark == Mark.HELD.value,
                    )
                )
            }
            fresh = [task_id for task_id in ids if task_id not in already]
            for task_id in fresh:
                self._mark(connection, lease, task_id, Mark.HELD, reason)
            if fresh and not self.companion:
                connection.execute(
                    sa.update(self._clause).where(self._among()).values(self._values(self.source.hold.claim)),
                    {_IDS: self._keys(fresh), "token": lease.token},
                )
        return len(fresh)

    @again_after_deadlock
    def put_back(self, lease: Lease) -> int:
        """See the port. Held rows stay held."""
        _ = self.live
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            if self.companion:
                done = connection.execute(
                    sa.delete(task_table).where(
                        task_table.c.system == self.mapping.system, task_table.c.mark == Mark.CLAIMED.value
                    )
                )
            else:
                done = connection.execute(
                    sa.update(self._clause)
                    .where(sa.or_(self._own(Place.CLAIMED), self._ended_under_hold()), ~self._decided())
                    .values(self._values(self.source.hold.back)),
                    {"token": lease.token},
                )
        self._search_anew()
        return int(done.rowcount)

    def give_back(self, lease: Lease, ids: Sequence[str], *, requeue: bool = False) -> int:
        """Return held ids to the source's circulation by an operator's decision; returns how many were held.

        :param requeue: also say in the row that it has not run (``source.hold.requeue``), for one that was leased
        """
        _ = self.live
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            held = self._held_among(connection, ids)
            if not self.companion and held:
                connection.execute(
                    sa.update(self._clause)
                    .where(self._among())
                    .values(self._values((*self.source.hold.back, *(self.source.hold.requeue if requeue else ())))),
                    {_IDS: self._keys_of(connection, held), "token": lease.token},
                )
            if held:
                connection.execute(
                    sa.delete(task_table).where(
                        task_table.c.system == self.mapping.system, task_table.c.task_id.in_(held)
                    )
                )
        self._search_anew()
        return len(held)

    @again_after_deadlock
    def leave(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """Take our claim off rows that turn out to be the target's already; they are never claimed again."""
        if not ids:
            return 0
        if not self.source.journal:
            # No row records a job born in the target: the job is a stranger with the same id.
            return self.hold(lease, ids, "another job of this id exists at the target")
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            for task_id in ids:
                self._mark(connection, lease, task_id, Mark.SETTLED, reason)
        return len(ids)

    def settle(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """Close held ids by an operator's decision: they stay out of circulation for good, with the reason."""
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            held = self._held_among(connection, ids)
            for task_id in held:
                self._mark(connection, lease, task_id, Mark.SETTLED, reason)
            if held and self.source.hold.fail:
                _ = self.live
                connection.execute(
                    sa.update(self._clause).where(self._among()).values(self._values(self.source.hold.fail)),
                    {_IDS: self._keys_of(connection, held), "token": lease.token, "reason": reason},
                )
        return len(held)

    def _held_among(self, connection: Connection, ids: Sequence[str]) -> list[str]:
        query = (
            sa.select(task_table.c.task_id)
            .where(
                task_table.c.system == self.mapping.system,
                task_table.c.task_id.in_(list(ids)),
                task_table.c.mark == Mark.HELD.value,
            )
            .with_for_update()
        )
        return [row[0] for row in connection.execute(query)]

    # -- reading ------------------------------------------------------------------------------------------------

    def census(self) -> Iterator[Sighting]:
        """See the port. Streams in no promised order, in constant memory."""
        _ = self.live
        place, tables = self._place()
        pending = self._compiler.compile(self.source.pending) if self.source.pending is not None else sa.false()
        query = sa.select(self._id, place, sa.func.coalesce(pending, sa.false())).select_from(tables)
        with reading(self.engine) as connection:
            for row in connection.execution_options(stream_results=True, yield_per=5000).execute(query):
                yield Sighting(str(row[0]), row[1], "pending" if row[2] else "")

    def look(self, ids: Sequence[str]) -> dict[str, Sighting]:
        """The rows of these ids as they are now; missing rows, and ids that the column cannot hold, are left out."""
        _ = self.live
        place, tables = self._place()
        pending = self._compiler.compile(self.source.pending) if self.source.pending is not None else sa.false()
        query = (
            sa.select(self._id, place, sa.func.coalesce(pending, sa.false())).select_from(tables).where(self._among())
        )
        keys = self._keys(ids)
        found: dict[str, Sighting] = {}
        with reading(self.engine) as connection:
            for start in range(0, len(keys), 1000):
                for row in connection.execute(query, {_IDS: keys[start : start + 1000]}):
                    found[str(row[0])] = Sighting(str(row[0]), row[1], "pending" if row[2] else "")
        return found

    def baseline_select(self) -> sa.Select[tuple[str, str]]:
        """The select (task id, place) from which the ledger takes its baseline inside the server."""
        _ = self.live
        place, tables = self._place()
        return sa.select(self._task_id().label("task_id"), place.label("place")).select_from(tables)

    def counts(self) -> dict[str, dict[str, int]]:
        """See the port."""
        _ = self.live
        place, tables = self._place()
        queue = self._clause.c[self.source.columns.queue] if self.source.columns.queue else sa.literal("")
        query = sa.select(queue, place, sa.func.count()).select_from(tables).group_by(sa.text("1"), sa.text("2"))
        found: dict[str, dict[str, int]] = {}
        with reading(self.engine) as connection:
            for row in connection.execute(query):
                found.setdefault(str(row[0]), {})[row[1]] = int(row[2])
        return found

    def by_side(self) -> dict[str, dict[str, object]]:
        """What each side finished and failed so far, and the seconds that its oldest due task has waited.

        Only where the row says whose it is: by the words that the hold gives a moved row and one given back.
        """
        _ = self.live
        back = {a.column: a.value for a in self.source.hold.back}
        words = [
            self._clause.c[a.column] == a.value
            for a in self.source.hold.moved
            if not str(a.value).startswith("$") and back.get(a.column, a.value) != a.value
        ]
        if not words:
            return {}
        side = sa.case((sa.and_(*words), "target"), else_="source")
        place, tables = self._place()
        since = self.source.columns.available or self.source.columns.created
        moment = self._compiler.micros(since) if since else sa.null()
        now = sa.text("TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))")
        query = (
            sa.select(side, place, sa.func.count(), sa.func.min(moment), sa.literal_column(str(now)))
            .select_from(tables)
            .group_by(sa.text("1"), sa.text("2"))
        )
        found: dict[str, dict[str, object]] = {
            name: {"finished": 0, "failed": 0, "oldest": None} for name in ("source", "target")
        }
        with reading(self.engine) as connection:
            for name, where, number, oldest, moment_now in connection.execute(query):
                if where in (Place.FINISHED.value, Place.FAILED.value):
                    found[name][where] = int(number)
                # A moved row may be due later; one that is says so by a moment ahead.
                elif where in (Place.READY.value, Place.MOVED.value) and oldest is not None:
                    found[name]["oldest"] = max(0.0, (int(moment_now) - int(oldest)) / 1e6)
        return found

    def in_hand(self, processes: int) -> Sequence[str]:
        """See the port. In the order of each unguarded claimer; of rows that were tried before nobody knows since when.

        Reads every ready row, in constant memory.
        """
        _ = self.live
        orders = dict.fromkeys(c.order or self.source.order for c in self.source.claimers if not c.guarded)
        if not orders:
            return ()
        columns = self.source.columns
        created = self._compiler.micros(columns.created)
        due = self._compiler.micros(columns.available) if columns.available else created
        tried = self._clause.c[columns.attempts] > 0 if columns.attempts else sa.false()
        since = sa.case((tried, sa.null()), else_=sa.func.greatest(created, sa.func.coalesce(due, created)))
        found: dict[str, None] = {}
        with reading(self.engine) as connection:
            for steps in orders:
                order = self._compiler.order(steps, columns.id)
                query = sa.select(self._id, created, since).where(self._circulating(Place.READY)).order_by(*order)
                rows = connection.execution_options(stream_results=True, yield_per=5000).execute(query)
                waiting = (Waiting(str(row[0]), row[1], row[2]) for row in rows)
                found |= dict.fromkeys(perhaps_in_hand(waiting, processes))
        return list(found)

    def ids_at(self, *places: Place, limit: int = 1000) -> Sequence[str]:
        """Up to ``limit`` ids at the given places, less those that are held."""
        _ = self.live
        place, tables = self._place()
        query = (
            sa.select(self._id)
            .select_from(tables)
            .where(place.in_([p.value for p in places]), ~self._marked(Mark.HELD))
            .limit(limit)
        )
        with reading(self.engine) as connection:
            return [str(row[0]) for row in connection.execute(query)]

    def back_again(self, limit: int = 5) -> Sequence[str]:
        """Ids that were moved and stand at the source nevertheless, at most ``limit``: the table was restored.

        Only where the row itself says that it was moved; else the ledger's mark is all there is.
        """
        if Place.MOVED not in self.source.places:
            return []
        _ = self.live
        place, tables = self._place()
        at_source = place.in_([Place.READY.value, Place.DELAYED.value, Place.LEASED.value])
        query = (
            sa.select(self._id).select_from(tables).where(self._marked(Mark.MOVED), ~self._renewed(), at_source)
        ).limit(limit)
        with reading(self.engine) as connection:
            return [str(row[0]) for row in connection.execute(query)]

    def _renewed(self) -> Clause:
        """Made available later than it was moved: a user queued it again, so the row is not an old copy of itself."""
        available = self.source.columns.available
        if not available:
            return sa.false()
        return sa.exists(
            sa.select(sa.literal(1)).where(
                task_table.c.system == self.mapping.system,
                task_table.c.task_id == self._task_id(),
                sa.func.timestampdiff(sa.text("MICROSECOND"), sa.text("'1970-01-01'"), task_table.c.at)
                < self._compiler.micros(available),
            )
        ).correlate(self._clause)

    def renewed(self, ids: Sequence[str]) -> set[str]:
        """Which of these ids were made available anew after the ledger's mark (a retry by a user)."""
        _ = self.live
        # A row that the ledger has not marked as moved is no copy of anything: it is new here.
        moved = self._marked(Mark.MOVED, among=True)
        query = sa.select(self._id).where(self._among(), sa.or_(self._renewed(), ~moved))
        with reading(self.engine) as connection:
            found = connection.execute(query, {_IDS: self._keys(ids), _TASK_IDS: list(ids)})
            return {str(row[0]) for row in found}

    def departed(self, run_id: str) -> int:
        """How many ids of the baseline have no row any more (a table whose rows are deleted on success)."""
        _ = self.live
        # Counted from the rows, so that the baseline's key serves the join.
        remembered = sa.select(sa.func.count()).where(baseline_table.c.run_id == run_id)
        there = (
            sa.select(sa.func.count())
            .select_from(self._clause)
            .join(
                baseline_table, sa.and_(baseline_table.c.run_id == run_id, baseline_table.c.task_id == self._task_id())
            )
        )
        with reading(self.engine) as connection:
            return int(connection.scalar(remembered) or 0) - int(connection.scalar(there) or 0)

    def data_bytes(self) -> int:
        """Bytes of the table and its indexes, as the server estimates them."""
        with reading(self.engine) as connection:
            found = connection.scalar(
                sa.text(
                    "SELECT data_length + index_length FROM information_schema.tables "
                    "WHERE table_schema = DATABASE() AND table_name = :t"
                ),
                {"t": self.source.table},
            )
        if found is None:
            raise MappingError(f"the size of table '{self.source.table}' cannot be read.", where=address(self.engine))
        return int(found)


class _Keys(sa.types.UserDefinedType[Sequence[object]]):
    """A list of keys as one parameter, written out by the driver: a statement of one shape, whatever their number."""

    cache_ok = True

    def bind_processor(self, dialect: sa.Dialect) -> Callable[[Sequence[object] | None], Sequence[object]]:
        """No key at all is written as one that equals nothing."""
        return lambda keys: tuple(keys or ()) or (None,)


class _NotAllOurs(Exception):
    """Rolls the fast path of a release back: some rows are no longer ours."""


def plain(value: object) -> object:
    """Values that JSON has no word for, in the form that loses nothing."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value
