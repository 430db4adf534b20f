"""Each adapter behind the same few handles: put a task there, let the application or a worker touch it, look."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol, cast

import redis
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import sql_connect
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.memory import MemoryClock, MemoryLedger, MemorySource, MemoryTarget, Row
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.rq_source import RqSource
from ansible.module_utils.sluice.adapters.sql_home import SqlHome, SqlJournal
from ansible.module_utils.sluice.adapters.sql_table import SqlTable
from ansible.module_utils.sluice.core import mapping as mappings
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.core.tasks import Home, Lease, Sighting, Task
from ansible.module_utils.sluice.ports.ledger import Ledger, Run
from ansible.module_utils.sluice.ports.stores import SourceEnd, TargetEnd

#: Epoch seconds that every `created` counts from: 2026-01-01 00:00 UTC.
BASE = 1767225600.0


def make_run(run_id: str = "run-1", system: str = "captions") -> Run:
    """A run as it is before anything happened."""
    return Run(
        run_id, system, "forward", "tester", Phase.OPENED, "p", "m", "stamp-1", datetime.now(UTC), None, {"n": 1}
    )


def make_task(task_id: str, queue: str = "normal", eta: float | None = None) -> Task:
    """A due task, as a source would give it."""
    return Task(task_id, task_id, queue, (task_id,), BASE, eta, 0, 3)


class Stoppable(Ledger, Protocol):
    """A ledger with the operator's stop flag."""

    def request_stop(self, stop: bool = True) -> None:
        """Set or clear the flag."""


class Source(SourceEnd, Protocol):
    """A source with the operator's decisions on holds and a look at single ids."""

    def give_back(self, lease: Lease, ids: Sequence[str]) -> int:
        """Back into circulation."""

    def settle(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """Closed for good."""

    def look(self, ids: Sequence[str]) -> dict[str, Sighting]:
        """The rows of these ids."""


class SourceRig:
    """A source with its ledger, an open run and its lease."""

    #: Whether the table keeps any queue value, also one that the mapping does not know.
    any_queue = True
    #: Whether the table has a word for rows born in the target that are still to be enqueued.
    journal = True

    end: Source
    ledger: Stoppable
    run: Run
    lease: Lease

    def now(self) -> float:
        """The store's time, epoch seconds."""
        return time.time()

    def add(self, task_id: str, queue: str = "normal", created: float = 0.0, delay: float = 0.0) -> None:
        """A task submitted at BASE + ``created``, due ``delay`` seconds from now."""
        raise NotImplementedError

    def touch(self, task_id: str, word: str) -> None:
        """What the application does to a row.

        leased: a poller took it; started: a worker of the target began it; finished, failed, cancelled: it ended;
        retried: a user asked for it again; odd: a state that the mapping does not know.
        """
        raise NotImplementedError

    def born_in_target(self, task_id: str) -> None:
        """A row accepted for the target that is not enqueued yet."""
        raise NotImplementedError

    def another(self) -> SourceRig:
        """The same store as another process sees it, with the lease taken anew: ours is old now."""
        raise NotImplementedError

    def unguarded(self) -> SourceEnd:
        """The same store where its claimers mark nothing while they work."""
        raise NotImplementedError

    def claimed(self, limit: int = 100) -> list[str]:
        """Claim, and name the ids."""
        return [task.id for task in self.end.claim(self.lease, limit).tasks]

    def places(self) -> dict[str, str]:
        """Where the census finds each id."""
        return {seen.id: str(seen.place) for seen in self.end.census()}

    def marks(self) -> dict[str, str]:
        """What the ledger says of each id."""
        return {seen.id: str(seen.place) for seen in self.ledger.marks()}

    def release(self, tasks: Sequence[Task], batch: int = 1) -> tuple[list[str], list[str]]:
        """Release, and name what moved and what was lost."""
        done = self.end.release(self.lease, tasks, ["d" * 40] * len(tasks), batch)
        return [task.id for task in done.moved], [task.id for task in done.lost]


class MemorySourceRig(SourceRig):
    """Everything in memory."""

    def __init__(self) -> None:
        self.clock = MemoryClock()
        self.memory_ledger = MemoryLedger(self.clock)
        self.ledger = self.memory_ledger
        self.ledger.install()
        self.run = make_run(system="memory")
        self.ledger.start_run(self.run)
        self.source = MemorySource(self.memory_ledger)
        self.end = self.source
        self.lease = self.ledger.take_lease(self.run, "first", 60)

    def now(self) -> float:
        return self.clock.now()

    def add(self, task_id: str, queue: str = "normal", created: float = 0.0, delay: float = 0.0) -> None:
        self.source.rows[task_id] = Row(task_id, queue, BASE + created, self.clock.now() + delay)

    def unguarded(self) -> SourceEnd:
        return self.source

    def touch(self, task_id: str, word: str) -> None:
        row = self.source.rows[task_id]
        row.status = {"started": "running", "retried": "queued", "odd": "limbo"}.get(word, word)
        if word == "started":
            row.custody = "target"

    def born_in_target(self, task_id: str) -> None:
        self.source.rows[task_id] = Row(task_id, "normal", BASE, custody="target", pending=True)

    def another(self) -> SourceRig:
        other = MemorySourceRig.__new__(MemorySourceRig)
        other.__dict__.update(self.__dict__)
        other.lease = self.ledger.take_lease(self.run, self.lease.owner, 60)
        return other


def unguarded_table(engine: sa.Engine, mapping: mappings.TaskMapping) -> SqlTable:
    """The table of a mapping, its claimers marking nothing while they work."""
    claimers = tuple(replace(claimer, guarded=False) for claimer in mapping.source.claimers)
    return SqlTable(engine, replace(mapping, source=replace(mapping.source, claimers=claimers)))


class SqlSourceRig(SourceRig):
    """A table of MariaDB; the words are given by the two tables below."""

    insert: str
    words: ClassVar[Mapping[str, str]]
    table: str

    def __init__(self, database_url: str, mapping: mappings.TaskMapping, *, first: bool = True) -> None:
        self.url = database_url
        self.mapping = mapping
        self.engine = sql_connect.connect(database_url)
        sql_ledger = SqlLedger(self.engine, mapping.system)
        self.ledger = sql_ledger
        self.run = make_run(system=mapping.system)
        if first:
            self.prepare()
            self.ledger.install()
            self.ledger.start_run(self.run)
        table = SqlTable(self.engine, mapping)
        self.end = table
        sql_ledger.baseline_from(table.baseline_select)
        self.lease = self.ledger.take_lease(self.run, "first", 60)
        self.others: list[SqlSourceRig] = []

    def prepare(self) -> None:
        """Make the table, where the database has none yet."""

    def execute(self, statement: str, **values: object) -> None:
        """One statement of the application."""
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), values)

    def add(self, task_id: str, queue: str = "normal", created: float = 0.0, delay: float = 0.0) -> None:
        self.execute(self.insert, id=task_id, queue=queue, created=int(created), delay=int(delay))

    def touch(self, task_id: str, word: str) -> None:
        self.execute(f"UPDATE {self.table} SET {self.words[word]} WHERE id = :id", id=task_id)

    def unguarded(self) -> SourceEnd:
        return unguarded_table(self.engine, self.mapping)

    def another(self) -> SourceRig:
        other = type(self)(self.url, self.mapping, first=False)
        self.others.append(other)
        return other

    def close(self) -> None:
        """End every connection."""
        for other in self.others:
            other.close()
        self.engine.dispose()


class CaptionsRig(SqlSourceRig):
    """The lab's table: the hold is in its own columns."""

    any_queue = False
    table = "caption_tasks"
    insert = (
        "INSERT INTO caption_tasks (id, user_id, priority, image_path, created_at, available_at) "
        "VALUES (:id, :id, :queue, 'x.png', '2026-01-01' + INTERVAL :created SECOND, "
        "UTC_TIMESTAMP(6) + INTERVAL :delay SECOND)"
    )
    words: ClassVar[Mapping[str, str]] = {
        "leased": "status = 'running'",
        "started": "status = 'running', custody = 'rq'",
        "finished": "status = 'completed'",
        "failed": "status = 'failed'",
        "cancelled": "status = 'cancelled'",
        "retried": "status = 'queued'",
        "odd": "status = 'running', custody = 'held'",
    }

    def born_in_target(self, task_id: str) -> None:
        self.add(task_id)
        self.execute("UPDATE caption_tasks SET custody = 'rq' WHERE id = :id", id=task_id)


class CompanionRig(SqlSourceRig):
    """A table without a word for custody: the hold is in the ledger's companion table."""

    journal = False
    table = "plain_tasks"
    insert = (
        "INSERT INTO plain_tasks (id, lane, state, born, run_at) "
        f"VALUES (:id, :queue, 'waiting', {int(BASE)} + :created, UNIX_TIMESTAMP(NOW(6)) + :delay)"
    )
    words: ClassVar[Mapping[str, str]] = {
        "leased": "state = 'working'",
        "started": "state = 'working'",
        "finished": "state = 'done'",
        "failed": "state = 'broken'",
        "cancelled": "state = 'dropped'",
        "retried": "state = 'waiting'",
        "odd": "state = 'limbo'",
    }

    def prepare(self) -> None:
        self.execute(
            "CREATE TABLE plain_tasks (id BIGINT PRIMARY KEY, lane VARCHAR(20) NOT NULL, state VARCHAR(10) NOT NULL, "
            "born INT NOT NULL, run_at DOUBLE NOT NULL) ENGINE=InnoDB"
        )


def plain_mapping() -> mappings.TaskMapping:
    """The mapping of ``plain_tasks``."""
    state = {word: {"column": "state", "equals": word} for word in ("waiting", "working", "done", "broken", "dropped")}
    return mappings.parse(
        {
            "system": "plain",
            "source": {
                "table": "plain_tasks",
                "columns": {"id": "id", "queue": "lane", "created": "born", "available": "run_at"},
                "places": {
                    "ready": [state["waiting"], {"column": "run_at", "due": True}],
                    "delayed": [state["waiting"], {"column": "run_at", "due": False}],
                    "leased": state["working"],
                    "finished": state["done"],
                    "failed": state["broken"],
                    "cancelled": state["dropped"],
                },
                "order": [{"column": "lane", "first": ["urgent", "high", "normal", "low"]}, "born"],
                "hold": {"kind": "companion"},
                "claimers": [{"name": "pollers", "kind": "guarded", "account": "app@%"}],
                "witness": {
                    "started": {"column": "state", "in": ["working", "done", "broken"]},
                    "ended": {"column": "state", "in": ["done", "broken", "dropped"]},
                },
            },
            "target": {
                "queues": {lane: lane for lane in ("urgent", "high", "normal", "low")},
                "function": "plain.jobs.run",
                "args": ["id"],
            },
        }
    )


class Target(TargetEnd, Protocol):
    """A target with its stamp."""

    def stamp(self, lease: Lease) -> bool:
        """Write the run's stamp."""


class TargetRig:
    """A target with the stamp of a run."""

    end: Target
    lease = Lease("captions", "run-1", "first", 5, "stamp-1")

    def queued(self, queue: str) -> list[str]:
        """The job ids a worker would take, in order."""
        raise NotImplementedError

    def scheduled(self, queue: str) -> dict[str, int]:
        """Job ids with their times, whole epoch seconds."""
        raise NotImplementedError

    def enter(self, home: Home, queue: str, job_id: str, *, body: bool = True) -> None:
        """An entry made by the application or its workers; STAGED makes a body only."""
        raise NotImplementedError

    def lose(self, job_id: str) -> None:
        """The store forgets a job."""
        raise NotImplementedError

    def empty(self) -> None:
        """The store forgets everything."""
        raise NotImplementedError

    def now(self) -> float:
        """The time by which a task is due, epoch seconds."""
        raise NotImplementedError

    def seen(self) -> set[tuple[str, str, str]]:
        """The whole census."""
        return {(seen.id, str(seen.place), seen.where) for seen in self.end.census()}

    def stage_and_activate(self, tasks: Sequence[Task], batch: int = 1) -> int:
        """Both steps."""
        self.end.stage(self.lease, tasks)
        return self.end.activate(self.lease, tasks, batch)


class MemoryTargetRig(TargetRig):
    """Everything in memory."""

    def __init__(self) -> None:
        self.clock = MemoryClock()
        self.target = MemoryTarget(self.clock)
        self.end = self.target
        self.end.stamp(self.lease)

    def queued(self, queue: str) -> list[str]:
        return list(self.target.queued(queue))

    def scheduled(self, queue: str) -> dict[str, int]:
        ids = [seen.id for seen in self.target.census() if (seen.place, seen.where) == (Home.SCHEDULED, queue)]
        return {job_id: math.ceil(self.target.etas[job_id]) for job_id in ids}

    def enter(self, home: Home, queue: str, job_id: str, *, body: bool = True) -> None:
        self.target.enter(home, queue, job_id, body=body)

    def lose(self, job_id: str) -> None:
        self.target.lose(job_id)

    def empty(self) -> None:
        self.target.empty()

    def now(self) -> float:
        return self.clock.now()


class RqRig(TargetRig):
    """A real Redis."""

    LISTS: ClassVar[Mapping[Home, str]] = {Home.QUEUED: "rq:queue:{}", Home.INTERMEDIATE: "rq:queue:{}:intermediate"}
    REGISTRIES: ClassVar[Mapping[Home, str]] = {
        Home.STARTED: "rq:wip:{}",
        Home.SCHEDULED: "rq:scheduled:{}",
        Home.DEFERRED: "rq:deferred:{}",
        Home.FINISHED: "rq:finished:{}",
        Home.FAILED: "rq:failed:{}",
        Home.CANCELLED: "rq:canceled:{}",
    }

    def __init__(self, client: redis.Redis, mapping: mappings.TaskMapping, now: Callable[[], float]) -> None:
        self.client = client
        self.rq = RqQueues(client, mapping)
        self.end = self.rq
        self.end.stamp(self.lease)
        self._now = now

    def queued(self, queue: str) -> list[str]:
        return [member.decode() for member in cast("list[bytes]", self.client.lrange(f"rq:queue:{queue}", 0, -1))]

    def scheduled(self, queue: str) -> dict[str, int]:
        found = cast("list[Any]", self.client.zrange(f"rq:scheduled:{queue}", 0, -1, withscores=True))
        return {member.decode(): int(score) for member, score in found}

    def enter(self, home: Home, queue: str, job_id: str, *, body: bool = True) -> None:
        if home in self.LISTS:
            self.client.rpush(self.LISTS[home].format(queue), job_id)
        elif home in self.REGISTRIES:
            # RQ registers what runs as "job:execution".
            member = f"{job_id}:e1" if home is Home.STARTED else job_id
            self.client.zadd(self.REGISTRIES[home].format(queue), {member: self.now() + 600})
        if body:
            status = {Home.STAGED: "created", Home.CANCELLED: "canceled"}.get(home, home.value)
            self.client.hset(f"rq:job:{job_id}", mapping={"status": status, "data": b"theirs", "origin": queue})

    def lose(self, job_id: str) -> None:
        assert self.client.delete(f"rq:job:{job_id}") == 1

    def empty(self) -> None:
        self.client.flushall()

    def now(self) -> float:
        return self._now()


class HomewardRig:
    """RQ's side of captions as the source of a run that goes back, with the table as its target.

    :param kind: 'rq': the source is RQ's jobs; 'rows': the rows of tasks that no job answers for
    """

    def __init__(
        self, database_url: str, client: redis.Redis, mapping: mappings.TaskMapping, kind: str, *, first: bool = True
    ) -> None:
        self.url, self.client, self.mapping, self.kind = database_url, client, mapping, kind
        self.engine = sql_connect.connect(database_url)
        self.ledger = SqlLedger(self.engine, mapping.system)
        self.queues = RqQueues(client, mapping)
        self.home = SqlHome(self.engine, mapping)
        self.leaving = RqSource(self.queues, self.home, mapping)
        self.end: RqSource | SqlJournal = self.leaving if kind == "rq" else SqlJournal(self.home)
        forward = make_run()
        self.run = replace(forward, id="run-2", direction="back", generation="stamp-2")
        if first:
            self.ledger.install()
            self.ledger.start_run(forward)
            self.queues.stamp(self.ledger.take_lease(forward, "first", 60))
            self.ledger.take_over(self.run, forward)
        self.lease = self.ledger.take_lease(self.run, "first", 60)
        self.leaving.adopt(self.lease, [forward.generation])
        self.others: list[HomewardRig] = []

    def execute(self, statement: str, **values: object) -> Sequence[Any]:
        """One statement of the application."""
        with self.engine.begin() as connection:
            done = connection.execute(sa.text(statement), values)
            return done.all() if done.returns_rows else ()

    def add(self, task_id: str, queue: str = "normal", created: int = 0, delay: int = 0) -> None:
        """A task in RQ's custody, with its job unless the rows are all there is."""
        insert = CaptionsRig.insert.replace("(:id, :id,", "(:id, CRC32(:id) % 1000000,")
        self.execute(insert, id=task_id, queue=queue, created=created, delay=delay)
        self.execute(
            "UPDATE caption_tasks SET custody = 'rq', enqueued_at = UTC_TIMESTAMP(6) WHERE id = :id", id=task_id
        )
        if self.kind == "rq":
            task = make_task(task_id, queue, time.time() + delay if delay else None)
            self.queues.stage(self.lease, [task])
            assert self.queues.activate(self.lease, [task], 1) == 1

    def ready(self) -> list[str]:
        """The ids of all rows that the pollers may take, in the order in which they would."""
        return list(unguarded_table(self.engine, self.mapping).in_hand(100))

    def touch(self, task_id: str, word: str) -> None:
        """What the application does to a row."""
        self.execute(f"UPDATE caption_tasks SET {CaptionsRig.words[word]} WHERE id = :id", id=task_id)

    def claim(self, limit: int = 100) -> list[Task]:
        """Claim and stage: the tasks whose rows are held now."""
        claim = self.end.claim(self.lease, limit)
        staged = self.home.stage(self.lease, claim.tasks)
        over = [task.id for task in claim.tasks if task.job_id in staged.over]
        if over:
            self.end.leave(self.lease, over, "over")
        return [task for task in claim.tasks if task.job_id in staged.digests]

    def claimed(self, limit: int = 100) -> list[str]:
        """Claim, and name the ids."""
        return [task.id for task in self.claim(limit)]

    def release(self, tasks: Sequence[Task], batch: int = 1) -> tuple[list[str], list[str]]:
        """Release, and name what came home and what was lost."""
        done = self.end.release(self.lease, tasks, ["d" * 40] * len(tasks), batch)
        return [task.id for task in done.moved], [task.id for task in done.lost]

    def places(self) -> dict[str, str]:
        """Where the census of the table finds each id."""
        return {seen.id: str(seen.place) for seen in self.home.census()}

    def marks(self) -> dict[str, str]:
        """What the ledger says of each id."""
        return {seen.id: str(seen.place) for seen in self.ledger.marks()}

    def another(self) -> HomewardRig:
        """The same stores as another process sees them, with the lease taken anew: ours is old now."""
        other = HomewardRig(self.url, self.client, self.mapping, self.kind, first=False)
        self.others.append(other)
        return other

    def close(self) -> None:
        """End every connection."""
        for other in self.others:
            other.close()
        self.engine.dispose()
