"""Both sides at work, compared: what each completed, what failed there, and how old what waits has grown. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .verdicts import Check

#: A share of failures up to this is nobody's fault, and so is one up to twice the other side's.
FAILURES_BORNE = 0.05
#: Fewer ended tasks than this on a side say nothing about its share of failures.
FEWEST = 20


class Side(NamedTuple):
    """One side as its rows show it. ``oldest`` is seconds that its oldest due task has waited; None without one."""

    finished: int
    failed: int
    oldest: float | None

    @property
    def ended(self) -> int:
        """Tasks that ended by being worked on."""
        return self.finished + self.failed


def since(now: Side, before: Side) -> Side:
    """What happened on a side between two looks. Tasks queued again make a count fall: that is nothing that ended."""
    return Side(max(0, now.finished - before.finished), max(0, now.failed - before.failed), now.oldest)


def compare(source: Side, target: Side, *, oldest_before: float | None, oldest_seconds: float) -> list[Check]:
    """The target must not fail more often, and must not let tasks grow older, than the source does.

    Without enough traffic on a side there is nothing to compare: that is said, and closes nothing.

    :param oldest_before: what ``target.oldest`` was at the first look: an old backlog that is worked down is no matter
    :param oldest_seconds: the age, or growth, up to which a waiting task is no matter
    """
    return [_failures(source, target), _oldest(source, target, oldest_before, oldest_seconds)]


def _failures(source: Side, target: Side) -> Check:
    reading = f"source {_share(source)}, target {_share(target)} of what ended during the soak"
    if target.ended < FEWEST:
        return Check.of("failures compared", True, f"{reading}; too few at the target to judge")
    theirs = source.failed / source.ended if source.ended >= FEWEST else 0.0
    limit = max(FAILURES_BORNE, 2 * theirs)
    advice = "look at the failed tasks of the target before its share grows."
    return Check.of("failures compared", target.failed / target.ended <= limit, reading, advice)


def _oldest(source: Side, target: Side, before: float | None, floor: float) -> Check:
    reading = f"source {_age(source)}, target {_age(target)}"
    limit = max(floor, 2 * (source.oldest or 0.0), floor + (before or 0.0))
    advice = "the target takes in more than it gets done: start more workers, or lower the share."
    return Check.of("oldest waiting task", (target.oldest or 0.0) <= limit, f"{reading}, limit {limit:.0f} s", advice)


def _share(side: Side) -> str:
    return f"{side.failed} failed of {side.ended}"


def _age(side: Side) -> str:
    return "none waits" if side.oldest is None else f"{side.oldest:.0f} s"


def sides_of(rows: Mapping[str, Mapping[str, object]]) -> tuple[Side, Side]:
    """Source and target from plain data, as a slice hands it to the next."""
    source, target = (rows.get(name, {}) for name in ("source", "target"))
    return _side(source), _side(target)


def _side(row: Mapping[str, object]) -> Side:
    oldest = row.get("oldest")
    return Side(
        int(str(row.get("finished", 0))), int(str(row.get("failed", 0))), None if oldest is None else float(str(oldest))
    )
