"""The thread of each web process that looks after tasks of RQ's that nobody else looks after.

Rows whose job could not be made when they were submitted, jobs that RQ lost, attempts whose worker died.
"""

from __future__ import annotations

import logging
import threading
import time

from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from captions import metrics, tasks
from captions.health import RedisHealth
from captions.lost_jobs import LostJobs
from captions.outbox import AT_ONCE, JobPlacer, place_row, unplaced_rows
from captions.retries import WorkerDied
from captions.settings import Settings
from captions.work import end_badly

_INTERVAL_SECONDS = 1.0
#: Seconds of pause for one second of work, where it was to look for little, and where many tasks wait to be placed.
_LOOKS = 20
_PLACING = 1
_ATTEMPTS_AT_ONCE = 200

log = logging.getLogger("captions.sweeper")


def pause_after(found: int, placed: int, seconds: float) -> float:
    """Seconds until the next sweep, after one that took ``seconds``, found so many rows and placed some of them.

    A full batch says that more wait, as after an outage of Redis: they are placed half of the time, for the same
    process answers requests. The others may have been placed by another process. Looking through rows of which none can
    be placed must not become the database's occupation.
    """
    if found >= AT_ONCE and placed:
        return _PLACING * seconds
    return max(_INTERVAL_SECONDS, _LOOKS * seconds)


class Sweeper(threading.Thread):
    """Runs until the process ends. Any number of them may: rows are changed by compare-and-set."""

    def __init__(
        self, settings: Settings, engine: Engine, placer: JobPlacer, health: RedisHealth | None = None
    ) -> None:
        super().__init__(name="captions-sweeper", daemon=True)
        self._settings = settings
        self._health = health
        self._engine = engine
        self._placer = placer
        self._lost = LostJobs(engine, placer)
        self._ended = threading.Event()
        self._found = 0

    def end(self) -> None:
        """Stop after the row in hand."""
        self._ended.set()

    def run(self) -> None:
        pause = _INTERVAL_SECONDS
        while not self._ended.wait(pause):
            began, placed, self._found = time.monotonic(), 0, 0
            try:
                placed = self.sweep()
                if placed:
                    log.info("placed %d task(s) that RQ did not have", placed)
            except (RedisError, SQLAlchemyError) as error:
                log.warning("sweep broken off, next one follows: %s", type(error).__name__)
            pause = pause_after(self._found, placed, time.monotonic() - began)

    def sweep(self) -> int:
        """Place what is due now; how many tasks were placed. None while Redis is not well."""
        self._end_attempts()
        if self._health is not None and not self._health.usable:
            return 0
        placed = 0
        found = unplaced_rows(self._engine)
        self._found = len(found)
        for task_id in found:
            if self._ended.is_set():
                break
            placed += place_row(self._engine, self._placer, task_id)
        return placed + self._lost.look()

    def _end_attempts(self) -> None:
        for claim in tasks.lapsed_at_rq(self._engine, _ATTEMPTS_AT_ONCE):
            failure, outcome = end_badly(self._settings, self._engine, claim, WorkerDied())
            metrics.attempt_failed("rq", claim, failure.category, outcome)
            log.warning("task %s: attempt %d lost its worker, now %s", claim.task_id, claim.attempt, outcome)
