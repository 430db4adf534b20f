"""A place to try the way out and home in: a copy of the table with one row, queues and a ledger of their own.

Nothing of it is the application's: no claimer knows the table, no worker listens to the queues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import redis
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ..core.mapping import TaskMapping
from ..core.tasks import Place
from .ledger_sql import SqlLedger
from .redis_connect import speaking as speaking_redis
from .rq import RqQueues
from .rq_source import RqSource
from .sql_connect import reading, transaction
from .sql_dialect import WRITABLE_COLUMNS
from .sql_home import SqlHome
from .sql_table import SqlTable


@dataclass(frozen=True, slots=True)
class Scratch:
    """Both ends in both directions, and the ledger, around one copied row.

    ``task_id`` is '' when it cannot be made ready.
    """

    mapping: TaskMapping
    source: SqlTable
    target: RqQueues
    leaving: RqSource
    home: SqlHome
    ledger: SqlLedger
    task_id: str
    empty: bool  # the table had no row to copy

    def row(self) -> Mapping[str, object]:
        """The row as it is now, without the columns that the hold writes."""
        hold = self.mapping.source.hold
        written = {assignment.column for words in (hold.claim, hold.moved, hold.back) for assignment in words}
        with reading(self.source.engine) as connection:
            rows = sa.select(sa.text("*")).select_from(sa.table(self.mapping.source.table))
            found = connection.execute(rows).mappings().one()
        return {name: value for name, value in found.items() if name not in written}


@contextmanager
def scratch(engine: Engine, client: redis.Redis, mapping: TaskMapping) -> Iterator[Scratch]:
    """Make it, and leave nothing of it behind.

    :raises StoreError: the account may not make tables, or a store does not answer
    """
    tried = replace(
        mapping,
        system=f"{mapping.system[:36]}_try",
        source=replace(mapping.source, table=f"sluice_try_{mapping.source.table}"[:64]),
        target=replace(mapping.target, key_prefix=f"sluice:try:{mapping.system}"),
    )
    target, ledger = RqQueues(client, tried), SqlLedger(engine, tried.system)
    home = SqlHome(engine, tried)
    _forget(engine, client, tried, ledger)
    try:
        task_id, empty = _copy_a_row(engine, mapping, tried)
        source, leaving = SqlTable(engine, tried), RqSource(target, home, tried)
        yield Scratch(tried, source, target, leaving, home, ledger, task_id, empty)
    finally:
        _forget(engine, client, tried, ledger)


def _copy_a_row(engine: Engine, mapping: TaskMapping, tried: TaskMapping) -> tuple[str, bool]:
    """Copy a ready row, or any row made ready by the hold's own words.

    :returns: its id, '' when it cannot be made ready; and whether the table is empty
    """
    table, copy = mapping.source.table, tried.source.table
    with transaction(engine) as connection:
        connection.exec_driver_sql(f"CREATE TABLE `{copy}` LIKE `{table}`")
        columns = connection.execute(WRITABLE_COLUMNS, {"table": table}).scalars()
        names = list(columns)
        original, made = (sa.table(name, *map(sa.column, names)) for name in (table, copy))
        row = sa.select(*[original.c[name] for name in names]).limit(1)
        ready = SqlTable(engine, mapping).ids_at(Place.READY, limit=1)
        if ready:
            row = row.where(original.c[mapping.source.columns.id] == ready[0])
        copied = connection.execute(sa.insert(made).from_select(names, row)).rowcount
    home = SqlHome(engine, tried)
    home.make_ready()
    found = (seen.id for seen in home.census() if seen.place in (Place.READY, Place.DELAYED))
    return next(found, ""), copied == 0


def _forget(engine: Engine, client: redis.Redis, tried: TaskMapping, ledger: SqlLedger) -> None:
    with transaction(engine) as connection:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS `{tried.source.table}`")
    ledger.forget()
    with speaking_redis(client):
        for pattern in (f"{tried.target.key_prefix}:*", f"sluice:{{{tried.system}}}:*"):
            keys = list(client.scan_iter(match=pattern, count=1000))
            if keys:
                client.delete(*keys)
