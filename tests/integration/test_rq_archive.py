"""Jobs in every home that RQ has: kept in a file byte for byte, compared, deleted by manifest, and nothing else."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from ansible.module_utils.sluice.adapters import redis_connect
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.rq_archive import Exported, RqArchive, fields_of
from ansible.module_utils.sluice.core.errors import GenerationMismatch, LeaseLost, StoreError
from ansible.module_utils.sluice.core.tasks import Lease
from rq import Queue, Retry, SimpleWorker
from rq.executions import prepare_execution
from rq.group import Group
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.rate_limit import RateLimit
from rq.registry import CanceledJobRegistry, ScheduledJobRegistry
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer
from rq.worker.base import WorkerStatus

from stores_fixture import load_mapping

pytestmark = pytest.mark.real
#: Sets in which all applications under a prefix have entries.
SHARED = {"rq:queues", "rq:workers", "rq:groups", "rq:rl-keys"}
LEASE = Lease("captions", "run-1", "tester", 7, "stamp-1")


@dataclass
class Scene:
    """Another application's jobs, and ours, in one Redis under one prefix."""

    client: redis.Redis
    archive: RqArchive
    theirs: dict[bytes, bytes] = field(default_factory=dict)  # their keys as they were before ours came
    homes: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # our job id -> its homes
    living: list[SimpleWorker] = field(default_factory=list)
    dead: SimpleWorker | None = None

    def all_keys(self) -> set[bytes]:
        """Every key but ours of Sluice's."""
        return {key for key in self.client.scan_iter() if not key.startswith(b"sluice:")}

    def dump(self) -> dict[bytes, bytes]:
        """Every key with its exact content; what sets share with us is compared apart."""
        found = {}
        for key in self.all_keys():
            value = cast("bytes | None", self.client.dump(key))
            if key.decode() not in SHARED and value is not None:
                found[key] = value
        return found


def queue(client: redis.Redis, name: str) -> Queue:
    return Queue(name, connection=client, serializer=JSONSerializer)


def worker(client: redis.Redis, name: str, *names: str) -> SimpleWorker:
    return SimpleWorker([queue(client, one) for one in names], connection=client, serializer=JSONSerializer, name=name)


def begin(who: SimpleWorker, job: Job) -> str:
    """Start a job as a worker does, and leave it there; returns the execution's id."""
    execution = prepare_execution(who, job)
    who.execution = execution
    who.prepare_job_execution(job)
    who.set_state(WorkerStatus.BUSY)
    return str(execution.id)


def fill(client: redis.Redis, name: str, who: SimpleWorker, tag: str) -> dict[str, list[tuple[str, str]]]:
    """Jobs of one queue in every home; returns their ids with the homes they should be found in."""
    at = queue(client, name)
    homes: dict[str, list[tuple[str, str]]] = {}

    def made(word: str, *places: str, **options: Any) -> Job:
        job_id = f"{tag}-{word}"
        homes[job_id] = [(place, name) for place in places]
        return at.enqueue("operator.add", 20, 22, job_id=job_id, **options)

    made("finished", "finished", result_ttl=5000)
    at.enqueue("operator.truediv", 1, 0, job_id=f"{tag}-failed")
    homes[f"{tag}-failed"] = [("failed", name)]
    SimpleWorker([at], connection=client, serializer=JSONSerializer, name=f"{tag}-burst").work(
        burst=True, logging_level="CRITICAL"
    )
    made("canceled", "canceled").cancel()
    made("orphan")
    client.lrem(at.key, 0, f"{tag}-orphan")
    started = made("started", "wip", retry=Retry(max=2, interval=[1, 2]))
    client.lrem(at.key, 0, started.id)
    begin(who, started)
    parent = made("queued", "queue", meta={"user": "ü", "bytes": [1, None]})
    made("twice", "queue", "queue")
    client.rpush(at.key, f"{tag}-twice")
    made("deferred", "deferred", depends_on=[parent, started])
    made("chained", "deferred", depends_on=f"{tag}-deferred")
    at.enqueue_in(timedelta(hours=1), "operator.add", 1, 2, job_id=f"{tag}-scheduled")
    homes[f"{tag}-scheduled"] = [("scheduled", name)]
    made("intermediate", "intermediate")
    client.lrem(at.key, 0, f"{tag}-intermediate")
    client.rpush(at.intermediate_queue_key, f"{tag}-intermediate")
    IntermediateQueue(at.key, client).set_first_seen(f"{tag}-intermediate")
    Group(client, f"{tag}-group").enqueue_many(
        at, [Queue.prepare_data("operator.add", (1, 2), job_id=f"{tag}-grouped")]
    )
    homes[f"{tag}-grouped"] = [("queue", name)]
    made("limited", "queue", rate_limit=RateLimit(f"{tag}-limit", 1))
    made("waiting", rate_limit=RateLimit(f"{tag}-limit", 1))
    client.rpush(at.key, f"{tag}-bodiless")
    homes[f"{tag}-bodiless"] = [("queue", name)]
    client.zadd(f"rq:wip:{name}", {f"{tag}-old": time.time() + 90})  # as RQ 1 wrote it
    homes[f"{tag}-old"] = [("wip", name)]
    client.set(f"rq:clean_registries:{name}", 1, ex=899)
    return homes


@pytest.fixture
def scene(redis_url: str) -> Iterator[Scene]:
    client = redis_connect.connect(redis_url)
    queues = RqQueues(client, load_mapping())
    made = Scene(client, RqArchive(queues))
    theirs = worker(client, "their-worker", "mailer")
    theirs.register_birth()
    fill(client, "mailer", theirs, "mail")
    scheduler = RQScheduler(["mailer"], client, name="their-scheduler")
    scheduler.acquire_locks()
    scheduler.register_birth()
    client.hset("rq2:job:other-prefix", mapping={"origin": "high", "status": "queued"})
    client.rpush("rq2:queue:high", "other-prefix")
    client.hset("rq:job:elsewhere", mapping={"origin": "highest", "status": "queued", "data": b"\x00"})
    client.rpush("rq:queue:highest", "elsewhere")
    client.zadd("rq:scheduler:scheduled_jobs", {"of-rq-scheduler": 1.0})
    client.set("unrelated", "high")
    made.theirs = made.dump()

    living = worker(client, "living", "high", "normal", "low", "urgent")
    living.register_birth()
    made.living = [living]
    dead = worker(client, "dead", "high")
    dead.register_birth()
    made.dead = dead
    made.homes = fill(client, "high", dead, "ours") | fill(client, "low", dead, "slow")
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    client.hset("rq:worker:dead", "last_heartbeat", long_ago.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    # One whose hash has expired, and one that said that it ended.
    client.sadd("rq:workers", "rq:worker:expired")
    client.sadd("rq:workers:high", "rq:worker:expired")
    ended = worker(client, "ended", "high")
    ended.register_birth()
    ended.register_death()
    ours = RQScheduler(["high", "low"], client, name="our-scheduler")
    ours.acquire_locks()
    ours.register_birth()
    queues.stamp(LEASE)
    yield made
    client.close()


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as file:
        return [json.loads(line) for line in file]


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    return {line["job"]: line for line in lines(path) if "job" in line}


def untouched(scene: Scene) -> None:
    """What was there before ours is there, key by key, byte by byte."""
    now = scene.dump()
    assert {key: now.get(key) for key in scene.theirs} == scene.theirs
    assert {b"rq:queue:mailer"} <= cast("set[bytes]", scene.client.smembers("rq:queues"))
    assert scene.client.sismember("rq:workers", "rq:worker:their-worker")
    assert scene.client.sismember("rq:groups", "mail-group") and scene.client.sismember("rq:rl-keys", "mail-limit")


def test_every_job_is_exported_with_each_home_and_every_byte(scene: Scene, tmp_path: Path) -> None:
    before = scene.dump()
    beats: list[int] = []
    done = scene.archive.export(None, tmp_path / "jobs.gz", lambda: beats.append(1))
    kept = jobs(tmp_path / "jobs.gz")
    assert {job_id: [(home["place"], home["queue"]) for home in line["homes"]] for job_id, line in kept.items()} == (
        scene.homes
    )
    for job_id, line in kept.items():
        assert fields_of(line) == scene.client.hgetall(f"rq:job:{job_id}")
    assert [job_id for job_id, line in kept.items() if line["hash"] is None] == [
        "ours-bodiless", "ours-old", "slow-bodiless", "slow-old",
    ]  # fmt: skip
    # Order, times, links, executions and results are kept as well.
    queued = cast("list[bytes]", scene.client.lrange("rq:queue:high", 0, -1))
    by_position = sorted(
        (int(home["at"]), job_id)
        for job_id, line in kept.items()
        for home in line["homes"]
        if (home["place"], home["queue"]) == ("queue", "high")
    )
    assert [job_id for _, job_id in by_position] == [member.decode() for member in queued]
    [scheduled] = kept["ours-scheduled"]["homes"]
    assert float(scheduled["at"]) == scene.client.zscore("rq:scheduled:high", "ours-scheduled")
    [execution] = kept["ours-started"]["executions"]
    assert kept["ours-started"]["homes"][0]["member"] == f"ours-started:{execution['id']}"
    assert fields_of(execution) == scene.client.hgetall(f"rq:execution:ours-started:{execution['id']}")
    assert kept["ours-deferred"]["dependencies"] == ["ours-queued", "ours-started"]
    assert kept["ours-queued"]["dependents"] == ["ours-deferred"]
    [(entry, fields)] = cast("list[tuple[bytes, Any]]", scene.client.xrange("rq:results:ours-failed"))
    [result] = kept["ours-failed"]["results"]
    assert result["id"] == entry.decode() and fields_of({"hash": result["fields"]}) == fields
    assert 0 < kept["ours-finished"]["ttl_ms"] <= 5_000_000 and kept["ours-queued"]["ttl_ms"] == -1
    # The file: complete, private, and as the end says; nothing was written to Redis.
    assert stat.S_IMODE((tmp_path / "jobs.gz").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.gz"]
    assert done == scene.archive.reread(tmp_path / "jobs.gz")
    assert (done.jobs, done.bodiless) == (len(scene.homes) - 4, 4)
    assert list(scene.archive.archived_ids(tmp_path / "jobs.gz")) == sorted(scene.homes)
    assert list(scene.archive.differing(tmp_path / "jobs.gz")) == []
    assert beats
    assert scene.dump() == before


def test_only_the_jobs_asked_for_are_exported(scene: Scene, tmp_path: Path) -> None:
    done = scene.archive.export(iter(["ours-started", "never-was", "ours-twice", "ours-twice"]), tmp_path / "some.gz")
    kept = jobs(tmp_path / "some.gz")
    assert list(kept) == ["never-was", "ours-started", "ours-twice"]
    assert kept["never-was"]["hash"] is None and kept["never-was"]["homes"] == []
    assert len(kept["ours-twice"]["homes"]) == 2
    assert (done.jobs, done.bodiless) == (2, 1)


def test_ids_and_fields_that_are_no_text_come_back_as_they_were(scene: Scene, tmp_path: Path) -> None:
    fields = {b"status": b"queued", b"\xff\x00": bytes(range(256)), b"origin": b"high"}
    scene.client.hset(b"rq:job:odd\xff\n\x00id", mapping=cast("dict[Any, Any]", fields))
    path = tmp_path / "odd.gz"
    scene.archive.export(None, path)
    [odd] = [job_id for job_id in scene.archive.archived_ids(path) if job_id.startswith("odd")]
    assert fields_of(jobs(path)[odd]) == fields
    assert list(scene.archive.differing(path)) == []
    assert scene.archive.purge(LEASE, [odd]).jobs == 1
    assert not scene.client.exists(b"rq:job:odd\xff\n\x00id")


def test_an_archive_is_never_written_over(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "jobs.gz"
    scene.archive.export(["ours-queued"], path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="there already"):
        scene.archive.export(None, path)
    assert path.read_bytes() == before
    with pytest.raises(StoreError, match="cannot be written: No such file"):
        scene.archive.export(None, tmp_path / "nowhere" / "jobs.gz")


def test_a_half_written_archive_has_no_name(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "jobs.gz"

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scene.archive.export(None, path, interrupted)
    with pytest.raises(StoreError, match="there is no archive"):
        scene.archive.reread(path)
    assert scene.archive.export(None, path).jobs == len(scene.homes) - 4


def rewritten(path: Path, change: Any) -> Path:
    """A copy of an archive whose lines were changed, as gzip as valid as before."""
    content = [json.dumps(line, separators=(",", ":")) for line in change(lines(path))]
    copy = path.with_name("changed.gz")
    copy.write_bytes(gzip.compress("".join(f"{line}\n" for line in content).encode()))
    return copy


def test_a_damaged_archive_is_refused(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "jobs.gz"
    scene.archive.export(None, path)
    whole = path.read_bytes()
    assert scene.archive.reread(rewritten(path, lambda found: found)).lines > 20
    for changed, said in (
        (lambda found: found[:-1], "its end is missing"),
        (lambda found: [*found[:3], *found[4:]], "its lines, jobs, sha256 differ"),
        (lambda found: [*found[:3], {**found[3], "hash": {"status": "AAAA"}}, *found[4:]], "its sha256 differ"),
        (lambda found: [*found, found[1]], "something follows its end"),
        (lambda found: [*found, []], "no record"),
        (lambda found: [{**found[0], "prefix": "rq2"}, *found[1:]], "no archive of ours: prefix is 'rq2'"),
    ):
        with pytest.raises(StoreError, match=said):
            scene.archive.reread(rewritten(path, changed))
    for number, damage in enumerate(
        (whole[:-40], whole[: len(whole) // 2], b"", b"no gzip", whole[:900] + bytes([whole[900] ^ 0xFF]) + whole[901:])
    ):
        broken = tmp_path / f"broken{number}.gz"
        broken.write_bytes(damage)
        with pytest.raises(StoreError, match="damaged"):
            scene.archive.reread(broken)


def test_what_changed_in_redis_since_is_named(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "jobs.gz"
    scene.archive.export(None, path)
    scene.client.hset("rq:job:ours-queued", "status", "started")
    scene.client.hset("rq:job:slow-bodiless", "status", "queued")
    scene.client.sadd("rq:job:ours-started:dependents", "one-more")
    scene.client.xadd("rq:results:ours-failed", {"type": "1"})
    scene.client.delete("rq:job:ours-twice", "rq:results:slow-failed")  # gone is gone
    assert list(scene.archive.differing(path)) == ["ours-failed", "ours-queued", "ours-started", "slow-bodiless"]


def test_a_purge_leaves_no_key_of_ours_and_touches_no_other(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "jobs.gz"
    scene.archive.export(None, path)
    new = {key.decode() for key in scene.all_keys()} - {key.decode() for key in scene.theirs}
    new -= {"rq:rl:ours-limit", "rq:rl:slow-limit"}  # the settings of a limit name nobody
    # What names us before: each key that came with ours, and the sets that all share.
    assert set(scene.archive.leftovers(scene.homes)) | SHARED == new | SHARED
    assert set(scene.archive.leftovers(scene.homes)) >= {"rq:queues", "rq:workers"}

    purged = scene.archive.purge(LEASE, scene.archive.archived_ids(path), workers_dead=True)
    assert scene.archive.leftovers(scene.homes) == []
    untouched(scene)
    assert {key.decode() for key in scene.all_keys()} == {key.decode() for key in scene.theirs} | SHARED
    assert scene.client.smembers("rq:queues") == {b"rq:queue:mailer"}
    assert scene.client.smembers("rq:workers") == {b"rq:worker:their-worker"}
    assert scene.client.smembers("rq:groups") == {b"mail-group"}
    assert scene.client.smembers("rq:rl-keys") == {b"mail-limit"}
    assert purged.jobs == len(scene.homes) - 4
    assert purged.others == []
    assert purged.counts["queues"] == 2 and purged.counts["schedulers"] == 1 and purged.counts["executions"] == 4
    # A second time there is nothing to do.
    assert scene.archive.purge(LEASE, scene.homes, workers_dead=True).counts == {}
    untouched(scene)


def test_without_proof_only_what_is_plainly_dead_goes(scene: Scene) -> None:
    client = scene.client
    both = worker(client, "both", "mailer", "high")
    both.register_birth()
    client.hset("rq:worker:both", "death", "2026-01-01T00:00:00.000000Z")
    purged = scene.archive.purge(LEASE, scene.homes)
    assert purged.counts["workers alive"] == 1 and purged.counts["schedulers alive"] == 1
    assert client.exists("rq:worker:living", "rq:scheduler:our-scheduler", "rq:scheduler-lock:high") == 3
    assert client.smembers("rq:workers:high") == {b"rq:worker:living"}
    assert client.exists("rq:worker:dead", "rq:worker:dead:executions", "rq:worker:ended") == 0
    # It serves another application too: its own keys are not ours to delete.
    assert client.exists("rq:worker:both") and client.sismember("rq:workers:mailer", "rq:worker:both")
    left = scene.archive.leftovers(scene.homes)
    assert [key for key in left if "worker" not in key and "scheduler" not in key] == []
    assert "rq:worker:living" in left and "rq:worker:both" in left


def test_a_job_of_another_queue_is_let_be_and_named(scene: Scene) -> None:
    scene.client.rpush("rq:queue:high", "elsewhere")  # astray in a list of ours
    scene.archive.purge(LEASE, [])  # dead workers go, whatever the manifest says
    before = scene.dump()
    purged = scene.archive.purge(LEASE, ["mail-queued", "elsewhere", "mail-started"])
    assert purged.others == ["elsewhere", "mail-queued", "mail-started"] and purged.jobs == 0
    assert scene.dump() == before
    untouched(scene)


def test_a_job_of_theirs_that_waits_for_one_of_ours_is_told(scene: Scene) -> None:
    queue(scene.client, "mailer").enqueue("operator.add", 1, 2, job_id="mail-late", depends_on="ours-queued")
    assert scene.archive.purge(LEASE, ["ours-queued"]).counts["jobs of other queues that waited for one of these"] == 1
    assert scene.client.hget("rq:job:mail-late", "status") == b"deferred"


def test_only_what_the_manifest_names_is_deleted(scene: Scene) -> None:
    before = scene.dump()
    named = {"ours-started", "slow-twice"}
    scene.archive.purge(LEASE, named)
    now = scene.dump()
    for job_id in set(scene.homes) - named:
        key = f"rq:job:{job_id}".encode()
        assert now.get(key) == before.get(key)
    lists = [
        b"rq:queue:high",
        b"rq:queue:high:intermediate",
        b"rq:deferred:high",
        b"rq:failed:low",
        b"rq:scheduled:low",
    ]
    assert {key: now[key] for key in lists} == {key: before[key] for key in lists}
    assert scene.client.lpos("rq:queue:low", "slow-twice") is None
    assert scene.client.sismember("rq:queues", "rq:queue:low")
    assert [m for m in scene.client.zrange("rq:wip:high", 0, -1) if m.startswith(b"ours-started")] == []


def test_a_wrong_token_or_stamp_deletes_nothing(scene: Scene) -> None:
    before = scene.dump()
    with pytest.raises(LeaseLost, match="token 6"):
        scene.archive.purge(replace(LEASE, token=6), scene.homes)
    with pytest.raises(GenerationMismatch):
        scene.archive.purge(replace(LEASE, generation="stamp-2"), scene.homes)
    with pytest.raises(LeaseLost):
        scene.archive.purge(replace(LEASE, token=6), [], workers_dead=True)
    assert scene.dump() == before


def many(client: redis.Redis, number: int) -> list[str]:
    """Plain queued jobs, quickly."""
    pipe = client.pipeline(transaction=False)
    ids = [f"bulk-{at:06}" for at in range(number)]
    for job_id in ids:
        pipe.hset(f"rq:job:{job_id}", mapping={"origin": "normal", "status": "queued", "data": "x" * 100})
    pipe.rpush("rq:queue:normal", *ids)
    pipe.sadd("rq:queues", "rq:queue:normal")
    pipe.execute()
    return ids


@pytest.mark.parametrize("calls", [1, 5, 6, 12])
def test_killed_in_the_middle_the_same_purge_goes_on(scene: Scene, redis_url: str, tmp_path: Path, calls: int) -> None:
    path = tmp_path / "jobs.gz"
    ids = many(scene.client, 1000)
    done = scene.archive.export(None, path)
    child = os.fork()
    if child == 0:
        try:
            archive = RqArchive(RqQueues(redis_connect.connect(redis_url), load_mapping()))
            beats = itertools.count(1)
            archive.purge(
                LEASE, archive.archived_ids(path),
                beat=lambda: os.kill(os.getpid(), signal.SIGKILL) if next(beats) == calls else None,
            )  # fmt: skip
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = sum(1 for _ in scene.client.scan_iter("rq:job:bulk-*"))
    assert left == 1000 if calls < 6 else 0 < left < 1000  # the lists come first, with a call each
    assert scene.archive.leftovers(scene.homes) != []
    untouched(scene)
    # The resumed run finds the archive as good as it was, and nothing in Redis that it has not.
    assert scene.archive.reread(path) == done
    assert list(scene.archive.differing(path)) == []
    scene.archive.purge(replace(LEASE, token=8), scene.archive.archived_ids(path), workers_dead=True)
    assert scene.archive.leftovers([*scene.homes, *ids]) == []
    untouched(scene)


def test_long_lists_are_gone_through_in_small_steps(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = many(scene.client, 300)
    scene.client.rpush("rq:queue:normal", *ids[:10])  # some of them twice
    monkeypatch.setattr("ansible.module_utils.sluice.adapters.rq_archive._ENTRIES_PER_CALL", 3000)
    beats: list[int] = []
    purged = scene.archive.purge(LEASE, ids[::2], beat=lambda: beats.append(1))
    assert purged.jobs == 150 and purged.counts["entries of queues"] == 155
    assert len(beats) > 6  # in steps of 100 it would be three
    left = cast("list[bytes]", scene.client.lrange("rq:queue:normal", 0, -1))
    assert [one.decode() for one in left] == [*ids[1::2], *ids[1:10:2]]


def test_an_archive_of_another_kind_of_prefix_matches_itself_only(redis_url: str, tmp_path: Path) -> None:
    """A prefix may hold braces and dots; as a pattern it must not reach others."""
    client = redis_connect.connect(redis_url)
    mapping = load_mapping()
    mapping = replace(mapping, target=replace(mapping.target, key_prefix="r[qx]"))
    for prefix in ("rq", "r[qx]"):
        client.hset(f"{prefix}:job:one-{prefix[1]}", mapping={"origin": "high", "status": "queued"})
    archive = RqArchive(RqQueues(client, mapping))
    archive.queues.stamp(LEASE)
    done: Exported = archive.export(None, tmp_path / "jobs.gz")
    assert done.jobs == 1 and list(archive.archived_ids(tmp_path / "jobs.gz")) == ["one-["]
    assert archive.leftovers() == ["r[qx]:job:one-["]
    archive.purge(LEASE, ["one-[", "one-q"])
    assert archive.leftovers() == [] and client.exists("rq:job:one-q")


def test_registries_are_known_to_rq_by_these_names() -> None:
    """The words in keys are RQ's own; a new version that changes them is noticed here."""
    client = redis.Redis()
    assert CanceledJobRegistry("q", connection=client).key == "rq:canceled:q"
    assert ScheduledJobRegistry("q", connection=client).key == "rq:scheduled:q"
    assert RQScheduler.get_locking_key("q") == "rq:scheduler-lock:q"
    assert IntermediateQueue("rq:queue:q", client).get_first_seen_key("a") == "rq:queue:q:intermediate:first_seen:a"
