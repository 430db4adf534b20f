"""What a run asks of its two ends. A rollback is a run with the ends swapped, so an adapter may be both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from ..core.tasks import Claim, Lease, Released, Sighting, Staged, Task
from ..core.verdicts import Check


class SourceEnd(Protocol):
    """The store that gives tasks away. Every writing call begins with a locking read of the lease at its own token."""

    def fit(self) -> Sequence[Check]:
        """Check the mapping against the live schema: columns, value sets, engine. Reads only."""

    def claim(self, lease: Lease, limit: int) -> Claim:
        """Take up to ``limit`` tasks out of circulation, durably, in the mapping's order.

        First what this run already holds under an older token, then ready ones, then delayed ones.
        An empty claim means that nothing is left to claim.

        :raises LeaseLost: another run holds a newer token
        """

    def release(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> Released:
        """Give claimed tasks away: compare-and-set on the token, with the ledger rows in the same transaction.

        Custody passes at this commit. Tasks that are no longer ours are returned as lost, with their outcome kept.
        """

    def hold(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """Take ids out of circulation until an operator decides; returns how many were not held before."""

    def leave(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """Take our claim off rows that turn out to be the target's already (a table without a word for custody)."""

    def renewed(self, ids: Sequence[str]) -> set[str]:
        """Which of these ids were queued anew after this ledger last marked them (a retry by a user). Reads only."""

    def reread(self, ids: Sequence[str]) -> Claim:
        """The tasks of released rows that the witness shows neither started nor ended, to be staged again. Reads only.

        Without a witness nothing is known of any, and all are refused.
        """

    def place_again(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> set[str]:
        """Record tasks of lost jobs as moved anew, where their rows still say unstarted; returns the ids recorded."""

    def put_back(self, lease: Lease) -> int:
        """Return every claimed and not released task to circulation (undo before the point of no return)."""

    def census(self) -> Iterator[Sighting]:
        """Every row with its place; ``where`` is 'pending' for a journalled row that is still to be enqueued."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by queue value and place, e.g. ``{"urgent": {"ready": 3}}``."""

    def in_hand(self, processes: int) -> Sequence[str]:
        """The ids of ready tasks that so many unguarded claimers may have been at work on when they ended unseen.

        See :func:`..core.in_hand.perhaps_in_hand`. Empty where every claimer marks what it takes. Reads only.
        """


class TargetEnd(Protocol):
    """The store that receives tasks."""

    def stage(self, lease: Lease, tasks: Sequence[Task]) -> Staged:
        """Store tasks where no worker can reach them, and answer with digests of what was re-read.

        :raises LeaseLost: the token kept in the store is newer
        :raises GenerationMismatch: the store lost the stamp of this run
        """

    def digests(self, tasks: Sequence[Task]) -> dict[str, str]:
        """The digests that staging these tasks must give, by job id. Pure."""

    def supersede(self, lease: Lease, job_ids: Sequence[str]) -> Sequence[str]:
        """Remove jobs that have ended, and their markers, so that their tasks can be staged anew; returns which."""

    def discard(self, lease: Lease, job_ids: Sequence[str]) -> int:
        """Delete staged jobs that were never activated; activated ones are left alone."""

    def activate(self, lease: Lease, tasks: Sequence[Task], batch: int) -> int:
        """Make released tasks runnable, in order, each at most once (marker); returns how many were made runnable.

        :raises StagesGone: staged jobs are missing; the others of the batch were made runnable
        """

    def last_batch(self) -> int:
        """The number of the last activated batch, mirrored in the target (0: none)."""

    def census(self) -> Iterator[Sighting]:
        """Every place a job can be: ``place`` is a Home, ``where`` the queue. One sighting per home and id."""

    def marked(self, job_ids: Sequence[str]) -> Sequence[bool]:
        """Whether each job id was activated by us."""
