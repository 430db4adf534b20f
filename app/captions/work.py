"""What a worker of either side does with an attempt, between its claim and its result."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import Engine

from captions import payload, tasks
from captions.caption import describe_image
from captions.retries import Failure, RetryPolicy, failure_of
from captions.settings import Settings
from captions.task_types import Attempt, TaskType, register, task_type


def _caption(attempt: Attempt) -> str:
    return describe_image(attempt.settings.images_dir / Path(str(attempt.payload["image"])).name)


register(TaskType("caption", work=_caption))


def perform(settings: Settings, engine: Engine, claim: tasks.Claim) -> str:
    """Do the work of a claimed task; its result. It takes at least ``WORK_MS``."""
    deadline = time.monotonic() + settings.work_ms / 1000
    kind = task_type(claim.kind)
    data = {"image": claim.image_path} if claim.payload is None else payload.load(claim.payload)

    def report(percent: int, note: str) -> None:
        tasks.report_progress(engine, claim, percent, note)

    result = kind.work(Attempt(claim.task_id, claim.attempt, data, settings, report))
    left = deadline - time.monotonic()
    if left > 0:  # not of no time: libfaketime refuses that where a clock is off
        time.sleep(left)
    return result


def end_badly(settings: Settings, engine: Engine, claim: tasks.Claim, error: Exception) -> tuple[Failure, str]:
    """End an attempt whose work raised ``error``, as the type's policy says; the failure and what the task is now."""
    failure = failure_of(error)
    delay = policy_of(settings, claim.kind).delay(failure.category, claim.attempt)
    return failure, tasks.give_up_attempt(engine, claim, failure, delay)


def policy_of(settings: Settings, kind: str) -> RetryPolicy:
    """How tasks of this kind are retried; for a kind that nobody knows, as the settings say."""
    try:
        return task_type(kind).retry or settings.retry
    except payload.PayloadError:
        return settings.retry
