"""Everything RQ can hold comes home, made by RQ itself: each task once, nothing invented, nothing of others touched."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.sluice.adapters.rq_archive import RqArchive
from ansible.module_utils.sluice.core.homecoming import UNSURE, Policy
from rq import Queue, Retry, SimpleWorker
from rq.executions import prepare_execution
from rq.job import Job
from rq.rate_limit import RateLimit
from rq.serializers import JSONSerializer
from rq.worker.base import WorkerStatus

from faults.rollback import Rollback, held, ids, poll_off, row, rows
from faults.scene import QUEUES, Scene
from oracle.journal import Journal
from oracle.judge import Allowances

pytestmark = [pytest.mark.real, pytest.mark.slow]

FUNCTION = "captions.jobs.run_caption"
NO_ROW = "born at the target without a row"


class Rq:
    """RQ's own hand on the jobs of a scene whose backlog was moved."""

    def __init__(self, scene: Scene, count: int, **backlog: Any) -> None:
        self.scene = scene
        self.client = scene.client
        scene.seed(count, **backlog)
        self.order = scene.claim_order()
        scene.move_to_the_end()
        self.free = ids(scene)

    def next(self) -> str:
        """A queued task that the test has not used yet."""
        return self.free.pop(0)

    def queue(self, task_id: str) -> Queue:
        """The queue of a task."""
        return Queue(row(self.scene, task_id).priority, connection=self.client, serializer=JSONSerializer)

    def job(self, task_id: str) -> Job:
        """The job of a task."""
        return Job.fetch(task_id, connection=self.client, serializer=JSONSerializer)

    def anew(self, task_id: str, **options: Any) -> Job:
        """Make the job of a task again, with other options."""
        self.unlist(task_id)
        self.client.delete(f"rq:job:{task_id}")
        options = {"args": (task_id,), **options}
        return self.queue(task_id).enqueue(FUNCTION, job_id=task_id, **options)

    def unlist(self, task_id: str) -> str:
        """Take a job out of its list, which makes an orphan of it."""
        key = self.queue(task_id).key
        assert self.client.lrem(key, 0, task_id) == 1
        return str(key)

    def begin(self, task_id: str) -> None:
        """What a worker leaves that died while it ran the job."""
        self.unlist(task_id)
        who = SimpleWorker(
            [self.queue(task_id)], connection=self.client, serializer=JSONSerializer, name=f"w-{task_id}"
        )
        job = self.job(task_id)
        who.execution = prepare_execution(who, job)
        who.prepare_job_execution(job)
        who.set_state(WorkerStatus.BUSY)

    def runs(self, task_id: str) -> None:
        """What the task function writes first."""
        self.scene.sql(
            "UPDATE caption_tasks SET status = 'running', worker = 'gone', attempts = attempts + 1,"
            " started_at = UTC_TIMESTAMP(6) WHERE id = :id",
            id=task_id,
        )

    def entries(self) -> dict[str, int]:
        """Entries in lists and registries of our queues."""
        found = {}
        for queue in QUEUES:
            for tail in ("", ":intermediate"):
                found[f"queue:{queue}{tail}"] = int(self.client.llen(f"rq:queue:{queue}{tail}"))
            for word in ("scheduled", "deferred", "ready", "wip", "failed", "finished", "canceled"):
                found[f"{word}:{queue}"] = int(self.client.zcard(f"rq:{word}:{queue}"))
        return {key: number for key, number in found.items() if number}


@pytest.fixture
def rq(scene: Scene) -> Rq:
    """Forty moved tasks, some of them with a time."""
    return Rq(scene, 40)


def state(scene: Scene, task_id: str) -> str:
    """Custody and status of a row."""
    found = row(scene, task_id)
    return f"{found.custody} {found.status}"


def broken_worker(scene: Scene) -> None:
    """One of RQ's workers whose database does not answer: its jobs raise, and RQ does what it does then."""
    other = scene.directory / "broken.env"
    other.touch(mode=0o600)
    other.write_text(
        scene.env_file.read_text() + "RQ_DATABASE_URL=mysql+pymysql://nobody:no@127.0.0.1:1/nothing?connect_timeout=1\n"
    )
    arguments = ("faults.queue_worker", "--name", "broken", "--simple", "--burst", *QUEUES)
    process = scene.start(*arguments, environment={"CAPTIONS_ENV_FILE": str(other)})
    assert scene.ending_of_worker(process) == 0, scene.log_of(process)


def second_pass(scene: Scene) -> None:
    """The same command once more changes no row and no mark."""
    before = scene.fingerprint()
    again = Rollback(scene)
    assert [(m.moved, m.held, m.lost) for m in again.bring_home()] == [(0, 0, 0), (0, 0, 0)]
    after = scene.fingerprint()
    assert [before[name] for name in ("caption_tasks", "sluice_task")] == [
        after[name] for name in ("caption_tasks", "sluice_task")
    ]


def test_every_home_of_rq(scene: Scene, rq: Rq) -> None:
    """One job in each of RQ's homes, and each kind of damage, among thirty that simply wait."""
    client, expected, why = rq.client, {}, {}

    def wants(task_id: str, words: str, reason: str = "") -> str:
        expected[task_id] = words
        if reason:
            why[task_id] = reason
        return task_id

    popped = wants(rq.next(), "db queued")
    client.rpush(f"{rq.unlist(popped)}:intermediate", popped)
    waits_for = rq.next()
    wants(waits_for, "db queued")
    wants(deferred := rq.next(), "held queued", "waits at the target for other jobs")
    rq.anew(deferred, depends_on=rq.job(waits_for))
    assert rq.client.zcard(f"rq:deferred:{rq.queue(deferred).name}") == 1
    rq.job(wants(rq.next(), "db cancelled")).cancel()  # by RQ's own word
    by_user = wants(rq.next(), "rq cancelled")  # the row says it; the job still waits
    scene.sql("UPDATE caption_tasks SET status = 'cancelled' WHERE id = :id", id=by_user)
    rq.unlist(wants(rq.next(), "db queued"))  # an orphan that says queued
    created = wants(rq.next(), "db queued")
    rq.unlist(created)
    client.hset(f"rq:job:{created}", "status", "created")
    client.delete(f"rq:job:{wants(rq.next(), 'db queued')}")  # an entry without its hash
    twice = wants(rq.next(), "db queued")
    client.rpush("rq:queue:low", twice)
    client.rpush(rq.queue(twice).key, twice)
    client.rpush("rq:queue:low:intermediate", twice)
    limited = wants(rq.next(), "db queued")
    client.zadd(f"rq:wip:{rq.queue(limited).name}", {f"{limited}:e1": 1})  # popped by a worker that died before fork
    rq.unlist(limited)
    wants(done := rq.next(), "rq completed")
    wants(at_home := rq.next(), "db queued")
    wants(polled := rq.next(), "db running")
    scene.sql("UPDATE caption_tasks SET status = 'completed', caption = 'x' WHERE id = :id", id=done)
    scene.sql("UPDATE caption_tasks SET custody = 'db' WHERE id = :id", id=at_home)
    scene.sql("UPDATE caption_tasks SET custody = 'db', status = 'running' WHERE id = :id", id=polled)
    foreign = wants(rq.next(), "held queued", "it calls mail.send, which the mapping does not know")
    client.hset(f"rq:job:{foreign}", "data", zlib.compress(b'["mail.send", null, ["a"], {}]'))
    garbage = wants(rq.next(), "held queued", "its payload cannot be read")
    client.hset(f"rq:job:{garbage}", "data", b"\x78\x9cgarbage")
    spoiled_and_over = wants(rq.next(), "rq completed")
    client.hset(f"rq:job:{spoiled_and_over}", "data", b"garbage")
    scene.sql("UPDATE caption_tasks SET status = 'completed', caption = 'x' WHERE id = :id", id=spoiled_and_over)
    other_arguments = wants(rq.next(), "held queued", "digests differ")
    client.hset(f"rq:job:{other_arguments}", "data", zlib.compress(json.dumps([FUNCTION, None, ["else"], {}]).encode()))
    normal = Queue("normal", connection=client, serializer=JSONSerializer)
    for born in ("born-1", "born-2"):
        why[normal.enqueue(FUNCTION, born, job_id=born).id] = NO_ROW
    why["born-deferred"] = "waits for other jobs"
    normal.enqueue(FUNCTION, "born-deferred", job_id="born-deferred", depends_on="born-1")
    why["no-hash"] = "an entry at the target without its job, and no row"
    client.rpush("rq:queue:high", "no-hash")
    why["task.1:old"] = NO_ROW  # an id as older RQs took it
    client.rpush("rq:queue:high", "task.1:old")
    client.copy("rq:job:born-1", "rq:job:task.1:old")
    for task_id in rq.free:
        expected[task_id] = "db queued"

    back = Rollback(scene)
    queues, journal = back.bring_home()

    assert {task_id: state(scene, task_id) for task_id in expected} == expected
    reasons = held(scene)
    assert {task_id: why[task_id] for task_id in why if why[task_id] not in reasons.get(task_id, "")} == {}
    assert set(reasons) == set(why)
    assert (queues.held, journal.held, queues.lost) == (len(why), 0, 0)
    assert rq.entries() == {}
    balance = back.balance()
    assert balance.holds, balance.faults
    assert set(back.leaving.returned()) >= {*(set(expected) - {polled}), *why}
    second_pass(scene)


def test_times_are_kept_to_the_second_and_retries_of_rq_wait_for_theirs(scene: Scene) -> None:
    rq = Rq(scene, 30, delayed_share=0.4, delay=3600.0)
    due = {entry.id: entry.available_at for entry in scene.sql("SELECT id, available_at FROM caption_tasks")}
    delayed = {
        entry for ids_ in rq.order.values() for entry in ids_ if due[entry] > datetime.now(UTC).replace(tzinfo=None)
    }
    assert len(delayed) > 5
    tried = [task_id for task_id in rq.free if task_id not in delayed]
    broken_worker(scene)
    scores = {
        member.decode(): score
        for queue in QUEUES
        for member, score in rq.client.zrange(f"rq:scheduled:{queue}", 0, -1, withscores=True)
    }
    assert set(scores) == set(due)
    moved_on = rq.queue(tried[0]).name
    rq.client.zadd(f"rq:scheduled:{moved_on}", {tried[0]: int(scores[tried[0]]) + 900})

    Rollback(scene).bring_home()

    assert rows(scene) == {"db queued": 30}
    now = {entry.id: entry.available_at for entry in scene.sql("SELECT id, available_at FROM caption_tasks")}
    assert {task_id: now[task_id] for task_id in delayed} == {task_id: due[task_id] for task_id in delayed}
    expected = datetime.fromtimestamp(int(scores[tried[0]]) + 900, UTC).replace(tzinfo=None)
    assert now[tried[0]] == expected
    assert all(abs((now[one] - due[one]).total_seconds()) < 60 for one in tried[1:])


def test_failed_in_rq_is_failed_at_home_with_its_error(scene: Scene) -> None:
    rq = Rq(scene, 4)
    for task_id in rq.free:
        rq.client.hset(f"rq:job:{task_id}", "retries_left", 0)
    stopped = rq.free[0]
    broken_worker(scene)
    rq.client.hset(f"rq:job:{stopped}", "status", "stopped")
    assert sum(rq.entries().values()) == 4

    Rollback(scene).bring_home()

    assert rows(scene) == {"db failed": 4}
    for task_id in rq.free:
        error = row(scene, task_id).error
        assert error.startswith("failed at the target: "), error
        assert len(error) > len("failed at the target: ") + 10, error
    assert held(scene) == {}
    second_pass(scene)


def test_what_failed_because_its_worker_was_being_ended_is_no_failed_task(scene: Scene) -> None:
    """RQ puts a job whose horse was killed, or whose account was locked, among the failed ones. We did that to it."""
    scene.seed(6)
    scene.move_to_the_end()
    queued = ids(scene)
    begun = queued[0]
    scene.sql("UPDATE caption_tasks SET status = 'running', attempts = 1, worker = 'w' WHERE id = :id", id=begun)
    back = Rollback(scene)
    now = datetime.now(UTC)
    for number, task_id in enumerate(queued):
        queue = scene.client.hget(f"rq:job:{task_id}", "origin").decode()
        # Half failed a minute before the way back began, half while it ended the workers.
        ended = now - timedelta(minutes=1) if number % 2 else now + timedelta(seconds=1)
        scene.client.lrem(f"rq:queue:{queue}", 0, task_id)
        scene.client.hset(
            f"rq:job:{task_id}", mapping={"status": "failed", "ended_at": f"{ended:%Y-%m-%dT%H:%M:%S.%f}Z"}
        )
        scene.client.zadd(f"rq:failed:{queue}", {task_id: now.timestamp() + 1000})
    back.leaving.since = now.timestamp()

    back.bring_home()

    # The one that was begun waits for a word; two never began and come home; three had failed by themselves.
    assert held(scene) == {begun: UNSURE}
    assert rows(scene) == {"held running": 1, "db queued": 2, "db failed": 3}


@pytest.mark.parametrize(
    ("policy", "words", "count"),
    [
        (Policy.HOLD, {"db queued": 17, "held running": 3}, 3),
        (Policy.REQUEUE, {"db queued": 20}, 0),
        (Policy.FAIL, {"db queued": 17, "db failed": 3}, 0),
    ],
)
def test_started_ones_go_by_policy(scene: Scene, policy: Policy, words: dict[str, int], count: int) -> None:
    """Begun in the row; RQ knows one as started in its registry, one as an orphan, one not at all."""
    rq = Rq(scene, 20)
    registered, orphan, gone, began = (rq.next() for _ in range(4))
    for task_id in (registered, orphan, gone, began):
        rq.begin(task_id)
    for task_id in (orphan, gone):
        rq.client.zremrangebyrank(f"rq:wip:{rq.queue(task_id).name}", -1, -1)
    rq.client.delete(f"rq:job:{gone}")
    for task_id in (registered, orphan, gone):
        rq.runs(task_id)  # the fourth never reached its row: it has not started

    back = Rollback(scene, policy)
    moved = back.bring_home()

    assert rows(scene) == words
    assert state(scene, began) == "db queued"
    assert sum(end.held for end in moved) == count
    assert len(held(scene)) == count
    assert all("whether it ran is unknown" in reason for reason in held(scene).values())
    if policy is Policy.FAIL:
        assert "whether it ran is unknown" in row(scene, registered).error
    assert back.balance().holds
    poll_off(scene)
    found = scene.verdict(Allowances(held=True, failed=True))
    assert found.clean, found.table()


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_malicious_payload_leaves_no_trace(scene: Scene, tmp_path: Path, serializer: Any) -> None:
    rq = Rq(scene, 3)
    trace = tmp_path / "trace"
    old, new = rq.free[:2]
    command = f"touch {trace}".encode()
    rq.client.hset(f"rq:job:{old}", "data", b"cposix\nsystem\n(S'%b'\ntR." % command)
    short = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c%b%b\x85R." % (bytes([len(command)]), command)
    rq.client.hset(f"rq:job:{new}", "data", zlib.compress(short))
    scene.mapping = replace(scene.mapping, target=replace(scene.mapping.target, serializer=serializer))

    Rollback(scene).bring_home()

    assert not trace.exists()
    reasons = held(scene)
    assert {old, new} <= set(reasons)
    if serializer == "pickle":
        assert "posix.system" in reasons[old]
        assert "posix.system" in reasons[new]
    assert state(scene, old) == state(scene, new) == "held queued"


def test_another_application_under_the_same_prefix_is_left_alone(scene: Scene) -> None:
    mailer = Queue("mailer", connection=scene.client, serializer=JSONSerializer)
    mailer.enqueue("operator.add", 1, 2, job_id="mail-queued", retry=Retry(max=2))
    mailer.enqueue("operator.add", 1, 2, job_id="mail-orphan")
    scene.client.lrem(mailer.key, 0, "mail-orphan")
    mailer.enqueue("operator.add", 1, 2, job_id="mail-child", depends_on="mail-queued")
    mailer.enqueue_in(timedelta(hours=1), "operator.add", 1, 2, job_id="mail-later")
    theirs = {key: scene.client.dump(key) for key in scene.client.keys("*mail*")}
    assert len(theirs) > 6
    Rq(scene, 10)
    back = Rollback(scene)
    back.bring_home()
    assert {key: scene.client.dump(key) for key in scene.client.keys("*mail*")} == theirs
    assert not {job_id for job_id in back.leaving.returned() if "mail" in job_id}
    assert held(scene) == {}


def test_what_was_born_in_rq_without_a_row_is_held_and_in_the_archive(scene: Scene, tmp_path: Path) -> None:
    rq = Rq(scene, 3)
    high = Queue("high", connection=rq.client, serializer=JSONSerializer)
    born = [high.enqueue(FUNCTION, f"b{n}", job_id=f"b{n}", meta={"user": n}).id for n in range(3)]
    high.enqueue(FUNCTION, "limited", job_id="limited", rate_limit=RateLimit("one", 1))
    high.enqueue(FUNCTION, "waiting", job_id="waiting", rate_limit=RateLimit("one", 1))
    assert rq.client.hget("rq:job:waiting", "status") == b"rate_limited"

    back = Rollback(scene)
    back.bring_home()

    assert set(held(scene)) == {*born, "limited", "waiting"}
    assert all(NO_ROW in reason for reason in held(scene).values())
    archive = tmp_path / "jobs.jsonl.gz"
    exported = RqArchive(back.queues).export(back.leaving.returned(), archive)
    assert exported.jobs == 8
    with gzip.open(archive, "rt") as lines:
        found = {line["job"] for line in map(json.loads, lines) if "job" in line}
    assert found == {*born, "limited", "waiting", *ids(scene)}


def test_an_application_that_made_the_jobs_itself_and_a_user_who_cancels(scene: Scene) -> None:
    """Half of the tasks were born in RQ's custody; one user cancels; the pollers then run each of the others once."""
    rq = Rq(scene, 20)
    cancelled = rq.free[:2]
    journal = Journal(scene.accepted)
    for task_id in cancelled:
        scene.sql("UPDATE caption_tasks SET status = 'cancelled' WHERE id = :id", id=task_id)
        journal.append({"cancel": task_id, "status": 200, "at": 0.0})
    journal.close()
    Rollback(scene).bring_home()
    poll_off(scene)
    found = scene.verdict()
    assert found.clean, found.table()
    assert found.figures["rows_completed"] == found.figures["starts"] == 18
