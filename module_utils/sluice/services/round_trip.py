"""The way home, proved before it is needed: a task goes out and comes back through the code that will move the rest."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from ..core.mapping import TaskMapping
from ..core.phases import Direction, Phase
from ..core.tasks import Lease, Place, Sighting
from ..core.verdicts import Check, Gate, Verdict
from ..ports.ledger import Ledger, Run
from ..ports.stores import SourceEnd, TargetEnd
from ..ports.surroundings import Clock
from .transfer import Pace, Transfer

_SECONDS = 20.0


class Rows(SourceEnd, Protocol):
    """The table as the source, asked for single rows."""

    def look(self, ids: Sequence[str]) -> dict[str, Sighting]:
        """The rows of these ids."""


class Queues(TargetEnd, Protocol):
    """The queues as the target, with their stamp."""

    def stamp(self, lease: Lease) -> bool:
        """Write the run's stamp."""


class Leaving(SourceEnd, Protocol):
    """The queues as the source."""

    def adopt(self, lease: Lease, before: Sequence[str]) -> str:
        """Take the stamp over."""

    def waiting(self) -> int:
        """What is left there."""


class Tried(Protocol):
    """Both ends in both directions around one task that is nobody's."""

    @property
    def mapping(self) -> TaskMapping:
        """Names its own system, table and queues."""

    @property
    def task_id(self) -> str:
        """The task; '' when no row could be made ready."""

    @property
    def empty(self) -> bool:
        """Whether the table had no row at all."""

    @property
    def source(self) -> Rows:
        """Where it leaves."""

    @property
    def target(self) -> Queues:
        """Where it goes."""

    @property
    def leaving(self) -> Leaving:
        """Where it comes back from."""

    @property
    def home(self) -> TargetEnd:
        """Where it comes home."""

    @property
    def ledger(self) -> Ledger:
        """A ledger of its own system."""

    def row(self) -> Mapping[str, object]:
        """Its row now."""


def round_trip(tried: Tried, clock: Clock, *, custody_in_row: bool) -> Gate:
    """Move the task out, see it queued, bring it home, see its row as it was. About a second."""
    if tried.empty:
        return Gate("round trip", (Check("there and back", Verdict.PASSED, "the table has no row: nothing will move"),))
    if not tried.task_id:
        advice = "add 'requeue' to the mapping's hold, or wait until a task is ready."
        reading = "no row could be made ready, so nothing was tried"
        return Gate("round trip", (Check("there and back", Verdict.UNKNOWN, reading, advice),))
    before, begun = tried.row(), clock.monotonic()
    run = Run(
        id=f"try-{secrets.token_hex(4)}",
        system=tried.mapping.system,
        direction=Direction.FORWARD,
        operator="round trip",
        phase=Phase.OPENED,
        plan_digest="",
        mapping_digest="",
        generation=secrets.token_hex(8),
        opened_at=datetime.fromtimestamp(clock.now(), UTC),
        point_of_no_return_at=None,
        settings={},
    )
    tried.ledger.start_run(run)
    lease = tried.ledger.take_lease(run, run.id, _SECONDS)
    tried.target.stamp(lease)
    out = _move(tried.source, tried.target, tried.ledger, clock, lease, custody_in_row)
    there = [s.where for s in tried.target.census() if s.id and s.place != "hash"]
    back = replace(run, id=f"{run.id}-back", direction=Direction.BACK, generation=secrets.token_hex(8))
    tried.ledger.take_over(back, run)
    lease = tried.ledger.take_lease(back, run.id, _SECONDS)
    tried.leaving.adopt(lease, [run.generation])
    home = _move(tried.leaving, tried.home, tried.ledger, clock, lease, custody_in_row)
    place = next((s.place for s in tried.source.look([tried.task_id]).values()), "no row")
    changed = sorted(name for name, value in tried.row().items() if value != before[name])
    took = f"in {(clock.monotonic() - begun) * 1000:.0f} ms"
    advice = "do not move anything: the way back would not work here."
    return Gate(
        "round trip",
        (
            Check.of("a task goes out", (out, len(there)) == (1, 1), f"{out} moved, queued in {there}", advice),
            Check.of(
                "and comes home",
                home == 1 and place in (Place.READY, Place.DELAYED) and tried.leaving.waiting() == 0,
                f"{home} brought home, its row is {place}, {took}",
                advice,
            ),
            Check.of("its row is as it was", not changed, ", ".join(changed) or "every column", advice),
        ),
    )


def _move(
    source: SourceEnd, target: TargetEnd, ledger: Ledger, clock: Clock, lease: Lease, custody_in_row: bool
) -> int:
    fence = Gate("fence", (Check("nobody's", Verdict.PASSED, "no claimer and no worker knows of it"),))
    work = Transfer(
        source,
        target,
        ledger,
        clock,
        prove_fence=lambda: fence,
        custody_in_row=custody_in_row,
        pace=Pace(lease_seconds=_SECONDS),
    )
    return work.slice(lease, _SECONDS / 2).moved
