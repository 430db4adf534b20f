"""The switches of the application: intake, route, emergency and polling, in the one row of ``captions_control``.

A submission reads that row under a shared lock in the transaction that inserts its task. Changing it therefore
waits until every submission that read the old value has been committed.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

from sqlalchemy import Connection, text

_READ = """
SELECT rq_share, intake, intake_reason, emergency, polling, paused_queues, rq_workers,
       TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), intake_until) AS pause_left_us, planned_reason,
       TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), planned_from) AS planned_in_us,
       TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), planned_until) AS planned_left_us
FROM captions_control WHERE id = 1
"""


@dataclass(frozen=True)
class Planned:
    """A pause that was announced. ``starts_in_seconds`` is 0 while it lasts, ``left_seconds`` is to its end."""

    reason: str
    starts_in_seconds: float
    left_seconds: float


@dataclass(frozen=True)
class Control:
    """The switches as they were read."""

    rq_share: int
    intake_paused: bool
    intake_reason: str | None
    pause_left_seconds: float
    emergency: bool
    polling: bool
    paused: frozenset[str]
    rq_workers: str | None
    planned: Planned | None = None

    def share(self, rq_usable: bool, redis_well: bool = True) -> int:
        """The share of users, 0 to 100, whose new tasks go to RQ: none without RQ or in an emergency.

        None either while Redis is not well and there are pollers to work on them. Without these it does not matter
        where a task waits, and in RQ's custody nobody has to move it afterwards.
        """
        return self.rq_share if rq_usable and not self.emergency and (redis_well or not self.polling) else 0

    @property
    def retry_after_seconds(self) -> int:
        """Whole seconds until a paused intake opens again."""
        return max(1, math.ceil(self.pause_left_seconds))


def bucket_of(user_id: int) -> int:
    """The user's place, 0 to 99; a user goes to RQ when it is below the share. It never changes."""
    return zlib.crc32(str(user_id).encode()) % 100


def read_control(connection: Connection, for_submission: bool = False) -> Control:
    """Read the switches; ``for_submission`` holds them still until the transaction ends.

    A pause whose deadline has passed reads as open: it needs nobody to end it.
    """
    row = connection.execute(text(_READ + (" LOCK IN SHARE MODE" if for_submission else ""))).mappings().one()
    left = 0.0 if row["pause_left_us"] is None else row["pause_left_us"] / 1_000_000
    reason = row["intake_reason"]
    paused = row["intake"] == "paused" and left > 0
    planned = None
    if row["planned_left_us"] is not None and row["planned_left_us"] > 0:
        starts_in = max(0.0, row["planned_in_us"] / 1_000_000)
        planned = Planned(row["planned_reason"] or "", starts_in, row["planned_left_us"] / 1_000_000)
        if not starts_in and not (paused and left > planned.left_seconds):
            paused, left, reason = True, planned.left_seconds, planned.reason
    return Control(
        rq_share=row["rq_share"],
        intake_paused=paused,
        intake_reason=reason if paused else None,
        pause_left_seconds=left if paused else 0.0,
        emergency=bool(row["emergency"]),
        polling=bool(row["polling"]),
        paused=_names(row["paused_queues"]),
        rq_workers=row["rq_workers"],
        planned=planned,
    )


def _names(words: str) -> frozenset[str]:
    return frozenset(filter(None, words.split(",")))


def set_queue_paused(connection: Connection, queue: str, paused: bool) -> None:
    """Nothing of a paused queue is begun, on either system; what runs already goes on."""
    words = connection.execute(text("SELECT paused_queues FROM captions_control WHERE id = 1 FOR UPDATE")).scalar_one()
    names = _names(words) | {queue} if paused else _names(words) - {queue}
    connection.execute(
        text("UPDATE captions_control SET paused_queues = :names WHERE id = 1"), {"names": ",".join(sorted(names))}
    )


def scale_workers(connection: Connection, workers: str | None) -> None:
    """How many RQ workers each machine shall have, in the words of ``RQ_WORKERS``; None for what its settings say."""
    connection.execute(text("UPDATE captions_control SET rq_workers = :workers WHERE id = 1"), {"workers": workers})


def pause_intake(connection: Connection, reason: str, seconds: int) -> None:
    """Turn submissions away for at most ``seconds``."""
    connection.execute(
        text(
            "UPDATE captions_control SET intake = 'paused', intake_reason = :reason,"
            " intake_until = UTC_TIMESTAMP(6) + INTERVAL :seconds SECOND WHERE id = 1"
        ),
        {"reason": reason, "seconds": seconds},
    )


def resume_intake(connection: Connection) -> None:
    """Accept submissions again, also in the middle of an announced pause; one that has not begun stays announced."""
    connection.execute(
        text("UPDATE captions_control SET intake = 'open', intake_reason = NULL, intake_until = NULL WHERE id = 1")
    )
    connection.execute(
        text("UPDATE captions_control SET planned_until = NULL WHERE id = 1 AND planned_from <= UTC_TIMESTAMP(6)")
    )


def plan_pause(connection: Connection, reason: str, in_seconds: int, seconds: int) -> None:
    """Announce a pause, in the place of any other."""
    _plan(connection, reason, in_seconds, in_seconds + seconds)


def drop_plan(connection: Connection) -> None:
    """Take the announcement back, also in the middle of the pause."""
    _plan(connection, None, None, None)


def _plan(connection: Connection, reason: str | None, begin: int | None, end: int | None) -> None:
    connection.execute(
        text(
            "UPDATE captions_control SET planned_reason = :reason,"
            " planned_from = UTC_TIMESTAMP(6) + INTERVAL :begin SECOND,"
            " planned_until = UTC_TIMESTAMP(6) + INTERVAL :end SECOND WHERE id = 1"
        ),
        {"reason": reason, "begin": begin, "end": end},
    )


def set_route(connection: Connection, share: int) -> None:
    """Send the users whose bucket is below ``share`` to RQ."""
    connection.execute(text("UPDATE captions_control SET rq_share = :share WHERE id = 1"), {"share": share})


def set_polling(connection: Connection, polling: bool) -> None:
    """Allow or forbid the polling workers to claim."""
    connection.execute(text("UPDATE captions_control SET polling = :polling WHERE id = 1"), {"polling": int(polling)})


def set_emergency(connection: Connection, emergency: bool) -> None:
    """In an emergency new tasks stay in the database and nothing more is placed in RQ; the share is kept."""
    connection.execute(
        text("UPDATE captions_control SET emergency = :emergency WHERE id = 1"), {"emergency": int(emergency)}
    )
