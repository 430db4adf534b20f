"""RQ as the target of a run.

The hash of a job is RQ's own: a prototype of the installed RQ per queue and batch, of which few fields vary. Reads are
raw commands, since RQ's own reads clean up as they go.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, cast
from zlib import adler32, compress

import redis
from redis.exceptions import NoScriptError, ResponseError
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer, PickleSerializer

from ..core.errors import GenerationMismatch, LeaseLost, StagesGone, StoreError
from ..core.mapping import TaskMapping
from ..core.tasks import Home, Lease, Sighting, Staged, Task, job_name
from ..core.verdicts import Check
from . import rq_scripts
from .redis_connect import place, speaking
from .rq_payload import epoch

#: Fields that RQ changes in the life of a job; the digest leaves them out.
_MUTABLE = frozenset(
    {
        "status",
        "started_at",
        "ended_at",
        "last_heartbeat",
        "worker_name",
        "retries_left",
        "enqueued_at",
        "group_id",
        "meta",
    }
)
_VARYING = ("created_at", "data", "description")
#: Redis serves nobody else during one Lua call: 100 jobs are two or three milliseconds.
_JOBS_PER_CALL = 100
#: Payloads up to this size (bytes) are kept uncompressed within their zlib stream.
_STORED = 200
_CHUNK = 5000

REGISTRIES = {
    "wip": Home.STARTED,
    "scheduled": Home.SCHEDULED,
    "deferred": Home.DEFERRED,
    "ready": Home.DEFERRED,
    "finished": Home.FINISHED,
    "failed": Home.FAILED,
    "canceled": Home.CANCELLED,
}


class RqQueues:
    """See :class:`..ports.stores.TargetEnd`."""

    def __init__(self, client: redis.Redis, mapping: TaskMapping) -> None:
        self.client = client
        self.mapping = mapping
        self.target = mapping.target
        self.prefix = mapping.target.key_prefix
        self.serializer = JSONSerializer if mapping.target.serializer == "json" else PickleSerializer
        ours = f"sluice:{{{mapping.system}}}"
        self.generation_key, self.token_key, self.marker_key, self.batch_key, self.run_key = (
            f"{ours}:{word}" for word in ("generation", "token", "marker", "batch", "run")
        )
        self._keys = [self.generation_key, self.token_key, self.marker_key]
        self._shas: dict[str, str] = {}
        self._activated = 0
        #: The varying fields of the batch staged last: confirming it needs them again.
        self._sent: dict[str, tuple[Task, tuple[bytes, bytes, bytes]]] = {}
        self._prototypes: dict[tuple[str, int], tuple[list[str], list[bytes], list[str]]] = {}
        #: Ids that were read and that go by another name: no text, too long, unprintable.
        self._odd: dict[str, bytes] = {}

    # -- ids ----------------------------------------------------------------------------------------------------

    def name(self, raw: bytes) -> str:
        """What an id that was read from Redis is called everywhere else; :meth:`raw` finds the way back."""
        name = job_name(raw)
        if len(name) > 40 and name[-41] == "~":
            self._odd[name] = raw
        return name

    def raw(self, name: str) -> bytes:
        """The id in Redis of what :meth:`name` named."""
        found = self._odd.get(name)
        return name.encode() if found is None else found

    def job_key(self, name: str) -> bytes:
        """The key of a job's hash."""
        return f"{self.prefix}:job:".encode() + self.raw(name)

    # -- the stamp ----------------------------------------------------------------------------------------------

    def stamp(self, lease: Lease) -> bool:
        """Write the run's random generation and its token; True when they were not there.

        :raises GenerationMismatch: another run's stamp is there
        """
        with speaking(self.client):
            found = cast("bytes | None", self.client.get(self.generation_key))
            if found is not None and found.decode() == lease.generation:
                return False
            if found is not None:
                raise GenerationMismatch(
                    "the stamp of another run is there.",
                    where=f"{place(self.client)}, key {self.generation_key}",
                    next_step="finish or clean up that run first (playbooks/status.yml, playbooks/cleanup.yml).",
                )
            pipe = self.client.pipeline(transaction=True)
            pipe.set(self.generation_key, lease.generation)
            pipe.set(self.token_key, lease.token)
            pipe.set(self.batch_key, 0)
            pipe.set(self.run_key, lease.run_id)
            pipe.execute()
        return True

    def read_stamp(self) -> tuple[str, int, int]:
        """Generation ('' when missing), mirrored token and last activated batch."""
        with speaking(self.client):
            values = cast("list[bytes | None]", self.client.mget(self.generation_key, self.token_key, self.batch_key))
        generation, token, batch = ("" if v is None else v.decode() for v in values)
        return generation, int(token or 0), int(batch or 0)

    def restamp(self, lease: Lease, last_batch: int) -> None:
        """Write the stamp anew after a loss, by an operator's decision (recover).

        :param last_batch: the ledger's highest batch; recovery answers for all of them, so a resume need not
        """
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=True)
            pipe.set(self.generation_key, lease.generation)
            pipe.set(self.token_key, lease.token)
            pipe.set(self.batch_key, last_batch)
            pipe.set(self.run_key, lease.run_id)
            pipe.execute()

    def clear_stamp(self) -> int:
        """Delete our keys (cleanup, or the undo of an unfinished run); returns how many there were."""
        with speaking(self.client):
            return int(self.client.delete(*self._keys, self.batch_key, self.run_key))

    def our_keys(self) -> list[str]:
        """The names of our keys that exist: the manifest of a cleanup."""
        with speaking(self.client):
            return [key for key in (*self._keys, self.batch_key, self.run_key) if self.client.exists(key)]

    def last_batch(self) -> int:
        """See the port."""
        self._activated = self.read_stamp()[2]
        return self._activated

    def run_id_of_server(self) -> str:
        """The server's own run id: another one means that it was restarted."""
        with speaking(self.client):
            return str(self.client.info("server")["run_id"])

    def call(self, source: str, lease: Lease | None, arguments: Sequence[Any]) -> Any:
        """Run one of our scripts under a lease (None: one that only reads).

        :raises GenerationMismatch: the stamp of the lease's run is not there
        :raises LeaseLost: a newer token is there
        """
        head = [lease.generation, lease.token] if lease else ["", 0]
        with speaking(self.client):
            try:
                sha = self._shas.get(source)
                if sha is None:
                    sha = self._shas[source] = self.client.script_load(source)
                try:
                    return self.client.execute_command("EVALSHA", sha, len(self._keys), *self._keys, *head, *arguments)
                except NoScriptError:
                    return self.client.execute_command("EVAL", source, len(self._keys), *self._keys, *head, *arguments)
            except ResponseError as error:
                if "SLUICE " not in str(error):
                    raise  # not our script's word: full memory or a full disk, which `speaking` explains
                raise self._refusal(str(error), lease) from error

    def _refusal(self, text: str, lease: Lease | None) -> Exception:
        if "SLUICE generation" in text:
            return GenerationMismatch(
                "the stamp of this run is missing or different: Redis was emptied, restored or replaced.",
                where=f"{place(self.client)}, key {self.generation_key}",
                next_step="run playbooks/recover.yml: it places again what the witness shows unstarted.",
            )
        if "SLUICE token" in text and lease is not None:
            return LeaseLost(
                f"our token {lease.token} is lower than the mirrored one ({text.rsplit(' ', 1)[-1]}). "
                "Nothing was written.",
                where=place(self.client),
                next_step="look at playbooks/status.yml: another run has taken over, or the database was restored "
                "from a backup.",
            )
        if "SLUICE behind" in text:
            return StoreError(
                f"batch {self._activated} was activated and is not there any more: "
                "Redis was restarted without its last writes.",
                where=place(self.client),
                next_step="run the same command again: it places again what was lost and has not started.",
            )
        return StoreError(text, where=place(self.client))

    # -- staging ------------------------------------------------------------------------------------------------

    def stage(self, lease: Lease, tasks: Sequence[Task]) -> Staged:
        """See the port. One Lua call per queue and 100 jobs writes the hashes and answers with their digests."""
        found: dict[str, str] = {}
        foreign: list[str] = []
        marked: list[str] = []
        sent: dict[str, tuple[Task, tuple[bytes, bytes, bytes]]] = {}
        groups: dict[tuple[str, int, bool], list[Task]] = defaultdict(list)
        for task in tasks:
            groups[task.queue, self._retries_left(task), bool(task.meta)].append(task)
        for (queue, retries, with_meta), members in groups.items():
            names, shared, digest_fields = self._prototype(queue, retries)
            varying = len(_VARYING) + with_meta
            if with_meta:
                names = [*names[: -len(_VARYING)], "meta", *_VARYING]
            head = [f"{self.prefix}:job:", len(names), varying, len(digest_fields), *names, *shared, *digest_fields]
            for start in range(0, len(members), _JOBS_PER_CALL):
                chunk = members[start : start + _JOBS_PER_CALL]
                arguments: list[Any] = head.copy()
                for task in chunk:
                    values = self._varying(task)
                    sent[task.job_id] = (task, values)
                    arguments.append(task.job_id)
                    if with_meta:
                        arguments.append(self.serializer.dumps(dict(task.meta)))
                    arguments.extend(values)
                for task, answer in zip(chunk, self.call(rq_scripts.STAGE, lease, arguments), strict=True):
                    if answer == b"M":
                        marked.append(task.job_id)
                    elif answer == b"F":
                        foreign.append(task.job_id)
                    else:
                        found[task.job_id] = answer.decode()
        self._sent = sent
        return Staged(found, foreign, marked)

    def digests(self, tasks: Sequence[Task]) -> dict[str, str]:
        """See the port: SHA-1 over the digest fields, joined by 0x1f, in the prototype's order."""
        result = {}
        heads: dict[tuple[str, int], bytes] = {}
        sha1 = hashlib.sha1
        sent = self._sent
        for task in tasks:
            key = (task.queue, self._retries_left(task))
            head = heads.get(key)
            if head is None:
                names, shared, fields = self._prototype(*key)
                fixed = dict(zip(names, shared, strict=False))
                head = heads[key] = b"\x1f".join(fixed[f] for f in fields if f not in _VARYING)
            kept = sent.get(task.job_id)
            # What was sent a moment ago need not be made again; any other task is.
            values = kept[1] if kept is not None and kept[0] is task else self._varying(task)
            result[task.job_id] = sha1(head + b"\x1f" + b"\x1f".join(values), usedforsecurity=False).hexdigest()
        return result

    def _retries_left(self, task: Task) -> int:
        """RQ counts runs after the first; the mapping counts all attempts."""
        if self.target.retries != "carry":
            return self.target.retry_max or -1
        return max(0, task.attempts_allowed - task.attempts_used - 1)

    def _prototype(self, queue: str, retries: int) -> tuple[list[str], list[bytes], list[str]]:
        """Field names (varying ones last), shared values, and the fields of the digest in their order."""
        known = self._prototypes.get((queue, retries))
        if known is not None:
            return known
        job = Job.create(
            self.target.function,
            args=(),
            connection=self.client,
            id="prototype",
            origin=queue,
            timeout=self.target.timeouts.get(queue, self.target.default_timeout),
            result_ttl=self.target.result_ttl,
            failure_ttl=self.target.failure_ttl,
            serializer=self.serializer,
        )
        if retries >= 0:
            job.retries_left = retries
            if self.target.retry_intervals:
                job.retry_intervals = list(self.target.retry_intervals)
        mapping = job.to_dict(include_meta=True)
        mapping["status"] = "created"
        names = [name for name in mapping if name not in _VARYING]
        shared = [_bytes(mapping[name]) for name in names]
        names.extend(_VARYING)
        fields = [name for name in names if name not in _MUTABLE]
        self._prototypes[queue, retries] = (names, shared, fields)
        return self._prototypes[queue, retries]

    def _varying(self, task: Task) -> tuple[bytes, bytes, bytes]:
        """The fields that differ from the prototype, as RQ writes them. A re-keyed id goes along as a comment."""
        created = datetime.fromtimestamp(task.created, UTC).isoformat("T", "microseconds")[:26] + "Z"
        payload = self.serializer.dumps((self.target.function, None, task.args, {}))
        text = (
            f"{self.target.function}({', '.join(map(repr, task.args))})"
            if not self.target.opaque
            else self.target.function
        )
        if task.meta:
            text = f"{text} [{task.id}]"
        return created.encode(), deflated(payload), text[:500].encode()

    def discard(self, lease: Lease, job_ids: Sequence[str]) -> int:
        """See the port."""
        gone = 0
        for start in range(0, len(job_ids), _CHUNK):
            gone += int(self.call(rq_scripts.DISCARD, lease, [f"{self.prefix}:job:", *job_ids[start : start + _CHUNK]]))
        return gone

    def supersede(self, lease: Lease, job_ids: Sequence[str]) -> Sequence[str]:
        """See the port. A job that has ended, or of which only the marker is left."""
        freed: list[str] = []
        for start in range(0, len(job_ids), _JOBS_PER_CALL):
            arguments = [f"{self.prefix}:", *job_ids[start : start + _JOBS_PER_CALL]]
            freed += [job_id.decode() for job_id in self.call(rq_scripts.SUPERSEDE, lease, arguments)]
        return freed

    def activate(self, lease: Lease, tasks: Sequence[Task], batch: int) -> int:
        """See the port. One Lua call: status, marker and push or schedule together, for the whole batch.

        :raises StagesGone: staged jobs are gone; the others of the batch were activated
        """
        now = datetime.now(UTC)
        arguments: list[Any] = [
            f"{self.prefix}:job:",
            f"{self.prefix}:queue:",
            f"{self.prefix}:scheduled:",
            f"{self.prefix}:queues",
            f"{now:%Y-%m-%dT%H:%M:%S.%f}Z",
            batch,
            self.batch_key,
            self._activated,
        ]
        for task in tasks:
            arguments += (task.job_id, task.queue, "" if task.eta is None else repr(float(task.eta)))
        answer = self.call(rq_scripts.ACTIVATE, lease, arguments)
        if len(answer) > 1:
            raise StagesGone(int(answer[0]), [job_id.decode() for job_id in answer[1:]], place(self.client))
        self._activated = batch
        return int(answer[0])

    def unmark(self, lease: Lease, job_ids: Sequence[str]) -> int:
        """Take markers back for jobs that are to be placed again after a loss (recover)."""
        gone = 0
        for start in range(0, len(job_ids), _CHUNK):
            gone += int(self.call(rq_scripts.UNMARK, lease, list(job_ids[start : start + _CHUNK])))
        return gone

    def clear(self, lease: Lease, jobs: Sequence[tuple[str, str]]) -> None:
        """Remove what is left of jobs that live nowhere any more, before they are placed again; input (job id, queue).

        Only ever called with the target's workers fenced: an entry without a hash, or a hash without an entry, is
        worth nothing to them.
        """
        if self.read_stamp()[1] > lease.token:
            raise self._refusal(f"SLUICE token {self.read_stamp()[1]}", lease)
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=True)
            for job_id, queue in jobs:
                pipe.lrem(f"{self.prefix}:queue:{queue}", 0, job_id)
                pipe.lrem(f"{self.prefix}:queue:{queue}:intermediate", 0, job_id)
                pipe.zrem(f"{self.prefix}:scheduled:{queue}", job_id)
                pipe.delete(f"{self.prefix}:job:{job_id}")
            pipe.execute()

    def marked(self, job_ids: Sequence[str]) -> Sequence[bool]:
        """See the port."""
        if not job_ids:
            return []
        with speaking(self.client):
            return [bool(v) for v in cast("list[int]", self.client.smismember(self.marker_key, list(job_ids)))]

    def stored_digests(self, tasks: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Digests of jobs as they lie in Redis now; input (job id, queue); '' when the hash is gone."""
        result: dict[str, str] = {}
        _, _, fields = self._prototype(
            self.queues()[0], 0 if self.target.retries == "carry" else self.target.retry_max or -1
        )
        for start in range(0, len(tasks), _CHUNK):
            ids = [job_id for job_id, _ in tasks[start : start + _CHUNK]]
            arguments = [f"{self.prefix}:job:", len(fields), *fields, *ids]
            for job_id, answer in zip(ids, self.call(rq_scripts.DIGEST, None, arguments), strict=True):
                result[job_id] = answer.decode()
        return result

    # -- census -------------------------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        """The queues of the mapping, in its order."""
        names = list(dict.fromkeys([*self.target.queues.values(), self.target.default_queue]))
        return [name for name in names if name]

    def all_queues(self) -> list[str]:
        """The mapping's queues and every other queue RQ knows under the prefix."""
        with speaking(self.client):
            known = cast("set[bytes]", self.client.smembers(f"{self.prefix}:queues"))
        prefix = f"{self.prefix}:queue:"
        names = {key.decode(errors="backslashreplace").removeprefix(prefix) for key in known}
        return [*self.queues(), *sorted(names - set(self.queues()))]

    def census(self) -> Iterator[Sighting]:
        """See the port. Yields ``hash`` sightings with the status as ``where``, and one sighting per home."""
        with speaking(self.client):
            for queue in self.queues():
                yield from self._list(f"{self.prefix}:queue:{queue}", Home.QUEUED, queue)
                yield from self._list(f"{self.prefix}:queue:{queue}:intermediate", Home.INTERMEDIATE, queue)
                for word, home in REGISTRIES.items():
                    for member, _ in self.client.zscan_iter(f"{self.prefix}:{word}:{queue}", count=_CHUNK):
                        yield Sighting(self.name(_job_of(member) if word == "wip" else member), home, queue)
            yield from self._hashes()

    def _list(self, key: str, home: Home, queue: str) -> Iterator[Sighting]:
        """A list from its tail to its head, so that what workers take from the head meanwhile hides nothing."""
        end = -1
        while True:
            chunk = cast("list[bytes]", self.client.lrange(key, end - _CHUNK + 1, end))
            for member in chunk:
                yield Sighting(self.name(member), home, queue)
            if len(chunk) < _CHUNK:
                return
            end -= _CHUNK

    def _hashes(self) -> Iterator[Sighting]:
        start = len(f"{self.prefix}:job:")
        batch: list[bytes] = []
        for key in self.client.scan_iter(match=f"{self.prefix}:job:*", count=2000, _type="hash"):
            batch.append(key)
            if len(batch) >= 2000:
                yield from self._statuses(batch, start)
                batch = []
        yield from self._statuses(batch, start)

    def _statuses(self, keys: Sequence[bytes], start: int) -> Iterator[Sighting]:
        if not keys:
            return
        ours = {name.encode() for name in self.queues()}
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.hmget(key, "status", "origin")
        for key, (status, origin) in zip(keys, pipe.execute(), strict=True):
            if status is not None and (origin is None or origin in ours):
                yield Sighting(self.name(key[start:]), "hash", status.decode(errors="replace"))

    def look(self, job_id: str) -> list[Sighting]:
        """Every sighting of one job, read at this moment in one transaction."""
        raw: Any = self.raw(job_id)
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=True)
            pipe.hget(cast(Any, self.job_key(job_id)), "status")
            names = self.queues()
            for queue in names:
                pipe.lpos(f"{self.prefix}:queue:{queue}", raw, count=0)
                pipe.lpos(f"{self.prefix}:queue:{queue}:intermediate", raw, count=0)
                pipe.zrange(f"{self.prefix}:wip:{queue}", 0, -1)
                for word in REGISTRIES:
                    if word != "wip":
                        pipe.zscore(f"{self.prefix}:{word}:{queue}", raw)
            # A key of another type is no job; RQ's own lists and registries of another type are an error.
            status, *others = pipe.execute(raise_on_error=False)
            for answer in others:
                if isinstance(answer, Exception):
                    raise answer
            status, answers = of_a_key(status), iter(others)
        found = []
        if status is not None:
            found.append(Sighting(job_id, "hash", status.decode(errors="replace")))
        for queue in names:
            found += [Sighting(job_id, Home.QUEUED, queue) for _ in next(answers) or ()]
            found += [Sighting(job_id, Home.INTERMEDIATE, queue) for _ in next(answers) or ()]
            if any(_job_of(member) == raw for member in next(answers)):
                found.append(Sighting(job_id, Home.STARTED, queue))
            for word, home in REGISTRIES.items():
                if word != "wip" and next(answers) is not None:
                    found.append(Sighting(job_id, home, queue))
        return found

    def sides(self, job_ids: Sequence[str]) -> dict[str, int]:
        """How many of these ids have, or had, a job here ('target'), and how many do not ('source')."""
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.exists(f"{self.prefix}:job:{job_id}")
            here = sum(int(answer) for answer in pipe.execute())
        return {"target": here, "source": len(job_ids) - here}

    def depths(self) -> dict[str, int]:
        """Queued and scheduled jobs by queue."""
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=False)
            for queue in self.queues():
                pipe.llen(f"{self.prefix}:queue:{queue}")
                pipe.zcard(f"{self.prefix}:scheduled:{queue}")
            answers = pipe.execute()
        return {queue: int(answers[2 * i]) + int(answers[2 * i + 1]) for i, queue in enumerate(self.queues())}

    def queued(self) -> int:
        """Jobs that a worker could begin now; those of a later time are left out."""
        with speaking(self.client):
            return sum(int(self.client.llen(f"{self.prefix}:queue:{queue}")) for queue in self.queues())

    def shortest_life(self, job_ids: Sequence[str]) -> float | None:
        """Seconds until the first of these jobs that are here expires; None when none is, or none expires."""
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.pttl(self.job_key(job_id))
            lives = [int(answer) / 1000 for answer in pipe.execute() if int(answer) >= 0]
        return min(lives, default=None)

    def probe(self) -> object:
        """Enqueue ``operator.add(20, 22)`` on a queue of its own, run it by a real RQ worker here, remove every trace.

        :returns: the answer, or None when there was none
        """
        name = f"sluice-probe-{secrets.token_hex(4)}"
        with speaking(self.client):
            self._may_hear(f"{name}-worker")
            queue = Queue(name, connection=self.client, serializer=self.serializer)
            job: Job = queue.enqueue("operator.add", 20, 22, job_timeout=20, result_ttl=60)
            try:
                worker = SimpleWorker(
                    [queue], connection=self.client, serializer=self.serializer, name=f"{name}-worker"
                )
                worker.work(burst=True, logging_level="CRITICAL", with_scheduler=False)
                latest = job.latest_result()
                return latest.return_value if latest else None
            finally:
                job.delete()
                queue.delete()
                words = ("finished", "failed", "wip", "workers", "clean_registries")
                self.client.delete(*[f"{self.prefix}:{word}:{name}" for word in words])

    def _may_hear(self, worker: str) -> None:
        """Listen on a worker's channel: RQ's own listening is in a thread whose refusal nobody sees.

        :raises redis.exceptions.NoPermissionError: the user may not
        """
        with self.client.pubsub() as channel:
            channel.subscribe(f"{self.prefix}:pubsub:{worker}")
            channel.get_message(timeout=5.0)

    def worker_checks(self, now: float, least: int, hosts: Sequence[str] = ()) -> list[Check]:
        """Live workers by their heartbeats, in total, for each queue of the mapping and on each host. Reads only.

        :param hosts: host names, as ``hostname`` prints them, each of which must have one
        """
        listening: dict[str, int] = dict.fromkeys(self.queues(), 0)
        silent = dict.fromkeys(hosts)
        live = 0
        with speaking(self.client):
            for key in sorted(cast("set[bytes]", self.client.smembers(f"{self.prefix}:workers"))):
                values = self.client.hmget(key, "last_heartbeat", "queues", "death", "hostname")
                heartbeat, queues, death, host = (
                    v.decode(errors="replace") if isinstance(v, bytes) else "" for v in values
                )
                heard = epoch(heartbeat.encode())
                # A busy worker is heard of at least every 90 s, an idle one every 480 s (RQ 2 and 3); one whose
                # heartbeat cannot be read is not known to live.
                if heard is None or death or now - heard > 490:
                    continue
                live += 1
                silent.pop(host, None)
                for queue in queues.split(","):
                    if queue in listening:
                        listening[queue] += 1
        empty = [queue for queue, number in listening.items() if not number]
        advice = "start the target's workers on every queue of the mapping."
        on_hosts = Check.of(
            "every host has a worker",
            not silent,
            f"none is heard of from {', '.join(silent)}" if silent else f"heard of from all {len(hosts)}",
            "see on the host why its workers end, or take it out of queue_worker_hosts.",
        )
        return [
            *([on_hosts] if hosts else []),
            Check.of("live RQ workers", live >= least, f"{live} heard of, at least {least} wanted", advice),
            Check.of(
                "every queue has a worker",
                not empty,
                f"without a worker: {', '.join(empty)}" if empty else f"{len(listening)} queues served",
                advice,
            ),
        ]

    def durable(self, *, deadline: float = 10.0) -> str:
        """Wait until everything written so far is on the server's disk; returns how it is known, or raises.

        Redis 7.2 and later answer WAITAOF; before, an AOF that has been fsynced since is shown by the pending
        counters after more than a second (appendfsync everysec).

        :raises StoreError: AOF is off, its last write failed, or no fsync was seen in ``deadline`` seconds
        """
        with speaking(self.client):
            info = self.client.info("persistence")
            if not info.get("aof_enabled"):
                raise StoreError(
                    "AOF is off: what was activated is not on disk.",
                    where=place(self.client),
                    next_step="set appendonly yes.",
                )
            version = tuple(int(p) for p in str(self.client.info("server")["redis_version"]).split(".")[:2])
            if version >= (7, 2):
                local, _ = cast("list[int]", self.client.execute_command("WAITAOF", 1, 0, int(deadline * 1000)))
                if local >= 1:
                    return "WAITAOF 1"
                raise StoreError(
                    f"no AOF fsync in {deadline:.0f} s.",
                    where=place(self.client),
                    next_step="look at the disk of the Redis host.",
                )
            until = time.monotonic() + deadline
            begun = time.monotonic()
            while time.monotonic() < until:
                info = self.client.info("persistence")
                settled = time.monotonic() - begun > 1.2 and info.get("aof_last_write_status") == "ok"
                if (
                    settled
                    and int(info.get("aof_pending_bio_fsync", 1)) == 0
                    and int(info.get("aof_buffer_length", 1)) == 0
                ):
                    return "AOF everysec, nothing pending after 1.2 s"
                time.sleep(0.1)
        raise StoreError(
            f"no AOF fsync seen in {deadline:.0f} s.",
            where=place(self.client),
            next_step="look at the disk of the Redis host.",
        )


def deflated(payload: bytes) -> bytes:
    """A zlib stream of the payload, as RQ keeps it. Short ones are stored: a compressor costs more than it saves."""
    size = len(payload)
    if size > _STORED:
        return compress(payload, 1)
    return b"\x78\x01\x01%b%b%b%b" % (
        size.to_bytes(2, "little"),
        (size ^ 0xFFFF).to_bytes(2, "little"),
        payload,
        adler32(payload).to_bytes(4, "big"),
    )


def _job_of(member: bytes) -> bytes:
    """The id in an entry of the registry of started jobs, id:execution, or the entry itself (RQ before 2)."""
    head, colon, _ = member.rpartition(b":")
    return head if colon else member


def of_a_key(answer: Any) -> Any:
    """An answer, or None where the key is of another type than a job has; any other error is raised."""
    if isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE"):
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return str(getattr(value, "value", value)).encode()
    return str(value).encode()
