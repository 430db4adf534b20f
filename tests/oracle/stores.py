"""The final look into the stores: rows of the task table and ids in RQ's keys, read with plain commands."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import pymysql
import redis
from pymysql.cursors import SSCursor


@dataclass(frozen=True)
class TableFacts:
    """How an application's task table says what the judge must know. None: the table has no such column.

    forgets: rows are deleted when the task succeeded, so that a missing row with an effect is no loss.
    """

    table: str = "caption_tasks"
    id_column: str = "id"
    user_column: str | None = "user_id"
    status_column: str = "status"
    custody_column: str | None = "custody"
    enqueued_column: str | None = "enqueued_at"
    available_column: str | None = "available_at"
    completed: str = "completed"
    failed: str = "failed"
    cancelled: str = "cancelled"
    forgets: bool = False

    def __post_init__(self) -> None:
        for name in (self.table, *self.columns()):
            if not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise ValueError(f"{name!r} is no table or column name: use letters, digits and underscores")

    def columns(self) -> list[str]:
        """The columns that the table has, in the order in which they are selected."""
        wanted = (self.id_column, self.status_column, self.user_column, self.custody_column)
        return [name for name in (*wanted, self.enqueued_column, self.available_column) if name is not None]

    @property
    def terminal(self) -> tuple[str, str, str]:
        """The words of the states that a task does not leave."""
        return (self.completed, self.failed, self.cancelled)


@dataclass(frozen=True, slots=True)
class Row:
    """One task as the database has it; available_at in epoch seconds. None: not known to the table."""

    id: str
    status: str
    user: int | None = None
    custody: str | None = None
    enqueued: bool = False
    available_at: float | None = None


def connect(url: str, *, streaming: bool = False) -> pymysql.Connection[Any]:
    """Open `mysql+pymysql://user:password@host:port/database[?unix_socket=path]`."""
    parts = urlsplit(url)
    if not parts.scheme.startswith(("mysql", "mariadb")) or not parts.path.strip("/"):
        raise ValueError("the database URL must read mysql+pymysql://user:password@host:port/database")
    options: dict[str, Any] = {
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": parts.path.strip("/"),
        "charset": "utf8mb4",
        "connect_timeout": 10,
        "ssl_disabled": True,  # the stores are this machine's own; to prepare for TLS takes 50 ms
    }
    socket = parse_qs(parts.query).get("unix_socket")
    if socket:
        options["unix_socket"] = socket[0]
    else:
        options.update(host=parts.hostname or "127.0.0.1", port=parts.port or 3306)
    if streaming:
        options["cursorclass"] = SSCursor
    return pymysql.connect(**options)


def rows(url: str, facts: TableFacts) -> Iterator[Row]:
    """Stream every row of the task table, a thousand at a time."""
    present = facts.columns()
    connection = connect(url, streaming=True)
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(present)} FROM {facts.table}")
            while batch := cursor.fetchmany(1000):
                for values in batch:
                    yield _row(facts, dict(zip(present, values, strict=True)))
    finally:
        connection.close()


def _row(facts: TableFacts, value: dict[str, Any]) -> Row:
    return Row(
        id=str(value[facts.id_column]),
        status=str(value[facts.status_column]),
        user=value[facts.user_column] if facts.user_column else None,
        custody=value[facts.custody_column] if facts.custody_column else None,
        enqueued=bool(facts.enqueued_column and value[facts.enqueued_column]),
        available_at=_epoch(value[facts.available_column]) if facts.available_column else None,
    )


def _epoch(moment: datetime.datetime | None) -> float | None:
    return None if moment is None else moment.replace(tzinfo=datetime.UTC).timestamp()


def unfinished(url: str, facts: TableFacts) -> int:
    """Number of rows that are neither terminal nor held."""
    held = f" AND {facts.custody_column} <> 'held'" if facts.custody_column else ""
    connection = connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT COUNT(*) FROM {facts.table} WHERE {facts.status_column} NOT IN (%s, %s, %s){held}",
                facts.terminal,
            )
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def places(url: str, prefix: str = "rq") -> dict[str, list[str]]:
    """Where RQ has each id: the keys of its lists and registries, one entry for each occurrence.

    Keys are read one after the other: exact on a store at rest, indicative on a moving one.
    """
    client = redis.Redis.from_url(url, decode_responses=True)
    found: dict[str, list[str]] = {}
    try:
        for key in client.scan_iter(match=f"{prefix}:queue:*", count=1000, _type="list"):
            for start in range(0, client.llen(key), 10_000):
                for task in cast("list[str]", client.lrange(key, start, start + 9_999)):
                    found.setdefault(task, []).append(key)
        for registry in ("scheduled", "deferred", "wip", "failed", "finished", "canceled"):
            for key in client.scan_iter(match=f"{prefix}:{registry}:*", count=1000, _type="zset"):
                for member, _score in client.zscan_iter(key, count=1000):
                    # wip members are `<id>:<execution>`; ids themselves have no colon
                    found.setdefault(str(member).split(":", 1)[0], []).append(key)
    finally:
        client.close()
    return found
