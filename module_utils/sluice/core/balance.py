"""Conservation by identity: each known id is in exactly one term, or is named with the reason why not.

:func:`account` decides one id from everything seen of it. Streams, sorting and second looks are the service's work.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .tasks import Home, Mark, Place


class Term(enum.StrEnum):
    """The terms of the conservation equation, in the order in which they are printed."""

    READY = "ready"
    DELAYED = "delayed"
    LEASED = "leased"
    HELD = "held"
    STAGED = "staged"
    QUEUED = "queued"
    SCHEDULED = "scheduled"
    DEFERRED = "deferred"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEPARTED = "departed"


UNFINISHED = frozenset(
    {
        Term.READY,
        Term.DELAYED,
        Term.LEASED,
        Term.HELD,
        Term.STAGED,
        Term.QUEUED,
        Term.SCHEDULED,
        Term.DEFERRED,
        Term.RUNNING,
    }
)

_LIVE = {
    Home.QUEUED: Term.QUEUED,
    Home.INTERMEDIATE: Term.QUEUED,
    Home.SCHEDULED: Term.SCHEDULED,
    Home.DEFERRED: Term.DEFERRED,
    Home.STARTED: Term.RUNNING,
}
_ENDED = {Home.FINISHED: Term.FINISHED, Home.FAILED: Term.FAILED, Home.CANCELLED: Term.CANCELLED}
_AT_SOURCE = {Place.READY: Term.READY, Place.DELAYED: Term.DELAYED, Place.LEASED: Term.LEASED}
_OVER = {Place.FINISHED: Term.FINISHED, Place.FAILED: Term.FAILED, Place.CANCELLED: Term.CANCELLED}


class Evidence(NamedTuple):
    """All that was seen of one id in one look."""

    id: str
    place: Place | None = None  # None: the source has no such row
    pending: bool = False  # journalled, and still to be enqueued by the application
    mark: Mark | None = None
    homes: tuple[Home, ...] = ()
    baseline: bool = False  # seen at the start of the run
    marked: bool = False  # the target carries our marker of activation
    task_id: str = ""  # the source's own id, where it differs from the job's


class Account(NamedTuple):
    """The one term an id is in; ``fault`` is empty unless the id breaks the balance."""

    id: str
    term: Term | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the mapping promises, as far as the balance depends on it."""

    custody_in_row: bool  # the row itself says which side owns it
    journal: bool  # rows record what the target did
    forgets: bool  # the target drops ended jobs after a time and the row does not tell


def account(seen: Evidence, rules: Rules) -> Account:
    """Decide the term of one id, or say which rule it breaks."""
    live = [home for home in seen.homes if home in _LIVE]
    distinct = set(live)
    if Home.INTERMEDIATE in distinct and Home.STARTED in distinct:
        distinct.discard(Home.INTERMEDIATE)  # RQ keeps the entry until the job is registered as started
    if seen.place in _OVER:
        return Account(seen.id, _OVER[seen.place])
    if seen.mark is Mark.HELD:
        return _fault(seen, "held, and also live at the target") if live else Account(seen.id, Term.HELD)
    if live.count(Home.QUEUED) > 1:
        return _fault(seen, "queued twice at the target")
    if len(distinct) > 1:
        return _fault(seen, f"in several places at the target: {', '.join(sorted(distinct))}")
    home = next(iter(distinct), None)
    if seen.place in _AT_SOURCE:
        if home is None:
            return Account(seen.id, _AT_SOURCE[seen.place])
        if rules.custody_in_row:
            return _fault(seen, f"{seen.place} at the source and {home} at the target")
        return Account(seen.id, _LIVE[home])
    if seen.place is Place.CLAIMED:
        return _fault(seen, f"claimed at the source and {home} at the target") if home else Account(seen.id, Term.HELD)
    if seen.place is Place.UNKNOWN:
        return _fault(seen, "its row meets no predicate of the mapping, or more than one")
    if home is not None and Home.BODILESS in seen.homes:
        # A worker drops an entry without its hash, and says nothing.
        return _fault(seen, f"{home} at the target without its job")
    if home is not None:
        return Account(seen.id, _LIVE[home])
    if seen.place is Place.RUNNING:
        return _fault(seen, "started, and its job is gone from the target")
    return _given(seen, rules)


def _given(seen: Evidence, rules: Rules) -> Account:
    """An id with no live home that the source does not own: moved, born in the target, or gone."""
    # A job that repeats may have ended in two ways; the less happy one counts, whichever was read first.
    ended = sorted(home for home in seen.homes if home in _ENDED)
    if seen.pending:
        return Account(seen.id, Term.STAGED)
    if ended and not (rules.journal and seen.place is Place.MOVED):
        return Account(seen.id, _ENDED[ended[0]])
    if ended:
        return _fault(seen, f"{ended[0]} at the target, and its row never started")
    if Home.STAGED in seen.homes:
        return Account(seen.id, Term.STAGED)
    if Home.ORPHAN in seen.homes:
        return _fault(seen, "its job lives in no queue and no registry of the target")
    if Home.BODILESS in seen.homes:
        return _fault(seen, "an entry at the target without its job")
    if seen.place is Place.MOVED or seen.mark is Mark.MOVED:
        if rules.forgets and seen.marked:
            return Account(seen.id, Term.DEPARTED)
        return _fault(seen, "moved, and missing at the target")
    if seen.mark in (Mark.SETTLED, Mark.RETURNED) or seen.baseline:
        return Account(seen.id, Term.DEPARTED)  # that it does not grow after the fence is the service's check
    return _fault(seen, "known, and found nowhere")


def _fault(seen: Evidence, reason: str) -> Account:
    return Account(seen.id, None, reason)


@dataclass(frozen=True, slots=True)
class Balance:
    """The sum over all ids. It holds when no id is at fault."""

    known: int
    terms: Mapping[Term, int]
    fault_count: int
    faults: tuple[Account, ...] = field(default_factory=tuple)  # capped by the service

    @property
    def holds(self) -> bool:
        """True when each id is in exactly one term."""
        return self.fault_count == 0 and sum(self.terms.values()) == self.known


def total(accounts: Iterable[Account], *, cap: int = 50) -> Balance:
    """Add up accounts; keeps at most ``cap`` faulty ids by name and counts the rest."""
    counts = dict.fromkeys(Term, 0)
    known = faulty = 0
    named: list[Account] = []
    for entry in accounts:
        known += 1
        if entry.term is None:
            faulty += 1
            if len(named) < cap:
                named.append(entry)
        else:
            counts[entry.term] += 1
    return Balance(known, counts, faulty, tuple(named))


def homes_of(sightings: Iterable[tuple[str, str]]) -> tuple[Home, ...]:
    """The homes of one job from raw sightings (home or ``hash``, queue or status).

    A hash without a home is staged or an orphan; a home without a hash is bodiless. A job that ended keeps its hash
    in its registry.
    """
    status: str | None = None
    homes: list[Home] = []
    for place, where in sightings:
        if place == "hash":
            status = where
        else:
            homes.append(Home(place))
    if status is None:
        return (*homes, Home.BODILESS) if homes and not set(homes) & set(_ENDED) else tuple(homes)
    if not homes:
        if status == "created":
            return (Home.STAGED,)
        return (_STATUS_ENDED.get(status, Home.ORPHAN),)
    return tuple(homes)


_STATUS_ENDED = {"finished": Home.FINISHED, "failed": Home.FAILED, "stopped": Home.FAILED, "canceled": Home.CANCELLED}
