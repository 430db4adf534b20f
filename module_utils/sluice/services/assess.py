"""The questions before a rollback: asked side by side, each with its own limit, and judged into five axes.

A question without an answer is unknown, with its reason, and unknown is never taken for good.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from ..core.balance import Evidence, account, homes_of
from ..core.decision import (
    Action,
    Decision,
    Function,
    Integrity,
    Performance,
    Severity,
    Stability,
    Standing,
    State,
    decide,
    state_of,
)
from ..core.errors import SluiceError
from ..core.mapping import TaskMapping
from ..core.phases import Direction, Phase
from ..core.tasks import Place, Sighting, job_id_for
from ..core.verdicts import Verdict
from ..ports.assessment import HostSigns, QueueSigns, StoreSigns, WorkSigns
from ..ports.ledger import Ledger, Run
from ..ports.surroundings import Clock, IntakeState, RouteState
from .verify import LookingSource, LookingTarget, Verification, rules_of

T = TypeVar("T")

#: Seconds each question may take. They are asked side by side; even one after the other they would end in time.
HEALTH_SECONDS = 3.0
LEDGER_SECONDS = 3.0
QUEUE_SECONDS = 5.0
WORK_SECONDS = 3.0
INTEGRITY_SECONDS = 7.0
LOG_SECONDS = 3.0
#: What a question asks ends before the question does, so that its words are heard.
SHARE_OF_LIMIT = 0.85

#: A short question that takes longer (seconds) means a store under strain.
SLOW_SECONDS = 0.25
VERY_SLOW_SECONDS = 2.0
#: Ids of each kind that a sample looks at.
SAMPLE = 100
_LOOKS = 3
_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What was said, or why nothing was."""

    value: T | None
    problem: str = ""


class Asking(Generic[T]):
    """A question that is being answered in a thread of its own, so that one that hangs keeps no other waiting."""

    def __init__(self, ask: Callable[[], T], seconds: float, clock: Clock) -> None:
        self._clock = clock
        self._seconds = seconds
        self._until = clock.monotonic() + seconds
        self._answer: Answer[T] | None = None
        self._thread = threading.Thread(target=self._run, args=(ask,), name="question", daemon=True)
        self._thread.start()

    def _run(self, ask: Callable[[], T]) -> None:
        try:
            self._answer = Answer(ask())
        except SluiceError as error:
            self._answer = Answer(None, str(error))
        except Exception as error:  # noqa: BLE001  it is printed as the answer, and the other questions are answered
            said = " ".join(str(error).split())[:300]
            self._answer = Answer(None, f"this is a defect of Sluice: {type(error).__name__}: {said}")

    def wait(self) -> Answer[T]:
        """The answer, or that there was none in time."""
        self._thread.join(max(0.0, self._until - self._clock.monotonic()))
        return self._answer or Answer(None, f"no answer within {self._seconds:g} s")


@dataclass(frozen=True, slots=True)
class LedgerSigns:
    """Where the run stands. ``stamp`` is None until Redis was asked for it."""

    run: Run | None
    last: Run | None
    token: int
    held: int
    route: RouteState | None
    intake: IntakeState | None


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on a reading is bad. Times in seconds."""

    oldest_degraded: float = 300.0
    oldest_severe: float = 1800.0
    failed_jobs: int = 20
    log_errors: int = 20


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison of the stores found, and how it was made."""

    integrity: Integrity
    reading: str
    stamp_lost: bool = False


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything that was asked."""

    database: Answer[StoreSigns]
    redis: Answer[StoreSigns]
    ledger: Answer[LedgerSigns]
    rows: Answer[Mapping[str, Mapping[str, int]]]
    queues: Answer[Sequence[QueueSigns]]
    work: Answer[WorkSigns]
    compared: Compared
    hosts: Sequence[HostSigns] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One reading under one of the five questions."""

    question: str
    name: str
    verdict: Verdict
    reading: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """The lines, the five axes each with its reading, and the decision."""

    lines: Sequence[Line]
    state: State
    standing: Standing
    readings: Mapping[str, str]
    decision: Decision
    command: str


HEALTH, QUEUES, PROCESSING, INTEGRITY, LOGS = (
    "system health",
    "queue state",
    "processing tasks",
    "data integrity",
    "error logs",
)
QUESTIONS = (HEALTH, QUEUES, PROCESSING, INTEGRITY, LOGS)


# -- data integrity ----------------------------------------------------------------------------------------------------


class SamplingSource(LookingSource, Protocol):
    """A source that can name a few ids of a place."""

    def ids_at(self, *places: Place, limit: int = 1000) -> Sequence[str]:
        """Up to ``limit`` ids at the given places."""


class SamplingTarget(LookingTarget, Protocol):
    """A target that carries the stamp of a run."""

    def read_stamp(self) -> tuple[str, int, int]:
        """Generation ('' when missing), mirrored token and last activated batch."""


class _TimeIsUp(Exception):
    """Ends a comparison that would take too long."""


class Comparison:
    """Compares the stores as far as the time allows; ``best`` is what is known so far."""

    def __init__(
        self,
        source: SamplingSource,
        target: SamplingTarget,
        ledger: Ledger,
        mapping: TaskMapping,
        clock: Clock,
        heads: Callable[[int], Sequence[str]],
    ) -> None:
        self.source = source
        self.target = target
        self.ledger = ledger
        self.mapping = mapping
        self.clock = clock
        self.heads = heads
        self.best = Compared(Integrity.UNKNOWN, "the stores were not compared in time")

    def compare(self, signs: LedgerSigns, seconds: float) -> Compared:
        """The stamp, then a sample, then every id if that ends within ``seconds``.

        :raises SluiceError: a store does not answer
        """
        until = self.clock.monotonic() + seconds
        generation, mirrored, _ = self.target.read_stamp()
        run = signs.run
        if mirrored > signs.token:
            self.best = Compared(
                Integrity.COMPROMISED,
                f"the ledger's token {signs.token} is older than its mirror {mirrored} in Redis: "
                "the database was restored from a backup",
            )
            return self.best
        if signs.last is None:
            found = "a run's stamp is in Redis, and the ledger knows of none" if generation else ""
            self.best = Compared(
                Integrity.COMPROMISED if found else Integrity.INTACT, found or "nothing was ever moved"
            )
            return self.best
        if run is not None and run.direction == Direction.BACK:
            self.best = Compared(
                Integrity.UNKNOWN, "not compared while a rollback is under way: its own balance is its gate"
            )
            return self.best
        stamped = run is not None and run.phase is not Phase.OPENED
        if stamped and run is not None and generation != run.generation:
            missing = "missing" if not generation else "that of another run"
            self.best = Compared(
                Integrity.COMPROMISED,
                f"the stamp of the run is {missing}: Redis was emptied, restored or replaced",
                stamp_lost=True,
            )
            return self.best
        self.best = self._sampled()
        if self.best.integrity is not Integrity.COMPROMISED and (run is not None or self.mapping.source.journal):
            try:
                self.best = self._balanced(signs.last.id, until)
            except _TimeIsUp:
                return self.best  # the sample stands, and says that it is one
        return self.best

    def _balanced(self, run_id: str, until: float) -> Compared:
        def beat(done: int, total: int) -> None:  # noqa: ARG001
            if self.clock.monotonic() > until:
                raise _TimeIsUp

        balance = (
            Verification(self.source, self.target, self.ledger, self.clock, self.mapping, run_id, progress=beat)
            .balance()
            .balance
        )
        if balance.holds:
            return Compared(Integrity.INTACT, f"balance of every id: {balance.known:,} known, 0 at fault")
        first = "; ".join(f"{entry.id}: {entry.fault}" for entry in balance.faults[:2])
        return Compared(
            Integrity.COMPROMISED,
            f"balance of every id: {balance.known:,} known, {balance.fault_count:,} at fault: {first}",
        )

    def _sampled(self) -> Compared:
        """A few ids of each kind, each looked at again when it is in no place or in several."""
        ids = dict.fromkeys(self.source.ids_at(Place.MOVED, Place.RUNNING, limit=SAMPLE))
        ids |= dict.fromkeys(self.source.ids_at(Place.READY, Place.DELAYED, Place.LEASED, limit=SAMPLE))
        heads = self.heads(SAMPLE // 4)
        ids |= {task_id: None for task_id in heads if job_id_for(self.mapping.system, task_id) == task_id}
        faulty = list(ids)
        reasons: dict[str, str] = {}
        for look in range(_LOOKS):
            if look:
                self.clock.wait(_BETWEEN_LOOKS)
            rows = self.source.look(faulty)
            reasons = {task_id: fault for task_id in faulty if (fault := self._fault(task_id, rows.get(task_id)))}
            faulty = list(reasons)
            if not faulty:
                break
        how = f"sample of {len(ids):,} ids; the balance of every id takes longer than this question may"
        if reasons:
            task_id, reason = next(iter(reasons.items()))
            return Compared(Integrity.COMPROMISED, f"{how}: {len(reasons)} at fault: {task_id}: {reason}")
        return Compared(Integrity.INTACT, f"{how}: 0 at fault")

    def _fault(self, task_id: str, row: Sighting | None) -> str:
        job_id = job_id_for(self.mapping.system, task_id)
        homes = homes_of((seen.place, seen.where) for seen in self.target.look(job_id))
        rules = rules_of(self.mapping)
        marked = bool(self.target.marked([job_id])[0]) if not homes and rules.forgets else False
        seen = Evidence(
            job_id,
            None if row is None else Place(row.place),
            row is not None and row.where == "pending",
            None,
            homes,
            marked=marked,
            task_id=task_id,
        )
        if row is None and not homes:
            return ""  # ended and gone between two looks
        return account(seen, rules).fault


# -- judging -----------------------------------------------------------------------------------------------------------


_SIDE_OF_TARGET = (Place.MOVED, Place.RUNNING)
_NEEDS_TARGET = frozenset(
    {
        Standing.IN_SERVICE,
        Standing.SHARED,
        Standing.MOVING,
        Standing.IN_TARGET,
        Standing.EMPTIED,
        Standing.UNREADABLE,
    }
)
_GIVES_TO_TARGET = (Phase.HYBRID, Phase.ROUTED, Phase.FENCED, Phase.TRANSFERRED, Phase.VERIFIED, Phase.VALIDATED)


def target_busy(readings: Readings) -> bool:
    """Whether RQ has tasks or gets new ones; what cannot be read is taken for yes."""
    ledger, rows, queues, work = (
        readings.ledger.value,
        readings.rows.value,
        readings.queues.value,
        readings.work.value,
    )
    if ledger is None or rows is None:
        return True
    if ledger.route is not None and ledger.route.share > 0:
        return True
    if sum(places.get(place, 0) for places in rows.values() for place in _SIDE_OF_TARGET):
        return True
    if queues is None or work is None:
        return not readings.compared.stamp_lost and ledger.last is not None and ledger.route is None
    return sum(queue.queued + queue.scheduled + queue.deferred for queue in queues) + work.started > 0


def standing_of(readings: Readings) -> Standing:
    """Where the run stands."""
    if readings.ledger.value is None:
        return Standing.DATABASE_AWAY if readings.database.value is None else Standing.UNREADABLE
    run, last = readings.ledger.value.run, readings.ledger.value.last
    if run is None:
        return Standing.IN_SERVICE if last is not None and target_busy(readings) else Standing.SETTLED
    if run.direction == Direction.BACK:
        return Standing.GOING_BACK
    if readings.compared.stamp_lost and run.phase in _GIVES_TO_TARGET:
        return Standing.EMPTIED
    match run.phase:
        case Phase.OPENED | Phase.PREPARED:
            return Standing.SHARED if target_busy(readings) else Standing.BEGUN
        case Phase.HYBRID | Phase.ROUTED:
            return Standing.SHARED
        case Phase.FENCED:
            return Standing.MOVING
        case _:
            return Standing.IN_TARGET


@dataclass
class _Axis(Generic[T]):
    """The worst value found for an axis, with the sentences of all that is not good."""

    value: T
    order: Sequence[T]
    why: list[str] = field(default_factory=list)

    def at_least(self, value: T, why: str) -> None:
        """Note something that is not good."""
        self.why.append(why)
        if self.order.index(value) > self.order.index(self.value):
            self.value = value

    def reading(self, good: str) -> str:
        """The sentences, or that all is good."""
        return "; ".join(self.why) or good


class _Judge:
    """Goes through the readings once and keeps the lines and the axes."""

    def __init__(self, readings: Readings, standing: Standing, thresholds: Thresholds) -> None:
        self.readings = readings
        self.standing = standing
        self.thresholds = thresholds
        self.lines: list[Line] = []
        self.function = _Axis(Function.WORKS, list(Function))
        self.performance = _Axis(Performance.NORMAL, list(Performance))
        self.stability = _Axis(Stability.STABLE, list(Stability))
        self.needs_target = standing in _NEEDS_TARGET

    def line(self, question: str, name: str, good: bool | None, reading: str) -> None:
        verdict = Verdict.UNKNOWN if good is None else Verdict.PASSED if good else Verdict.FAILED
        self.lines.append(Line(question, name, verdict, reading))

    def judge(self) -> None:
        self._health()
        self._run()
        self._queues()
        self._rows()
        self._work()
        integrity = self.readings.compared
        self.line(
            INTEGRITY,
            "stores compared",
            {Integrity.INTACT: True, Integrity.UNKNOWN: None, Integrity.COMPROMISED: False}[integrity.integrity],
            integrity.reading,
        )
        self._logs()

    @staticmethod
    def _why(problem: str, store: Answer[StoreSigns], name: str) -> str:
        """Why there is no answer; what is wrong with the store itself is said once, in its own line."""
        return problem if store.value is not None else f"{name} does not answer"

    def _why_rows(self) -> str:
        return self._why(self.readings.rows.problem, self.readings.database, "the database")

    # -- system health --------------------------------------------------------------------------------------------

    def _health(self) -> None:
        self._store("the database", self.readings.database, needed=True)
        self._store("Redis", self.readings.redis, needed=self.needs_target)
        self._application()

    def _store(self, name: str, answer: Answer[StoreSigns], *, needed: bool) -> None:
        signs = answer.value
        title = name.removeprefix("the ")
        if signs is None:
            self.line(HEALTH, title, False, answer.problem)
            if needed:
                self.function.at_least(Function.NONE, f"{name} does not answer")
                self.performance.at_least(Performance.DEGRADED, f"{name} could not be timed")
            return
        slow = signs.latency > SLOW_SECONDS
        self.line(
            HEALTH, title, not (signs.unusable or slow), f"answers in {signs.latency * 1000:.1f} ms"
            + (f", but {signs.unusable}" if signs.unusable else ""),
        )  # fmt: skip
        if not needed:
            return
        if signs.unusable:
            self.function.at_least(Function.NONE, f"{name}: {signs.unusable}")
        if slow:
            grade = Performance.SEVERE if signs.latency > VERY_SLOW_SECONDS else Performance.DEGRADED
            self.performance.at_least(grade, f"{name} takes {signs.latency:.1f} s for a short question")
        if signs.evicted:
            self.stability.at_least(Stability.UNSTABLE, f"{name} has thrown {signs.evicted:,} keys away")

    def _application(self) -> None:
        hosts = [host for host in self.readings.hosts if host.application]
        asked = [host for host in hosts if host.health is not None or host.problem]
        for host in hosts:
            if host.problem:
                self.line(HEALTH, f"application on {host.name}", None, host.problem)
            elif host.health is None:
                self.line(HEALTH, f"application on {host.name}", None, "not asked: queue_health_url is empty")
            else:
                said = f"HTTP {host.health.status}" if host.health.status else host.health.detail
                self.line(
                    HEALTH,
                    f"application on {host.name}",
                    host.health.well,
                    f"{said} in {host.health.latency * 1000:.0f} ms",
                )
                if host.health.latency > VERY_SLOW_SECONDS:
                    self.performance.at_least(Performance.DEGRADED, f"the application on {host.name} is slow to answer")
        if not hosts:
            self.line(HEALTH, "application", None, "no host of the group 'app' was asked")
            self.stability.at_least(Stability.UNSTABLE, "the application was not asked")
            return
        well = [host for host in asked if host.health is not None and host.health.well]
        silent = [host for host in asked if host.problem]
        if not asked or len(well) == len(asked):
            return
        if not well:
            # Unreachable is not dead: only those that said so, or refused, are known not to work.
            grade = Function.NONE if not silent else Function.PARTIAL
            self.function.at_least(grade, "the application answers on no host")
        elif len(well) + len(silent) < len(asked):
            self.function.at_least(Function.PARTIAL, f"the application answers on {len(well)} of {len(asked)} hosts")
        if silent:
            self.stability.at_least(Stability.UNSTABLE, f"{len(silent)} application hosts cannot be reached")

    def _run(self) -> None:
        signs = self.readings.ledger.value
        if signs is None:
            self.line(
                HEALTH, "run", None, self._why(self.readings.ledger.problem, self.readings.database, "the database")
            )
            return
        last = signs.run or signs.last
        if last is None:
            self.line(HEALTH, "run", True, "none yet")
        else:
            ended = "" if signs.run else ", ended"
            self.line(HEALTH, "run", True, f"{last.id} ({last.direction}) at '{last.phase}'{ended}, {signs.held} held")
        if signs.route is not None:
            polling = {True: "on", False: "off", None: "not said"}[signs.route.polling]
            self.line(HEALTH, "route", True, f"{signs.route.share} % of new tasks to RQ, legacy polling {polling}")
        if signs.intake is not None:
            left = f", for {signs.intake.remaining:.0f} s more" if signs.intake.remaining else ""
            self.line(HEALTH, "intake", signs.intake.open, "open" if signs.intake.open else f"paused{left}")

    # -- queue state ----------------------------------------------------------------------------------------------

    def _queues(self) -> None:
        queues = self.readings.queues.value
        if queues is None:
            self.line(QUEUES, "RQ queues", None, self._why(self.readings.queues.problem, self.readings.redis, "Redis"))
            if self.needs_target and self.readings.redis.value is not None:
                self.performance.at_least(Performance.DEGRADED, "RQ's queues could not be read in time")
            return
        for queue in queues:
            waits = queue.oldest or 0.0
            reading = f"{queue.queued:,} queued, {queue.scheduled:,} scheduled, {queue.deferred:,} deferred"
            reading += f", next one waits {waits:,.0f} s" if queue.oldest is not None else ""
            self.line(QUEUES, f"RQ {queue.name}", waits <= self.thresholds.oldest_degraded, reading)
            if waits > self.thresholds.oldest_degraded and self.needs_target:
                severe = waits > self.thresholds.oldest_severe
                self.performance.at_least(
                    Performance.SEVERE if severe else Performance.DEGRADED,
                    f"the next job of '{queue.name}' waits {waits:,.0f} s",
                )
        lately, ever = sum(queue.failed_lately for queue in queues), sum(queue.failed for queue in queues)
        bad = lately >= self.thresholds.failed_jobs
        self.line(QUEUES, "RQ failed", not bad, f"{lately:,} lately, {ever:,} in all")
        if bad and self.needs_target:
            self.stability.at_least(Stability.UNSTABLE, f"{lately:,} jobs failed lately")

    def _rows(self) -> None:
        rows = self.readings.rows.value
        if rows is None:
            self.line(QUEUES, "rows by place", None, self._why_rows())
            if self.readings.database.value is not None:
                self.performance.at_least(Performance.DEGRADED, "the table's rows could not be counted in time")
            return
        totals: dict[str, int] = {}
        for places in rows.values():
            for place, number in places.items():
                totals[place] = totals.get(place, 0) + number
        unknown = totals.get(Place.UNKNOWN, 0)
        self.line(
            QUEUES,
            "rows by place",
            not unknown,
            ", ".join(f"{place} {number:,}" for place, number in sorted(totals.items())) or "no rows",
        )

    # -- processing tasks -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        rows = self.readings.rows.value
        if rows is not None:
            running = sum(places.get(Place.RUNNING, 0) for places in rows.values())
            leased = sum(places.get(Place.LEASED, 0) for places in rows.values())
            self.line(PROCESSING, "rows running", True, f"{running:,} at RQ, {leased:,} at the legacy side")
        else:
            self.line(PROCESSING, "rows running", None, self._why_rows())
        kept = self._kept_alive()
        work = self.readings.work.value
        if work is None:
            self.line(
                PROCESSING, "RQ workers", None, self._why(self.readings.work.problem, self.readings.redis, "Redis")
            )
            if self.needs_target and self.readings.redis.value is not None:
                self.function.at_least(Function.PARTIAL, "RQ's workers could not be counted")
        else:
            self._workers(work, kept)
        for host in self.readings.hosts:
            if host.workers_problem:
                self.line(PROCESSING, f"processes on {host.name}", None, host.workers_problem)
                self.stability.at_least(Stability.UNSTABLE, f"the worker processes of {host.name} are not known")

    def _workers(self, work: WorkSigns, kept: int | None) -> None:
        live = 0 if kept == 0 else work.live
        said = f"{live} live, {work.silent + work.live - live} silent"
        said += f", {kept} processes" if kept is not None else ""
        self.line(PROCESSING, "RQ workers", bool(live) or not self.needs_target, said)
        self.line(
            PROCESSING, "RQ started", not work.stale, f"{work.started:,} started, {work.stale:,} without a live worker"
        )
        if not self.needs_target:
            return
        if not live:
            self.function.at_least(Function.NONE, "no RQ worker lives")
        else:
            waiting = {queue.name for queue in self.readings.queues.value or () if queue.queued}
            without = sorted(waiting.intersection(work.unserved))
            if without:
                self.function.at_least(Function.PARTIAL, f"no worker listens on {', '.join(without)}")
        if work.stale:
            self.stability.at_least(Stability.UNSTABLE, f"{work.stale:,} started jobs have no live worker")

    def _kept_alive(self) -> int | None:
        """Worker processes by their supervisors; None unless every host that has a say gave it."""
        asked = [host for host in self.readings.hosts if not host.application]
        numbers = [host.workers for host in self.readings.hosts if host.workers is not None]
        if not numbers or any(host.problem or host.workers_problem for host in asked):
            return None
        return sum(numbers)

    # -- error logs -----------------------------------------------------------------------------------------------

    def _logs(self) -> None:
        errors = 0
        for host in self.readings.hosts:
            if host.problem:
                self.line(LOGS, host.name, None, host.problem)
                self.stability.at_least(Stability.UNSTABLE, f"the logs of {host.name} could not be read")
                continue
            if not host.logs:
                self.line(LOGS, host.name, None, "not asked: queue_log_files is empty")
            for log in host.logs:
                name = f"{host.name}: {log.path.rpartition('/')[2]}"
                if log.problem:
                    self.line(LOGS, name, None, f"{log.problem}: {log.path}")
                    self.stability.at_least(Stability.UNSTABLE, f"{log.path} on {host.name} could not be read")
                    continue
                errors += log.errors
                self.line(LOGS, name, not log.errors, f"{log.errors:,} errors")
                self.lines += [Line(LOGS, "", Verdict.FAILED, text) for text in log.last]
        if errors >= self.thresholds.log_errors:
            self.stability.at_least(Stability.UNSTABLE, f"{errors:,} errors in the newest log lines")


def judge(
    readings: Readings, *, stated: Severity | None, thresholds: Thresholds, inventory: Sequence[str] = ()
) -> Assessment:
    """Turn what was read into the five axes, the standing and the one action."""
    standing = standing_of(readings)
    judging = _Judge(readings, standing, thresholds)
    judging.judge()
    state = state_of(
        judging.function.value,
        readings.compared.integrity,
        judging.performance.value,
        judging.stability.value,
        stated=stated,
        standing=standing,
    )
    decision = decide(state, standing, stated=stated is state.severity)
    if stated is None:
        severity = "by the readings"
    elif stated is state.severity:
        severity = "as stated"
    else:
        severity = f"by the readings; {stated} was stated, which can raise it and never lower it"
    return Assessment(
        judging.lines,
        state,
        standing,
        {
            "severity": severity,
            "function": judging.function.reading("tasks are taken in and worked on"),
            "integrity": readings.compared.reading,
            "performance": judging.performance.reading("no store is slow, no job waits long"),
            "stability": judging.stability.reading("no failures, no hung jobs, few errors in the logs"),
        },
        decision,
        command_for(decision.action, readings.ledger.value, inventory),
    )


def command_for(action: Action, signs: LedgerSigns | None, inventory: Sequence[str] = ()) -> str:
    """The command to type next, with the inventory that this one was given."""
    share = signs.route.share if signs is not None and signs.route is not None else 100
    emergency = signs is not None and signs.run is not None and bool(signs.run.settings.get("emergency"))
    back = "emergency-rollback.yml" if emergency else "planned-rollback.yml"
    books = {
        Action.NOTHING: "status.yml",
        Action.FIX_IN_PLACE: "assess.yml",
        Action.FINISH_FORWARD: "migrate.yml",
        Action.UNDO: "planned-rollback.yml",
        Action.PARTIAL_ROLLBACK: f"hybrid.yml -e queue_share={25 if share > 25 else 0}",
        Action.FINISH_ROLLBACK: back,
        Action.RECOVER: """recover.yml -e '{"queue_recover_reason": "Redis lost its data"}'""",
        Action.PLANNED_ROLLBACK: "planned-rollback.yml",
        Action.EMERGENCY_ROLLBACK: "emergency-rollback.yml",
        Action.DATABASE_FIRST: "assess.yml",
    }
    where = "".join(f"-i {shlex.quote(source)} " for source in inventory)
    return f"ansible-playbook {where}playbooks/{books[action]}"


#: What an operator does before the command, where it is not the whole action.
BEFORE: Mapping[Action, str] = {
    Action.NOTHING: "nothing: the command only prints where things stand",
    Action.FIX_IN_PLACE: "mend what is not 'passed' above; the command asks again",
    Action.DATABASE_FIRST: "start the database, or mend what its line above says; the command asks again",
    Action.PARTIAL_ROLLBACK: "nothing: the command lowers the share of new tasks that go to RQ",
}
