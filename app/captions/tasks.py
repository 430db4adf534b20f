"""Everything that is done to a row of ``caption_tasks``, each as one short transaction with a compare-and-set."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Engine, TextClause, bindparam, text
from sqlalchemy.exc import IntegrityError

from captions import task_types
from captions.control import bucket_of, read_control
from captions.database import error_code, in_transaction
from captions.retries import Failure

PRIORITIES = task_types.PRIORITIES
Custody = Literal["db", "rq"]

_DUPLICATE_KEY = 1062
_ERROR_LENGTH = 1000
_NOTE_LENGTH = 200
_READ_AT_ONCE = 1000
#: What a task can have become; of these only a failed or cancelled one can be retried.
ENDED = frozenset({"completed", "failed", "cancelled"})
_CLAIMED = (
    "id, kind, payload, image_path, attempts, max_attempts, priority,"
    " TIMESTAMPDIFF(MICROSECOND, GREATEST(created_at, available_at), UTC_TIMESTAMP(6)) / 1000000 AS waited"
)


#: What a listing can be narrowed down by, and the column of each.
FILTERS = {"status": "status", "queue": "priority", "system": "custody", "kind": "kind", "user_id": "user_id"}
_LISTED = (
    "id, kind, user_id, priority, status, custody, attempts, max_attempts, error_category, error, progress,"
    " progress_note, worker, created_at, available_at, enqueued_at, started_at, finished_at"
)


class IntakeClosed(Exception):
    """Submissions are turned away for now."""

    def __init__(self, reason: str | None, retry_after_seconds: int) -> None:
        super().__init__(f"submissions are paused: {reason or 'no reason given'}")
        self.retry_after_seconds = retry_after_seconds


class ActiveTaskExists(Exception):
    """The user already has a task that is queued or running."""


class TaskNotFound(Exception):
    """There is no task with this id."""


class TaskStateConflict(Exception):
    """The task is not in a state that allows the request; the message says which state it is in."""


@dataclass(frozen=True)
class Claim:
    """One attempt at a task: whoever holds it may finish it while the row still names them.

    ``payload`` is the text in the row, None for a caption, whose row has the name of its image instead.
    ``waited_seconds`` is the time from when the task was due.
    """

    task_id: str
    kind: str
    payload: str | None
    image_path: str
    attempt: int
    max_attempts: int
    worker: str
    queue: str
    waited_seconds: float


def submit(
    engine: Engine,
    *,
    rq_usable: bool,
    user_id: int,
    priority: str,
    delay_seconds: float,
    image: str = "",
    kind: str = "caption",
    payload: str | None = None,
    max_attempts: int = 3,
    redis_well: bool = True,
) -> tuple[str, Custody]:
    """Accept a task: its id, which nobody can guess, and the side that owns it. The row is committed on return.

    ``priority`` is the queue: one of the four, or the own queue of the task's type.
    """
    task_id = str(uuid.uuid4())

    def work(connection: Connection) -> Custody:
        custody = _route(connection, user_id, rq_usable, redis_well)
        connection.execute(
            text(
                "INSERT INTO caption_tasks (id, user_id, priority, image_path, kind, payload, max_attempts, custody,"
                " created_at, available_at)"
                " VALUES (:id, :user, :priority, :image, :kind, :payload, :attempts, :custody, UTC_TIMESTAMP(6),"
                " UTC_TIMESTAMP(6) + INTERVAL :delay MICROSECOND)"
            ),
            {
                "id": task_id,
                "user": user_id,
                "priority": priority,
                "image": image,
                "kind": kind,
                "payload": payload,
                "attempts": max_attempts,
                "custody": custody,
                "delay": round(delay_seconds * 1_000_000),
            },
        )
        return custody

    return task_id, _refusing_a_second_active_task(engine, work)


def cancel(engine: Engine, task_id: str) -> None:
    """Cancel a queued task, whichever side owns it and also while it is being moved."""

    def work(connection: Connection) -> None:
        changed = connection.execute(
            text(
                "UPDATE caption_tasks SET status = 'cancelled', finished_at = UTC_TIMESTAMP(6)"
                " WHERE id = :id AND status = 'queued'"
            ),
            {"id": task_id},
        )
        if changed.rowcount == 0:
            raise TaskStateConflict(f"the task is {_status(connection, task_id)}; only a queued task can be cancelled")

    in_transaction(engine, work)


def retry(engine: Engine, task_id: str, *, rq_usable: bool, redis_well: bool = True) -> Custody:
    """Queue a failed or cancelled task again, with all its attempts, on the side that new tasks go to now."""

    def work(connection: Connection) -> Custody:
        row = connection.execute(
            text("SELECT user_id, status, custody FROM caption_tasks WHERE id = :id FOR UPDATE"), {"id": task_id}
        ).one_or_none()
        if row is None:
            raise TaskNotFound(task_id)
        if row.status not in ("failed", "cancelled"):
            raise TaskStateConflict(f"the task is {row.status}; only a failed or cancelled task can be retried")
        if row.custody == "held":
            raise TaskStateConflict("the task is being moved between queue systems; try again later")
        custody = _route(connection, row.user_id, rq_usable, redis_well)
        connection.execute(
            text(
                "UPDATE caption_tasks SET status = 'queued', custody = :custody, attempts = 0, caption = NULL,"
                " error = NULL, worker = NULL, started_at = NULL, finished_at = NULL, lease_until = NULL,"
                " enqueued_at = NULL, error_category = NULL, progress = 0, progress_note = NULL,"
                " available_at = UTC_TIMESTAMP(6) WHERE id = :id"
            ),
            {"id": task_id, "custody": custody},
        )
        return custody

    return _refusing_a_second_active_task(engine, work)


def read_task(engine: Engine, task_id: str) -> dict[str, Any]:
    """The whole row, with ``owner``: the side that has it, ``held`` while it is being moved. Times are UTC."""
    with engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM caption_tasks WHERE id = :id"), {"id": task_id}).mappings().first()
    if row is None:
        raise TaskNotFound(task_id)
    return plain(dict(row)) | {"owner": row["custody"]}


def check_owner(engine: Engine, task_id: str, user: int | None) -> None:
    """TaskNotFound when there is no such task, or it is another user's; None stands for anybody."""
    with engine.connect() as connection:
        owner = connection.execute(
            text("SELECT user_id FROM caption_tasks WHERE id = :id"), {"id": task_id}
        ).scalar_one_or_none()
    if owner is None or user not in (None, owner):
        raise TaskNotFound(task_id)


def read_progress(engine: Engine, task_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What users watch of those tasks that are there, by id."""
    found: dict[str, dict[str, Any]] = {}
    with engine.connect() as connection:
        for start in range(0, len(task_ids), _READ_AT_ONCE):
            rows = connection.execute(
                text(
                    "SELECT id, status, custody AS owner, attempts, progress, progress_note, caption, error"
                    " FROM caption_tasks WHERE id IN :ids"
                ).bindparams(bindparam("ids", expanding=True)),
                {"ids": task_ids[start : start + _READ_AT_ONCE]},
            ).mappings()
            found |= {row["id"]: dict(row) for row in rows}
    return found


def listing(
    engine: Engine, wanted: Mapping[str, str], limit: int, after: str = "", also: str = ""
) -> list[dict[str, Any]]:
    """At most ``limit`` tasks in the order of their ids, from the one behind ``after``, without payload and result.

    ``wanted`` narrows it down: a value for each of some of ``FILTERS``. ``also`` names more columns.
    """
    columns = f"{_LISTED}, {also}" if also else _LISTED
    conditions = "".join(f" AND {FILTERS[key]} = :{key}" for key in wanted)
    with engine.connect() as connection:
        rows = connection.execute(
            text(f"SELECT {columns} FROM caption_tasks WHERE id > :after{conditions} ORDER BY id LIMIT :limit"),
            {**wanted, "after": after, "limit": limit},
        ).mappings()
        return [plain(dict(row)) for row in rows]


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: times are UTC text."""
    return {
        key: value.isoformat(timespec="microseconds") + "Z" if isinstance(value, datetime) else value
        for key, value in row.items()
        if key != "active_user"
    }


def claim_for_rq(engine: Engine, task_id: str, worker: str, lease_seconds: float) -> Claim | None:
    """The custody guard: None when RQ does not own the task, it is not queued (any more), or its queue is paused.

    A task of a paused queue goes back into the outbox, which places it again when the queue is resumed.
    Nobody can be at work on the claim ``lease_seconds`` from now: RQ ends a job that takes longer.
    """

    def work(connection: Connection) -> Claim | None:
        if paused := read_control(connection).paused:
            sent_back = connection.execute(
                text(
                    "UPDATE caption_tasks SET enqueued_at = NULL"
                    " WHERE id = :id AND custody = 'rq' AND status = 'queued' AND priority IN :paused"
                ).bindparams(bindparam("paused", expanding=True)),
                {"id": task_id, "paused": sorted(paused)},
            )
            if sent_back.rowcount:
                return None
        changed = connection.execute(
            text(
                "UPDATE caption_tasks SET status = 'running', attempts = attempts + 1,"
                " started_at = UTC_TIMESTAMP(6), worker = :worker,"
                " lease_until = UTC_TIMESTAMP(6) + INTERVAL :lease SECOND"
                " WHERE id = :id AND custody = 'rq' AND status = 'queued'"
            ),
            {"id": task_id, "worker": worker, "lease": lease_seconds},
        )
        return _claim(connection, task_id, worker) if changed.rowcount == 1 else None

    return in_transaction(engine, work)


def claim_for_poller(engine: Engine, worker: str, lease_seconds: int) -> Claim | None:
    """The guarded poller's claim of the first ready row; None when there is none or polling is switched off."""

    def work(connection: Connection) -> Claim | None:
        control = read_control(connection)
        if not control.polling:
            return None
        task_id = connection.execute(
            *_first_ready("id", control.paused, " FOR UPDATE SKIP LOCKED")
        ).scalar_one_or_none()
        if task_id is None:
            return None
        connection.execute(
            text(
                "UPDATE caption_tasks SET status = 'running', attempts = attempts + 1,"
                " started_at = UTC_TIMESTAMP(6), worker = :worker,"
                " lease_until = UTC_TIMESTAMP(6) + INTERVAL :lease SECOND WHERE id = :id"
            ),
            {"id": task_id, "worker": worker, "lease": lease_seconds},
        )
        return _claim(connection, task_id, worker)

    return in_transaction(engine, work)


def renew_lease(engine: Engine, claim: Claim, lease_seconds: int) -> None:
    """Move the lease of a claim that is still ours ``lease_seconds`` ahead."""

    def work(connection: Connection) -> None:
        connection.execute(
            text(
                "UPDATE caption_tasks SET lease_until = UTC_TIMESTAMP(6) + INTERVAL :lease SECOND"
                " WHERE id = :id AND status = 'running' AND worker = :worker AND attempts = :attempt"
            ),
            {"lease": lease_seconds, **_holder(claim)},
        )

    in_transaction(engine, work)


def end_lease(engine: Engine, task_id: str, worker: str) -> bool:
    """Say that the worker that claimed a task of RQ's is at work on it no more; False when it has no such claim."""

    def work(connection: Connection) -> bool:
        return bool(
            connection.execute(
                text(
                    "UPDATE caption_tasks SET lease_until = UTC_TIMESTAMP(6)"
                    " WHERE id = :id AND custody = 'rq' AND status = 'running' AND worker = :worker"
                ),
                {"id": task_id, "worker": worker},
            ).rowcount
        )

    return in_transaction(engine, work)


def lapsed_at_rq(engine: Engine, at_most: int) -> list[Claim]:
    """Claims of RQ's workers whose lease has lapsed. None while RQ gets no tasks: somebody may be emptying it."""
    with engine.connect() as connection:
        if not read_control(connection).share(rq_usable=True):
            return []
        rows = connection.execute(
            text(
                f"SELECT {_CLAIMED}, worker FROM caption_tasks WHERE custody = 'rq' AND status = 'running'"
                " AND lease_until < UTC_TIMESTAMP(6) ORDER BY lease_until LIMIT :most"
            ),
            {"most": at_most},
        ).all()
    return [_made(row, row.attempts, row.worker) for row in rows]


def complete(engine: Engine, claim: Claim, caption: str, about_to_commit: Callable[[], None]) -> bool:
    """Store the caption; False when the row is not this claim's any more, and then nothing is written.

    ``about_to_commit`` runs once the row is known to be ours, right before the commit.
    """

    def work(connection: Connection) -> bool:
        changed = connection.execute(
            text(
                "UPDATE caption_tasks SET status = 'completed', caption = :caption, error = NULL, lease_until = NULL,"
                " error_category = NULL, finished_at = UTC_TIMESTAMP(6)"
                " WHERE id = :id AND status = 'running' AND worker = :worker AND attempts = :attempt"
            ),
            {"caption": caption, **_holder(claim)},
        )
        if changed.rowcount != 1:
            return False
        about_to_commit()
        return True

    return in_transaction(engine, work)


def report_progress(engine: Engine, claim: Claim, percent: int, note: str) -> None:
    """Say how far a claim is that is still ours. ``percent`` is 0 to 100."""

    def work(connection: Connection) -> None:
        connection.execute(
            text(
                "UPDATE caption_tasks SET progress = :percent, progress_note = :note"
                " WHERE id = :id AND status = 'running' AND worker = :worker AND attempts = :attempt"
            ),
            {"percent": min(100, max(0, percent)), "note": note[:_NOTE_LENGTH], **_holder(claim)},
        )

    in_transaction(engine, work)


def give_up_attempt(
    engine: Engine, claim: Claim, failure: Failure, delay_seconds: float | None
) -> Literal["queued", "failed", "not ours"]:
    """End a failed attempt: queued again on the same side, due after the delay, while attempts are left, else failed.

    No delay (None) means that no attempt shall follow; a failed task is a dead letter. A row in RQ's custody loses
    its stamp when it is queued again, so that the outbox places it again.
    """
    again = delay_seconds is not None and claim.attempt < claim.max_attempts
    outcome: Literal["queued", "failed"] = "queued" if again else "failed"

    def work(connection: Connection) -> int:
        if outcome == "queued":
            assignments = "status = 'queued', worker = NULL, started_at = NULL, enqueued_at = NULL"
            if delay_seconds:
                assignments += ", available_at = UTC_TIMESTAMP(6) + INTERVAL :delay MICROSECOND"
        else:
            assignments = "status = 'failed', finished_at = UTC_TIMESTAMP(6)"
        return connection.execute(
            text(
                f"UPDATE caption_tasks SET {assignments}, error = :error, error_category = :category,"
                " lease_until = NULL, progress = 0, progress_note = NULL"
                " WHERE id = :id AND status = 'running' AND worker = :worker AND attempts = :attempt"
            ),
            {
                "error": failure.message[:_ERROR_LENGTH],
                "category": failure.category,
                "delay": round((delay_seconds or 0) * 1_000_000),
                **_holder(claim),
            },
        ).rowcount

    return outcome if in_transaction(engine, work) == 1 else "not ours"


def park(engine: Engine, task_id: str, failure: Failure) -> bool:
    """Make a queued task of RQ's that no worker can even begin a dead letter; False when it is not queued there."""

    def work(connection: Connection) -> bool:
        changed = connection.execute(
            text(
                "UPDATE caption_tasks SET status = 'failed', finished_at = UTC_TIMESTAMP(6), error = :error,"
                " error_category = :category WHERE id = :id AND custody = 'rq' AND status = 'queued'"
            ),
            {"id": task_id, "error": failure.message[:_ERROR_LENGTH], "category": failure.category},
        )
        return changed.rowcount == 1

    return in_transaction(engine, work)


def head_row(engine: Engine, worker: str) -> Claim | None:
    """The row an unguarded poller takes next. Nothing is changed, so the row still looks queued to everyone."""
    with engine.connect() as connection:
        row = connection.execute(*_first_ready(_CLAIMED, read_control(connection).paused)).one_or_none()
    if row is None:
        return None
    return _made(row, row.attempts + 1, worker)


def overwrite_result(
    engine: Engine, claim: Claim, *, caption: str | None, error: str | None, about_to_commit: Callable[[], None]
) -> None:
    """What an unguarded poller writes when it is done: by id alone, whatever the row says meanwhile."""
    if caption is not None:
        status = "completed"
    else:
        status = "queued" if claim.attempt < claim.max_attempts else "failed"

    def work(connection: Connection) -> None:
        connection.execute(
            text(
                "UPDATE caption_tasks SET status = :status, caption = :caption, error = :error, attempts = :attempt,"
                " worker = :worker, finished_at = IF(:status = 'queued', NULL, UTC_TIMESTAMP(6)) WHERE id = :id"
            ),
            {
                "status": status,
                "caption": caption,
                "error": None if error is None else error[:_ERROR_LENGTH],
                **_holder(claim),
            },
        )
        about_to_commit()

    in_transaction(engine, work)


def statistics(engine: Engine) -> dict[str, Any]:
    """Counts by status, priority and custody (and all three together) and the oldest ages in seconds."""
    with engine.connect() as connection:
        groups = connection.execute(
            text(
                "SELECT status, priority, custody, COUNT(*) AS tasks FROM caption_tasks"
                " GROUP BY status, priority, custody"
            )
        ).all()
        ages = connection.execute(
            text(
                "SELECT TIMESTAMPDIFF(MICROSECOND,"
                " MIN(IF(status = 'queued', GREATEST(created_at, available_at), NULL)), UTC_TIMESTAMP(6))"
                " / 1000000 AS queued,"
                " TIMESTAMPDIFF(MICROSECOND, MIN(IF(status = 'running', started_at, NULL)), UTC_TIMESTAMP(6))"
                " / 1000000 AS running,"
                " COUNT(IF(custody = 'rq' AND enqueued_at IS NULL, 1, NULL)) AS unplaced"
                " FROM caption_tasks WHERE status IN ('queued', 'running')"
            )
        ).one()
    by: dict[str, dict[str, int]] = {"status": {}, "priority": {}, "custody": {}}
    for row in groups:
        for column, counts in by.items():
            value = getattr(row, column)
            counts[value] = counts.get(value, 0) + row.tasks
    return {
        "by_status": by["status"],
        "by_priority": by["priority"],
        "by_custody": by["custody"],
        "groups": [dict(row._mapping) for row in groups],
        "oldest_queued_seconds": None if ages.queued is None else max(0.0, float(ages.queued)),
        "oldest_running_seconds": None if ages.running is None else float(ages.running),
        "outbox": int(ages.unplaced),
    }


def queue_statistics(engine: Engine) -> list[dict[str, Any]]:
    """For each queue and system with unfinished tasks: ready, delayed, running, and the longest wait in seconds."""
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT priority AS queue, custody AS `system`,"
                " SUM(status = 'queued' AND available_at <= UTC_TIMESTAMP(6)) AS ready,"
                " SUM(status = 'queued' AND available_at > UTC_TIMESTAMP(6)) AS `delayed`,"
                " SUM(status = 'running') AS running,"
                " TIMESTAMPDIFF(MICROSECOND, MIN(IF(status = 'queued' AND available_at <= UTC_TIMESTAMP(6),"
                " GREATEST(created_at, available_at), NULL)), UTC_TIMESTAMP(6)) / 1000000 AS oldest_ready_seconds"
                " FROM caption_tasks WHERE status IN ('queued', 'running') GROUP BY priority, custody ORDER BY priority"
            )
        ).mappings()
        return [
            {
                "queue": row["queue"],
                "system": row["system"],
                **{name: int(row[name]) for name in ("ready", "delayed", "running")},
                "oldest_ready_seconds": float(row["oldest_ready_seconds"] or 0.0),
            }
            for row in rows
        ]


def clean_up(engine: Engine, older_than_seconds: int, at_most: int) -> int:
    """Delete completed and cancelled tasks that ended so long ago, oldest ids first; how many. Dead letters stay."""

    def work(connection: Connection) -> int:
        return connection.execute(
            text(
                "DELETE FROM caption_tasks WHERE status IN ('completed', 'cancelled')"
                " AND finished_at < UTC_TIMESTAMP(6) - INTERVAL :age SECOND ORDER BY id LIMIT :most"
            ),
            {"age": older_than_seconds, "most": at_most},
        ).rowcount

    return in_transaction(engine, work)


def _first_ready(columns: str, paused: frozenset[str], lock: str = "") -> tuple[TextClause, dict[str, object]]:
    """The query for the row that pollers take next: strictly by priority, then by age."""
    condition = "custody = 'db' AND status = 'queued' AND available_at <= UTC_TIMESTAMP(6)"
    if paused:
        condition += " AND priority NOT IN :paused"
    query = text(
        f"SELECT {columns} FROM caption_tasks WHERE {condition} ORDER BY priority, created_at, id LIMIT 1{lock}"
    )
    if not paused:
        return query, {}
    return query.bindparams(bindparam("paused", expanding=True)), {"paused": sorted(paused)}


def _route(connection: Connection, user_id: int, rq_usable: bool, redis_well: bool) -> Custody:
    control = read_control(connection, for_submission=True)
    if control.intake_paused:
        raise IntakeClosed(control.intake_reason, control.retry_after_seconds)
    return "rq" if bucket_of(user_id) < control.share(rq_usable, redis_well) else "db"


def _refusing_a_second_active_task(engine: Engine, work: Callable[[Connection], Custody]) -> Custody:
    try:
        return in_transaction(engine, work)
    except IntegrityError as error:
        if error_code(error) == _DUPLICATE_KEY and "one_active_per_user" in str(error.orig):
            raise ActiveTaskExists("the user already has a task that is queued or running") from error
        raise


def _status(connection: Connection, task_id: str) -> str:
    status = connection.execute(
        text("SELECT status FROM caption_tasks WHERE id = :id"), {"id": task_id}
    ).scalar_one_or_none()
    if status is None:
        raise TaskNotFound(task_id)
    return str(status)


def _claim(connection: Connection, task_id: str, worker: str) -> Claim:
    row = connection.execute(text(f"SELECT {_CLAIMED} FROM caption_tasks WHERE id = :id"), {"id": task_id}).one()
    return _made(row, row.attempts, worker)


def _made(row: Any, attempt: int, worker: str) -> Claim:
    waited = max(0.0, float(row.waited))
    return Claim(row.id, row.kind, row.payload, row.image_path, attempt, row.max_attempts, worker, row.priority, waited)


def _holder(claim: Claim) -> dict[str, object]:
    return {"id": claim.task_id, "worker": claim.worker, "attempt": claim.attempt}
