"""Which waiting tasks a claimer that marks nothing may have been at work on when it ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Waiting(NamedTuple):
    """A ready task. It came into the queue at some moment from ``earliest`` to ``latest``.

    Both are in one unit of the caller's. None: not known, so it may have been at any time before, or after.
    """

    id: str
    earliest: float | None
    latest: float | None


def perhaps_in_hand(waiting: Iterable[Waiting], processes: int) -> list[str]:
    """The ids that so many processes may have had in hand when they ended; ``waiting`` is in their order of claim.

    Such a process took the row that was the first one at that moment, whenever that was, and left it as it was. What
    stands before that row now came later. So every row may have been the one that is not younger than each before it;
    of one age, nobody knows. The first rows, one per process, are always named: a row can have left and come back.
    """
    found: list[str] = []
    oldest: float | None = None
    for number, task in enumerate(waiting):
        if number < processes or oldest is None or task.earliest is None or task.earliest <= oldest:
            found.append(task.id)
        if task.latest is not None:
            oldest = task.latest if oldest is None else min(oldest, task.latest)
    return found
