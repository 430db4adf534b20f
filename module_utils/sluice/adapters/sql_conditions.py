"""Compiles a mapping's conditions and orders to SQLAlchemy Core, against the live table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ..core.conditions import All, Among, Any, Compare, Condition, Due, IsNull, Like, Not
from ..core.errors import MappingError
from ..core.mapping import Order
from .sql_connect import place, speaking

Clause = sa.ColumnElement[bool]

_NOW = {
    "utc": "UTC_TIMESTAMP(6)",
    "local": "NOW(6)",
    # Not by way of the local time, which names two moments in the hour that comes twice a year.
    "epoch": "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1000000)",
}

#: The first and the last whole second of the years 1 to 9999, which every store and language here can write.
_FIRST, _LAST = "-62135596800", "253402300799"


@dataclass(frozen=True, slots=True)
class LiveColumn:
    """A column as the database has it.

    ``values`` is the value set of an ENUM, else empty; ``zoned`` is a TIMESTAMP, which is shown in the session's zone;
    ``charset`` is the server's name of a text's character set, where it says one.
    """

    name: str
    family: str  # text | number | time | other
    values: tuple[str, ...]
    nullable: bool
    zoned: bool = False
    charset: str = ""

    def holds(self, text: str) -> bool:
        """Whether the column's character set has every character: else it is not even compared with the text."""
        if text.isascii() or self.charset in ("", "utf8mb4"):
            return True
        if self.charset in ("utf8", "utf8mb3"):
            return max(text) <= "\uffff"
        try:
            text.encode("cp1252" if self.charset == "latin1" else self.charset)
        except UnicodeEncodeError:
            return False
        except LookupError:  # a set that only the server knows
            return True
        return True


@dataclass(frozen=True, slots=True)
class LiveTable:
    """A table as the database has it."""

    name: str
    engine: str
    columns: Mapping[str, LiveColumn]
    primary_key: tuple[str, ...]

    def column(self, name: str) -> sa.ColumnClause[object]:
        """An untyped column, so that results come as the driver decodes them."""
        return sa.column(name, _selectable=self.clause())

    def clause(self) -> sa.TableClause:
        """The table for use in statements."""
        return sa.table(self.name, *[sa.column(name) for name in self.columns])


def read_table(engine: Engine, name: str) -> LiveTable:
    """Read a table's shape from the database.

    :raises MappingError: the table does not exist
    """
    with speaking(engine):
        inspector = sa.inspect(engine)
        if not inspector.has_table(name):
            raise MappingError(
                f"table '{name}' does not exist.", where=place(engine), next_step="correct source.table in the mapping."
            )
        options = inspector.get_table_options(name)
        default = next((str(v) for k, v in options.items() if k.endswith("_default charset")), "")
        columns = {}
        for found in inspector.get_columns(name):
            kind = found["type"]
            columns[found["name"]] = LiveColumn(
                found["name"],
                _family(kind),
                tuple(getattr(kind, "enums", ())),
                bool(found["nullable"]),
                isinstance(kind, sa.types.TIMESTAMP),
                str(getattr(kind, "charset", None) or getattr(kind, "collation", None) or default).split("_")[0],
            )
        key = tuple(inspector.get_pk_constraint(name)["constrained_columns"])
    engine_name = next((str(v) for k, v in options.items() if k.endswith("_engine")), "InnoDB")
    return LiveTable(name, engine_name, columns, key)


def _family(kind: sa.types.TypeEngine[object]) -> str:
    if isinstance(kind, sa.types.Integer | sa.types.Numeric | sa.types.Float | sa.types.Boolean):
        return "number"
    if isinstance(kind, sa.types.DateTime | sa.types.TIMESTAMP | sa.types.Date):
        return "time"
    if isinstance(kind, sa.types.String):
        return "text"
    return "other"


class Compiler:
    """Turns conditions over one live table into clauses."""

    def __init__(self, table: LiveTable, clocks: Mapping[str, str]) -> None:
        self.table = table
        self.clause = table.clause()
        self.clocks = clocks

    def column(self, name: str, where: str = "mapping") -> sa.ColumnElement[object]:
        """A column of the table.

        :raises MappingError: it has no such column
        """
        if name not in self.table.columns:
            raise MappingError(
                f"column '{name}' does not exist in table '{self.table.name}'; "
                f"it has: {', '.join(sorted(self.table.columns))}.",
                where=where,
            )
        return self.clause.c[name]

    def clock(self, name: str) -> str:
        """Which clock a column keeps: utc, local or epoch. Unless stated, numbers are epochs, a TIMESTAMP is
        local (the session's zone, as the server shows it), and other times are UTC."""
        if name in self.clocks:
            return self.clocks[name]
        self.column(name)
        if self.table.columns[name].zoned:
            return "local"
        return "epoch" if self.table.columns[name].family == "number" else "utc"

    def micros(self, name: str) -> sa.ColumnElement[object]:
        """A time column as microseconds since the epoch: integers decode faster than timestamps."""
        column = self.column(name)
        clock = self.clock(name)
        if clock == "utc":
            return sa.func.timestampdiff(sa.text("MICROSECOND"), sa.text("'1970-01-01'"), column)
        if clock == "local":
            # UNIX_TIMESTAMP knows the summer times of a zone, but only the years 1970 to 2037.
            known = sa.and_(column >= sa.text("'1970-01-02'"), column < sa.text("'2038-01-01'"))
            wall = sa.func.timestampdiff(sa.text("MICROSECOND"), sa.text("'1970-01-01'"), column)
            offset: sa.ColumnElement[int] = sa.literal_column("TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), NOW(6))")
            return sa.case(
                (known, sa.cast(sa.func.unix_timestamp(column) * 1_000_000, sa.BigInteger)), else_=wall - offset
            )
        # One number that is no moment must not stop all others: it becomes the first or the last there is.
        within = sa.func.least(sa.func.greatest(column, sa.literal_column(_FIRST)), sa.literal_column(_LAST))
        return sa.cast(within * 1_000_000, sa.BigInteger)

    def compile(self, condition: Condition) -> Clause:
        """A condition as a clause that is true or false, never NULL."""
        if isinstance(condition, All):
            return sa.and_(sa.true(), *[self.compile(part) for part in condition.parts])
        if isinstance(condition, Any):
            return sa.or_(sa.false(), *[self.compile(part) for part in condition.parts])
        if isinstance(condition, Not):
            return sa.func.coalesce(self.compile(condition.part), sa.false()) == sa.false()
        column = self.column(condition.column)
        if isinstance(condition, Among):
            if len(condition.values) == 1:
                return column == condition.values[0]
            return column.in_(condition.values)
        if isinstance(condition, IsNull):
            return column.is_(None)
        if isinstance(condition, Due):
            return column <= self.instant(self.clock(condition.column), condition.plus)
        if isinstance(condition, Like):
            return column.startswith(condition.prefix, autoescape=True)
        if isinstance(condition, Compare):
            return self._compare(column, condition)
        raise MappingError(f"{condition!r} is not a condition.", where="mapping")

    def instant(self, clock: str, plus: float = 0.0) -> sa.ColumnElement[object]:
        """The database's now, less ``plus`` seconds, on a clock."""
        now = _NOW[clock]
        if clock == "epoch":
            return sa.literal_column(f"({now} - {plus:f})")
        return (
            sa.literal_column(f"({now} - INTERVAL {int(plus * 1_000_000)} MICROSECOND)")
            if plus
            else sa.literal_column(now)
        )

    def at_micros(self, name: str, micros: int) -> sa.ColumnElement[object]:
        """A moment, in microseconds since the epoch (UTC), as a value of a time column, on that column's clock."""
        clock = self.clock(name)
        if clock == "epoch":
            return sa.literal(micros / 1_000_000)
        moment = f"(TIMESTAMP'1970-01-01 00:00:00' + INTERVAL {int(micros)} MICROSECOND)"
        if clock == "utc":
            return sa.literal_column(moment)
        return sa.literal_column(
            f"({moment} + INTERVAL TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), NOW(6)) MICROSECOND)"
        )

    def _compare(self, column: sa.ColumnElement[object], condition: Compare) -> Clause:
        other: object = self.column(condition.other) if isinstance(condition.other, str) else condition.other
        match condition.op:
            case "below":
                return column < other
            case "above":
                return column > other
            case "at_least":
                return column >= other
            case _:
                return column <= other

    def order(self, steps: tuple[Order, ...], id_column: str) -> list[sa.ColumnElement[object]]:
        """The claim order; ties by id. An ENUM in its own order sorts by the column, so that an index serves it."""
        clauses: list[sa.ColumnElement[object]] = []
        for step in steps:
            column = self.column(step.column, "source.order")
            if not step.first:
                clauses.append(column.desc() if step.descending else column.asc())
                continue
            values = self.table.columns[step.column].values
            if values == tuple(step.first):
                clauses.append(column.asc())
            elif values == tuple(reversed(step.first)):
                clauses.append(column.desc())
            else:
                rank = sa.func.field(column, *step.first)
                # FIELD gives 0 for a value that is not listed: those come last.
                clauses.append(sa.case((rank == 0, len(step.first) + 1), else_=rank).asc())
        if not any(step.column == id_column for step in steps):
            clauses.append(self.column(id_column).asc())
        return clauses
