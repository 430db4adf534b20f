"""Both ends, the ledger and the clock in memory: whole implementations for tests and dry trials, gone with the process.

The source keeps its hold in its rows and its record in the ledger, under the ledger's one lock, as a table does in one
transaction. The target answers as RQ does.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby

from ..core.errors import GateClosed, GenerationMismatch, LeaseLost, RunConflict, StagesGone
from ..core.in_hand import Waiting, perhaps_in_hand
from ..core.phases import ENDED, Phase, ended_by_rollback, require_transition
from ..core.tasks import (
    ENDED_MEANWHILE,
    Claim,
    Home,
    Lease,
    Mark,
    Place,
    Refused,
    Released,
    Sighting,
    Staged,
    Task,
    job_id_for,
)
from ..core.verdicts import Check, Gate
from ..ports.ledger import Event, LeaseState, Run

_ENDS = {"finished": Place.FINISHED, "failed": Place.FAILED, "cancelled": Place.CANCELLED}
_QUEUED = {"target": Place.MOVED, "held": Place.CLAIMED}


class MemoryClock:
    """See :class:`..ports.surroundings.Clock`. Time passes only by waiting."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start = start
        self._passed = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return self._start + self._passed

    def monotonic(self) -> float:
        """Seconds waited so far."""
        return self._passed

    def wait(self, seconds: float) -> None:
        """Let ``seconds`` pass at once."""
        with self._lock:
            self._passed += max(0.0, seconds)


@dataclass(slots=True)
class Entry:
    """What the ledger keeps of one task."""

    mark: Mark
    run_id: str
    token: int
    reason: str = ""
    batch: int = 0
    position: int = 0
    queue: str = ""
    job_id: str = ""
    eta: float | None = None
    digest: str = ""


class MemoryLedger:
    """See :class:`..ports.ledger.Ledger`. ``lock`` makes one transaction of what is done under it."""

    def __init__(self, clock: MemoryClock, system: str = "memory") -> None:
        self.clock = clock
        self.system = system
        self.lock = threading.RLock()
        self.entries: dict[str, Entry] = {}
        self._installed = False
        self._runs: list[Run] = []
        self._events: list[tuple[str, Event]] = []
        self._baselines: dict[str, list[Sighting]] = {}
        self._token = 0
        self._owner = ""
        self._expires: float | None = None  # None: never taken
        self._stop = False
        self._source: MemorySource | None = None
        self._suspended: set[str] = set()

    def baseline_from(self, source: MemorySource) -> None:
        """Name the source that a baseline is taken from."""
        self._source = source

    def install(self) -> bool:
        """True the first time."""
        with self.lock:
            created, self._installed = not self._installed, True
            return created

    def open_run(self) -> Run | None:
        """The run that has not ended."""
        with self.lock:
            open_runs = (r for r in reversed(self._runs) if r.phase not in ENDED and r.id not in self._suspended)
            return next(open_runs, None)

    def find_run(self, run_id: str) -> Run | None:
        """A run by its id."""
        with self.lock:
            return next((run for run in self._runs if run.id == run_id), None)

    def take_over(self, run: Run, undoes: Run) -> None:
        """Suspend the open run and record the one that takes it back."""
        with self.lock:
            found = self.open_run()
            if found is None or found.id != undoes.id:
                raise RunConflict(
                    f"run {undoes.id} is not open any more.", where="ledger", next_step="look at playbooks/status.yml."
                )
            self._suspended.add(undoes.id)
            self.start_run(run)

    def last_run(self) -> Run | None:
        """The newest run, ended or not."""
        with self.lock:
            return self._runs[-1] if self._runs else None

    def start_run(self, run: Run) -> None:
        """Record a new run."""
        with self.lock:
            if self.open_run() is not None:
                raise RunConflict(
                    "another run of this system is open.",
                    where="ledger",
                    next_step="continue it with the same command, or look at playbooks/status.yml.",
                )
            self._runs.append(replace(run, opened_at=self._at(), point_of_no_return_at=None))

    def change_settings(self, run: Run, settings: Mapping[str, object]) -> Run:
        """Keep other settings of an open run."""
        with self.lock:
            changed = replace(run, settings=dict(settings))
            self._change_run(run.id, lambda _: changed)
            return changed

    def pass_point_of_no_return(self, run_id: str) -> None:
        """Remember the moment of the first release; later ones change nothing."""
        self._change_run(
            run_id, lambda run: run if run.point_of_no_return_at else replace(run, point_of_no_return_at=self._at())
        )

    def _change_run(self, run_id: str, change: Callable[[Run], Run]) -> None:
        self._runs = [change(run) if run.id == run_id else run for run in self._runs]

    # -- lease --------------------------------------------------------------------------------------------------

    def lease_state(self) -> LeaseState | None:
        """Who holds the lease."""
        with self.lock:
            return None if self._expires is None else LeaseState(self._token, self._owner, self._remaining())

    def _remaining(self) -> float:
        return 0.0 if self._expires is None else max(0.0, self._expires - self.clock.monotonic())

    def take_lease(self, run: Run, owner: str, seconds: float) -> Lease:
        """Take or re-take the lease; the token rises with every taking."""
        with self.lock:
            if self._remaining() > 0 and self._owner != owner:
                raise RunConflict(
                    f"'{self._owner}' holds the lease for another {self._remaining():.0f} s.",
                    where="ledger",
                    next_step="wait for that run to end, or look at playbooks/status.yml.",
                )
            self._token += 1
            self._owner = owner
            self._expires = self.clock.monotonic() + seconds
            return Lease(self.system, run.id, owner, self._token, run.generation)

    def check(self, lease: Lease) -> None:
        """Begin of every writing call, under ``lock``.

        :raises LeaseLost: the token is not ours any more
        """
        if lease.token != self._token:
            raise LeaseLost(
                f"our token {lease.token} is not the newest: '{self._owner}' (token {self._token}) holds the lease. "
                "Nothing was written.",
                where="ledger",
                next_step="look at playbooks/status.yml; run the same command again when the other run is done.",
            )

    def renew(self, lease: Lease, seconds: float) -> None:
        """Prolong the lease."""
        with self.lock:
            self.check(lease)
            self._expires = self.clock.monotonic() + seconds

    def give_up(self, lease: Lease) -> None:
        """End the lease now. Someone else's lease is left alone."""
        with self.lock:
            if lease.token == self._token:
                self._expires = self.clock.monotonic()
                self._stop = False

    def stop_requested(self) -> bool:
        """Whether an operator set the stop flag."""
        return self._stop

    def request_stop(self, stop: bool = True) -> None:
        """Ask the run in progress to end between two batches, or take the request back."""
        self._stop = stop

    # -- phases and events --------------------------------------------------------------------------------------

    def set_phase(self, lease: Lease, wanted: Phase, gate: Gate, *, undoes: str = "") -> None:
        """Record a phase with its gate."""
        if not gate.open:
            raise GateClosed(gate.explain(), where=f"gate before '{wanted}'")
        with self.lock:
            self.check(lease)
            current = next((run.phase for run in self._runs if run.id == lease.run_id), None)
            if current is None:
                raise RunConflict(f"run {lease.run_id} is not in the ledger.", where="ledger")
            require_transition(current, wanted)
            self._change_run(lease.run_id, lambda run: replace(run, phase=wanted))
            if wanted is Phase.ABORTED:
                self._suspended.discard(undoes)
            undone = self.find_run(undoes)
            if wanted is Phase.VERIFIED and undone is not None and undone.phase not in ENDED:
                ended = ended_by_rollback(undone.phase, released=undone.point_of_no_return_at is not None)
                self._change_run(undoes, lambda run: replace(run, phase=ended))
                self._append(undoes, "phase", ended.value, gate.verdict.value, {"gate": gate.name})
            checks = [
                {"name": c.name, "verdict": c.verdict.value, "reading": c.reading, "next_step": c.next_step}
                for c in gate.checks
            ]
            self._append(lease.run_id, "phase", wanted.value, gate.verdict.value, {"gate": gate.name, "checks": checks})

    def record(self, lease: Lease, kind: str, name: str, verdict: str, detail: Mapping[str, object]) -> None:
        """Append one event under the lease."""
        with self.lock:
            self.check(lease)
            self._append(lease.run_id, kind, name, verdict, detail)

    def _append(self, run_id: str, kind: str, name: str, verdict: str, detail: Mapping[str, object]) -> None:
        self._events.append((run_id, Event(self._at(), kind, name, verdict, dict(detail))))

    def _at(self) -> datetime:
        return datetime.fromtimestamp(self.clock.now(), UTC)

    def events(self, run_id: str, kind: str = "", name: str = "") -> Sequence[Event]:
        """The history of a run."""
        with self.lock:
            return [
                event
                for of, event in self._events
                if of == run_id and kind in ("", event.kind) and name in ("", event.name)
            ]

    # -- tasks --------------------------------------------------------------------------------------------------

    def next_batch(self, lease: Lease) -> int:
        """One more than the highest batch number of this run."""
        with self.lock:
            return max((entry.batch for entry in self.entries.values() if entry.run_id == lease.run_id), default=0) + 1

    def moved_since(self, lease: Lease, batch: int) -> Iterator[tuple[int, Sequence[Task]]]:
        """Released tasks above a batch number, a batch at a time, in claim order."""
        with self.lock:
            rows = sorted(
                (e.batch, e.position, Task(task_id, e.job_id, e.queue, (), 0.0, e.eta, 0, 0))
                for task_id, e in self.entries.items()
                if e.run_id == lease.run_id and e.batch > batch and e.mark is Mark.MOVED
            )
        for number, group in groupby(rows, key=lambda row: row[0]):
            yield number, [task for _, _, task in group]

    def ended_meanwhile(self, lease: Lease) -> Sequence[str]:
        """Job ids of tasks that were settled because they ended while this run had claimed them."""
        with self.lock:
            return [
                entry.job_id
                for entry in self.entries.values()
                if entry.run_id == lease.run_id and entry.mark is Mark.SETTLED and entry.reason == ENDED_MEANWHILE
            ]

    def marks(self) -> Iterator[Sighting]:
        """Every id with its mark; ``where`` is its job id."""
        with self.lock:
            found = [Sighting(task_id, entry.mark, entry.job_id) for task_id, entry in self.entries.items()]
        yield from found

    def held(self) -> Sequence[Sighting]:
        """The ids that wait for an operator, with the reason."""
        with self.lock:
            return sorted(Sighting(i, e.mark, e.reason) for i, e in self.entries.items() if e.mark is Mark.HELD)

    def moved_by_queue(self, run_id: str) -> dict[str, int]:
        """How many tasks a run moved, by queue."""
        counts: dict[str, int] = defaultdict(int)
        with self.lock:
            for entry in self.entries.values():
                if entry.run_id == run_id and entry.mark is Mark.MOVED:
                    counts[entry.queue] += 1
        return dict(counts)

    def save_baseline(self, lease: Lease) -> int:
        """Remember every id of the source with its place."""
        if self._source is None:
            raise RunConflict("no source was named for the baseline.", where="ledger")
        with self.lock:
            self.check(lease)
            found = [Sighting(seen.id, seen.place) for seen in self._source.census()]
            self._baselines[lease.run_id] = found
            return len(found)

    def baseline(self, run_id: str) -> Iterator[Sighting]:
        """The ids remembered at the start."""
        yield from self._baselines.get(run_id, [])


@dataclass(slots=True)
class Row:
    """A task in the source's own words. ``created`` and ``available`` are epoch seconds."""

    id: str
    queue: str
    created: float = 0.0
    available: float = 0.0
    args: tuple[object, ...] = ()
    status: str = "queued"  # queued | leased | running | finished | failed | cancelled
    custody: str = "source"  # source | held | target
    token: int = 0
    pending: bool = False  # journalled, and still to be enqueued by the application


class MemorySource:
    """See :class:`..ports.stores.SourceEnd`. The row itself says who owns it."""

    def __init__(self, ledger: MemoryLedger, queues: Sequence[str] = ("urgent", "high", "normal", "low")) -> None:
        self.ledger = ledger
        self.queues = tuple(queues)
        self.rows: dict[str, Row] = {}
        ledger.baseline_from(self)

    def fit(self) -> Sequence[Check]:
        """There is no schema to misfit."""
        return [Check.of("mapping fits the schema", True, "rows are kept in memory")]

    def _place(self, row: Row) -> Place:
        if row.status in _ENDS:
            return _ENDS[row.status]
        if row.status == "leased" and row.custody == "source":
            return Place.LEASED
        if row.status == "running" and row.custody == "target":
            return Place.RUNNING
        if row.status != "queued":
            return Place.UNKNOWN
        due = Place.READY if row.available <= self.ledger.clock.now() else Place.DELAYED
        return _QUEUED.get(row.custody, due)

    def _at(self, *places: Place) -> list[Row]:
        """Rows at a place in the order of claim: queue, then age, ties by id."""
        rank = {queue: position for position, queue in enumerate(self.queues)}
        found = [row for row in self.rows.values() if self._place(row) in places]
        return sorted(found, key=lambda row: (rank.get(row.queue, len(rank)), row.created, row.id))

    def _decided(self, row: Row) -> bool:
        """Held, or settled since the row was claimed: no resume touches it."""
        entry = self.ledger.entries.get(row.id)
        if entry is None:
            return False
        settled = entry.mark is Mark.SETTLED and entry.reason != ENDED_MEANWHILE and row.token <= entry.token
        return entry.mark is Mark.HELD or settled

    def _under_hold(self) -> list[Row]:
        """Claimed rows, and rows that ended while they were claimed."""
        ended = [row for row in self._at(Place.FINISHED, Place.FAILED, Place.CANCELLED) if row.custody == "held"]
        return [row for row in (*self._at(Place.CLAIMED), *ended) if not self._decided(row)]

    def claim(self, lease: Lease, limit: int) -> Claim:
        """See the port."""
        with self.ledger.lock:
            self.ledger.check(lease)
            left = [row for row in self._under_hold() if row.token < lease.token]
            rows = (left or self._at(Place.READY) or self._at(Place.DELAYED))[:limit]
            for row in rows:
                row.custody, row.token = "held", lease.token
            return self._read(rows)

    def _read(self, rows: Iterable[Row]) -> Claim:
        now = self.ledger.clock.now()
        tasks: list[Task] = []
        refused: list[Refused] = []
        for row in rows:
            if row.queue not in self.queues:
                refused.append(Refused(row.id, f"queue value {row.queue!r} is not mapped"))
                continue
            job_id = job_id_for(self.ledger.system, row.id)
            meta = () if job_id == row.id else (("sluice_task_id", row.id),)
            eta = row.available if row.available > now else None
            tasks.append(Task(row.id, job_id, row.queue, row.args or (row.id,), row.created, eta, 0, 1, meta))
        return Claim(tasks, refused)

    def release(self, lease: Lease, tasks: Sequence[Task], digests: Sequence[str], batch: int) -> Released:
        """See the port."""
        with self.ledger.lock:
            self.ledger.check(lease)
            moved: list[Task] = []
            lost: list[Task] = []
            for position, (task, digest) in enumerate(list(zip(tasks, digests, strict=True))):
                row = self.rows.get(task.id)
                if row is not None and self._place(row) is Place.CLAIMED and row.token == lease.token:
                    row.custody = "target"
                    self.ledger.entries[task.id] = Entry(
                        Mark.MOVED,
                        lease.run_id,
                        lease.token,
                        "",
                        batch,
                        position,
                        task.queue,
                        task.job_id,
                        task.eta,
                        digest,
                    )
                    moved.append(task)
                    continue
                if row is not None and row.token == lease.token:
                    row.custody, row.token = "source", 0
                self._mark(lease, task.id, Mark.SETTLED, ENDED_MEANWHILE)
                lost.append(task)
            if moved:
                self.ledger.pass_point_of_no_return(lease.run_id)
            return Released(moved, lost)

    def _mark(self, lease: Lease, task_id: str, mark: Mark, reason: str) -> None:
        entry = self.ledger.entries.get(task_id)
        if entry is None:
            entry = Entry(mark, lease.run_id, lease.token, job_id=job_id_for(self.ledger.system, task_id))
            self.ledger.entries[task_id] = entry
        entry.mark, entry.run_id, entry.token, entry.reason = mark, lease.run_id, lease.token, reason

    def renewed(self, ids: Sequence[str]) -> set[str]:
        """See the port. Rows here are never queued anew."""
        return set()

    def reread(self, ids: Sequence[str]) -> Claim:
        """See the port."""
        with self.ledger.lock:
            return self._read(row for row in self._at(Place.MOVED) if row.id in set(ids))

    def hold(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """See the port."""
        with self.ledger.lock:
            self.ledger.check(lease)
            fresh = [i for i in ids if i not in self._held()]
            for task_id in fresh:
                self._mark(lease, task_id, Mark.HELD, reason)
                if task_id in self.rows:
                    self.rows[task_id].custody, self.rows[task_id].token = "held", lease.token
            return len(fresh)

    def _held(self) -> set[str]:
        return {seen.id for seen in self.ledger.held()}

    def put_back(self, lease: Lease) -> int:
        """See the port. Held rows stay held."""
        with self.ledger.lock:
            self.ledger.check(lease)
            rows = self._under_hold()
            for row in rows:
                row.custody, row.token = "source", 0
            return len(rows)

    def give_back(self, lease: Lease, ids: Sequence[str]) -> int:
        """Return held ids to circulation by an operator's decision; returns how many were held."""
        with self.ledger.lock:
            self.ledger.check(lease)
            held = [i for i in ids if i in self._held()]
            for task_id in held:
                del self.ledger.entries[task_id]
                if task_id in self.rows:
                    self.rows[task_id].custody, self.rows[task_id].token = "source", 0
            return len(held)

    def settle(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """Close held ids by an operator's decision: they stay out of circulation for good."""
        with self.ledger.lock:
            self.ledger.check(lease)
            held = [i for i in ids if i in self._held()]
            for task_id in held:
                self._mark(lease, task_id, Mark.SETTLED, reason)
            return len(held)

    def leave(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """See the port: the rows are never claimed again."""
        with self.ledger.lock:
            self.ledger.check(lease)
            for task_id in ids:
                self._mark(lease, task_id, Mark.SETTLED, reason)
            return len(ids)

    def _sighting(self, row: Row) -> Sighting:
        return Sighting(row.id, self._place(row), "pending" if row.pending else "")

    def census(self) -> Iterator[Sighting]:
        """See the port."""
        with self.ledger.lock:
            found = [self._sighting(row) for row in self.rows.values()]
        yield from found

    def look(self, ids: Sequence[str]) -> dict[str, Sighting]:
        """The rows of these ids as they are now; missing rows are left out."""
        with self.ledger.lock:
            return {task_id: self._sighting(self.rows[task_id]) for task_id in ids if task_id in self.rows}

    def counts(self) -> dict[str, dict[str, int]]:
        """See the port."""
        found: dict[str, dict[str, int]] = {}
        with self.ledger.lock:
            for row in self.rows.values():
                places = found.setdefault(row.queue, {})
                places[self._place(row)] = places.get(self._place(row), 0) + 1
        return found

    def in_hand(self, processes: int) -> Sequence[str]:
        """See the port."""
        with self.ledger.lock:
            rows = [row for row in self._at(Place.READY) if not self._decided(row)]
        return perhaps_in_hand((Waiting(r.id, r.created, max(r.created, r.available)) for r in rows), processes)


@dataclass(slots=True)
class Job:
    """A job at the target. ``status`` is ``created`` while it is staged."""

    queue: str
    data: str
    status: str


@dataclass(slots=True)
class _Stamp:
    generation: str
    token: int
    batch: int = 0


@dataclass(slots=True)
class _Contents:
    """Everything that an emptied store loses."""

    stamp: _Stamp | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    places: dict[tuple[Home, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    etas: dict[str, float] = field(default_factory=dict)
    markers: set[str] = field(default_factory=set)


class MemoryTarget:
    """See :class:`..ports.stores.TargetEnd`. ``jobs`` and ``places`` are what a worker would see."""

    def __init__(self, clock: MemoryClock) -> None:
        self.clock = clock
        self._lock = threading.RLock()
        self._contents = _Contents()

    @property
    def jobs(self) -> dict[str, Job]:
        """The jobs by id."""
        return self._contents.jobs

    @property
    def etas(self) -> dict[str, float]:
        """When scheduled jobs are due, epoch seconds by job id."""
        return self._contents.etas

    def queued(self, queue: str) -> Sequence[str]:
        """The job ids a worker would take, in order."""
        return list(self._contents.places[Home.QUEUED, queue])

    def enter(self, home: Home, queue: str, job_id: str, *, body: bool = True) -> None:
        """Put an entry into a list or registry, as the application or its workers would; with a job of its own."""
        with self._lock:
            if home is not Home.STAGED:
                self._contents.places[home, queue].append(job_id)
            if body:
                status = "created" if home is Home.STAGED else home.value
                self.jobs.setdefault(job_id, Job(queue, "the application's own", status))

    def lose(self, job_id: str) -> None:
        """Forget a job, as a store does that lost its last writes."""
        with self._lock:
            del self.jobs[job_id]

    def empty(self) -> None:
        """Forget everything, the stamp as well."""
        with self._lock:
            self._contents = _Contents()

    def stamp(self, lease: Lease) -> bool:
        """Write the run's generation and token; True when they were not there.

        :raises GenerationMismatch: another run's stamp is there
        """
        with self._lock:
            stamp = self._contents.stamp
            if stamp is not None and stamp.generation != lease.generation:
                raise GenerationMismatch("the stamp of another run is there.", where="memory")
            if stamp is None:
                self._contents.stamp = _Stamp(lease.generation, lease.token)
            return stamp is None

    def _check(self, lease: Lease) -> _Stamp:
        stamp = self._contents.stamp
        if stamp is None or stamp.generation != lease.generation:
            raise GenerationMismatch(
                "the stamp of this run is missing or different: the store was emptied, restored or replaced.",
                where="memory",
                next_step="run playbooks/recover.yml: it places again what the witness shows unstarted.",
            )
        if stamp.token > lease.token:
            raise LeaseLost(
                f"our token {lease.token} is lower than the mirrored one ({stamp.token}). Nothing was written.",
                where="memory",
                next_step="look at playbooks/status.yml: another run has taken over.",
            )
        stamp.token = lease.token
        return stamp

    def kept(self, task: Task) -> str:
        """What the store keeps of a task that is staged."""
        return _payload(task)

    def stage(self, lease: Lease, tasks: Sequence[Task]) -> Staged:
        """See the port."""
        with self._lock:
            self._check(lease)
            digests: dict[str, str] = {}
            foreign: list[str] = []
            marked: list[str] = []
            for task in tasks:
                known = self.jobs.get(task.job_id)
                data = self.kept(task)
                if task.job_id in self._contents.markers:
                    marked.append(task.job_id)
                elif known is not None and (known.status, known.data) != ("created", data):
                    foreign.append(task.job_id)
                else:
                    self.jobs[task.job_id] = Job(task.queue, data, "created")
                    digests[task.job_id] = _sha1(self.jobs[task.job_id].data)
            return Staged(digests, foreign, marked)

    def digests(self, tasks: Sequence[Task]) -> dict[str, str]:
        """See the port."""
        return {task.job_id: _sha1(_payload(task)) for task in tasks}

    def discard(self, lease: Lease, job_ids: Sequence[str]) -> int:
        """See the port."""
        with self._lock:
            self._check(lease)
            staged = [i for i in job_ids if i not in self._contents.markers and self._staged(i)]
            for job_id in staged:
                del self.jobs[job_id]
            return len(staged)

    def supersede(self, lease: Lease, job_ids: Sequence[str]) -> Sequence[str]:
        """See the port."""
        ended = (Home.FINISHED.value, Home.FAILED.value, Home.CANCELLED.value)
        with self._lock:
            self._check(lease)
            freed = [i for i in job_ids if i not in self.jobs or self.jobs[i].status in ended]
            for job_id in freed:
                self.jobs.pop(job_id, None)
                self._contents.markers.discard(job_id)
            return freed

    def _staged(self, job_id: str) -> bool:
        return job_id in self.jobs and self.jobs[job_id].status == "created"

    def activate(self, lease: Lease, tasks: Sequence[Task], batch: int) -> int:
        """See the port.

        :raises StagesGone: staged jobs are gone; the others of the batch were activated
        """
        with self._lock:
            stamp = self._check(lease)
            gone: list[str] = []
            count = 0
            for task in tasks:
                if task.job_id in self._contents.markers:
                    continue
                if not self._staged(task.job_id):
                    gone.append(task.job_id)
                    continue
                due = task.eta is None or task.eta <= self.clock.now()
                home = Home.QUEUED if due else Home.SCHEDULED
                self.jobs[task.job_id].status = home.value
                self._contents.places[home, task.queue].append(task.job_id)
                if task.eta is not None and not due:
                    self.etas[task.job_id] = task.eta
                self._contents.markers.add(task.job_id)
                count += 1
            if gone:
                raise StagesGone(count, gone, "memory")
            stamp.batch = batch
            return count

    def last_batch(self) -> int:
        """See the port."""
        return 0 if self._contents.stamp is None else self._contents.stamp.batch

    def census(self) -> Iterator[Sighting]:
        """See the port: one sighting per home, and a ``hash`` with the status of each job."""
        with self._lock:
            found = [Sighting(i, home, queue) for (home, queue), ids in self._contents.places.items() for i in ids]
            found += [Sighting(job_id, "hash", job.status) for job_id, job in self.jobs.items()]
        yield from found

    def look(self, job_id: str) -> list[Sighting]:
        """Every sighting of one job now."""
        return [seen for seen in self.census() if seen.id == job_id]

    def marked(self, job_ids: Sequence[str]) -> Sequence[bool]:
        """See the port."""
        with self._lock:
            return [job_id in self._contents.markers for job_id in job_ids]


def _payload(task: Task) -> str:
    return repr((task.job_id, task.queue, task.args, task.created, task.meta))


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
