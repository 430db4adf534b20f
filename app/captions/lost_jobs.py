"""Jobs that RQ lost: taken from their list by a worker that lost Redis, or its life, before it began.

A worker of several queues takes a job with BLPOP. Until it has said that it begins, the job is ``queued`` and in no
list, and nothing in RQ looks for it. Its row says so all the same: queued, in RQ's custody, stamped long ago.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from sqlalchemy import Connection, Engine, text

from captions import task_types
from captions.control import read_control
from captions.database import in_transaction

LOOK_EVERY_SECONDS = 10.0
_STAMPED_SECONDS_AGO = 30
_ROWS_OF_A_QUEUE = 50

log = logging.getLogger("captions.lost_jobs")


class JobLists(Protocol):
    """What must be known of RQ's lists."""

    def unlisted(self, queues: Mapping[str, str]) -> set[str]:
        """Those tasks, given with their queues, whose job is ``queued`` and not in its queue's list."""

    def list_again(self, task_id: str, queue: str) -> bool:
        """Put such a job at the head of its list; False when it is not such a job any more."""


class LostJobs:
    """Finds them and puts them back. A worker that is just about to begin has until the next look to do so."""

    def __init__(self, engine: Engine, lists: JobLists, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._lists = lists
        self._clock = clock
        self._looked = clock()
        self._suspects: set[str] = set()

    def look(self) -> int:
        """Put back what was seen unlisted by the look before as well; how many. None before a look is due."""
        if self._clock() - self._looked < LOOK_EVERY_SECONDS:
            return 0
        self._looked = self._clock()
        waiting = self._waiting()
        unlisted = self._lists.unlisted(waiting)
        lost, self._suspects = unlisted & self._suspects, unlisted
        back = sum(self._put_back(task_id, waiting[task_id]) for task_id in sorted(lost))
        if back:
            log.warning("put %d job(s) back that a worker had taken and not begun", back)
        return back

    def _waiting(self) -> dict[str, str]:
        """The longest waiting rows of each queue. None while RQ gets no tasks: somebody may be emptying it."""
        with self._engine.connect() as connection:
            control = read_control(connection)
            if not control.share(rq_usable=True):
                return {}
            query = text(
                "SELECT id FROM caption_tasks WHERE custody = 'rq' AND status = 'queued' AND priority = :queue"
                " AND enqueued_at < UTC_TIMESTAMP(6) - INTERVAL :age SECOND"
                " AND available_at < UTC_TIMESTAMP(6) - INTERVAL :age SECOND ORDER BY created_at, id LIMIT :most"
            )
            found: dict[str, str] = {}
            for queue in task_types.queues():
                wanted = {"queue": queue, "age": _STAMPED_SECONDS_AGO, "most": _ROWS_OF_A_QUEUE}
                found |= dict.fromkeys(connection.execute(query, wanted).scalars(), queue)
            return found

    def _put_back(self, task_id: str, queue: str) -> bool:
        def work(connection: Connection) -> bool:
            # The lock keeps the row where it is, and other processes from putting the job back too.
            still = connection.execute(
                text(
                    "SELECT 1 FROM caption_tasks WHERE id = :id AND custody = 'rq' AND status = 'queued'"
                    " AND enqueued_at IS NOT NULL FOR UPDATE SKIP LOCKED"
                ),
                {"id": task_id},
            ).scalar_one_or_none()
            return still is not None and self._lists.list_again(task_id, queue)

        return in_transaction(self._engine, work)
