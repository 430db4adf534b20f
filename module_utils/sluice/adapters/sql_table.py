"""A polled SQL task table as the source of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ..core.conditions import Among, Due, leaves
from ..core.errors import MappingError
from ..core.mapping import Assignment, TaskMapping
from ..core.tasks import Claim, Lease, Mark, Place, Refused, Released, Sighting, Task, job_id_for
from ..core.verdicts import Check
from .ledger_sql import lock_lease, run_table, task_table
from .sql_conditions import Clause, Compiler, LiveTable, read_table
from .sql_connect import place as address
from .sql_connect import reading, skip_locked, transaction

_IDS = "ids"
#: Rows of one INSERT into the ledger.
_LEDGER_INSERT = (
    "INSERT INTO sluice_task (`system`, task_id, run_id, mark, token, batch, position, queue, job_id, eta, digest, reason, at) "
    "VALUES (%s, %s, %s, 'moved', %s, %s, %s, %s, %s, %s, %s, '', UTC_TIMESTAMP(6)) "
    "ON DUPLICATE KEY UPDATE run_id = VALUES(run_id), mark = VALUES(mark), token = VALUES(token), batch = VALUES(batch), "
    "position = VALUES(position), queue = VALUES(queue), job_id = VALUES(job_id), eta = VALUES(eta), digest = VALUES(digest), "
    "reason = VALUES(reason), at = VALUES(at)"
)


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
        self._past_return = False

    # -- shape --------------------------------------------------------------------------------------------------

    @property
    def live(self) -> LiveTable:
        """The table as the database has it, read once."""
        if self._live is None:
            self._live = read_table(self.engine, self.source.table)
            self._compiler = Compiler(self._live, self.source.clocks)
            self._clause = self._compiler.clause
            self._id = self._compiler.column(self.source.columns.id, "source.columns.id")
            self._numeric_id = self._live.columns[self.source.columns.id].family == "number"
            self._order = self._compiler.order(self.source.order, self.source.columns.id)
        return self._live

    @property
    def companion(self) -> bool:
        """Whether holds live in the ledger's companion table."""
        return self.source.hold.kind == "companion"

    def fit(self) -> Sequence[Check]:
        """Every column, value and clock the mapping names, against the live schema. The first misfit of each kind is named."""
        try:
            live = self.live
        except MappingError as error:
            return [Check.of("mapping fits the schema", False, str(error), error.next_step)]
        misfits = list(self._misfits(live))
        checks = [
            Check.of(
                "mapping fits the schema",
                not misfits,
                "; ".join(misfits) if misfits else f"{len(live.columns)} columns of '{live.name}' read, all named ones exist",
                "correct the mapping; nothing was changed.",
            ),
            Check.of(
                "table is InnoDB",
                live.engine.lower() == "innodb",
                f"'{live.name}' is {live.engine}",
                f"ALTER TABLE {live.name} ENGINE=InnoDB, outside the change window.",
            ),
            Check.of(
                "id is the primary key",
                live.primary_key == (self.source.columns.id,),
                f"primary key of '{live.name}' is ({', '.join(live.primary_key)})",
                "name the primary key as source.columns.id.",
            ),
        ]
        return checks

    def _misfits(self, live: LiveTable) -> Iterator[str]:
        named = [("source.columns", c) for c in self._named_columns()]
        named += [("source.order", step.column) for step in self.source.order]
        named += [("target.args", c) for c in (*self.mapping.target.args, self.mapping.target.opaque) if c]
        named += [("source.clocks", c) for c in self.source.clocks]
        for word, assignments in (
            ("claim", self.source.hold.claim),
            ("moved", self.source.hold.moved),
            ("back", self.source.hold.back),
        ):
            named += [(f"source.hold.{word}", a.column) for a in assignments]
            for assignment in assignments:
                yield from self._misfit_value(live, f"source.hold.{word}", assignment.column, assignment.value)
        conditions = [(f"source.places.{p}", c) for p, c in self.source.places.items()]
        for name, optional in (
            ("source.witness.started", self.source.started),
            ("source.witness.ended", self.source.ended),
            ("source.pending", self.source.pending),
        ):
            if optional is not None:
                conditions.append((name, optional))
        for where, condition in conditions:
            for leaf in leaves(condition):
                named.append((where, leaf.column))
                if isinstance(leaf, Among):
                    for value in leaf.values:
                        yield from self._misfit_value(live, where, leaf.column, value)
                if isinstance(leaf, Due) and leaf.column in live.columns:
                    family, clock = live.columns[leaf.column].family, self._compiler.clock(leaf.column)
                    if (family == "number") != (clock == "epoch") or family not in ("number", "time"):
                        yield f"{where}: column '{leaf.column}' holds {family}, its clock is '{clock}'"
        for where, column in named:
            if column not in live.columns:
                yield f"{where}: column '{column}' does not exist in table '{live.name}'"
        queue = self.source.columns.queue
        if queue in live.columns and not self.mapping.target.default_queue:
            missing = [v for v in live.columns[queue].values if v not in self.mapping.target.queues]
            if missing:
                yield f"target.queues: value '{missing[0]}' of column '{queue}' has no queue"
        for value in self.mapping.target.queues:
            if queue in live.columns and live.columns[queue].values and value not in live.columns[queue].values:
                yield f"target.queues: column '{queue}' cannot hold '{value}'; it holds {', '.join(live.columns[queue].values)}"

    @staticmethod
    def _misfit_value(live: LiveTable, where: str, column: str, value: object) -> Iterator[str]:
        known = live.columns.get(column)
        if known and known.values and isinstance(value, str) and not value.startswith("$") and value not in known.values:
            yield f"{where}: column '{column}' cannot hold '{value}'; it holds {', '.join(known.values)}"

    def _named_columns(self) -> list[str]:
        columns = self.source.columns
        return [
            name
            for name in (
                columns.id, columns.queue, columns.created, columns.available,
                columns.attempts, columns.attempts_allowed, columns.user,
            )
            if name
        ]  # fmt: skip

    # -- predicates ---------------------------------------------------------------------------------------------

    def _own(self, place: Place) -> Clause:
        """The row's own words for a place; false where the mapping has none."""
        _ = self.live
        condition = self.source.places.get(place)
        return sa.false() if condition is None else self._compiler.compile(condition)

    def _task_id(self) -> sa.ColumnElement[Any]:
        """The row's id as the ledger keeps it."""
        _ = self.live
        return sa.collate(sa.func.convert(sa.literal_column(f"{self._quoted_id()} USING utf8mb4")), "utf8mb4_bin")

    def _quoted_id(self) -> str:
        quote = self.engine.dialect.identifier_preparer.quote
        return f"{quote(self.source.table)}.{quote(self.source.columns.id)}"

    def _marked(self, *marks: Mark) -> Clause:
        """Whether the ledger has marked this row with one of the marks."""
        return sa.exists(
            sa.select(sa.literal(1)).where(
                task_table.c.system == self.mapping.system,
                task_table.c.task_id == self._task_id(),
                task_table.c.mark.in_([m.value for m in marks]),
            )
        ).correlate(self._clause)

    def _circulating(self, place: Place) -> Clause:
        """Rows that a claim may take from: the place, less what the ledger has already taken (companion holds)."""
        own = self._own(place)
        return sa.and_(own, ~self._marked(*Mark)) if self.companion else own

    def _own_place(self) -> sa.ColumnElement[str]:
        """The one place whose predicate holds; 'unknown' when none or several do."""
        _ = self.live
        tests = [(p, sa.func.coalesce(self._compiler.compile(c), sa.false())) for p, c in self.source.places.items()]
        held = sum((sa.cast(test, sa.Integer) for _, test in tests[1:]), start=sa.cast(tests[0][1], sa.Integer))
        return sa.case((held != 1, Place.UNKNOWN.value), *[(test, p.value) for p, test in tests], else_=Place.UNKNOWN.value)

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

    def _among(self) -> Clause:
        return self._id.in_(sa.bindparam(_IDS, expanding=True))

    # -- claim --------------------------------------------------------------------------------------------------

    def claim(self, lease: Lease, limit: int) -> Claim:
        """See the port. A locking read picks the rows, an update by id takes them: a compare-and-set under row locks."""
        _ = self.live
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
        if place is Place.CLAIMED:
            condition = self._left_behind(lease)
            hint = ""
        else:
            condition = self._circulating(place)
            hint = skip_locked(connection)
        query = sa.select(*self._task_columns()).where(condition).order_by(*self._order).limit(sa.bindparam("n"))
        query = query.with_for_update(skip_locked=bool(hint), of=self._clause if self.companion and not hint else None)
        return connection.execute(query, {"n": limit, "token": lease.token}).all()

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

    def _left_behind(self, lease: Lease) -> Clause:
        """What an earlier attempt claimed and never released."""
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
        return sa.and_(self._own(Place.CLAIMED), token < sa.bindparam("token"), ~self._marked(Mark.HELD))

    def _take(self, connection: Connection, lease: Lease, keys: Sequence[object], place: Place) -> None:
        if self.companion:
            connection.exec_driver_sql(
                "INSERT INTO sluice_task (`system`, task_id, run_id, mark, token, at) "
                "VALUES (%s, %s, %s, 'claimed', %s, UTC_TIMESTAMP(6)) "
                "ON DUPLICATE KEY UPDATE run_id = VALUES(run_id), token = VALUES(token), at = VALUES(at)",
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
        plain = (str, int, float, type(None)) if target.serializer == "json" else (str, int, float, type(None), bytes)
        for row in rows:
            task_id = str(row[0])
            queue = queues.get(row[1] if type(row[1]) is str else str(row[1]), default_queue)
            if not queue:
                refused.append(Refused(task_id, f"queue value {row[1]!r} is not mapped"))
                continue
            args = tuple(row[6:])
            odd = [value for value in args if not isinstance(value, plain)]
            if odd:
                converted = tuple(_plain(value) for value in args)
                if any(not isinstance(value, plain) for value in converted):
                    refused.append(Refused(task_id, f"an argument of type {type(odd[0]).__name__} cannot be carried as JSON"))
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
        """See the port. The fast path is one update whose row count must match; else the rows are looked at one by one."""
        _ = self.live
        try:
            self._release_all(lease, tasks, digests, batch)
        except _NotAllOurs:
            return self._release_ours(lease, tasks, digests, batch)
        return Released(tasks, ())

    def _release_all(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> None:
        keys = [self._key(task.id) for task in tasks]
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            if self._give(connection, lease, keys) != len(keys):
                raise _NotAllOurs
            self._write_ledger(connection, lease, tasks, digests, batch)

    def _release_ours(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> Released:
        """The slow path: some rows are no longer ours (cancelled meanwhile)."""
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            ours = self._still_ours(connection, lease, [self._key(task.id) for task in tasks])
            kept = [(task, digest) for task, digest in zip(tasks, digests, strict=True) if task.id in ours]
            lost = [task for task in tasks if task.id not in ours]
            if kept:
                given = self._give(connection, lease, [self._key(task.id) for task, _ in kept])
                if given != len(kept):
                    raise MappingError(
                        f"releasing {len(kept)} locked rows changed {given}: 'moved' does not change every claimed row.",
                        where="source.hold.moved",
                    )
                self._write_ledger(connection, lease, [t for t, _ in kept], [d for _, d in kept], batch)
            self._settle(connection, lease, [task.id for task in lost])
            return Released([task for task, _ in kept], lost)

    def _give(self, connection: Connection, lease: Lease, keys: Sequence[object]) -> int:
        parameters: dict[str, object] = {_IDS: keys, "token": lease.token}
        if self.companion:
            parameters["task_ids"] = [str(key) for key in keys]
            still = sa.exists(
                sa.select(sa.literal(1))
                .where(
                    self._task_id() == task_table.c.task_id,
                    self._among(),
                    sa.or_(self._own(Place.READY), self._own(Place.DELAYED)),
                )
                .correlate(task_table)
            )
            statement = (
                sa.update(task_table)
                .where(
                    task_table.c.system == self.mapping.system,
                    task_table.c.task_id.in_(sa.bindparam("task_ids", expanding=True)),
                    task_table.c.mark == Mark.CLAIMED.value,
                    task_table.c.token == sa.bindparam("held_token"),
                    still,
                )
                .values(mark=Mark.MOVED.value)
            )
            parameters["held_token"] = lease.token
        else:
            token = self._clause.c[self.source.hold.token_column]
            statement = (
                sa.update(self._clause)
                .where(self._among(), self._own(Place.CLAIMED), token == sa.bindparam("held_token"))
                .values(self._values(self.source.hold.moved))
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
        self, connection: Connection, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int
    ) -> None:
        system, run_id, token = self.mapping.system, lease.run_id, lease.token
        connection.exec_driver_sql(
            _LEDGER_INSERT,
            [
                (system, t.id, run_id, token, batch, position, t.queue, t.job_id, t.eta, digest)
                for position, (t, digest) in enumerate(zip(tasks, digests, strict=True))
            ],
        )
        if not self._past_return:
            connection.execute(
                sa.update(run_table)
                .where(run_table.c.id == run_id, run_table.c.point_of_no_return_at.is_(None))
                .values(point_of_no_return_at=sa.text("UTC_TIMESTAMP(6)"))
            )
            self._past_return = True

    def _settle(self, connection: Connection, lease: Lease, ids: Sequence[str]) -> None:
        """Claimed rows that ended meanwhile (a user cancelled): their outcome is kept, our mark taken off."""
        for task_id in ids:
            self._mark(connection, lease, task_id, Mark.SETTLED, "ended at the source while it was claimed")
        if ids and not self.companion:
            token = self._clause.c[self.source.hold.token_column]
            connection.execute(
                sa.update(self._clause)
                .where(self._among(), token == sa.bindparam("held_token"))
                .values(self._values(self.source.hold.back)),
                {_IDS: [self._key(i) for i in ids], "held_token": lease.token, "token": lease.token},
            )

    def reread(self, ids: Sequence[str]) -> Claim:
        """The tasks of released rows that the witness shows neither started nor ended, as a claim would give them."""
        _ = self.live
        started = self._compiler.compile(self.source.started) if self.source.started is not None else sa.false()
        ended = self._compiler.compile(self.source.ended) if self.source.ended is not None else sa.false()
        place, tables = self._place()
        query = (
            sa.select(*self._task_columns())
            .select_from(tables)
            .where(self._among(), place == Place.MOVED.value, sa.func.coalesce(sa.or_(started, ended), sa.false()) == sa.false())
            .order_by(*self._order)
        )
        with reading(self.engine) as connection:
            now = int(connection.execute(sa.text("SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))")).scalar_one())
            rows = connection.execute(query, {_IDS: [self._key(i) for i in ids]}).all()
        return self._read(rows, now)

    # -- holds --------------------------------------------------------------------------------------------------

    def _mark(self, connection: Connection, lease: Lease, task_id: str, mark: Mark, reason: str) -> int:
        return int(
            connection.exec_driver_sql(
                "INSERT INTO sluice_task (`system`, task_id, run_id, mark, token, job_id, reason, at) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, UTC_TIMESTAMP(6)) "
                "ON DUPLICATE KEY UPDATE run_id = VALUES(run_id), mark = VALUES(mark), token = VALUES(token), "
                "reason = VALUES(reason), at = VALUES(at)",
                (
                    self.mapping.system, task_id, lease.run_id, mark.value, lease.token,
                    job_id_for(self.mapping.system, task_id), reason[:500],
                ),
            ).rowcount
        )  # fmt: skip

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
                    {_IDS: [self._key(i) for i in fresh], "token": lease.token},
                )
        return len(fresh)

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
                    .where(self._own(Place.CLAIMED), ~self._marked(Mark.HELD))
                    .values(self._values(self.source.hold.back)),
                    {"token": lease.token},
                )
        self._exhausted.clear()
        return int(done.rowcount)

    def give_back(self, lease: Lease, ids: Sequence[str]) -> int:
        """Return held ids to the source's circulation by an operator's decision; returns how many were held."""
        _ = self.live
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            held = self._held_among(connection, ids)
            if not self.companion and held:
                connection.execute(
                    sa.update(self._clause).where(self._among()).values(self._values(self.source.hold.back)),
                    {_IDS: [self._key(i) for i in held], "token": lease.token},
                )
            if held:
                connection.execute(
                    sa.delete(task_table).where(task_table.c.system == self.mapping.system, task_table.c.task_id.in_(held))
                )
        self._exhausted.clear()
        return len(held)

    def leave(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """Take our claim off rows that turn out to be the target's already; they are never claimed again."""
        if not ids:
            return 0
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

    def head(self, limit: int) -> Sequence[str]:
        """See the port."""
        _ = self.live
        query = sa.select(self._id).where(self._circulating(Place.READY)).order_by(*self._order).limit(limit)
        with reading(self.engine) as connection:
            return [str(row[0]) for row in connection.execute(query)]

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


class _NotAllOurs(Exception):
    """Rolls the fast path of a release back: some rows are no longer ours."""


def _plain(value: object) -> object:
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


