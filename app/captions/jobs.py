"""The task function that RQ workers run, and what becomes of a job that cannot even be begun.

One function serves all types of tasks: a job in Redis is its name and the task's id, the row says the rest.
"""

from __future__ import annotations

import logging
import os
import socket
from functools import lru_cache

# Before the fork: each work horse would import them, for a tenth of a second.
import pymysql  # noqa: F401
import sqlalchemy.dialects.mysql.pymysql  # noqa: F401
from rq import get_current_job
from rq.job import Job
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from captions import metrics, task_types, tasks
from captions.database import make_engine
from captions.effects import EffectsFile
from captions.outbox import TIMEOUT_SECONDS
from captions.retries import Failure, sanitised
from captions.settings import Settings, load_settings
from captions.work import end_badly, perform

# RQ kills a horse that does not end by itself a minute after its time.
_GRACE_SECONDS = 90
_NAME_LENGTH = 80
# In a job's meta: which worker's attempt lost the database, so that the row still says that it runs.
_BROKEN_OFF = "broken_off"

# A worker imports this module before it forks. Its horses run one after the other and count in its name.
_WORKER_PID = os.getpid()

log = logging.getLogger("captions.jobs")


@lru_cache(maxsize=1)
def _engine(url: str) -> Engine:
    """Made once for a worker and its horses; each has connections of its own."""
    return make_engine(url)


def prepare() -> None:
    """For a worker, before it forks: what an engine learns of its server at its first connection is inherited.

    A database that does not answer yet is no reason not to start: each horse asks it again.
    """
    engine = _engine(load_settings().rq_database_url)
    try:
        engine.connect().close()
    except SQLAlchemyError as error:
        log.warning("the database does not answer yet (%s)", type(error).__name__)
    engine.dispose()


@lru_cache(maxsize=1)
def _resources(pid: int) -> tuple[Settings, Engine]:
    """Settings, connection and counters of this process; a forked work horse gets its own."""
    settings = load_settings()
    task_types.load(settings)
    metrics.begin(settings, f"rq-{_WORKER_PID}")
    engine = _engine(settings.rq_database_url)
    engine.dispose(close=False)  # a connection that was there before the fork is the worker's
    return settings, engine


def run_caption(task_id: str) -> dict[str, str]:
    """Do the task's work, if its row is queued and in RQ's custody; else return without work.

    The attempt's outcome is in the row. An exception leaves this function only when the database could not be
    reached or changed; RQ's own retry then runs the job again. Where the row says by then that it runs, nobody does:
    the sweeper ends that attempt.
    """
    settings, engine = _resources(os.getpid())
    job = get_current_job()
    broken_off = job.meta.get(_BROKEN_OFF) if job is not None else None
    if broken_off and tasks.end_lease(engine, task_id, broken_off):
        log.warning("task %s: an attempt lost the database; the sweeper ends it", task_id)
        return {"outcome": "broken off"}
    worker = (job.worker_name if job is not None else None) or f"{socket.gethostname()}-{os.getpid()}"
    longest = (job.timeout if job is not None else None) or max(TIMEOUT_SECONDS.values())
    claim = tasks.claim_for_rq(engine, task_id, worker[:_NAME_LENGTH], longest + _GRACE_SECONDS)
    if claim is None:
        log.info("task %s is not RQ's to start now; left alone", task_id)
        return {"outcome": "left alone"}
    effects = EffectsFile(settings.effects_file, "rq", claim.worker)
    effects.started(task_id)
    metrics.started("rq", claim)
    try:
        return _attempt(settings, engine, claim, effects)
    except SQLAlchemyError:
        if job is not None:
            job.meta[_BROKEN_OFF] = claim.worker
            job.save_meta()
        raise


def _attempt(settings: Settings, engine: Engine, claim: tasks.Claim, effects: EffectsFile) -> dict[str, str]:
    task_id = claim.task_id
    try:
        result = perform(settings, engine, claim)
    except Exception as error:  # noqa: BLE001  whatever the work raises ends this attempt, and the row keeps it
        failure, outcome = end_badly(settings, engine, claim, error)
        metrics.attempt_failed("rq", claim, failure.category, outcome)
        log.warning("task %s: attempt %d failed (%s), now %s", task_id, claim.attempt, failure.category, outcome)
        return {"outcome": outcome}
    if not tasks.complete(engine, claim, result, lambda: effects.ended(task_id, result)):
        log.warning("task %s was taken away while it ran; its result is dropped", task_id)
        return {"outcome": "not ours"}
    metrics.completed("rq", claim)
    return {"outcome": "completed"}


def park_unreadable(job: Job, *exc_info: object) -> bool:
    """RQ's exception handler: a job whose payload nobody can read makes its task a dead letter, with the reason.

    Any other exception came from the task function, which has written into the row what there is to say. True hands
    on to RQ's own handling in both cases.
    """
    try:
        if job.func is not None and job.args is not None:
            return True
        reason = "it names no function"
    except Exception as error:  # noqa: BLE001  RQ raises whatever its serializer or the import raised
        reason = f"{type(error).__name__}: {error}"
    job.retries_left = 0  # another try would read the same; a requeued task gets a new job
    _, engine = _resources(os.getpid())
    if tasks.park(engine, job.id, Failure("payload", sanitised(f"the RQ job cannot be read: {reason}"))):
        log.warning("task %s: its RQ job cannot be read; it is a dead letter now", job.id)
    return True


def end_lease_of_killed(worker: str, job: Job) -> None:
    """For the worker of that name, whose horse was killed in the middle of the job: by want of memory, or from outside.

    The row says that it runs, and RQ's own retry would leave it so. The sweeper ends the attempt as the task's policy
    says. When the database does not answer either, the lease lapses by itself. A row that was not begun yet, for the
    horse ended before it came to that, is for RQ's retry.
    """
    engine = make_engine(load_settings().rq_database_url)
    try:
        if tasks.end_lease(engine, job.id, worker[:_NAME_LENGTH]):
            job.retries_left = 0  # the next attempt has a new job
            log.warning("task %s: its process was killed", job.id)
    except SQLAlchemyError as error:
        log.warning("task %s: its process was killed; the row does not say so (%s)", job.id, type(error).__name__)
    finally:
        engine.dispose()
