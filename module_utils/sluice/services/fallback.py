"""A small run of the application's own: what waits at the source moves to the target while no operator's run is open.

An application calls it whose tasks went to the source although every one is to run at the target, as after an outage
of the target. It moves them by the playbooks' transfer and under the playbooks' lease, so that no run of an operator
and no other mover is at work meanwhile; one that begins waits for the lease, some seconds at most.

The run is recorded under a system of its own, ``<system>-fallback``, and stamps the target under that name: an
operator's last run stays the last, and a rollback, a report and a balance begin there. What was moved is marked in the
ledger as whatever else was moved.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from ..core.errors import GateClosed, GenerationMismatch, RunConflict, StoreError
from ..core.mapping import TaskMapping
from ..core.phases import Direction, Phase
from ..core.tasks import Lease, Sighting
from ..core.verdicts import Check, Gate
from ..ports.ledger import Ledger, Run
from ..ports.stores import SourceEnd, TargetEnd
from ..ports.surroundings import Clock
from .run import mapping_digest
from .transfer import Moved, Pace, Transfer

#: What the lease's owner is called, before the host and process.
OWNER = "fallback mover"
LEASE_SECONDS = 20.0
#: Tasks per batch. The mover is a guest, and looks between two batches whether it still has to move anything.
BATCH = 200


def own_system(system: str) -> str:
    """The name under which the run is recorded, and stamps the target; cut, so that a run's id fits the ledger."""
    return f"{system[:34]}-fallback"


class GuestSource(SourceEnd, Protocol):
    """A source that takes tasks back which the target refused."""

    def give_back(self, lease: Lease, ids: Sequence[str], *, requeue: bool = False) -> int:
        """Return held ids to circulation."""


class GuestTarget(TargetEnd, Protocol):
    """A target that is stamped for a run, and has its stamp removed afterwards."""

    def stamp(self, lease: Lease) -> bool:
        """Write the run's generation and token."""

    def restamp(self, lease: Lease, last_batch: int) -> None:
        """Write them anew after a loss."""

    def read_stamp(self) -> tuple[str, int, int]:
        """Generation, token and last activated batch."""

    def clear_stamp(self) -> int:
        """Delete what is ours but the tasks."""


class GuestLedger(Ledger, Protocol):
    """The ledger of the application's system."""

    def held_by(self, run_id: str) -> Sequence[Sighting]:
        """The ids that a run held."""

    def close(self, lease: Lease, outcome: str) -> None:
        """End a run that has no phases."""


@dataclass(frozen=True, slots=True)
class Fallen:
    """What one call moved, and what the target refused (id -> reason), which is at the source again."""

    moved: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)


class Fallback:
    """Moves tasks for an application. Any number of processes may try; one of them has the lease."""

    def __init__(
        self,
        source: GuestSource,
        target: GuestTarget,
        ledger: GuestLedger,
        own_runs: Ledger,
        clock: Clock,
        mapping: TaskMapping,
    ) -> None:
        """``target`` and ``own_runs`` are those of :func:`own_system`, the others of the application's system."""
        self.source = source
        self.target = target
        self.ledger = ledger
        self.own_runs = own_runs
        self.clock = clock
        self.mapping = mapping

    def move(self, owner: str, wanted: Callable[[], bool], seconds: float) -> Fallen:
        """Move what waits, for about ``seconds``, until nothing is left or it is not ``wanted`` any more.

        Nothing while a run of an operator is open, or anybody else has the lease. Each call is a run, whole at its
        end. One that was broken off, by a store or by a kill, is finished by the next call, wanted or not: what it had
        released is made runnable, what it had only claimed is back at the source.

        :param owner: names this process among all movers
        :raises GateClosed: a kind of claimer is unguarded: it may be at work on a row that looks ready
        :raises StoreError: a store cannot be reached, or refused
        :raises LeaseLost: somebody else took the lease; nothing was written since
        """
        unguarded = [claimer.name for claimer in self.mapping.source.claimers if not claimer.guarded]
        if unguarded:
            raise GateClosed(
                f"'{unguarded[0]}' claims without a lock: it may be at work on a row that looks ready.",
                where="mapping, source.claimers",
                next_step="leave these tasks to it, or move them with playbooks/migrate.yml, which fences it.",
            )
        broken_off = self.own_runs.open_run()
        if broken_off is None and not wanted():
            return Fallen()
        self.ledger.install()
        if self.ledger.open_run() is not None:
            return Fallen()
        try:
            run = broken_off or self._begin()
            lease = self.ledger.take_lease(run, f"{OWNER} {owner}", LEASE_SECONDS)
        except RunConflict:  # another mover, or a run that just begins: it is at work, and this one is not needed
            return Fallen()
        try:
            # A run that began before the lease was taken now waits for it.
            if self.ledger.open_run() is not None:
                return Fallen()
            return self._under(lease, wanted, seconds)
        finally:
            self.ledger.give_up(lease)

    def unfinished(self) -> bool:
        """Whether a run of ours was broken off."""
        return self.own_runs.open_run() is not None

    def _begin(self) -> Run:
        now = datetime.fromtimestamp(self.clock.now(), UTC)
        system = own_system(self.mapping.system)
        run = Run(
            id=f"{system}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
            system=system,
            direction=Direction.FORWARD,
            operator=self.mapping.system,
            phase=Phase.OPENED,
            plan_digest="",
            mapping_digest=mapping_digest(self.mapping),
            generation=secrets.token_hex(16),
            opened_at=now,
            point_of_no_return_at=None,
            settings={},
        )
        self.own_runs.start_run(run)
        return run

    def _under(self, lease: Lease, wanted: Callable[[], bool], seconds: float) -> Fallen:
        transfer = Transfer(
            self.source,
            self.target,
            self.ledger,
            self.clock,
            prove_fence=_guarded,
            custody_in_row=True,
            pace=Pace(batch=BATCH, largest=BATCH, lease_seconds=LEASE_SECONDS),
        )
        end = self.clock.monotonic() + seconds
        total, last = 0, Moved()
        try:
            self._stamp(lease)
            transfer.resume(lease)
            while wanted() and not last.done and self.clock.monotonic() < end:
                last = transfer.slice(lease, 0)
                total += last.moved
        except (StoreError, GenerationMismatch):
            # Whoever works at the source can have these meanwhile.
            self.source.put_back(lease)
            raise
        self.source.put_back(lease)
        refused = {sighting.id: sighting.where for sighting in self.ledger.held_by(lease.run_id)}
        self.source.give_back(lease, list(refused))
        self.ledger.close(lease, f"{total} moved, {len(refused)} refused")
        self.target.clear_stamp()
        return Fallen(total, refused)

    def _stamp(self, lease: Lease) -> None:
        """The target carries this run's stamp; one that lost it is asked for every batch of this run again."""
        if self.target.read_stamp()[0] == lease.generation:
            return
        if self.ledger.next_batch(lease) == 1:
            self.target.clear_stamp()
            self.target.stamp(lease)
        else:
            self.target.restamp(lease, 0)


def _guarded() -> Gate:
    return Gate("fence", (Check.of("claimers", True, "all of them claim under a lock, none need be fenced"),))
