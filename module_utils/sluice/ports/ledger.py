"""The durable record of runs, phases, verdicts and every task id touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ..core.phases import Phase
from ..core.tasks import Lease, Sighting, Task
from ..core.verdicts import Gate


@dataclass(frozen=True, slots=True)
class Run:
    """One migration or rollback. Times are UTC."""

    id: str
    system: str
    direction: str
    operator: str
    phase: Phase
    plan_digest: str
    mapping_digest: str
    generation: str
    opened_at: datetime
    point_of_no_return_at: datetime | None
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the run's history: a phase, a verdict, a measure, an override."""

    at: datetime
    kind: str  # phase | gate | measure | override | note
    name: str
    verdict: str
    detail: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class LeaseState:
    """Who holds the lease now; ``remaining`` is seconds until it expires (0: expired)."""

    token: int
    owner: str
    remaining: float


class Ledger(Protocol):
    """Runs, phases, lease, events and task marks of one system."""

    def install(self) -> bool:
        """Create the ledger's tables; True when something was created. Refuses a ledger of another version."""

    def open_run(self) -> Run | None:
        """The run that has not ended, or None. None also when the ledger is not installed."""

    def last_run(self) -> Run | None:
        """The newest run, ended or not."""

    def start_run(self, run: Run) -> None:
        """Record a new run.

        :raises RunConflict: another run is open
        """

    def find_run(self, run_id: str) -> Run | None:
        """A run by its id, also one that is suspended or has ended."""

    def take_over(self, run: Run, undoes: Run) -> None:
        """Record a run that goes back in the place of an open one. That one is suspended: it keeps its phase.

        :raises RunConflict: ``undoes`` is not open any more
        """

    def change_settings(self, run: Run, settings: Mapping[str, object]) -> Run:
        """Keep other settings of an open run; returns it as it is then."""

    def lease_state(self) -> LeaseState | None:
        """Who holds the lease, or None when it was never taken."""

    def take_lease(self, run: Run, owner: str, seconds: float) -> Lease:
        """Take or re-take the lease for ``owner``. Every taking raises the token: an earlier holder can write no more.

        :raises RunConflict: someone else holds it and it has not expired
        """

    def renew(self, lease: Lease, seconds: float) -> None:
        """Prolong the lease.

        :raises LeaseLost: the token is not ours any more
        """

    def give_up(self, lease: Lease) -> None:
        """Let the lease expire now, so that the next command need not wait."""

    def set_phase(self, lease: Lease, wanted: Phase, gate: Gate, *, undoes: str = "") -> None:
        """Record a phase with the gate that allows it, under the lease.

        :param undoes: the run that this one took over. When this one is aborted, that one is open again; when this one
            is verified, that one has ended.
        :raises GateClosed: the gate is not open
        :raises RunConflict: the arrow does not exist
        """

    def record(self, lease: Lease, kind: str, name: str, verdict: str, detail: Mapping[str, object]) -> None:
        """Append one event."""

    def events(self, run_id: str, kind: str = "", name: str = "") -> Sequence[Event]:
        """The history of a run, oldest first, optionally of one kind and name."""

    def next_batch(self, lease: Lease) -> int:
        """One more than the highest batch number of this run."""

    def moved_since(self, lease: Lease, batch: int) -> Iterator[tuple[int, Sequence[Task]]]:
        """Released tasks of batches above ``batch``, grouped by batch, in claim order (for a resume's activation)."""

    def ended_meanwhile(self, lease: Lease) -> Sequence[str]:
        """Job ids of tasks that ended at the source while claimed by this run: a stage of theirs is a leftover."""

    def marks(self) -> Iterator[Sighting]:
        """Every task id the ledger has touched, with its mark and reason."""

    def held(self) -> Sequence[Sighting]:
        """The ids that wait for an operator, with the reason."""

    def moved_by_queue(self, run_id: str) -> dict[str, int]:
        """How many tasks a run moved, by target queue."""

    def save_baseline(self, lease: Lease) -> int:
        """Remember every id of the source with its place; returns how many. Again: replaces."""

    def baseline(self, run_id: str) -> Iterator[Sighting]:
        """The ids remembered at the start of the run."""

    def stop_requested(self) -> bool:
        """Whether an operator asked the run to end politely between batches."""
