"""The task function that RQ workers run."""

from __future__ import annotations

import logging
import os
import socket
from functools import lru_cache

from rq import get_current_job
from sqlalchemy import Engine

from captions import tasks
from captions.database import make_engine
from captions.effects import EffectsFile
from captions.settings import Settings, load_settings
from captions.work import caption_of

log = logging.getLogger("captions.jobs")


@lru_cache(maxsize=1)
def _resources(pid: int) -> tuple[Settings, Engine]:
    """Settings and connection of this process; a forked work horse gets its own."""
    settings = load_settings()
    return settings, make_engine(settings.rq_database_url)


def run_caption(task_id: str) -> dict[str, str]:
    """Caption the task's image, if its row is queued and in RQ's custody; else return without work.

    The attempt's outcome is in the row. An exception leaves this function only when the database could not be
    reached or changed; RQ's own retry then runs the job again.
    """
    settings, engine = _resources(os.getpid())
    job = get_current_job()
    worker = (job.worker_name if job is not None else None) or f"{socket.gethostname()}-{os.getpid()}"
    claim = tasks.claim_for_rq(engine, task_id, worker[:80])
    if claim is None:
        log.info("task %s is not RQ's to start; left alone", task_id)
        return {"outcome": "left alone"}
    effects = EffectsFile(settings.effects_file, "rq", claim.worker)
    effects.started(task_id)
    try:
        caption = caption_of(settings, claim.image_path)
    except Exception as error:  # noqa: BLE001  whatever the work raises ends this attempt, and the row keeps it
        outcome = tasks.give_up_attempt(engine, claim, f"{type(error).__name__}: {error}")
        log.warning("task %s: attempt %d failed (%s), now %s", task_id, claim.attempt, type(error).__name__, outcome)
        return {"outcome": outcome}
    if not tasks.complete(engine, claim, caption, lambda: effects.ended(task_id, caption)):
        log.warning("task %s was taken away while it ran; its result is dropped", task_id)
        return {"outcome": "not ours"}
    return {"outcome": "completed"}
