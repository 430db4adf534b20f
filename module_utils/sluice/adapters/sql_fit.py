"""Whether a mapping fits the live schema; asked before anything moves, answered with the column or value at fault."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ..core.conditions import Among, Compare, Due, IsNull, Like, leaves
from ..core.errors import MappingError
from ..core.mapping import Assignment, Order, TaskMapping
from ..core.tasks import LONGEST_ID, Place
from ..core.verdicts import Check
from .sql_conditions import Compiler, LiveTable, read_table
from .sql_connect import reading

#: Words of an assignment that stand for a value of the moment.
_STANDING_IN = ("$token", "$now", "$null")


class SchemaFit:
    """Compares one mapping with the table it names."""

    def __init__(self, engine: Engine, mapping: TaskMapping) -> None:
        self.engine = engine
        self.mapping = mapping
        self.source = mapping.source

    def checks(self) -> Sequence[Check]:
        """Every column, value and clock of the mapping, against the live schema. Reads only."""
        try:
            live = read_table(self.engine, self.source.table)
        except MappingError as error:
            return [Check.of("mapping fits the schema", False, str(error), error.next_step)]
        misfits = list(dict.fromkeys(self._misfits(live))) or list(self._unrouted(live))
        checks = [
            Check.of(
                "mapping fits the schema",
                not misfits,
                "; ".join(misfits)
                if misfits
                else f"{len(live.columns)} columns of '{live.name}' read, all named ones exist",
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
        identity = live.columns.get(self.source.columns.id)
        if identity is not None and identity.family == "text":
            checks.append(self._nameable())
        return checks

    def _nameable(self) -> Check:
        """Whether the ledger can tell every id from every other: by so many characters, a space at the end is none."""
        identity: sa.ColumnClause[str] = sa.column(self.source.columns.id)
        ends_in_space = sa.func.right(identity, 1) == " "
        query = sa.select(identity).select_from(sa.table(self.source.table))
        with reading(self.engine) as connection:
            found = connection.execute(
                query.where(sa.or_(sa.func.char_length(identity) > LONGEST_ID, ends_in_space)).limit(1)
            ).scalar_one_or_none()
        return Check.of(
            "ids can be kept",
            found is None,
            f"none is longer than {LONGEST_ID} characters or ends in a space"
            if found is None
            else f"the id {str(found)[:40]!r} of '{self.source.table}' has {len(str(found))} characters"
            + (", the last one a space" if str(found).endswith(" ") else ""),
            "end that task, or give it another id, before the change window.",
        )

    def _misfits(self, live: LiveTable) -> Iterator[str]:
        """What the mapping names and the table does not have, one sentence each."""
        for where, column in self._named():
            if column not in live.columns:
                yield f"{where}: column '{column}' does not exist in table '{live.name}'"
        for where, column, value in self._values_named():
            yield from self._misfit_value(live, where, column, value)
        clocked: dict[str, str] = {}
        for where, column in self._clocked():
            clocked.setdefault(column, where)
        for column, where in clocked.items():
            yield from self._misfit_clock(live, where, column)
        identity = live.columns.get(self.source.columns.id)
        if identity is not None and identity.family not in ("number", "text"):
            yield f"source.columns.id: column '{identity.name}' is neither a number nor text: no id could be named"
        queue = live.columns.get(self.source.columns.queue)
        queues = self.mapping.target.queues
        if queue is not None and queue.values:
            missing = [value for value in queue.values if value not in queues]
            if missing and not self.mapping.target.default_queue:
                yield f"target.queues: value '{missing[0]}' of column '{queue.name}' has no queue"
            for value in queues:
                yield from self._misfit_value(live, "target.queues", queue.name, value)

    def _assignments(self) -> list[tuple[str, Assignment]]:
        hold = self.source.hold
        parts = {
            "claim": hold.claim, "moved": hold.moved, "back": hold.back, "requeue": hold.requeue, "fail": hold.fail,
        }  # fmt: skip
        return [(f"source.hold.{word}", a) for word, assignments in parts.items() for a in assignments]

    def _steps(self) -> list[tuple[str, Order]]:
        orders = [("source.order", self.source.order)]
        orders += [(f"source.claimers '{claimer.name}'", claimer.order) for claimer in self.source.claimers]
        return [(where, step) for where, order in orders for step in order]

    def _comparisons(self) -> list[tuple[str, Among | IsNull | Due | Like | Compare]]:
        conditions = [(f"source.places.{place}", condition) for place, condition in self.source.places.items()]
        for name, optional in (
            ("source.witness.started", self.source.started),
            ("source.witness.ended", self.source.ended),
            ("source.pending", self.source.pending),
        ):
            if optional is not None:
                conditions.append((name, optional))
        return [(where, leaf) for where, condition in conditions for leaf in leaves(condition)]

    def _named(self) -> Iterator[tuple[str, str]]:
        """Every column that the mapping names, with the place where it does."""
        target = self.mapping.target
        yield from (("source.columns", column) for column in self._named_columns())
        yield from ((where, step.column) for where, step in self._steps())
        yield from (("target.args", column) for column in target.args)
        if target.opaque:
            yield "target.opaque", target.opaque
        yield from (("source.clocks", column) for column in self.source.clocks)
        yield from ((where, assignment.column) for where, assignment in self._assignments())
        for where, leaf in self._comparisons():
            yield where, leaf.column
            if isinstance(leaf, Compare) and isinstance(leaf.other, str):
                yield where, leaf.other

    def _values_named(self) -> Iterator[tuple[str, str, object]]:
        """Every value that the mapping expects or writes, with its column."""
        yield from ((where, step.column, value) for where, step in self._steps() for value in step.first)
        yield from ((where, a.column, a.value) for where, a in self._assignments() if a.value not in _STANDING_IN)
        for where, leaf in self._comparisons():
            if isinstance(leaf, Among):
                yield from ((where, leaf.column, value) for value in leaf.values)
            elif isinstance(leaf, Compare) and not isinstance(leaf.other, str):
                yield where, leaf.column, leaf.other

    def _clocked(self) -> Iterator[tuple[str, str]]:
        """Every column that is read or written as a time."""
        columns = self.source.columns
        yield from (("source.clocks", column) for column in self.source.clocks)
        yield from (("source.columns", column) for column in (columns.created, columns.available) if column)
        yield from ((where, leaf.column) for where, leaf in self._comparisons() if isinstance(leaf, Due))
        yield from ((where, a.column) for where, a in self._assignments() if a.value == "$now")

    @staticmethod
    def _misfit_value(live: LiveTable, where: str, column: str, value: object) -> Iterator[str]:
        """A value that the column cannot hold. Between text and number the server would compare as it likes."""
        known = live.columns.get(column)
        if known is None or value is None:
            return
        if known.values:
            if value not in known.values:
                yield f"{where}: column '{column}' cannot hold '{value}'; it holds {', '.join(known.values)}"
        elif known.family != "other" and isinstance(value, str) == (known.family == "number"):
            yield f"{where}: column '{column}' holds {known.family}, never {value!r}"

    def _misfit_clock(self, live: LiveTable, where: str, column: str) -> Iterator[str]:
        known = live.columns.get(column)
        if known is None:
            return
        clock = Compiler(live, self.source.clocks).clock(column)
        if known.family not in ("number", "time") or (known.family == "number") != (clock == "epoch"):
            yield f"{where}: column '{column}' holds {known.family}, its clock is '{clock}'"
        elif known.zoned and clock != "local":
            yield f"{where}: column '{column}' is a TIMESTAMP, shown in local time; its clock is '{clock}'"

    def _unrouted(self, live: LiveTable) -> Iterator[str]:
        """A queue value of a row that would be moved, and that has no queue."""
        queue, target = self.source.columns.queue, self.mapping.target
        if target.default_queue:
            return
        compiler = Compiler(live, self.source.clocks)
        column = compiler.column(queue)
        waiting = [compiler.compile(c) for p, c in self.source.places.items() if p in (Place.READY, Place.DELAYED)]
        # Byte for byte, as the rows are mapped later: a collation would call 'HIGH' and 'high' the same.
        unlisted = sa.collate(sa.cast(column, sa.CHAR), "utf8mb4_bin").not_in(list(target.queues))
        query = sa.select(column).where(sa.or_(*waiting), sa.or_(column.is_(None), unlisted)).limit(1)
        with reading(self.engine) as connection:
            for row in connection.execute(query):
                yield f"target.queues: value {row[0]!r} of column '{queue}' has no queue, and there is no default_queue"

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
