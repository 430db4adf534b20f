"""RQ as the source of a run that goes back.

A claim takes ids out of RQ's lists and registries into a hash of ours, which remembers where each lay; the jobs'
own hashes stay as they are until they are exported. RQ's workers are fenced meanwhile, so what is read stays true.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from ..core.errors import GenerationMismatch
from ..core.homecoming import job_home
from ..core.mapping import TaskMapping
from ..core.tasks import Claim, Home, Lease, Released, Sighting, Task, job_id_for
from ..core.verdicts import Check
from . import rq_source_scripts as scripts
from .redis_connect import place, speaking
from .rq import REGISTRIES, RqQueues, of_a_key
from .rq_payload import JobFields, Serializer, UnreadablePayload, epoch, read_payload, result_error
from .sql_home import ASTRAY, ERROR, FOUND, UNREADABLE, SqlHome

#: Redis serves nobody else during one Lua call.
_JOBS_PER_CALL = 200
_KEYS_PER_SCAN = 2000
#: In this order: what is queued first, what has ended last, so that a run that is stopped has moved what matters.
_PLACES: dict[str, Home] = {
    "intermediate": Home.INTERMEDIATE,
    "queue": Home.QUEUED,
    **{word: REGISTRIES[word] for word in ("scheduled", "ready", "deferred", "wip", "failed", "canceled", "finished")},
}
_UNFINISHED = ("intermediate", "queue", "scheduled", "ready", "deferred", "wip")
_LISTS = frozenset({"intermediate", "queue"})
_ORPHAN = "orphan"
_ENDED = frozenset({Home.FINISHED, Home.FAILED, Home.CANCELLED})
_ENDED_WORDS = frozenset({b"finished", b"failed", b"stopped", b"canceled"})
_DERIVED = re.compile(r"[a-z][a-z0-9_]*-[0-9a-f]{40}\Z")
#: More runs than this many digits say are no number of runs.
_RETRIES = re.compile(rb"[0-9]{1,6}\Z")
#: Epoch seconds: the end of the year 9999, after which no store of ours has a time.
_LAST_TIME = 253_402_300_799.0


class _Found(NamedTuple):
    """One claimed job by its name: where it lay, and what its hash says (None: there is no hash)."""

    id: str
    home: Home
    queue: str
    score: float
    fields: Sequence[bytes | None]


class RqSource:
    """See :class:`..ports.stores.SourceEnd`.

    :param home: where the tasks go; with Redis as the source, custody passes in its commit
    """

    def __init__(self, queues: RqQueues, home: SqlHome, mapping: TaskMapping) -> None:
        self.queues = queues
        self.home = home
        self.mapping = mapping
        self.client = queues.client
        self.prefix = queues.prefix
        ours = f"sluice:{{{mapping.system}}}"
        #: Job id to 'home|queue|score|member': what was taken out of RQ and is not home yet.
        self.claimed_key = f"{ours}:claimed"
        #: Job ids that are done with: what a cleanup may export and delete.
        self.returned_key = f"{ours}:returned"
        self._serializer = cast(Serializer, mapping.target.serializer)
        #: Jobs whose id does not follow from their task's: made by an older RQ, which took any.
        self._job_ids: dict[str, str] = {}
        #: Epoch seconds: what failed from then on failed because its worker was being ended. 0: nothing did.
        self.since = 0.0
        self._left: deque[bytes] | None = None
        self._orphans: Iterator[list[bytes]] | None = None

    def fit(self) -> Sequence[Check]:
        """See the port: the schema that the tasks go back to."""
        return self.home.fit()

    # -- the stamp ----------------------------------------------------------------------------------------------

    def adopt(self, lease: Lease, before: Sequence[str]) -> str:
        """Make the stamp in Redis that of this run, so that movers of the run before can write nothing more.

        :param before: generations that may be there: of the run that is taken back
        :returns: 'ours', 'adopted', or 'missing' when Redis had no stamp (it was emptied, or nothing was ever moved)
        :raises GenerationMismatch: the stamp of another run is there
        :raises LeaseLost: a newer token is there
        """
        answer = cast(bytes, self._call(scripts.ADOPT, lease, [lease.run_id, *[b for b in before if b]]))
        word = answer.decode()
        if word == "foreign":
            raise GenerationMismatch(
                "the stamp of another run is there.",
                where=f"{place(self.client)}, key {self.queues.generation_key}",
                next_step="look at playbooks/status.yml: which run does Redis belong to?",
            )
        return word

    # -- claim --------------------------------------------------------------------------------------------------

    def claim(self, lease: Lease, limit: int) -> Claim:
        """See the port. First what an earlier attempt took and did not bring home."""
        found = self._claim_left(lease, limit)
        for word, home in _PLACES.items():
            for queue in self.queues.queues():
                while len(found) < limit:
                    arguments = [
                        f"{self.prefix}:job:",
                        self.claimed_key,
                        self._key(word, queue),
                        "list" if word in _LISTS else "zset",
                        min(_JOBS_PER_CALL, limit - len(found)),
                        word,
                        queue,
                    ]
                    taken, *jobs = self._call(scripts.CLAIM, lease, arguments)
                    found += self._found(jobs, home, queue)
                    if not taken:
                        break
        if len(found) < limit:
            found += self._claim_orphans(lease, limit - len(found))
        return self._read(found)

    def _key(self, word: str, queue: str) -> str:
        """RQ's key of a list or registry of a queue."""
        if word == "intermediate":
            return f"{self.prefix}:queue:{queue}:intermediate"
        return f"{self.prefix}:{word}:{queue}"

    def _claim_left(self, lease: Lease, limit: int) -> list[_Found]:
        """What lies in our hash from before this process began."""
        if self._left is None:
            with speaking(self.client):
                self._left = deque(key for key, _ in self.client.hscan_iter(self.claimed_key, count=_KEYS_PER_SCAN))
        found: list[_Found] = []
        while self._left and len(found) < limit:
            ids = [self._left.popleft() for _ in range(min(_JOBS_PER_CALL, len(self._left), limit - len(found)))]
            answer = self._call(scripts.LOOK, lease, [f"{self.prefix}:job:", self.claimed_key, *ids])
            for entry in answer:
                if entry[1] is None:  # done with meanwhile
                    continue
                word, queue, score = (part.decode() for part in entry[1].split(b"|", 3)[:3])
                home = Home.ORPHAN if word == _ORPHAN else _PLACES[word]
                found.append(_Found(self.queues.name(entry[0]), home, queue, float(score or 0), entry[2:]))
        return found

    def _claim_orphans(self, lease: Lease, limit: int) -> list[_Found]:
        """Jobs that live nowhere: a worker died after it had taken them."""
        if self._orphans is None:
            self._orphans = self._hashes()
        found: list[_Found] = []
        for ids in self._orphans:
            for start in range(0, len(ids), _JOBS_PER_CALL):
                arguments = [
                    f"{self.prefix}:job:",
                    self.claimed_key,
                    self.returned_key,
                    *ids[start : start + _JOBS_PER_CALL],
                ]
                found += self._found(self._call(scripts.CLAIM_ORPHANS, lease, arguments), Home.ORPHAN, "")
            if len(found) >= limit:
                break
        else:
            self._orphans = None
        return found

    def _hashes(self) -> Iterator[list[bytes]]:
        """Ids of job hashes of the mapping's queues that nobody has claimed or done with, some at a time."""
        ours = {name.encode() for name in self.queues.queues()}
        start = len(f"{self.prefix}:job:")
        cursor = 0
        while True:
            with speaking(self.client):
                cursor, keys = cast(
                    "tuple[int, list[bytes]]",
                    self.client.scan(cursor, match=f"{self.prefix}:job:*", count=_KEYS_PER_SCAN, _type="hash"),
                )
                if keys:
                    pipe = self.client.pipeline(transaction=False)
                    ids = [key[start:] for key in keys]
                    pipe.smismember(self.returned_key, ids)
                    pipe.hmget(self.claimed_key, ids)
                    for key in keys:
                        pipe.hget(key, "origin")
                    done, claimed, *origins = pipe.execute()
                    fresh = [
                        job_id
                        for job_id, over, ours_now, origin in zip(ids, done, claimed, origins, strict=True)
                        if not over and ours_now is None and origin in ours
                    ]
                    if fresh:
                        yield fresh
            if cursor == 0:
                return

    def _found(self, answer: Any, home: Home, queue: str) -> list[_Found]:
        return [_Found(self.queues.name(entry[0]), home, queue, float(entry[1] or 0), entry[2:]) for entry in answer]

    def _read(self, found: Sequence[_Found]) -> Claim:
        """Jobs to tasks. What cannot be read says so in its meta: where it goes is still for its row to decide."""
        homes = [self._home(job) for job in found]
        errors = self._errors([job.id for job, home in zip(found, homes, strict=True) if home is Home.FAILED])
        return Claim([self._task(job, home, errors.get(job.id)) for job, home in zip(found, homes, strict=True)], ())

    def _home(self, job: _Found) -> Home:
        status, ended = job.fields[0], job.fields[-1]
        if status is None:
            return Home.BODILESS
        home = job_home(job.home, status.decode(errors="replace"))
        if home is Home.FAILED and self.since and (epoch(ended) or 0.0) >= self.since:
            # Its worker was ended, or locked out, by this very run: RQ's word for that is no failure of the task.
            return Home.ORPHAN
        return home

    def _errors(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The last line of the error of each job that RQ gave up, where it kept one."""
        if not job_ids:
            return {}
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.xrevrange(cast(Any, f"{self.prefix}:results:".encode() + self.queues.raw(job_id)), count=1)
                pipe.hget(cast(Any, self.queues.job_key(job_id)), "exc_info")
            answers = [of_a_key(answer) for answer in pipe.execute(raise_on_error=False)]
        found: dict[str, str] = {}
        for job_id, results, old in zip(job_ids, answers[::2], answers[1::2], strict=True):
            said = result_error(results[0][1]) if results else None
            said = said or JobFields.from_hash({b"exc_info": old or b""}).exc_info
            if said:
                found[job_id] = said
        return found

    def _task(self, job: _Found, home: Home, error: str | None) -> Task:
        status, origin, data, retries_left, meta, _ = job.fields
        found = [(FOUND, home.value)]
        if status is not None and home in _ENDED and status not in _ENDED_WORDS:
            said = "".join(c if c.isprintable() else "?" for c in status[:40].decode(errors="replace"))
            found.append((ASTRAY, f"among the {home} ones at the target, says '{said}' itself, and has no row"))
        task_id, args = job.id, cast("tuple[object, ...]", ())
        try:
            task_id = self._task_id(job.id, meta)
            if data is not None and home not in (Home.FINISHED, Home.CANCELLED):
                args = self._arguments(data)
        except UnreadablePayload as unreadable:
            found.append((UNREADABLE, f"its payload cannot be read: {unreadable.reason}"))
        if error:
            found.append((ERROR, "".join(c if c.isprintable() else "?" for c in error[:300])))
        if job.id != job_id_for(self.mapping.system, task_id):
            self._job_ids[task_id] = job.id
        eta = job.score if home is Home.SCHEDULED and job.score > 0 else None
        if eta is not None and eta > _LAST_TIME:
            found.append((UNREADABLE, f"it is scheduled for a time that no calendar has (epoch {eta:g})"))
            eta = None
        named = (origin or b"").decode(errors="replace")
        return Task(
            task_id,
            job.id,
            named if named in self.queues.queues() else job.queue,
            args,
            0.0,  # the row knows when it was made
            eta,
            0,
            int(retries_left) + 1 if retries_left is not None and _RETRIES.match(retries_left) else 0,
            tuple(found),
        )

    def _arguments(self, data: bytes) -> tuple[object, ...]:
        """What the mapping's function is called with.

        :raises UnreadablePayload: also when it is another function, or called by name or on an object
        """
        payload = read_payload(data, self._serializer)
        if payload.function != self.mapping.target.function:
            raise UnreadablePayload(f"it calls {payload.function[:200]}, which the mapping does not know")
        if payload.instance is not None or payload.kwargs:
            raise UnreadablePayload("it is called on an object, or with named arguments, which no row has a word for")
        return payload.args

    def _job_of(self, task_id: str) -> str:
        """The id of the job that was claimed for a task."""
        return self._job_ids.get(task_id) or job_id_for(self.mapping.system, task_id)

    def _task_id(self, job_id: str, meta: bytes | None) -> str:
        """The task's own id; where the target could not take it, it lies in the meta."""
        if meta is None or not _DERIVED.match(job_id):
            return job_id
        fields = JobFields.from_hash({b"meta": meta}, job_id=job_id, serializer=self._serializer)
        found = (fields.meta or {}).get("sluice_task_id")
        # What anybody can write there counts only where the id follows from it.
        known = isinstance(found, str) and job_id_for(self.mapping.system, found) == job_id
        return str(found) if known else job_id

    # -- release ------------------------------------------------------------------------------------------------

    def release(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> Released:
        """See the port: the commit is the table's. A kill before the last line leaves what a later claim finds over."""
        released = self.home.release(lease, tasks, digests, batch)
        self._done(lease, [task.job_id for task in tasks])
        return released

    def hold(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """See the port."""
        held = self.home.hold(lease, ids, reason)
        self._done(lease, [self._job_of(task_id) for task_id in ids])
        return held

    def leave(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """See the port: the jobs are remainders of tasks that need nothing any more."""
        return self._done(lease, [self._job_of(task_id) for task_id in ids])

    def _done(self, lease: Lease, job_ids: Sequence[str]) -> int:
        count = 0
        for start in range(0, len(job_ids), 1000):
            chunk = [self.queues.raw(job_id) for job_id in job_ids[start : start + 1000]]
            count += int(self._call(scripts.DONE, lease, [self.claimed_key, self.returned_key, *chunk]))
        return count

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
        """Undo before the first release: rows and jobs as they were; returns how many jobs lie where they lay."""
        self.home.put_back(lease)
        count = 0
        with speaking(self.client):
            entries = list(self.client.hscan_iter(self.claimed_key, count=_KEYS_PER_SCAN))
        # Claims take from the head; putting back from the last to the first at the head restores the order.
        entries.sort(key=lambda item: int(item[1].rsplit(b"|", 1)[-1] or 0), reverse=True)
        for start in range(0, len(entries), 500):
            flat = [part for item in entries[start : start + 500] for part in item]
            count += int(self._call(scripts.PUT_BACK, lease, [f"{self.prefix}:", self.claimed_key, *flat]))
        left = [job_id.encode("utf-8", "surrogateescape") for job_id in self.returned()]
        for start in range(0, len(left), 500):
            arguments = [f"{self.prefix}:", self.returned_key, int(time.time()), *left[start : start + 500]]
            count += int(self._call(scripts.UNLEAVE, lease, arguments))
        return count

    # -- reading ------------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Jobs in RQ's lists and registries that have not ended, and those that are claimed."""
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=False)
            for word in _UNFINISHED:
                for queue in self.queues.queues():
                    key = self._key(word, queue)
                    _ = pipe.llen(key) if word in _LISTS else pipe.zcard(key)
            pipe.hlen(self.claimed_key)
            return sum(int(number) for number in pipe.execute())

    def returned(self) -> Iterator[str]:
        """The manifest: job ids that are done with. Bytes that are no UTF-8 are lone surrogates, as in the archive."""
        with speaking(self.client):
            for member in self.client.sscan_iter(self.returned_key, count=_KEYS_PER_SCAN):
                yield member.decode("utf-8", "surrogateescape")

    def census(self) -> Iterator[Sighting]:
        """See the port."""
        return self.queues.census()

    def counts(self) -> dict[str, dict[str, int]]:
        """See the port: jobs by queue and home."""
        counts: dict[str, dict[str, int]] = {}
        with speaking(self.client):
            for queue in self.queues.queues():
                for word, home in _PLACES.items():
                    key = self._key(word, queue)
                    number = self.client.llen(key) if word in _LISTS else self.client.zcard(key)
                    if number:
                        found = counts.setdefault(queue, {})
                        found[home] = found.get(home, 0) + number
        return counts

    def in_hand(self, processes: int) -> Sequence[str]:
        """See the port. A worker of RQ's takes a job out of its queue in one step."""
        return ()

    def clear(self, lease: Lease) -> int:
        """Delete our two keys once the manifest is exported and purged; returns how many there were."""
        return int(self._call(scripts.CLEAR, lease, [self.claimed_key, self.returned_key]))

    def _call(self, source: str, lease: Lease, arguments: Sequence[Any]) -> Any:
        try:
            return self.queues.call(source, lease, arguments)
        except GenerationMismatch as error:
            raise GenerationMismatch(
                error.what,
                where=error.where,
                next_step="run the same command again: what the rows say brings their tasks home without Redis.",
            ) from error
