"""Retries, dead letters and payloads of captions' runtime, on both systems."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from functools import lru_cache

import pytest
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from captions import jobs, lost_jobs, task_types, tasks
from captions.legacy import leased
from captions.lost_jobs import LostJobs
from captions.outbox import RQPlacer
from captions.retries import Failure
from integration.runtime import RUN, Runtime
from lab.images import BROKEN
from oracle.patience import until

pytestmark = pytest.mark.real

MINUTES = {"RETRY_GROWTH": "exponential", "RETRY_BASE_SECONDS": "60", "RETRY_COUNT": "3"}
SESSIONS = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> :own"
LEFT = "SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(6), available_at) FROM caption_tasks WHERE id = :id"


@pytest.mark.parametrize("runtime", [MINUTES], indirect=True)
@pytest.mark.parametrize("share", [0, 100])
def test_a_failing_task_waits_longer_each_time_and_becomes_a_dead_letter(runtime: Runtime, share: int) -> None:
    runtime.route(share)
    task_id = runtime.submit(image=BROKEN)
    waits = []
    for attempt in range(1, 5):
        runtime.work() if share else runtime.poll()
        task = runtime.task(task_id)
        assert (task["attempts"], task["error_category"]) == (attempt, "task")
        assert task["error"].startswith(f"UnreadableImage: {BROKEN}")
        if task["status"] == "failed":
            break
        ((left,),) = runtime.sql(LEFT, id=task_id)
        waits.append(round((left + 1) / 60))
        # Nobody runs it before its time, not even when the outbox is swept.
        runtime.sweeper.sweep()
        assert runtime.poll() == 0
        runtime.sql(
            "UPDATE caption_tasks SET available_at = UTC_TIMESTAMP(6), enqueued_at = NULL WHERE id = :id", id=task_id
        )
        runtime.redis.flushdb()
        runtime.sql(
            "UPDATE caption_tasks SET created_at = UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE WHERE id = :id", id=task_id
        )
        assert runtime.sweeper.sweep() == (1 if share else 0)
    assert waits == [1, 4, 16]
    _, answer = runtime.ask("GET", "dead-letters", role="view")
    assert [(letter["id"], letter["error_category"]) for letter in answer["dead_letters"]] == [(task_id, "task")]
    assert "payload" not in answer["dead_letters"][0]


@pytest.mark.parametrize("share", [0, 100])
def test_a_payload_that_nobody_can_read_is_parked_at_once_and_holds_up_nobody(runtime: Runtime, share: int) -> None:
    runtime.route(share)
    damaged, unknown, good = runtime.submit(), runtime.submit(), runtime.submit()
    runtime.sql("UPDATE caption_tasks SET payload = :text WHERE id = :id", id=damaged, text='{"v":9,"data":{}}')
    runtime.sql("UPDATE caption_tasks SET kind = 'riddle' WHERE id = :id", id=unknown)
    runtime.work() if share else runtime.poll()
    assert runtime.task(good)["status"] == "completed"
    for task_id, says in ((damaged, "another version than 1"), (unknown, "no task type 'riddle'")):
        task = runtime.task(task_id)
        assert (task["status"], task["attempts"], task["error_category"]) == ("failed", 1, "payload")
        assert says in task["error"]


@pytest.mark.parametrize(
    "data", [b"not a payload", zlib.compress(b'["captions.jobs.no_such_function", null, ["x"], {}]')]
)
def test_an_rq_job_that_nobody_can_read_is_parked_with_its_reason(runtime: Runtime, data: bytes) -> None:
    runtime.route(100)
    task_id, good = runtime.submit(), runtime.submit()
    runtime.redis.hset(Job.key_for(task_id), "data", data)
    runtime.work()
    task = runtime.task(task_id)
    assert (task["status"], task["attempts"], task["error_category"]) == ("failed", 0, "payload")
    assert "the RQ job cannot be read" in task["error"]
    assert runtime.task(good)["status"] == "completed"
    # The row has all that a new job needs.
    assert runtime.ask("POST", "dead-letters/requeue", {"ids": [task_id]})[1]["outcomes"] == {task_id: "rq"}
    runtime.work()
    assert runtime.task(task_id)["status"] == "completed"


def test_dead_letters_are_read_in_pages_requeued_and_exported(runtime: Runtime) -> None:
    ids = sorted(runtime.submit(image=BROKEN) for _ in range(5))
    runtime.poll()
    _, first = runtime.ask("GET", "dead-letters?limit=3")
    _, second = runtime.ask("GET", f"dead-letters?limit=3&after={first['next']}")
    assert [letter["id"] for letter in first["dead_letters"] + second["dead_letters"]] == ids
    assert second["next"] is None
    exported = runtime.client.get("/admin/dead-letters/export", headers={"Authorization": "Bearer " + "o" * 32})
    lines = [json.loads(line) for line in exported.text.splitlines()]
    assert [line["id"] for line in lines] == ids
    assert {line["image_path"] for line in lines} == {BROKEN}
    runtime.sql("UPDATE caption_tasks SET image_path = 'image-01.png' WHERE id = :id", id=ids[0])
    ((user,),) = runtime.sql("SELECT user_id FROM caption_tasks WHERE id = :id", id=ids[1])
    runtime.submit(user_id=user)
    _, answer = runtime.ask("POST", "dead-letters/requeue", {"ids": [ids[0], ids[1], "absent"]}, role="operate")
    assert answer["outcomes"] == {
        ids[0]: "db",
        ids[1]: "the user already has a task that is queued or running",
        "absent": "there is no task with this id",
    }
    runtime.poll()
    assert runtime.task(ids[0])["status"] == "completed"
    assert runtime.ask("POST", "dead-letters/requeue", {"ids": ids}, role="view")[0] == 403
    assert runtime.ask("GET", "dead-letters?limit=0")[0] == 400


def test_a_transient_error_is_retried_at_once_and_counted(runtime: Runtime) -> None:
    runtime.submit()
    claim = tasks.claim_for_poller(runtime.engine, "w", 60)
    assert claim is not None
    assert tasks.give_up_attempt(runtime.engine, claim, Failure("transient", "away"), 0.0) == "queued"
    assert runtime.poll() == 1
    assert runtime.task(claim.task_id)["attempts"] == 2


def test_redis_holds_the_id_of_a_task_and_less_than_a_kilobyte(runtime: Runtime) -> None:
    runtime.route(100)
    task_id = runtime.submit(user_id=987_654_321, image="image-07.png", priority="urgent")
    fields = runtime.redis.hgetall(Job.key_for(task_id))
    size = sum(len(key) + len(value) for key, value in fields.items())
    assert JSONSerializer.loads(zlib.decompress(fields[b"data"])) == ["captions.jobs.run_caption", None, [task_id], {}]
    assert size < 1024, size
    used = int(runtime.redis.memory_usage(Job.key_for(task_id), samples=0))  # of all fields, not of some by chance
    assert used < 2048, used
    everything = b" ".join([*fields, *fields.values(), zlib.decompress(fields[b"data"])])
    assert b"image" not in everything
    assert b"987654321" not in everything


@pytest.fixture
def looking(runtime: Runtime) -> Callable[[], int]:
    """A look after lost jobs that is due each time."""
    now = 0.0
    lost = LostJobs(runtime.engine, RQPlacer(runtime.redis_url, "rq"), clock=lambda: now)

    def look() -> int:
        nonlocal now
        now += lost_jobs.LOOK_EVERY_SECONDS
        return lost.look()

    return look


def test_a_job_that_a_worker_took_and_never_began_is_put_back_at_the_head(
    runtime: Runtime, looking: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left when Redis or a worker is killed between the two; RQ itself never finds it."""
    runtime.route(100)
    taken, fresh, begun, listed = (runtime.submit() for _ in range(4))
    queue = "rq:queue:normal"
    for task_id in (taken, fresh, begun):
        assert runtime.redis.lrem(queue, 0, task_id) == 1
    runtime.redis.hset(Job.key_for(begun), "status", "started")
    aged = "UPDATE caption_tasks SET enqueued_at = enqueued_at - INTERVAL 1 HOUR,"
    aged += " available_at = available_at - INTERVAL 1 HOUR WHERE id <> :id"
    runtime.sql(aged, id=fresh)
    assert LostJobs(runtime.engine, RQPlacer(runtime.redis_url, "rq")).look() == 0, "no look was due"
    assert looking() == 0, "a worker that is about to begin was not waited for"
    runtime.route(0)
    assert [looking(), looking()] == [0, 0], "put back while nothing goes to RQ"
    runtime.route(50)
    assert [looking(), looking()] == [0, 1]
    assert runtime.redis.lrange(queue, 0, -1) == [taken.encode(), listed.encode()]
    assert [looking(), looking()] == [0, 0]
    runtime.redis.lrem(queue, 0, taken)
    looking()
    runtime.sql("UPDATE caption_tasks SET custody = 'held' WHERE id = :id", id=taken)
    assert looking() == 0, "put back although it is somebody else's now"
    runtime.sql("UPDATE caption_tasks SET custody = 'rq' WHERE id = :id", id=taken)
    monkeypatch.setattr(lost_jobs, "LOOK_EVERY_SECONDS", 0.0)
    assert [runtime.sweeper.sweep(), runtime.sweeper.sweep()] == [0, 1]
    runtime.work()
    assert [runtime.task(task_id)["status"] for task_id in (taken, listed)] == ["completed"] * 2


def _an_hour_ago(runtime: Runtime) -> None:
    runtime.sql(
        "UPDATE caption_tasks SET available_at = available_at - INTERVAL 1 HOUR,"
        " enqueued_at = enqueued_at - INTERVAL 1 HOUR, created_at = created_at - INTERVAL 1 HOUR"
    )


def _in_outbox(runtime: Runtime) -> set[str]:
    return {row.id for row in runtime.sql("SELECT id FROM caption_tasks WHERE custody = 'rq' AND enqueued_at IS NULL")}


def test_tasks_whose_jobs_redis_lost_are_placed_again(runtime: Runtime, looking: Callable[[], int]) -> None:
    runtime.route(100)
    waiting = [runtime.submit(priority=priority) for priority in ("low", "urgent", "normal")]
    begun, over = runtime.submit(), runtime.submit()
    assert tasks.claim_for_rq(runtime.engine, begun, "at work", 600) is not None
    runtime.client.post(f"/tasks/{over}/cancel")
    _an_hour_ago(runtime)
    fresh = runtime.submit()
    runtime.redis.flushdb()
    looking()
    assert _in_outbox(runtime) == set(), "a job that is just being made was not waited for"
    looking()
    assert _in_outbox(runtime) == set(waiting)
    assert runtime.sweeper.sweep() == len(waiting)
    assert [queue for queue in ("urgent", "high", "normal", "low") if runtime.redis.llen(f"rq:queue:{queue}")] == [
        "urgent",
        "normal",
        "low",
    ]
    looking()
    looking()
    assert _in_outbox(runtime) == set(), "placed twice"
    runtime.work()
    assert [runtime.task(task_id)["status"] for task_id in (*waiting, begun, over, fresh)] == [
        *["completed"] * 3, "running", "cancelled", "queued",
    ]  # fmt: skip
    # One that was turned away by its row, and whose job then expired: nothing else would ever begin it.
    _an_hour_ago(runtime)
    looking()
    looking()
    assert _in_outbox(runtime) == {fresh}


def test_a_task_whose_job_ended_before_it_was_begun_is_placed_again(
    runtime: Runtime, looking: Callable[[], int], ledger: SqlLedger
) -> None:
    """As by a work horse that lost Redis on its way to the row. Also while a run is open: nothing is lost in Redis."""
    runtime.route(100)
    ledger.start_run(RUN)
    ended = {status: runtime.submit() for status in ("finished", "failed", "stopped", "canceled")}
    waits = runtime.submit()
    for status, task_id in ended.items():
        runtime.redis.lrem("rq:queue:normal", 0, task_id)
        runtime.redis.hset(Job.key_for(task_id), "status", status)
    _an_hour_ago(runtime)
    looking()
    assert _in_outbox(runtime) == set()
    looking()
    assert _in_outbox(runtime) == set(ended.values())
    assert runtime.sweeper.sweep() == len(ended)
    runtime.work()
    assert {runtime.task(task_id)["status"] for task_id in (*ended.values(), waits)} == {"completed"}


def test_rq_tries_again_when_the_horse_died_before_the_task_was_begun(runtime: Runtime) -> None:
    runtime.route(100)
    begun, waits = runtime.submit(), runtime.submit()
    assert tasks.claim_for_rq(runtime.engine, begun, "worker-1", 600) is not None
    left = {}
    for task_id in (begun, waits):
        job = Job.fetch(task_id, connection=runtime.redis, serializer=JSONSerializer)
        before = job.retries_left
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CAPTIONS_ENV_FILE", str(runtime.env_file))
            jobs.end_lease_of_killed("worker-1", job)
        left[task_id] = (before, job.retries_left)
    assert left[begun][1] == 0, "the sweeper makes a new job for its next attempt"
    assert left[waits][1] == left[waits][0] > 0


@pytest.mark.parametrize("why", ["a run is open", "a run begins", "nothing goes to RQ"])
def test_they_are_left_alone_while(runtime: Runtime, looking: Callable[[], int], ledger: SqlLedger, why: str) -> None:
    runtime.route(100)
    task_id = runtime.submit()
    _an_hour_ago(runtime)
    runtime.redis.flushdb()
    if why == "a run is open":
        ledger.start_run(RUN)
    elif why == "a run begins":
        ledger.take_lease(RUN, "the run", 60)
    else:
        runtime.route(0)
    for _ in range(3):
        looking()
    assert _in_outbox(runtime) == set()
    ledger.forget()
    runtime.route(100)
    looking()
    looking()
    assert _in_outbox(runtime) == {task_id}


def test_an_attempt_whose_worker_is_gone_ends_when_its_lease_lapses(runtime: Runtime) -> None:
    runtime.route(100)
    task_id = runtime.submit()
    claim = tasks.claim_for_rq(runtime.engine, task_id, "gone", 60)
    assert claim is not None
    runtime.sweeper.sweep()
    assert runtime.task(task_id)["status"] == "running", "it may still be at work"
    assert not tasks.end_lease(runtime.engine, task_id, "another")
    assert tasks.end_lease(runtime.engine, task_id, "gone")
    runtime.route(0)
    runtime.sweeper.sweep()
    assert runtime.task(task_id)["status"] == "running", "ended while nothing goes to RQ"
    runtime.route(100)
    runtime.sweeper.sweep()
    task = runtime.task(task_id)
    assert (task["status"], task["error_category"], task["attempts"]) == ("queued", "resource", 1)
    assert task["error"] == "WorkerDied: its process did not live to the end of the attempt"
    assert not tasks.complete(runtime.engine, claim, "late", lambda: None)


def test_an_attempt_that_lost_the_database_ends_with_rqs_own_retry(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when its lease would lapse: its process has said itself that it is at work no more."""
    runtime.route(100)
    task_id, queue = runtime.submit(), Queue("normal", connection=runtime.redis, serializer=JSONSerializer)
    monkeypatch.setenv("CAPTIONS_ENV_FILE", str(runtime.env_file))
    jobs._resources.cache_clear()

    def work() -> None:
        worker = SimpleWorker([queue], connection=runtime.redis, serializer=JSONSerializer)
        worker.work(burst=True, logging_level="CRITICAL")

    with monkeypatch.context() as patched:
        patched.setattr(tasks, "complete", _lose_the_database)
        work()
    assert runtime.task(task_id)["status"] == "running"
    runtime.sweeper.sweep()
    assert runtime.task(task_id)["status"] == "running", "nobody has said that it is over"
    registry = queue.scheduled_job_registry
    assert registry.get_job_ids() == [task_id], "RQ tries again by itself"
    registry.remove(task_id)
    queue.push_job_id(task_id)
    work()
    assert runtime.task(task_id)["status"] == "running", "and does not work beside a row that runs"
    runtime.sweeper.sweep()
    task = runtime.task(task_id)
    assert (task["status"], task["error_category"], task["attempts"]) == ("queued", "resource", 1)
    jobs._resources(os.getpid())[1].dispose()


def _lose_the_database(*_: object) -> bool:
    raise OperationalError("UPDATE", {}, ConnectionError("server has gone away"))


def test_a_lease_is_renewed_while_the_work_lasts(runtime: Runtime) -> None:
    task_id = runtime.submit()
    claim = tasks.claim_for_poller(runtime.engine, "w", 1)
    assert claim is not None
    query = "SELECT lease_until > started_at + INTERVAL 3 SECOND FROM caption_tasks WHERE id = :id"
    with leased(runtime.engine, claim, 1):
        until(lambda: bool(runtime.sql(query, id=task_id)[0][0]), "a renewed lease")


@pytest.mark.parametrize("runtime", [{"RETRY_COUNT": "0"}], indirect=True)
def test_a_thousand_tasks_with_a_hundred_crashes_leave_no_session_open(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, where a session that an attempt left open would stay open: 50 raise, 50 lose their session."""

    def lose(attempt: task_types.Attempt) -> str:
        with runtime.engine.connect() as connection:
            own = connection.execute(text("SELECT CONNECTION_ID()")).scalar_one()
            for (session,) in connection.execute(text(SESSIONS), {"own": own}).all():
                connection.execute(text(f"KILL {session}"))
        return "lost"

    monkeypatch.setattr(task_types, "_types", dict(task_types._types))
    task_types.register(task_types.TaskType("lose", lose))
    monkeypatch.setenv("CAPTIONS_ENV_FILE", str(runtime.env_file))
    runtime.route(100)
    bad = {number * 10: {"image": BROKEN} if number % 2 else {"kind": "lose", "payload": {}} for number in range(100)}
    for number in range(1000):
        runtime.submit(**bad.get(number, {"image": "image-01.png"}))
    jobs._resources.cache_clear()
    queues = [Queue(name, connection=runtime.redis, serializer=JSONSerializer) for name in task_types.PRIORITIES]
    SimpleWorker(queues, connection=runtime.redis, serializer=JSONSerializer).work(burst=True, logging_level="ERROR")
    _, engine = jobs._resources(os.getpid())
    ended = dict(runtime.sql("SELECT status, COUNT(*) FROM caption_tasks GROUP BY 1"))
    assert ended == {"completed": 950, "failed": 50}
    assert engine.pool.checkedout() == 0
    with runtime.engine.connect() as connection:
        own = connection.execute(text("SELECT CONNECTION_ID()")).scalar_one()
        (left,) = connection.execute(text(f"SELECT COUNT(*) FROM ({SESSIONS}) AS s"), {"own": own}).one()
        held = connection.execute(text("SELECT COUNT(*) FROM information_schema.innodb_trx")).scalar_one()
    # What the pools of this process keep for the next task, and nothing in them.
    assert left <= 3
    assert held <= 1
    engine.dispose()


def test_a_horse_inherits_the_engine_and_no_connection(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTIONS_ENV_FILE", str(runtime.env_file))
    monkeypatch.setattr(jobs, "_engine", lru_cache(jobs._engine.__wrapped__))
    monkeypatch.setattr(jobs, "_resources", lru_cache(jobs._resources.__wrapped__))

    def connection_id() -> int:
        with jobs._resources(os.getpid())[1].connect() as connection:
            return int(connection.execute(text("SELECT CONNECTION_ID()")).scalar_one())

    jobs.prepare()
    mine = connection_id()
    reading, writing = os.pipe()
    horse = os.fork()
    if horse == 0:
        with contextlib.suppress(BaseException):
            os.write(writing, str(connection_id()).encode())
        os._exit(0)
    os.waitpid(horse, 0)
    os.close(writing)
    assert int(os.read(reading, 20)) != mine
    os.close(reading)
    assert connection_id() == mine, "the worker's own is as it was"
