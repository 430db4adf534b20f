"""Jobs of the mapping's queues kept in a file, compared with Redis, and deleted from it by manifest.

The archive is gzipped JSON lines: a head, one line per job with every byte that RQ keeps of it, one per queue and per
worker, and an end with the number of lines and the SHA-256 of all before it. Bytes are base64, ids are text (bytes
that are no UTF-8 as lone surrogates, which come back as they were). Written once; a run that is resumed finds it.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import math
import os
import sqlite3
import time
import zlib
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from ..core.errors import StoreError
from ..core.tasks import Lease
from . import rq_scripts
from .redis_connect import speaking
from .rq import REGISTRIES, RqQueues, of_a_key

_T = TypeVar("_T")

_VERSION = 1
#: Jobs read or compared in one pipeline.
_JOBS_PER_READ = 500
_MEMBERS = 5000
_KEYS_PER_SCAN = 2000
#: Redis serves nobody else during one Lua call: 100 jobs are a few milliseconds.
_JOBS_PER_CALL = 100
#: Each job is looked for in every list, so in one call no more than this many list entries are passed.
_ENTRIES_PER_CALL = 500_000
#: RQ's workers are heard of every 480 s at the latest, its schedulers every 61 s; clocks differ a little.
_WORKER_SILENCE = 490.0
_SCHEDULER_SILENCE = 75.0
_ENTRIES_UNLISTED = 1000
_LISTS = {"queue": "", "intermediate": ":intermediate"}


@dataclass(frozen=True, slots=True)
class Exported:
    """A complete archive: ``jobs`` have a hash, ``bodiless`` ids are mentioned by a queue or asked for and have none.

    ``lines`` counts all lines but the last; ``sha256`` is theirs before compression; ``size`` is the file's, in bytes.
    """

    path: Path
    jobs: int
    bodiless: int
    lines: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge deleted, by kind (``jobs``, ``entries of queues``, ...; ``workers alive`` were let be).

    ``others`` are ids of the manifest whose job belongs to a queue that is not the mapping's: not touched.
    """

    counts: Mapping[str, int]
    others: Sequence[str]

    @property
    def jobs(self) -> int:
        """Job hashes deleted."""
        return self.counts.get("jobs", 0)


def _unheard() -> None:
    """No one wants to be called."""


class RqArchive:
    """Export, comparison and deletion of the jobs of one mapping. Meant for when RQ's workers are fenced."""

    def __init__(self, queues: RqQueues) -> None:
        self.queues = queues
        self.client = queues.client
        self.prefix = queues.prefix
        self._p = self.prefix.encode()
        self._names = queues.queues()
        self._ours = {name.encode() for name in self._names}
        ours = f"sluice:{{{queues.mapping.system}}}"
        self._claimed_key = f"{ours}:claimed"
        self._own_sets = (queues.marker_key, f"{ours}:returned")

    # -- export -------------------------------------------------------------------------------------------------

    def export(self, job_ids: Iterable[str] | None, path: Path, beat: Callable[[], None] = _unheard) -> Exported:
        """Write the archive, mode 0600, durable before it has its name. Memory does not grow with the jobs.

        :param job_ids: which jobs; None: each that is in a queue or registry of the mapping, or came from one
        :param beat: called between batches, to renew a lease
        :raises StoreError: the archive is there already (what it holds may be gone from Redis by now), Redis does not
            answer, or the file cannot be written
        """
        if path.exists():
            raise StoreError(
                "this archive is there already.",
                where=str(path),
                next_step="read it again and go on with it, or move it away if it is of another run.",
            )
        partial = path.with_name(path.name + ".partial")
        try:
            with _Index() as index:
                self._fill(index, job_ids, beat)
                descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    os.fchmod(descriptor, 0o600)
                    writer = _Writer(file)
                    writer.write(self._head())
                    for batch in _batches(index.jobs(), _JOBS_PER_READ):
                        for line in self._job_lines(batch):
                            writer.write(line)
                        beat()
                    for line in self._queue_lines():
                        writer.write(line)
                    lines, digest = writer.end()
                    file.flush()
                    os.fsync(descriptor)
            size = partial.stat().st_size
            partial.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise StoreError(
                f"the archive cannot be written: {error.strerror or error}.",
                where=str(path),
                next_step="make room or correct the rights there, then run the same command again.",
            ) from error
        return Exported(path, writer.jobs, writer.bodiless, lines, size, digest)

    def _head(self) -> dict[str, object]:
        return {
            "archive": "rq",
            "version": _VERSION,
            "system": self.queues.mapping.system,
            "prefix": self.prefix,
            "serializer": self.queues.target.serializer,
            "queues": self._names,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _fill(self, index: _Index, job_ids: Iterable[str] | None, beat: Callable[[], None]) -> None:
        """Note every home of every job, and which jobs are wanted."""
        for queue in self._names:
            for word, tail in _LISTS.items():
                for start, members in self._list(f"{self.prefix}:queue:{queue}{tail}"):
                    index.homes((m, word, queue, str(start + i), m) for i, m in enumerate(members))
                    beat()
            for word in REGISTRIES:
                for entries in _batches(self._zset(f"{self.prefix}:{word}:{queue}"), _MEMBERS):
                    index.homes((_job_of(m) if word == "wip" else m, word, queue, _number(at), m) for m, at in entries)
                    beat()
        if job_ids is not None:
            for wanted in _batches(job_ids, _MEMBERS):
                index.want(_raw(job_id) for job_id in wanted)
            return
        index.want_all()
        for ids in self._hashes():
            index.want(ids)
            beat()

    def _list(self, key: str) -> Iterator[tuple[int, list[bytes]]]:
        start = 0
        while True:
            with speaking(self.client):
                members = cast("list[bytes]", self.client.lrange(key, start, start + _MEMBERS - 1))
            if not members:
                return
            yield start, members
            start += len(members)

    def _zset(self, key: str) -> Iterator[tuple[bytes, float]]:
        with speaking(self.client):
            yield from self.client.zscan_iter(key, count=_MEMBERS)

    def _scan(self, pattern: str, kind: str | None = None) -> Iterator[list[bytes]]:
        cursor = 0
        while True:
            with speaking(self.client):
                cursor, keys = cast(
                    "tuple[int, list[bytes]]",
                    self.client.scan(
                        cursor, match=f"{_escaped(self.prefix)}:{pattern}", count=_KEYS_PER_SCAN, _type=kind
                    ),
                )
            if keys:
                yield keys
            if cursor == 0:
                return

    def _hashes(self) -> Iterator[list[bytes]]:
        """Ids of job hashes that came from our queues, or do not say from where."""
        start = len(f"{self.prefix}:job:")
        for keys in self._scan("job:*", "hash"):
            origins = self._piped(lambda pipe, key: pipe.hget(key, "origin"), keys)
            yield [
                key[start:] for key, origin in zip(keys, origins, strict=True) if origin is None or origin in self._ours
            ]

    def _piped(self, ask: Callable[[Any, Any], object], things: Iterable[Any]) -> list[Any]:
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=False)
            for thing in things:
                ask(pipe, thing)
            # A key of another type in a job's place has nothing of a job to be kept.
            return [of_a_key(answer) for answer in pipe.execute(raise_on_error=False)] if len(pipe) else []

    def _key(self, word: bytes, job_id: bytes, tail: bytes = b"") -> bytes:
        return b"%b:%b:%b%b" % (self._p, word, job_id, tail)

    def _linked(self, job_id: bytes) -> tuple[bytes, bytes, bytes]:
        """A job's keys beside its hash that live as long: dependents, dependencies, results."""
        return (
            self._key(b"job", job_id, b":dependents"),
            self._key(b"job", b":" + job_id, b":dependencies"),
            self._key(b"results", job_id),
        )

    def _job_lines(self, batch: Sequence[tuple[bytes, list[_Home]]]) -> Iterator[dict[str, object]]:
        """One line per job; most jobs have a hash and nothing else, so that is asked first."""

        def first(pipe: Any, job: tuple[bytes, list[_Home]]) -> None:
            job_id = job[0]
            pipe.hgetall(self._key(b"job", job_id))
            pipe.pttl(self._key(b"job", job_id))
            pipe.hget(self._claimed_key, job_id)
            pipe.exists(*self._linked(job_id), self._key(b"executions", job_id))

        answers = iter(self._piped(first, batch))
        for job_id, homes in batch:
            fields, ttl, claimed, more = next(answers), next(answers), next(answers), next(answers)
            line: dict[str, object] = {
                "job": _text(job_id),
                "hash": {_text(name): _b64(value) for name, value in fields.items()} if fields else None,
                "ttl_ms": ttl if fields else None,
                "homes": [
                    {"place": home.place, "queue": home.queue, "at": home.at}
                    | ({"member": _text(home.member)} if home.member != job_id else {})
                    for home in homes
                ],
            }
            if claimed is not None:
                line["claimed"] = _text(claimed)
            executions = {
                home.member[len(job_id) + 1 :] for home in homes if home.place == "wip" and home.member != job_id
            }
            if more or executions:
                line |= self._details(job_id, executions)
            yield line

    def _details(self, job_id: bytes, known: set[bytes]) -> dict[str, object]:
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=False)
            dependents_key, dependencies_key, results_key = self._linked(job_id)
            pipe.smembers(dependents_key)
            pipe.smembers(dependencies_key)
            pipe.zrange(self._key(b"executions", job_id), 0, -1, withscores=True)
            pipe.xrange(results_key)
            pipe.pttl(results_key)
            dependents, dependencies, scores, results, results_ttl = pipe.execute()
        at = {member: _number(score) for member, score in scores}
        executions = sorted({*at, *known})
        hashes = self._piped(
            lambda pipe, execution: pipe.hgetall(self._key(b"execution", job_id, b":" + execution)), executions
        )
        return {
            "dependents": sorted(map(_text, dependents)),
            "dependencies": sorted(map(_text, dependencies)),
            "executions": [
                {"id": _text(one), "at": at.get(one), "hash": {_text(k): _b64(v) for k, v in fields.items()}}
                for one, fields in zip(executions, hashes, strict=True)
            ],
            "results": [
                {"id": _text(one), "fields": {_text(k): _b64(v) for k, v in fields.items()}} for one, fields in results
            ],
            "results_ttl_ms": results_ttl,
        }

    def _queue_lines(self) -> Iterator[dict[str, object]]:
        workers: set[bytes] = set()
        for queue in self._names:
            with speaking(self.client):
                pipe = self.client.pipeline(transaction=False)
                pipe.sismember(f"{self.prefix}:queues", f"{self.prefix}:queue:{queue}")
                pipe.get(f"{self.prefix}:clean_registries:{queue}")
                pipe.get(f"{self.prefix}:scheduler-lock:{queue}")
                pipe.smembers(f"{self.prefix}:workers:{queue}")
                registered, cleaning, lock, members = pipe.execute()
            workers |= members
            yield {
                "queue": queue,
                "registered": bool(registered),
                "clean_registries": None if cleaning is None else _text(cleaning),
                "scheduler_lock": None if lock is None else _text(lock),
                "workers": sorted(map(_text, members)),
            }
        for key in sorted(workers):
            with speaking(self.client):
                fields = cast("dict[bytes, bytes]", self.client.hgetall(_text(key)))
            yield {"worker": _text(key), "hash": {_text(name): _b64(value) for name, value in fields.items()} or None}

    # -- read again ---------------------------------------------------------------------------------------------

    def reread(self, path: Path) -> Exported:
        """Read the whole archive and compare its numbers and digest with its end.

        :raises StoreError: it is missing, cut off, damaged, or of another system or prefix
        """
        jobs = bodiless = lines = 0
        digest = hashlib.sha256()
        end: object = None
        for raw, line in _read(path):
            if end is not None:
                raise _damaged(path, "something follows its end")
            if "end" in line:
                end = line["end"]
                continue
            digest.update(raw)
            if lines == 0:
                self._is_ours(line, path)
            lines += 1
            if "job" in line:
                jobs, bodiless = (jobs, bodiless + 1) if line.get("hash") is None else (jobs + 1, bodiless)
        if end is None:
            raise _damaged(path, "its end is missing")
        sha256 = digest.hexdigest()
        found: dict[str, object] = {"lines": lines, "jobs": jobs, "bodiless": bodiless, "sha256": sha256}
        if not isinstance(end, dict):
            raise _damaged(path, "its end is no record")
        if end != found:
            wrong = [word for word, value in found.items() if end.get(word) != value]
            raise _damaged(path, f"its {', '.join(wrong)} differ from what its end says")
        return Exported(path, jobs, bodiless, lines, path.stat().st_size, sha256)

    def _is_ours(self, head: dict[str, Any], path: Path) -> None:
        expected = {
            "archive": "rq", "version": _VERSION, "system": self.queues.mapping.system, "prefix": self.prefix,
        }  # fmt: skip
        wrong = [f"{word} is {head.get(word)!r}" for word, value in expected.items() if head.get(word) != value]
        if wrong:
            raise StoreError(
                f"this is no archive of ours: {', '.join(wrong)}.",
                where=str(path),
                next_step="name the archive of this run.",
            )

    def archived_ids(self, path: Path) -> Iterator[str]:
        """The ids in the archive, in its order."""
        return (cast(str, line["job"]) for _, line in _read(path) if "job" in line)

    def differing(self, path: Path) -> Iterator[str]:
        """Ids of which Redis holds a hash, dependency or result now that the archive has not, or has otherwise.

        What is gone from Redis differs in nothing: an interrupted purge, or its time to live, took it.
        """
        for batch in _batches((line for _, line in _read(path) if "job" in line), _JOBS_PER_READ):

            def first(pipe: Any, line: dict[str, Any]) -> None:
                job_id = _raw(line["job"])
                pipe.hgetall(self._key(b"job", job_id))
                pipe.exists(*self._linked(job_id))

            def then(pipe: Any, line: dict[str, Any]) -> None:
                dependents, dependencies, results = self._linked(_raw(line["job"]))
                pipe.smembers(dependents)
                pipe.smembers(dependencies)
                pipe.xrange(results)

            answers = self._piped(first, batch)
            hashes, more = answers[::2], answers[1::2]
            details = iter(self._piped(then, [line for line, linked in zip(batch, more, strict=True) if linked]))
            for line, fields, linked in zip(batch, hashes, more, strict=True):
                covered = not linked or _covers(line, next(details), next(details), next(details))
                if not covered or (fields and fields != fields_of(line)):
                    yield line["job"]

    # -- deletion -----------------------------------------------------------------------------------------------

    def purge(
        self,
        lease: Lease,
        job_ids: Iterable[str],
        *,
        workers_dead: bool = False,
        beat: Callable[[], None] = _unheard,
    ) -> Purged:
        """Delete these jobs with all that RQ keeps of them, then what is left of queues and workers without use.

        Nothing else is touched: a job of another queue is let be and named, entries of ours in sets that others share
        go one by one. May be interrupted and called again.

        :param workers_dead: the caller has proved that no worker or scheduler of these queues lives; otherwise only
            those go that say so or were not heard of for as long as RQ waits
        :raises LeaseLost: a newer token is in Redis
        :raises GenerationMismatch: the stamp of this run is not in Redis
        """
        counts: Counter[str] = Counter()
        others: list[str] = []
        head = [f"{self.prefix}:", len(self._names), *self._names]
        with _Index() as manifest:
            for wanted in _batches(job_ids, _MEMBERS):
                manifest.want(map(_raw, wanted))
            counts["entries of queues"] = self._unlist(lease, manifest, beat)
            waiting = manifest.ids()
            while chunk := list(itertools.islice(waiting, self._at_once())):
                answer = self.queues.call(rq_scripts.PURGE, lease, [*head, *chunk])
                ends = answer.index(b"")
                counts.update(_counted(answer[:ends]))
                others += map(_text, answer[ends + 1 :])
                beat()
        now = time.time()
        head += ["1" if workers_dead else "", _iso(now - _WORKER_SILENCE), _iso(now - _SCHEDULER_SILENCE)]
        for keys in _batches(self._processes(), _JOBS_PER_CALL):
            counts.update(_counted(self.queues.call(rq_scripts.SWEEP, lease, [*head, *keys])))
        counts.update(_counted(self.queues.call(rq_scripts.SWEEP, lease, head)))
        return Purged({kind: number for kind, number in sorted(counts.items()) if number}, others)

    def _unlist(self, lease: Lease, manifest: _Index, beat: Callable[[], None]) -> int:
        """Take the manifest's jobs out of long lists, from the tail, where each is found at once."""
        gone = 0
        for queue in self._names:
            for tail in _LISTS.values():
                key = f"{self.prefix}:queue:{queue}{tail}"
                kept = 0
                while True:
                    # Each removal passes those that stay, behind it.
                    width = max(1, min(_ENTRIES_UNLISTED, _ENTRIES_PER_CALL // (kept + 1)))
                    with speaking(self.client):
                        members = cast("list[bytes]", self.client.lrange(key, -kept - width, -kept - 1))
                    if not members:
                        break
                    chosen = manifest.among(members)
                    named = [member for member in reversed(members) if member in chosen]
                    taken = 0
                    if named:
                        arguments = [f"{self.prefix}:job:", key, len(self._names), *self._names, *named]
                        taken = int(self.queues.call(rq_scripts.UNLIST, lease, arguments))
                        beat()
                    gone += taken
                    kept += len(members) - taken
        return gone

    def _at_once(self) -> int:
        """Jobs per Lua call, fewer when the lists that each is looked for in are long."""
        sizes = self._piped(
            lambda pipe, queue: (
                pipe.llen(f"{self.prefix}:queue:{queue}"),
                pipe.llen(f"{self.prefix}:queue:{queue}:intermediate"),
                pipe.zcard(f"{self.prefix}:wip:{queue}"),
            ),
            self._names,
        )
        entries = sum(map(int, sizes))
        return max(1, min(_JOBS_PER_CALL, _ENTRIES_PER_CALL // max(1, entries)))

    def _processes(self) -> list[bytes]:
        """Keys of workers and schedulers, of ours and others: hashes, and what the sets of our workers name."""
        found: set[bytes] = set()
        for pattern in ("worker:*", "scheduler:*"):
            for keys in self._scan(pattern, "hash"):
                found.update(keys)
        found.update(*self._piped(lambda pipe, queue: pipe.smembers(f"{self.prefix}:workers:{queue}"), self._names))
        return sorted(found)

    # -- what is left -------------------------------------------------------------------------------------------

    def leftovers(self, job_ids: Iterable[str] = ()) -> list[str]:
        """Every key under the prefix that still names one of our queues or a job of ours, sorted. Reads only.

        :param job_ids: jobs known to be ours although their hash is gone; with a set of ours still in Redis (markers,
            what came back), its members are known too
        """
        known = {_raw(job_id) for job_id in job_ids}
        return sorted(_text(key) for keys in self._scan("*") for key in self._ours_among(keys, known))

    def _ours_among(self, keys: list[bytes], known: set[bytes]) -> list[bytes]:
        kinds = self._piped(lambda pipe, key: pipe.type(key), keys)
        start = len(self.prefix) + 1
        jobs = {key: self._job_in_name(key[start:]) for key in keys}
        ours = self._jobs_of_ours({one for one in jobs.values() if one}, known)
        return [
            key
            for key, kind in zip(keys, kinds, strict=True)
            if jobs[key] in ours or self._names_queue(key[start:]) or self._holds(key, kind, known)
        ]

    def _names_queue(self, name: bytes) -> bool:
        word, _, rest = name.partition(b":")
        if word == b"queue":
            return any(rest == q or rest.startswith(q + b":intermediate") for q in self._ours)
        words = {*map(str.encode, REGISTRIES), b"workers", b"clean_registries", b"scheduler-lock"}
        return word in words and rest in self._ours

    def _job_in_name(self, name: bytes) -> bytes:
        """The job that a key belongs to; empty when it belongs to none."""
        word, _, rest = name.partition(b":")
        if word == b"job":
            rest = rest.removesuffix(b":dependents")
            return rest[1:].removesuffix(b":dependencies") if rest.startswith(b":") else rest
        if word == b"execution":
            return _job_of(rest)
        return rest if word in (b"executions", b"results") else b""

    def _holds(self, key: bytes, kind: bytes, known: set[bytes]) -> bool:
        """Whether a set, registry or list mentions a queue, job or worker of ours, or a worker's hash a queue."""
        if kind == b"hash":
            if not key.startswith((b"%b:worker:" % self._p, b"%b:scheduler:" % self._p)):
                return False
            return bool(self._serving([key]))
        readers: dict[bytes, Callable[[str], Iterator[bytes]]] = {
            b"set": lambda name: self.client.sscan_iter(name, count=_MEMBERS),
            b"zset": lambda name: (member for member, _ in self._zset(name)),
            b"list": lambda name: (member for _, members in self._list(name) for member in members),
        }
        reader = readers.get(kind)
        if reader is None:
            return False
        listed = {b"%b:queue:%b" % (self._p, queue) for queue in self._ours}
        with speaking(self.client):
            return any(
                not listed.isdisjoint(members)
                or self._jobs_of_ours({_job_of(member) for member in members} | set(members), known)
                or self._serving([member for member in members if member.startswith(b"%b:worker:" % self._p)])
                for members in _batches(reader(_text(key)), _JOBS_PER_READ)
            )

    def _serving(self, keys: list[bytes]) -> list[bytes]:
        """Those of these workers and schedulers that name a queue of ours."""
        queues = self._piped(lambda pipe, key: pipe.hget(key, "queues"), keys)
        return [key for key, names in zip(keys, queues, strict=True) if names and self._ours & set(names.split(b","))]

    def _jobs_of_ours(self, ids: set[bytes], known: set[bytes]) -> set[bytes]:
        """Those that the caller knows, that a set of ours names, or whose job came from a queue of ours."""
        ours = ids & known
        asked = [one for one in ids - ours if one]
        if not asked:
            return ours
        with speaking(self.client):
            pipe = self.client.pipeline(transaction=False)
            for key in self._own_sets:
                pipe.smismember(key, asked)
            pipe.hmget(self._claimed_key, asked)
            for one in asked:
                pipe.type(self._key(b"job", one))
            answers = pipe.execute()
        flags = [*answers[: len(self._own_sets)], [value is not None for value in answers[len(self._own_sets)]]]
        ours |= {one for at, one in enumerate(asked) if any(flag[at] for flag in flags)}
        kinds = answers[len(self._own_sets) + 1 :]
        hashes = [one for one, kind in zip(asked, kinds, strict=True) if kind == b"hash"]
        origins = self._piped(lambda pipe, one: pipe.hget(self._key(b"job", one), "origin"), hashes)
        return ours | {one for one, origin in zip(hashes, origins, strict=True) if origin in self._ours}


# -- the file -------------------------------------------------------------------------------------------------------


class _Writer:
    def __init__(self, file: BinaryIO) -> None:
        self._file = gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0)
        self._digest = hashlib.sha256()
        self._lines = self.jobs = self.bodiless = 0

    def write(self, line: dict[str, object]) -> None:
        raw = json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._digest.update(raw)
        self._file.write(raw)
        self._lines += 1
        if "job" in line:
            self.jobs += line["hash"] is not None
            self.bodiless += line["hash"] is None

    def end(self) -> tuple[int, str]:
        digest = self._digest.hexdigest()
        end = {"lines": self._lines, "jobs": self.jobs, "bodiless": self.bodiless, "sha256": digest}
        self._file.write(json.dumps({"end": end}, separators=(",", ":")).encode() + b"\n")
        self._file.close()
        return self._lines, digest


def _read(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    try:
        with gzip.open(path, "rb") as file:
            for raw in file:
                line = json.loads(raw)
                if not isinstance(line, dict):
                    raise _damaged(path, "a line is no record")
                yield raw, line
    except FileNotFoundError:
        raise StoreError(
            "there is no archive.", where=str(path), next_step="export the jobs before anything is deleted."
        ) from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(
        f"the archive is damaged: {why}.",
        where=str(path),
        next_step="move it away and export again; nothing may be deleted from Redis on its word.",
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- homes, sorted by job -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Home:
    place: str
    queue: str
    at: str
    member: bytes


class _Index:
    """Jobs and their homes in a nameless database on disk, which sorts them and goes with the connection."""

    def __init__(self) -> None:
        self._all = False
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -8000;"
            "CREATE TABLE wanted (id BLOB PRIMARY KEY) WITHOUT ROWID;"
            "CREATE TABLE homes (id BLOB, place TEXT, queue TEXT, at TEXT, member BLOB);"
            "BEGIN;"
        )

    def __enter__(self) -> _Index:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._base.close()
        if isinstance(error, sqlite3.Error):
            raise StoreError(
                f"the ids of the jobs cannot be kept in a temporary file: {error}.",
                where="the folder for temporary files of this host",
                next_step="make room there (TMPDIR names another folder), then run the same command again.",
            ) from error

    def homes(self, rows: Iterable[tuple[bytes, str, str, str, bytes]]) -> None:
        self._base.executemany("INSERT INTO homes VALUES (?, ?, ?, ?, ?)", rows)

    def want(self, ids: Iterable[bytes]) -> None:
        self._base.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ((job_id,) for job_id in ids))

    def ids(self) -> Iterator[bytes]:
        """The wanted jobs, each once."""
        return (row[0] for row in self._base.execute("SELECT id FROM wanted ORDER BY id"))

    def among(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of these that are wanted."""
        marks = ",".join("?" * len(ids))
        return {row[0] for row in self._base.execute(f"SELECT id FROM wanted WHERE id IN ({marks})", ids)}  # noqa: S608

    def want_all(self) -> None:
        """Want each job that has a home."""
        self._base.execute("INSERT OR IGNORE INTO wanted SELECT id FROM homes")

    def jobs(self) -> Iterator[tuple[bytes, list[_Home]]]:
        """The wanted jobs in the order of their ids, each with its homes."""
        self._base.execute("CREATE INDEX homes_of ON homes (id)")
        rows = self._base.execute(
            "SELECT wanted.id, place, queue, at, member FROM wanted LEFT JOIN homes ON homes.id = wanted.id "
            "ORDER BY wanted.id, homes.rowid"
        )
        for job_id, group in groupby(rows, key=lambda row: cast(bytes, row[0])):
            # A scan may name an entry of a registry twice; two entries of a list differ in their place.
            yield job_id, list(dict.fromkeys(_Home(*row[1:]) for row in group if row[1] is not None))


# -- words ----------------------------------------------------------------------------------------------------------


def _job_of(member: bytes) -> bytes:
    """The job's id in a member of the form id:execution, or the member itself (RQ before 2)."""
    head, colon, _ = member.rpartition(b":")
    return head if colon else member


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def _b64(value: bytes) -> str:
    return b64encode(value).decode()


def _covers(line: dict[str, Any], dependents: set[bytes], dependencies: set[bytes], results: Sequence[Any]) -> bool:
    """Whether a line of an archive has these links and results, each as it is now."""
    kept = {one["id"]: one["fields"] for one in line.get("results", ())}
    return (
        {_text(member) for member in dependents} <= set(line.get("dependents", ()))
        and {_text(member) for member in dependencies} <= set(line.get("dependencies", ()))
        and all(kept.get(_text(one)) == {_text(k): _b64(v) for k, v in fields.items()} for one, fields in results)
    )


def fields_of(line: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The exact hash of a job's line in an archive."""
    return {_raw(name): b64decode(value) for name, value in (line["hash"] or {}).items()}


def _number(score: float) -> str:
    """A score as text: whole ones without a fraction, infinite ones as Redis writes them."""
    return str(int(score)) if math.isfinite(score) and score == int(score) else repr(score)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _counted(answer: Sequence[Any]) -> dict[str, int]:
    return {_text(kind): int(number) for kind, number in zip(answer[::2], answer[1::2], strict=True)}


def _escaped(prefix: str) -> str:
    """The prefix as a pattern that matches itself only."""
    return "".join(f"\\{c}" if c in "*?[]\\^" else c for c in prefix)


def _batches(things: Iterable[_T], size: int) -> Iterator[list[_T]]:
    source = iter(things)
    while batch := list(itertools.islice(source, size)):
        yield batch
