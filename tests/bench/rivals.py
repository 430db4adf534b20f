"""What the transfer is measured against: a loop of enqueues, `enqueue_many` in thousands, the stores' bulk limits."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import hiredis
from pymysql.cursors import SSCursor
from rq import Queue
from rq.serializers import JSONSerializer

from bench.stores import Addresses, Stores, open_ends
from lab.stores import LOOPBACK, program

FUNCTION = "captions.jobs.run_caption"
TIMEOUTS = {"urgent": 600, "high": 300, "normal": 300, "low": 900}
_MANY = 1000
#: Rows of one INSERT statement: below the server's largest packet.
_ROWS_OF_A_STATEMENT = 20_000
#: What RQ changes in the life of a job is not compared after staging.
_NOT_REREAD = frozenset({b"status", b"enqueued_at"})
_RECEIVED_AT_ONCE = 1 << 18


def enqueue_loop(stores: Stores, where: Addresses, count: int) -> float:
    """Seconds for ``count`` tasks: one `Queue.enqueue` and one UPDATE with its commit per row."""
    client = stores.redis.client()
    queues = {name: Queue(name, connection=client, serializer=JSONSerializer) for name in TIMEOUTS}
    connection = stores.connect(where)
    begun = time.perf_counter()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, priority FROM caption_tasks WHERE custody = 'db' AND status = 'queued' "
            "ORDER BY priority, created_at, id LIMIT %s",
            (count,),
        )
        for task_id, priority in cursor.fetchall():
            queues[priority].enqueue(FUNCTION, args=(task_id,), job_id=task_id, job_timeout=TIMEOUTS[priority])
            cursor.execute(
                "UPDATE caption_tasks SET custody = 'rq', enqueued_at = UTC_TIMESTAMP(6) "
                "WHERE id = %s AND custody = 'db'",
                (task_id,),
            )
            connection.commit()
    seconds = time.perf_counter() - begun
    connection.close()
    client.close()
    return seconds


def enqueue_many(stores: Stores, where: Addresses, count: int) -> float:
    """Seconds for ``count`` tasks: per thousand a bulk claim, `Queue.enqueue_many` per queue, a bulk release."""
    client = stores.redis.client()
    queues = {name: Queue(name, connection=client, serializer=JSONSerializer) for name in TIMEOUTS}
    connection = stores.connect(where)
    begun = time.perf_counter()
    with connection.cursor() as cursor:
        for done in range(0, count, _MANY):
            cursor.execute(
                "SELECT id, priority FROM caption_tasks WHERE custody = 'db' AND status = 'queued' "
                "ORDER BY priority, created_at, id LIMIT %s FOR UPDATE",
                (min(_MANY, count - done),),
            )
            rows = cursor.fetchall()
            ids = [row[0] for row in rows]
            cursor.execute("UPDATE caption_tasks SET custody = 'held', custody_token = 1 WHERE id IN %s", (ids,))
            connection.commit()
            datas = defaultdict(list)
            for task_id, priority in rows:
                datas[priority].append(
                    Queue.prepare_data(FUNCTION, args=(task_id,), job_id=task_id, timeout=TIMEOUTS[priority])
                )
            for priority, members in datas.items():
                queues[priority].enqueue_many(members)
            cursor.execute(
                "UPDATE caption_tasks SET custody = 'rq', enqueued_at = UTC_TIMESTAMP(6) WHERE id IN %s", (ids,)
            )
            connection.commit()
    seconds = time.perf_counter() - begun
    connection.close()
    client.close()
    return seconds


@dataclass(frozen=True)
class Recording:
    """What one transfer left in both stores, as the stores' own bulk tools take it. The files hold Redis' protocol."""

    writes: Path
    rereads: Path
    reread_parts: Sequence[tuple[int, int]]  # bytes and commands of each part sent at once
    inserts: Sequence[str]


def record(stores: Stores, where: Addresses) -> Recording:
    """Read back everything that a finished transfer wrote: ledger rows, job hashes, queue lists, markers."""
    connection = stores.connect(where)
    inserts = []
    ids: list[bytes] = []
    with connection.cursor(SSCursor) as cursor:
        cursor.execute("SELECT * FROM sluice_task ORDER BY batch, position")
        names = [column[0] for column in cursor.description]
        place = names.index("job_id")
        while rows := cursor.fetchmany(_ROWS_OF_A_STATEMENT):
            values = ",".join(f"({','.join(map(connection.literal, row))})" for row in rows)
            inserts.append(f"INSERT INTO sluice_task (`{'`,`'.join(names)}`) VALUES {values}")
            ids.extend(str(row[place]).encode() for row in rows)
    connection.close()
    parts: list[tuple[int, int]] = []
    recording = Recording(stores.directory / "writes.resp", stores.directory / "rereads.resp", parts, inserts)
    with (
        stores.redis.client() as client,
        recording.writes.open("wb") as writes,
        recording.rereads.open("wb") as rereads,
    ):
        for part in _parts(ids):
            keys = [b"rq:job:" + job_id for job_id in part]
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.hgetall(key)
            read = bytearray()
            for key, fields in zip(keys, pipe.execute(), strict=True):
                writes.write(_command(b"HSET", key, *[word for pair in fields.items() for word in pair]))
                read += _command(b"HMGET", key, *[name for name in fields if name not in _NOT_REREAD])
            rereads.write(read)
            parts.append((len(read), len(keys)))
        for queue in cast("set[bytes]", client.smembers("rq:queues")):
            writes.write(_command(b"SADD", b"rq:queues", queue))
            for part in _parts(cast("list[bytes]", client.lrange(queue.decode(), 0, -1))):
                writes.write(_command(b"RPUSH", queue, *part))
        for marker in client.scan_iter(match="sluice:*:marker"):
            for part in _parts(cast("set[bytes]", client.smembers(marker))):
                writes.write(_command(b"SADD", marker, *part))
    return recording


def bulk_limit(stores: Stores, where: Addresses, recording: Recording) -> dict[str, float]:
    """Seconds of each bulk operation that every transfer must do at least; all preparation is outside the clock."""
    open_ends(where).source.engine.dispose()
    connection = stores.connect(where)
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], None]) -> None:
        begun = time.perf_counter()
        work()
        found[name] = time.perf_counter() - begun

    def run(statements: Iterable[str]) -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        connection.commit()

    def stream() -> None:
        with connection.cursor(SSCursor) as cursor:
            cursor.execute(
                "SELECT id, priority, created_at, available_at, attempts, max_attempts FROM caption_tasks "
                "WHERE custody = 'held' AND status = 'queued' AND custody_token = 1"
            )
            while cursor.fetchmany(_MANY):
                pass
        connection.commit()

    claim = "UPDATE caption_tasks SET custody = 'held', custody_token = 1 WHERE custody = 'db' AND status = 'queued'"
    release = (
        "UPDATE caption_tasks SET custody = 'rq', enqueued_at = UTC_TIMESTAMP(6) "
        "WHERE custody = 'held' AND status = 'queued' AND custody_token = 1"
    )
    timed("claim", lambda: run([claim]))
    timed("select", stream)
    timed("redis", lambda: _pipe(stores, recording.writes))
    timed("reread", lambda: _reread(stores, recording))
    timed("release", lambda: run([release]))
    timed("ledger", lambda: run(recording.inserts))
    connection.close()
    return found


def _pipe(stores: Stores, commands: Path) -> None:
    """`redis-cli --pipe`, the server's own way to take a mass of commands."""
    with commands.open("rb") as source:
        done = subprocess.run(
            [program("redis-cli"), "-h", LOOPBACK, "-p", str(stores.redis.port), "--no-auth-warning", "--pipe"],
            env={**os.environ, "REDISCLI_AUTH": stores.redis.password},
            stdin=source,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0 or "errors: 0" not in done.stdout:
        raise RuntimeError(f"redis-cli --pipe failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


def _reread(stores: Stores, recording: Recording) -> None:
    """One pipelined re-read: the commands go out as the replies come in, parsed by hiredis."""
    reader = hiredis.Reader()
    with socket.create_connection((LOOPBACK, stores.redis.port)) as connection, recording.rereads.open("rb") as source:
        connection.sendall(_command(b"AUTH", stores.redis.password.encode()))
        _replies(connection, reader, 1)
        for size, expected in recording.reread_parts:
            connection.sendall(source.read(size))
            _replies(connection, reader, expected)


def _replies(connection: socket.socket, reader: Any, expected: int) -> None:
    while expected:
        reply = reader.gets()
        if reply is False:
            received = connection.recv(_RECEIVED_AT_ONCE)
            if not received:
                raise RuntimeError("Redis closed the connection in the middle of the re-read")
            reader.feed(received)
        elif isinstance(reply, Exception):
            raise reply
        else:
            expected -= 1


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def _parts(members: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(members)
    while part := list(islice(rest, _MANY)):
        yield part
