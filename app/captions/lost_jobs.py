"""Jobs that RQ lost. Their rows say so: queued, in RQ's custody, stamped long ago.

- Taken from their list by a worker that lost Redis, or its life, before it began. A worker of several queues takes a
  job with BLPOP; until it has said that it begins, the job is ``queued`` and in no list, and RQ never looks for it.
- Ended before their tasks were begun, as when the work horse is killed or has lost Redis at that moment.
- Gone with what Redis held: it was emptied, or restored from an older copy. While a run of Sluice is open that is for
  its ``recover.yml``; at any other time nobody else would place these tasks again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from captions import task_types
from captions.control import read_control
from captions.database import error_code, in_transaction

LOOK_EVERY_SECONDS = 10.0
_STAMPED_SECONDS_AGO = 30
_ROWS_OF_A_QUEUE = 500
#: To find a job in a list Redis goes through it.
_LISTED_OF_A_QUEUE = 50
#: What RQ says of a job that will not run any more.
ENDED = frozenset({"finished", "failed", "stopped", "canceled"})
_NO_SUCH_TABLE = 1146
_MAY_NOT_SELECT = 1142

log = logging.getLogger("captions.lost_jobs")


class JobLists(Protocol):
    """What must be known of RQ's lists."""

    def unlisted(self, queues: Mapping[str, str]) -> set[str]:
        """Those tasks, given with their queues, whose job is ``queued`` and not in its queue's list."""

    def statuses(self, task_ids: Collection[str]) -> dict[str, str | None]:
        """What RQ says of each task's job; None: it has none."""

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
        self._gone: set[str] = set()
        self._over: set[str] = set()

    def look(self) -> int:
        """Put back what was seen unlisted by the look before as well; how many. None before a look is due.

        What was twice seen without a job that is to run is not counted: it is in the outbox again, and the next sweep
        places it.
        """
        if self._clock() - self._looked < LOOK_EVERY_SECONDS:
            return 0
        self._looked = self._clock()
        waiting = self._waiting()
        statuses = self._lists.statuses(waiting)
        gone = {task_id for task_id, status in statuses.items() if status is None}
        over = {task_id for task_id, status in statuses.items() if status in ENDED}
        twice_gone, self._gone = gone & self._gone, gone
        twice_over, self._over = over & self._over, over
        self._into_outbox(twice_over, "ended before they were begun")
        self._into_outbox(twice_gone, "are gone from Redis", only_without_run=True)
        first: dict[str, list[str]] = {}
        for task_id, queue in waiting.items():
            if statuses[task_id] == "queued" and len(first.setdefault(queue, [])) < _LISTED_OF_A_QUEUE:
                first[queue].append(task_id)
        unlisted = self._lists.unlisted({task_id: queue for queue, tasks in first.items() for task_id in tasks})
        lost, self._suspects = unlisted & self._suspects, unlisted
        back = sum(self._put_back(task_id, waiting[task_id]) for task_id in sorted(lost))
        if back:
            log.warning("put %d job(s) back that a worker had taken and not begun", back)
        return back

    def _into_outbox(self, task_ids: Collection[str], what: str, *, only_without_run: bool = False) -> None:
        """Take the stamp from rows, of whose jobs ``what`` is true; from none if an open run of Sluice sees to them.

        That such a job turns up again, as with an old copy of Redis, does no harm: the custody guard turns it away.
        """
        if not task_ids:
            return
        statement = text(
            "UPDATE caption_tasks SET enqueued_at = NULL WHERE id IN :ids AND custody = 'rq' AND status = 'queued'"
            " AND enqueued_at < UTC_TIMESTAMP(6) - INTERVAL :age SECOND"
        ).bindparams(bindparam("ids", expanding=True))

        def work(connection: Connection) -> int:
            if only_without_run and not no_run(connection):
                return 0
            return connection.execute(statement, {"ids": sorted(task_ids), "age": _STAMPED_SECONDS_AGO}).rowcount

        if number := in_transaction(self._engine, work):
            log.warning("the jobs of %d task(s) %s; they are placed again", number, what)

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


def no_run(connection: Connection) -> bool:
    """Whether no run of Sluice is open; until this transaction ends none can take the lease, so none goes on or begins.

    What cannot be seen for want of a right is taken for a run. The mover's own runs do not count, but for its lease.
    """
    try:
        leases = connection.execute(
            text("SELECT expires_at > UTC_TIMESTAMP(6) FROM sluice_lease LOCK IN SHARE MODE")
        ).scalars()
        if any(leases.all()):
            return False
        open_run = text("SELECT 1 FROM sluice_run WHERE open_system NOT LIKE '%-fallback' LIMIT 1")
        return connection.execute(open_run).first() is None
    except (OperationalError, ProgrammingError) as error:
        if error_code(error) == _NO_SUCH_TABLE:
            return True
        if error_code(error) != _MAY_NOT_SELECT:
            raise
        log.warning("whether a run of Sluice is open cannot be seen: GRANT SELECT on the database to this account")
        return False
