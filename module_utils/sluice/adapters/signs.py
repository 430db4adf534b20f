"""Short questions to both stores for an assessment. Reads only, in a bounded number of commands."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import redis
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from ..core.mapping import TaskMapping
from ..core.tasks import job_name
from ..ports.assessment import QueueSigns, StoreSigns, WorkSigns
from .redis_connect import speaking
from .sql_connect import reading

#: A busy worker is heard of at least every 90 s, an idle one every 480 s (RQ 2 and 3).
_WORKER_SILENCE = 490.0
#: Jobs and executions looked at one by one, at most.
_MOST = 500
_FORMATS = ("%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%SZ")


def database_signs(engine: Engine) -> StoreSigns:
    """Ask the database something short, on a connection that is already open.

    :raises StoreError: it does not answer
    """
    with reading(engine) as connection:
        begun = time.monotonic()
        read_only = bool(connection.scalar(sa.text("SELECT @@global.read_only")))
        latency = time.monotonic() - begun
    return StoreSigns(latency, "the server is read-only" if read_only else "")


class RqSigns:
    """What RQ shows of itself to an assessment.

    :param lately: how far back a failure counts as one of now (seconds)
    """

    def __init__(self, client: redis.Redis, mapping: TaskMapping, queues: Sequence[str], *, lately: float) -> None:
        self.client = client
        self.prefix = mapping.target.key_prefix
        self.failure_ttl = mapping.target.failure_ttl
        self.names = list(queues)
        self.lately = lately

    def store(self) -> StoreSigns:
        """Whether Redis answers, and whether it would take a write.

        :raises StoreError: it does not answer, or refuses the login
        """
        with speaking(self.client):
            self.client.ping()
            begun = time.monotonic()
            self.client.ping()
            latency = time.monotonic() - begun
            info: dict[str, Any] = {str(k): v for k, v in dict(cast("Any", self.client.info())).items()}
        return StoreSigns(latency, _unusable(info), int(info.get("evicted_keys") or 0))

    def queues(self, now: float) -> list[QueueSigns]:
        """The depth of every queue, and what failed lately by the failed registry.

        :param now: seconds since the epoch, by the clock that writes the jobs
        """
        found = []
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=False)
            for name in self.names:
                pipe.llen(self._key("queue", name))
                pipe.zcard(self._key("scheduled", name))
                pipe.zcard(self._key("deferred", name))
                pipe.zcard(self._key("failed", name))
                # The registry's score is when the entry expires: its end and the mapping's failure_ttl.
                pipe.zcount(self._key("failed", name), now + self.failure_ttl - self.lately, "+inf")
                pipe.lindex(self._key("queue", name), 0)
            answers = iter(pipe.execute())
            for name in self.names:
                queued, scheduled, deferred, failed, lately = (int(next(answers)) for _ in range(5))
                oldest = self._waited(next(answers), now)
                found.append(QueueSigns(name, queued, scheduled, deferred, oldest, failed, lately))
        return found

    def _waited(self, head: bytes | None, now: float) -> float | None:
        if head is None:
            return None
        values = cast(
            "list[bytes | None]", self.client.hmget(cast(Any, f"{self.prefix}:job:".encode() + head), "enqueued_at")
        )
        since = _moment(values[0])
        return None if since is None else max(0.0, now - since)

    def work(self, now: float, users: Sequence[str]) -> WorkSigns:
        """Live and silent workers, the queues without one, and started jobs that nobody keeps alive.

        :param users: the Redis users that only workers log in with. A worker killed with -9 looks alive by its
            heartbeat for minutes; without any connection of these users there is none.
        """
        with speaking(self.client):
            serving: set[str] = set()
            live = silent = 0
            for heartbeat, queues, death in self._workers():
                moment = _moment(heartbeat)
                if moment is None or death is not None or now - moment > _WORKER_SILENCE:
                    silent += 1
                    continue
                live += 1
                serving |= set((queues or b"").decode(errors="replace").split(","))
            pipe = self.client.pipeline(transaction=False)
            for name in self.names:
                pipe.zcard(self._key("wip", name))
                # The score is until when the worker vouches for it; its horse renews it every minute or so.
                pipe.zcount(self._key("wip", name), "-inf", now)
            numbers = [int(number) for number in pipe.execute()]
            if users and live and not self._connected(users):
                live, silent, serving = 0, silent + live, set()
        unserved = [name for name in self.names if name not in serving]
        return WorkSigns(live, silent, unserved, sum(numbers[::2]), sum(numbers[1::2]))

    def _workers(self) -> Iterator[list[bytes | None]]:
        keys = sorted(cast("set[bytes]", self.client.smembers(f"{self.prefix}:workers")))[:_MOST]
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.hmget(key, "last_heartbeat", "queues", "death")
        yield from pipe.execute()

    def _connected(self, users: Sequence[str]) -> bool:
        return any(client.get("user") in users for client in self.client.client_list())

    def heads(self, each: int) -> list[str]:
        """The first job ids of every queue."""
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=False)
            for name in self.names:
                pipe.lrange(self._key("queue", name), 0, each - 1)
            return [job_name(job_id) for part in pipe.execute() for job_id in part]

    def size(self) -> int:
        """How many keys the database has: an upper bound of its jobs."""
        with speaking(self.client):
            return int(self.client.dbsize())

    def _key(self, word: str, queue: str) -> str:
        return f"{self.prefix}:{word}:{queue}"


def _unusable(info: dict[str, Any]) -> str:
    """Why a server that answers would refuse a worker's writes; '' when it would not."""
    if int(info.get("loading") or 0):
        return "it is loading its data"
    if info.get("role") not in (None, "master"):
        return "it is a read-only replica"
    if int(info.get("aof_enabled") or 0) and info.get("aof_last_write_status", "ok") != "ok":
        return "it cannot write its append-only file and refuses writes"
    limit, policy = int(info.get("maxmemory") or 0), str(info.get("maxmemory_policy") or "noeviction")
    if limit and int(info.get("used_memory") or 0) >= limit and policy == "noeviction":
        return "its memory is full and it refuses writes"
    return ""


def _moment(value: bytes | None) -> float | None:
    """RQ's time stamp as seconds since the epoch; None when there is none, or none that can be read."""
    if not value:
        return None
    text = value.decode("ascii", "replace")
    for form in _FORMATS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    return None
