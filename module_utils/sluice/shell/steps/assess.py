"""The questions before a rollback, and the one answer. Reads only, takes no lease, and needs no run and no store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ...adapters.bounded import BoundedSystem
from ...adapters.factory import Settings, System
from ...adapters.signs import RqSigns, database_signs
from ...core.decision import MEANING, Integrity, Severity
from ...core.verdicts import Verdict
from ...ports.assessment import HealthSigns, HostSigns, LogSigns, QueueSigns
from ...services import assess as service
from ...services.assess import (
    Answer,
    Asking,
    Assessment,
    Compared,
    Comparison,
    LedgerSigns,
    Readings,
    Thresholds,
    judge,
)
from ..runner import SHARE_OF_LIMIT, Result
from ..stores import Given

T = TypeVar("T")


def assess(given: Given) -> Result:
    """Ask everything side by side, judge it, and print what to type next."""
    begun = time.monotonic()
    params = given.params
    readings = _ask(given)
    assessment = judge(
        readings,
        stated=Severity(params["severity"]) if params["severity"] else None,
        thresholds=Thresholds(
            oldest_degraded=params["oldest_degraded"],
            oldest_severe=params["oldest_severe"],
            failed_jobs=params["failed_jobs"],
            log_errors=params["log_errors"],
        ),
        inventory=params["inventory"],
    )
    state = assessment.state
    seconds = time.monotonic() - begun
    return {
        "changed": False,
        "action": assessment.decision.action.value,
        "next": assessment.command,
        "severity": state.severity.value,
        "function": state.function.value,
        "integrity": state.integrity.value,
        "performance": state.performance.value,
        "stability": state.stability.value,
        "standing": assessment.standing.value,
        "reasons": list(assessment.decision.reasons),
        "answers": [
            {"question": a.question, "name": a.name, "verdict": a.verdict.value, "reading": a.reading}
            for a in assessment.lines
        ],
        "seconds": round(seconds, 1),
        "lines": lines_of(assessment, seconds),
    }


def _ask(given: Given) -> Readings:
    params = given.params
    clock = given.clock
    mapping = _system(given, 1.0).mapping
    opened: list[BoundedSystem] = []

    def asked(seconds: float, ask: Callable[[BoundedSystem], T]) -> Asking[T]:
        system = _system(given, seconds)
        opened.append(system)
        return Asking(partial(ask, system), seconds, clock)

    def signs(system: System) -> RqSigns:
        return RqSigns(system.redis, mapping, system.target.queues(), lately=params["window"])

    database = asked(service.HEALTH_SECONDS, lambda system: database_signs(system.engine))
    redis = asked(service.HEALTH_SECONDS, lambda system: signs(system).store())
    ledger = asked(service.LEDGER_SECONDS, _ledger)
    rows = asked(service.QUEUE_SECONDS, lambda system: system.source.counts())
    queues = asked(service.QUEUE_SECONDS, lambda system: _queues(signs(system), clock.now()))
    work = asked(service.WORK_SECONDS, lambda system: signs(system).work(clock.now(), params["target_redis_users"]))

    known, reachable = ledger.wait(), redis.wait()
    compared = _compare(given, known, reachable.value is not None, signs, opened)
    counted = rows.wait()
    readings = Readings(
        database.wait(),
        reachable,
        known,
        Answer(counted.value, counted.problem),
        queues.wait(),
        work.wait(),
        compared,
        [_host(name, said, params) for name, said in params["hosts"].items()],
    )
    for system in opened:
        system.let_go()
    return readings


def _queues(signs: RqSigns, now: float) -> Sequence[QueueSigns]:
    return signs.queues(now)


def _system(given: Given, seconds: float) -> BoundedSystem:
    """The stores for one question; each has connections of its own, so that none waits for another's."""
    params = given.params
    settings = Settings(params["db_url"], params["redis_url"], given.system.settings.mapping, read_only=True)
    return BoundedSystem(settings, seconds * SHARE_OF_LIMIT)


def _ledger(system: BoundedSystem) -> LedgerSigns:
    run = system.ledger.open_run()
    last = run or system.ledger.last_run()
    lease = system.ledger.lease_state()
    route = system.router().read() if system.mapping.route.kind == "sql_row" else None
    intake = system.intake()
    return LedgerSigns(
        run,
        last,
        lease.token if lease else 0,
        len(system.ledger.held()) if last else 0,
        route,
        intake.read() if intake else None,
    )


def _compare(
    given: Given,
    known: Answer[LedgerSigns],
    reachable: bool,
    signs: Callable[[System], RqSigns],
    opened: list[BoundedSystem],
) -> Compared:
    if known.value is None:
        return Compared(Integrity.UNKNOWN, "the ledger could not be read")
    if not reachable:
        return Compared(Integrity.UNKNOWN, "Redis does not answer: its half cannot be compared")
    system = _system(given, service.INTEGRITY_SECONDS)
    opened.append(system)
    comparison = Comparison(
        system.source, system.target, system.ledger, system.mapping, given.clock, signs(system).heads
    )
    signs_of_ledger = known.value
    # Less than the whole limit: what is read when the time is up has still to be ended.
    budget = service.INTEGRITY_SECONDS * 0.7
    answer = Asking(lambda: comparison.compare(signs_of_ledger, budget), service.INTEGRITY_SECONDS, given.clock).wait()
    if answer.value is not None:
        return answer.value
    best = comparison.best
    return best if best.integrity is not Integrity.UNKNOWN else Compared(Integrity.UNKNOWN, answer.problem)


def _host(name: str, said: Mapping[str, Any], params: Mapping[str, Any]) -> HostSigns:
    """What a host's own module returned, or why it returned nothing."""
    application = name in params["application_hosts"]
    if "logs" not in said or said.get("unreachable") or said.get("failed"):
        why = "cannot be reached" if said.get("unreachable") else "was not asked"
        why = f"its question failed: {said.get('msg', '')}" if said.get("failed") else why
        return HostSigns(name, application, problem=why)
    health = said["health"]
    return HostSigns(
        name,
        application,
        said["workers"] if said["workers"] >= 0 else None,
        said["workers_problem"],
        HealthSigns(int(health["status"]), float(health["latency"]), str(health["detail"])) if health else None,
        [LogSigns(log["path"], log["errors"], log["last"], log["problem"]) for log in said["logs"]],
    )


def lines_of(assessment: Assessment, seconds: float) -> list[str]:
    """The five questions as aligned lines, then the axes, the action, its reasons, and the command."""
    width = max((len(answer.name) for answer in assessment.lines), default=0)
    lines: list[str] = []
    for question in service.QUESTIONS:
        answers = [answer for answer in assessment.lines if answer.question == question]
        lines.append(question)
        if not answers:
            lines.append(f"  {Verdict.UNKNOWN:<8} nobody was asked")
        for answer in answers:
            if answer.name:
                lines.append(f"  {answer.verdict:<8} {answer.name:<{width}}  {answer.reading}")
            else:
                lines.append(f"  {'':<8} {'':<{width}}  | {answer.reading}")
    state = assessment.state
    lines.append("")
    for name in ("severity", "function", "integrity", "performance", "stability"):
        lines.append(f"{name:<12} {getattr(state, name):<14} {assessment.readings[name]}")
    decision = assessment.decision
    lines.append(f"{'standing':<12} {assessment.standing:<14} {MEANING[assessment.standing]}")
    lines.append(f"{'action':<12} {decision.action}")
    lines += [f"{'because' if n == 0 else '':<12} {reason}" for n, reason in enumerate(decision.reasons)]
    before = service.BEFORE.get(decision.action)
    if before:
        lines.append(f"{'first':<12} {before}")
    lines.append(f"{'answered in':<12} {seconds:.1f} s")
    lines.append(f"next: {assessment.command}")
    return lines
