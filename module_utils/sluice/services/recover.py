"""After a store lost data: place again what the witness shows unstarted, hold what nobody can know.

The target's workers are fenced while this runs, so what is read stays true until it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..core.balance import Evidence, account
from ..core.errors import FenceOpen
from ..core.tasks import Claim, Home, Lease, Mark, Place, Staged, Task
from ..core.verdicts import Gate
from ..ports.ledger import Ledger
from .verify import Verification

_BATCH = 500
STARTED = "started at the target, and its job is lost with the target's data: whether it ran is unknown"
NO_WITNESS = "its job is lost, and no row shows whether it ran"


class GivingSource(Protocol):
    """What recovery asks of the source."""

    def reread(self, ids: Sequence[str]) -> Claim:
        """Tasks that the witness shows unstarted."""

    def place_again(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> set[str]:
        """Record them as moved anew."""

    def hold(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """Hold ids."""


class TakingTarget(Protocol):
    """What recovery asks of the target."""

    def stage(self, lease: Lease, tasks: Sequence[Task]) -> Staged:
        """Stage tasks."""

    def digests(self, tasks: Sequence[Task]) -> dict[str, str]:
        """Digests they must have."""

    def activate(self, lease: Lease, tasks: Sequence[Task], batch: int) -> int:
        """Make them runnable."""

    def unmark(self, lease: Lease, job_ids: Sequence[str]) -> int:
        """Take markers back."""

    def clear(self, lease: Lease, jobs: Sequence[tuple[str, str]]) -> None:
        """Remove remains of lost jobs."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many ids were placed again and how many are held, in all known ids that were looked at."""

    known: int
    placed: int
    held: int


def recover(
    verification: Verification,
    source: GivingSource,
    target: TakingTarget,
    ledger: Ledger,
    lease: Lease,
    *,
    prove_fence: Callable[[], Gate],
) -> Recovered:
    """Place again and hold, in batches of 500 ids; running it twice places nothing twice.

    :param prove_fence: asked before every batch: the target's workers must be unable to start anything
    :raises FenceOpen: they are not
    """
    known = placed = held = 0
    lost: list[Evidence] = []
    batch = ledger.next_batch(lease)
    for seen in verification.evidence():
        known += 1
        if account(seen, verification.rules).term is not None:
            continue
        lost.append(seen)
        if len(lost) >= _BATCH:
            more, kept = _batch(lost, source, target, lease, batch, prove_fence)
            placed, held, batch, lost = placed + more, held + kept, batch + 1, []
    if lost:
        more, kept = _batch(lost, source, target, lease, batch, prove_fence)
        placed, held = placed + more, held + kept
    return Recovered(known, placed, held)


def _batch(
    lost: Sequence[Evidence],
    source: GivingSource,
    target: TakingTarget,
    lease: Lease,
    batch: int,
    prove_fence: Callable[[], Gate],
) -> tuple[int, int]:
    gate = prove_fence()
    if not gate.open:
        raise FenceOpen(
            gate.explain(), where="fence target", next_step="run playbooks/recover.yml again: it fences first."
        )
    reasons: dict[str, list[str]] = {}
    wanted: dict[str, Evidence] = {}
    for seen in lost:
        if seen.place is Place.RUNNING:
            reasons.setdefault(STARTED, []).append(seen.task_id)
        elif _gone(seen):
            wanted[seen.task_id] = seen
        else:
            reasons.setdefault(f"at fault: {account_reason(seen)}", []).append(seen.task_id)
    again = source.reread(list(wanted))
    for refused in again.refused:
        reasons.setdefault(refused.reason, []).append(refused.id)
    found = {task.id for task in again.tasks}
    unknown = [i for i in wanted if i not in found and i not in {r.id for r in again.refused}]
    if unknown:
        reasons.setdefault(NO_WITNESS, []).extend(unknown)
    placed = _place(again.tasks, source, target, lease, batch)
    return placed, sum(source.hold(lease, ids, reason) for reason, ids in reasons.items())


def account_reason(seen: Evidence) -> str:
    """Where an id was seen, in words, for a hold that an operator decides."""
    homes = ", ".join(seen.homes) or "nowhere"
    return f"{seen.place or 'no row'} at the source, {homes} at the target"


def _gone(seen: Evidence) -> bool:
    """Moved, or born in the target, and no place at the target holds it alive."""
    alive = [
        home for home in seen.homes if home not in (Home.ORPHAN, Home.BODILESS, Home.FINISHED, Home.FAILED, Home.QUEUED)
    ]
    twice = seen.homes.count(Home.QUEUED) > 1
    queued_without_hash = Home.QUEUED in seen.homes and Home.BODILESS in seen.homes
    if alive or (Home.QUEUED in seen.homes and not twice and not queued_without_hash):
        return False
    return seen.place is Place.MOVED or (seen.place is None and seen.mark is Mark.MOVED)


def _place(tasks: Sequence[Task], source: GivingSource, target: TakingTarget, lease: Lease, batch: int) -> int:
    if not tasks:
        return 0
    target.clear(lease, [(task.job_id, task.queue) for task in tasks])
    target.unmark(lease, [task.job_id for task in tasks])
    staged = target.stage(lease, tasks)
    wanted = target.digests(tasks)
    sound = [task for task in tasks if staged.digests.get(task.job_id) == wanted[task.job_id]]
    recorded = source.place_again(lease, sound, [wanted[task.job_id] for task in sound], batch)
    return target.activate(lease, [task for task in sound if task.id in recorded], batch)
