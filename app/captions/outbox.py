"""The outbox: rows in RQ's custody without a stamp in ``enqueued_at`` still need their RQ job.

A row is locked while its job is made, so no two processes make it at once. A job that runs for a row that was
placed twice is turned away by the custody guard.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry
from sqlalchemy import Connection, Engine, bindparam, text

from captions import task_types
from captions.control import read_control
from captions.database import in_transaction
from captions.lost_jobs import ENDED, JobLists

FUNCTION = "captions.jobs.run_caption"
RESULT_TTL_SECONDS = 500
TIMEOUT_SECONDS = {"urgent": 600, "high": 300, "normal": 300, "low": 900}

# A task function that cannot reach the database raises; RQ then tries the same job again after these seconds.
INFRASTRUCTURE_RETRY_SECONDS = (5, 30, 120)

#: Rows that one sweep places at most.
AT_ONCE = 200
_SWEEP_AGE_SECONDS = 2

# KEYS: a job, its queue's list. ARGV: the job's id.
_LIST_AGAIN = """
if redis.call('HGET', KEYS[1], 'status') ~= 'queued' or redis.call('LPOS', KEYS[2], ARGV[1]) then
  return 0
end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
"""

log = logging.getLogger("captions.outbox")


class JobPlacer(JobLists, Protocol):
    """Makes the RQ job of a task."""

    def place(self, task_id: str, priority: str, available_at: datetime) -> bool:
        """True when the job of this task is in RQ now; False when it cannot be placed yet. Times are UTC."""


class RQPlacer:
    """Places jobs as RQ itself does, with the task's id as the job's id."""

    def __init__(self, redis_url: str, key_prefix: str) -> None:
        # RQ reads its prefix from the environment when it is first imported.
        os.environ["RQ_KEY_PREFIX"] = key_prefix
        from rq import Queue
        from rq.serializers import JSONSerializer

        self._redis = Redis.from_url(
            redis_url, socket_timeout=2, socket_connect_timeout=1, retry=RedisRetry(NoBackoff(), 0)
        )
        self._timeouts = TIMEOUT_SECONDS | task_types.timeouts()
        self._queues = {name: Queue(name, connection=self._redis, serializer=JSONSerializer) for name in self._timeouts}

    def ping(self) -> None:
        """Raise RedisError when Redis does not answer."""
        self._redis.ping()

    def memory_share(self) -> float:
        """The share of the memory it may use that Redis uses, 0 to 1; without a limit, of the host's."""
        info = self._redis.info("memory")
        return float(info["used_memory"] / (info["maxmemory"] or info["total_system_memory"]))

    def workers(self) -> list[dict[str, object]]:
        """RQ's workers that give signs of life. Times are UTC text."""
        from rq import Worker
        from rq.serializers import JSONSerializer

        return [
            {
                "name": worker.name,
                "system": "rq",
                "host": worker.hostname,
                "pid": worker.pid,
                "state": worker.get_state(),
                "queues": worker.queue_names(),
                "task": worker.get_current_job_id(),
                "last_heartbeat": worker.last_heartbeat.isoformat() if worker.last_heartbeat else None,
                "completed": worker.successful_job_count,
            }
            for worker in sorted(
                Worker.all(connection=self._redis, serializer=JSONSerializer), key=lambda worker: str(worker.name)
            )
        ]

    def restart_worker(self, name: str) -> None:
        """Have a worker end after its job; whoever keeps it starts another. KeyError when there is none."""
        from rq.command import send_shutdown_command

        if name not in {worker["name"] for worker in self.workers()}:
            raise KeyError(name)
        send_shutdown_command(self._redis, name)

    def status(self, task_id: str) -> str | None:
        """What RQ says of the task's job, None when it has none."""
        from rq.job import Job

        status = self._redis.hget(Job.key_for(task_id), "status")
        return status.decode() if isinstance(status, bytes) else None

    def unlisted(self, queues: Mapping[str, str]) -> set[str]:
        """Those tasks, given with their queues, whose job is ``queued`` and not in its queue's list."""
        from rq.job import Job

        pipeline = self._redis.pipeline()
        for task_id, queue in queues.items():
            pipeline.lpos(self._queues[queue].key, task_id)
            pipeline.hget(Job.key_for(task_id), "status")
        answers = iter(pipeline.execute())
        places = zip(queues, answers, answers, strict=True)
        return {task_id for task_id, position, status in places if position is None and status == b"queued"}

    def statuses(self, task_ids: Collection[str]) -> dict[str, str | None]:
        """What RQ says of each task's job; None: it has none."""
        from rq.job import Job

        pipeline = self._redis.pipeline()
        for task_id in task_ids:
            pipeline.hget(Job.key_for(task_id), "status")
        answers = pipeline.execute()
        return {task_id: status and status.decode() for task_id, status in zip(task_ids, answers, strict=True)}

    def list_again(self, task_id: str, queue: str) -> bool:
        """Put such a job at the head of its list; False when it is not such a job any more."""
        from rq.job import Job

        return bool(self._redis.eval(_LIST_AGAIN, 2, Job.key_for(task_id), self._queues[queue].key, task_id))

    def place(self, task_id: str, priority: str, available_at: datetime) -> bool:
        from rq import Retry
        from rq.exceptions import DuplicateJobError, NoSuchJobError
        from rq.job import Job

        queue = self._queues[priority]
        status = self.status(task_id)
        if status in ("created", "started"):
            return False  # staged by the mover, or the last attempt is just ending; the sweeper looks again
        if status in ENDED:
            try:
                Job.fetch(task_id, connection=self._redis, serializer=queue.serializer).delete()
            except NoSuchJobError:
                log.debug("the last job of task %s expired by itself", task_id)
        elif status is not None:
            return True  # queued, scheduled, or on its way there
        options = {
            "args": (task_id,),
            "job_id": task_id,
            "job_timeout": self._timeouts[priority],
            "result_ttl": RESULT_TTL_SECONDS,
            "retry": Retry(max=len(INFRASTRUCTURE_RETRY_SECONDS), interval=list(INFRASTRUCTURE_RETRY_SECONDS)),
            "unique": True,
        }
        try:
            if available_at > datetime.now(UTC):
                # RQ keeps whole seconds: round up, so that no task starts before its time.
                queue.enqueue_at(
                    (available_at + timedelta(microseconds=999_999)).replace(microsecond=0), FUNCTION, **options
                )
            else:
                queue.enqueue(FUNCTION, **options)
        except DuplicateJobError:
            return False
        return True


def place_row(engine: Engine, placer: JobPlacer, task_id: str) -> bool:
    """Make the job of one row and stamp the row. False when another process has it or it cannot be placed yet."""

    def work(connection: Connection) -> bool:
        paused = read_control(connection).paused
        row = connection.execute(
            text(
                "SELECT priority, available_at FROM caption_tasks WHERE id = :id AND custody = 'rq'"
                " AND status = 'queued' AND enqueued_at IS NULL FOR UPDATE SKIP LOCKED"
            ),
            {"id": task_id},
        ).one_or_none()
        if (
            row is None
            or row.priority in paused
            or not placer.place(task_id, row.priority, row.available_at.replace(tzinfo=UTC))
        ):
            return False
        connection.execute(
            text("UPDATE caption_tasks SET enqueued_at = UTC_TIMESTAMP(6) WHERE id = :id"), {"id": task_id}
        )
        return True

    return in_transaction(engine, work)


def unplaced_rows(engine: Engine) -> Sequence[str]:
    """Ids of rows that have waited for their job for some seconds, oldest first; none in an emergency.

    Left out are queues that are paused and those that this process does not know.
    """
    with engine.connect() as connection:
        control = read_control(connection)
        if control.emergency:
            return []
        return (
            connection.execute(
                text(
                    "SELECT id FROM caption_tasks WHERE custody = 'rq' AND status = 'queued' AND enqueued_at IS NULL"
                    " AND priority IN :queues AND created_at < UTC_TIMESTAMP(6) - INTERVAL :age SECOND"
                    " ORDER BY priority, created_at, id LIMIT :batch"
                ).bindparams(bindparam("queues", expanding=True)),
                {
                    "age": _SWEEP_AGE_SECONDS,
                    "batch": AT_ONCE,
                    "queues": [queue for queue in task_types.queues() if queue not in control.paused],
                },
            )
            .scalars()
            .all()
        )
