"""Let a side's workers finish what they run, to a deadline; then end and name what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..core.errors import StoreError
from ..core.tasks import Place
from ..ports.surroundings import Clock, Supervisor, WorkerProcess

#: ``SourceEnd.counts``: rows by queue value and place.
Counts = Callable[[], Mapping[str, Mapping[str, int]]]

#: Two samples this far apart must agree that nothing runs.
SAMPLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Drained:
    """Where a drain stands after one slice.

    ``leased`` rows are being worked on; ``leased_ids`` names them once the drain is done and some are left.
    ``running`` processes have not ended; what dead workers left running counts. ``killed`` had to be ended by force
    now. ``unproved`` is every process for which it is not proved that it ended by itself: killed, by us or before, its
    exit not known (as that of a leftover always is), or whose it is not readable. With unguarded claimers that many
    tasks may have been run without a trace: the transfer holds as many rows of the head as unknown.
    ``leftovers`` is what dead workers had left running, for the next slice: nobody knows any more when they have ended.
    ``unreachable`` supervisors could not be asked, in an error's words: unreachable is not dead.
    ``remaining_seconds`` is until the deadline.
    """

    done: bool
    leased: int
    running: Sequence[WorkerProcess]
    remaining_seconds: float
    killed: Sequence[WorkerProcess] = ()
    unproved: Sequence[WorkerProcess] = ()
    leased_ids: Sequence[str] = ()
    unreachable: Sequence[str] = ()
    leftovers: Sequence[WorkerProcess] = ()

    @property
    def clean(self) -> bool:
        """Everybody ended by themselves, and no task is left half done."""
        return self.done and not (self.leased or self.running or self.unproved or self.unreachable)


@dataclass(frozen=True, slots=True)
class _Look:
    processes: Sequence[WorkerProcess]
    unreachable: Sequence[str]
    leased: int

    @property
    def running(self) -> Sequence[WorkerProcess]:
        return [process for process in self.processes if process.alive and not process.unknown]

    @property
    def quiet(self) -> bool:
        return not (self.running or self.unreachable or self.leased)


def drain(
    counts: Counts,
    supervisors: Sequence[Supervisor],
    group: str,
    clock: Clock,
    *,
    deadline: float,
    slice_seconds: float,
    leased_ids: Callable[[], Sequence[str]] | None = None,
    first: bool = True,
    leftovers: Sequence[WorkerProcess] = (),
) -> Drained:
    """Work on a drain for one slice; call again with the same ``deadline`` until it is done.

    First the workers are asked to stop, and in the first slice what dead ones left running. The drain is done when
    all have ended and no row is leased, in two looks one after the other, or at the deadline: then what is left is
    killed and named. It keeps nothing between slices, so a killed command is resumed by the same one; a process that
    was killed before is still seen by its exit status.

    :param counts: the rows of the side that is left, by queue and place
    :param deadline: epoch seconds, from ``clock.now()`` at the start of the drain; the caller keeps it in the ledger
    :param leased_ids: names the leased rows, for what is left at the end
    :param first: no slice of this drain went before this one
    :param leftovers: those that earlier slices of this drain have seen
    :raises StoreError: the rows cannot be counted
    """
    slice_end = clock.monotonic() + slice_seconds
    seen = {_key(process): process for process in leftovers}

    def remember(processes: Iterable[WorkerProcess]) -> None:
        seen.update({_key(process): process for process in processes if process.leftover and not process.unknown})

    _each(supervisors, lambda supervisor: supervisor.request_stop(group))
    if first:
        # Seen before they are asked: one that ends at once would be in no look.
        _each(supervisors, lambda supervisor: remember(supervisor.leftovers(group)))
        _each(supervisors, lambda supervisor: supervisor.ask_leftovers(group))
    quiet = 0
    while True:
        look = _look(counts, supervisors, group)
        remember(look.processes)
        quiet = quiet + 1 if look.quiet else 0
        remaining = max(0.0, deadline - clock.now())
        if quiet == 2:
            gone = tuple(seen.values())
            return Drained(True, 0, (), remaining, unproved=_unproved(look, gone), leftovers=gone)
        if remaining == 0 and quiet == 0:
            return _end(counts, supervisors, group, leased_ids, tuple(seen.values()))
        if clock.monotonic() >= slice_end and quiet == 0:
            return Drained(
                False,
                look.leased,
                look.running,
                remaining,
                unreachable=look.unreachable,
                leftovers=tuple(seen.values()),
            )
        clock.wait(min(SAMPLE_SECONDS, remaining) if quiet == 0 else SAMPLE_SECONDS)


def _end(
    counts: Counts,
    supervisors: Sequence[Supervisor],
    group: str,
    leased_ids: Callable[[], Sequence[str]] | None,
    seen: Sequence[WorkerProcess],
) -> Drained:
    """Kill what is left and say what was left."""
    killed: list[WorkerProcess] = []
    failed = _each(supervisors, lambda supervisor: killed.extend(supervisor.kill(group)))
    look = _look(counts, supervisors, group)
    ids = tuple(leased_ids()) if leased_ids is not None and look.leased else ()
    unreachable = tuple(dict.fromkeys((*failed, *look.unreachable)))
    ended = _unproved(look, (*seen, *killed))
    return Drained(True, look.leased, look.running, 0.0, tuple(killed), ended, ids, unreachable, tuple(seen))


def _look(counts: Counts, supervisors: Sequence[Supervisor], group: str) -> _Look:
    """Processes first: a row that was leased after the count needs a worker that was still alive before it."""
    processes: list[WorkerProcess] = []

    def ask(supervisor: Supervisor) -> None:
        processes.extend(supervisor.list(group))
        processes.extend(supervisor.leftovers(group))

    unreachable = _each(supervisors, ask)
    leased = sum(places.get(Place.LEASED.value, 0) for places in counts().values())
    return _Look(processes, unreachable, leased)


def _key(process: WorkerProcess) -> tuple[str, str]:
    return process.host, process.name


def _unproved(look: _Look, ended: Sequence[WorkerProcess]) -> Sequence[WorkerProcess]:
    """Each process once, as it is now; a killed one whose supervisor says that it ended in order, as it was."""
    found = {_key(process): process for process in ended}
    found |= {_key(process): process for process in look.processes if not process.graceful}
    return tuple(found[key] for key in sorted(found))


def _each(supervisors: Sequence[Supervisor], act: Callable[[Supervisor], object]) -> Sequence[str]:
    """Act on every supervisor, also when one cannot be reached; returns what went wrong."""
    failures = []
    for supervisor in supervisors:
        try:
            act(supervisor)
        except StoreError as error:
            failures.append(str(error))
    return tuple(failures)
