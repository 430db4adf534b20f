"""The transfer: claim, stage, confirm, release, activate, batch by batch, resumable at every arrow.

Three batches overlap: while one is claimed at the source, the one before is staged at the target, and the one before
that is released and activated. Memory holds three batches, however long the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..core.errors import FenceOpen, RunConflict, SluiceError, StagesGone
from ..core.tasks import Claim, Lease, Refused, Staged, Task
from ..core.verdicts import Gate
from ..ports.ledger import Ledger
from ..ports.stores import SourceEnd, TargetEnd
from ..ports.surroundings import Clock

#: A batch whose locks were held longer than this makes the next one smaller (seconds).
LONG_LOCK = 0.25
#: Under a rate: the seconds' worth of tasks that go in one batch.
SPREAD = 0.05
SHORT_LOCK = 0.10
_FIRST_JOB = "queued again, and the job it had before is still at the target"


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the mover may go. ``rate`` is tasks per second, 0 for as fast as the stores allow."""

    batch: int = 1000
    smallest: int = 50
    largest: int = 1000
    rate: float = 0.0
    lease_seconds: float = 25.0


@dataclass(frozen=True, slots=True)
class Moved:
    """What one slice did. ``done`` means that nothing is left to claim; counts are of this slice only."""

    moved: int = 0
    held: int = 0
    lost: int = 0
    reactivated: int = 0
    batches: int = 0
    done: bool = False
    stopped: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    tasks: Sequence[Task]
    digests: Sequence[str]


class Transfer:
    """Moves tasks from a source to a target under a lease."""

    def __init__(
        self,
        source: SourceEnd,
        target: TargetEnd,
        ledger: Ledger,
        clock: Clock,
        *,
        prove_fence: Callable[[], Gate],
        custody_in_row: bool,
        pace: Pace | None = None,
    ) -> None:
        self.source = source
        self.target = target
        self.ledger = ledger
        self.clock = clock
        self.prove_fence = prove_fence
        self.custody_in_row = custody_in_row
        self.pace = pace or Pace()
        self._size = self.pace.batch

    def slice(self, lease: Lease, seconds: float, *, on_batch: Callable[[Moved], None] | None = None) -> Moved:
        """Move tasks for about ``seconds``, ending between two batches.

        :raises FenceOpen: a claimer of the source could still work
        :raises LeaseLost: another run took over; nothing was written since
        :raises GenerationMismatch: the target lost the stamp of this run
        """
        begun = self.clock.monotonic()
        self.ledger.renew(lease, self.pace.lease_seconds)
        gate = self.prove_fence()
        if not gate.open:
            raise FenceOpen(gate.explain(), where="fence", next_step="run the same command again: it fences first.")
        result = Moved(reactivated=self.resume(lease))
        number = self.ledger.next_batch(lease)
        renewed = begun
        with ThreadPoolExecutor(1, "claim") as claiming, ThreadPoolExecutor(1, "release") as releasing:
            claim: Future[Claim] | None = claiming.submit(self._claim, lease)
            release: Future[Moved] | None = None
            try:
                while claim is not None:
                    found = claim.result()
                    now = self.clock.monotonic()
                    if now - renewed > self.pace.lease_seconds / 4:
                        self.ledger.renew(lease, self.pace.lease_seconds)
                        renewed = now
                    empty = not found.tasks and not found.refused
                    stopped = not empty and self.ledger.stop_requested()
                    over = now - begun >= seconds
                    claim = None if empty or over or stopped else claiming.submit(self._claim, lease)
                    if not empty:
                        batch, held = self._stage(lease, found, number)
                        number += 1
                        result = replace(result, held=result.held + held)
                        if release is not None:
                            result = self._add(result, release.result())
                            if on_batch:
                                on_batch(result)
                        release = releasing.submit(self._release, lease, batch)
                    result = replace(result, done=empty, stopped=stopped, seconds=self.clock.monotonic() - begun)
                    if claim is not None:
                        self._keep_rate(lease, result, begun, seconds)
            except SluiceError:
                # Whoever waits in vain for a lock fails before the COMMIT that hangs with it: the later is the cause.
                for other in (release, claim):
                    if other is not None and not other.done() and (later := other.exception()) is not None:
                        raise later from None
                raise
            if release is not None:
                result = self._add(result, release.result())
        return replace(result, seconds=self.clock.monotonic() - begun)

    @staticmethod
    def _add(result: Moved, more: Moved) -> Moved:
        return replace(
            result, moved=result.moved + more.moved, lost=result.lost + more.lost, batches=result.batches + more.batches
        )

    def resume(self, lease: Lease) -> int:
        """Activate whatever an earlier attempt released and did not activate; returns how many.

        Also deletes the stages that it left of tasks which were cancelled under its claim: the application would take
        such a stage for a task on its way, and never enqueue a retry of it.
        """
        leftovers = self.ledger.ended_meanwhile(lease)
        if leftovers:
            self.target.discard(lease, leftovers)
        count = 0
        for number, tasks in self.ledger.moved_since(lease, self.target.last_batch()):
            count += self._activate(lease, tasks, number)
        return count

    def _claim(self, lease: Lease) -> Claim:
        begun = self.clock.monotonic()
        # Under a rate batches are small and spread, so that a submission waits behind a short one at most.
        size = min(self._size, max(1, int(self.pace.rate * SPREAD))) if self.pace.rate > 0 else self._size
        claim = self.source.claim(lease, size)
        self._adapt(self.clock.monotonic() - begun, len(claim.tasks))
        return claim

    def _adapt(self, seconds: float, count: int) -> None:
        """The mover is a guest: locks are held briefly, so a slow store gets smaller batches."""
        if seconds > LONG_LOCK:
            self._size = max(self.pace.smallest, self._size // 2)
        elif seconds < SHORT_LOCK and count >= self._size:
            self._size = min(self.pace.largest, self._size + self._size // 4)

    def _keep_rate(self, lease: Lease, result: Moved, begun: float, seconds: float) -> None:
        """Wait until what was moved is within the rate, or the slice is over; the lease is kept meanwhile."""
        if self.pace.rate <= 0:
            return
        until = begun + min((result.moved + result.held) / self.pace.rate, seconds)
        while (left := until - self.clock.monotonic()) > 0:
            self.clock.wait(min(left, self.pace.lease_seconds / 5))
            if left > self.pace.lease_seconds / 5:
                self.ledger.renew(lease, self.pace.lease_seconds)

    def _stage(self, lease: Lease, claim: Claim, number: int) -> tuple[_Batch, int]:
        """Stage and confirm a claimed batch; what the target cannot take, or did not keep as sent, is held."""
        refused = list(claim.refused)
        staged = self._stage_or_renew(lease, claim.tasks)
        wanted = self.target.digests(claim.tasks)
        foreign = set(staged.foreign)
        over = set(staged.over)
        refused += staged.refused
        settled = over | {entry.id for entry in staged.refused}
        if staged.marked:
            raise RunConflict(
                f"{len(staged.marked)} tasks were activated at the target and are ready at the source again "
                f"(first: {staged.marked[0]}): the source was restored from a backup. Nothing more was moved.",
                where="source",
                next_step="restore both stores to one moment, or settle these ids by hand; see playbooks/status.yml.",
            )
        good: list[Task] = []
        digests: list[str] = []
        differing: list[str] = []
        theirs: list[str] = []
        for task in claim.tasks:
            if settled and (task.job_id in over or task.id in settled):
                continue
            digest = staged.digests.get(task.job_id)
            if digest is not None and digest == wanted[task.job_id]:
                good.append(task)
                digests.append(digest)
            elif task.job_id in foreign and not self.custody_in_row:
                theirs.append(task.id)
            elif task.job_id in foreign:
                refused.append(Refused(task.id, "another job of this id exists at the target"))
            else:
                differing.append(task.job_id)
                refused.append(Refused(task.id, "the target did not keep what was staged (digests differ)"))
        if differing:
            self.target.discard(lease, differing)
        if over:
            remainders = [task.id for task in claim.tasks if task.job_id in over]
            self.source.leave(lease, remainders, "ended, or at the target already")
        if theirs:
            self.source.leave(lease, theirs, "born at the target: its row has no word for custody")
        return _Batch(number, good, digests), self._hold(lease, refused)

    def _stage_or_renew(self, lease: Lease, tasks: Sequence[Task]) -> Staged:
        """Stage; a job that ended before its task was queued again at the source makes way for the new one."""
        staged = self.target.stage(lease, tasks)
        if not (staged.marked or staged.foreign) or not self.custody_in_row:
            return staged
        known = {*staged.marked, *staged.foreign}
        renewed = self.source.renewed([task.id for task in tasks if task.job_id in known])
        again = [task for task in tasks if task.id in renewed and task.job_id in known]
        freed = set(self.target.supersede(lease, [task.job_id for task in again]))
        anew = self.target.stage(lease, [task for task in again if task.job_id in freed])
        # Cancelled and queued again while its first job still waits at the target: no copy of an old row.
        behind = [task for task in again if task.job_id not in freed and task.job_id in set(staged.marked)]
        done = freed | {task.job_id for task in behind}
        return replace(
            staged,
            digests=staged.digests | anew.digests,
            foreign=[*(i for i in staged.foreign if i not in freed), *anew.foreign],
            marked=[*(i for i in staged.marked if i not in done), *anew.marked],
            refused=[*staged.refused, *(Refused(task.id, _FIRST_JOB) for task in behind)],
        )

    def _hold(self, lease: Lease, refused: Sequence[Refused]) -> int:
        held = 0
        reasons: dict[str, list[str]] = {}
        for entry in refused:
            reasons.setdefault(entry.reason, []).append(entry.id)
        for reason, ids in reasons.items():
            held += self.source.hold(lease, ids, reason)
        return held

    def _release(self, lease: Lease, batch: _Batch) -> Moved:
        """Custody passes here. Stages of tasks that were no longer ours are deleted; the others are activated."""
        if not batch.tasks:
            return Moved(batches=1)
        begun = self.clock.monotonic()
        released = self.source.release(lease, batch.tasks, batch.digests, batch.number)
        self._adapt(self.clock.monotonic() - begun, 0)
        if released.lost:
            self.target.discard(lease, [task.job_id for task in released.lost])
        if released.moved:
            self._activate(lease, released.moved, batch.number)
        return Moved(moved=len(released.moved), lost=len(released.lost), batches=1)

    def _activate(self, lease: Lease, tasks: Sequence[Task], batch: int) -> int:
        try:
            return self.target.activate(lease, tasks, batch)
        except StagesGone as gone:
            return gone.activated + self._stage_again(lease, tasks, gone.job_ids, batch)

    def _stage_again(self, lease: Lease, tasks: Sequence[Task], job_ids: Sequence[str], batch: int) -> int:
        """The target lost staged jobs of released tasks: their rows still say unstarted, so they are staged again."""
        missing = set(job_ids)
        claim = self.source.reread([task.id for task in tasks if task.job_id in missing])
        # Of those that reread leaves out the witness shows a start or an end: they need no job.
        self._hold(lease, claim.refused)
        again = [task for task in claim.tasks if task.job_id in missing]
        staged = self.target.stage(lease, again)
        wanted = self.target.digests(again)
        sound = [task for task in again if staged.digests.get(task.job_id) == wanted[task.job_id]]
        return self.target.activate(lease, sound, batch) if sound else 0


def abort(source: SourceEnd, target: TargetEnd, lease: Lease) -> tuple[int, int]:
    """Undo before the point of no return: claimed tasks back into circulation, their stages deleted.

    :returns: tasks put back, stages deleted
    """
    back = source.put_back(lease)
    stages: list[str] = []
    gone = 0
    for sighting in target.census():
        if sighting.place == "hash" and sighting.where == "created":
            stages.append(sighting.id)
        if len(stages) >= 1000:
            gone += target.discard(lease, stages)
            stages = []
    if stages:
        gone += target.discard(lease, stages)
    return back, gone
