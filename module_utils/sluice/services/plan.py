"""The plan: every step of a run from where it stands, with its effect, its count, its time and its undo."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..core.figures import size
from ..core.phases import Phase, reached


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One line of the plan. ``seconds`` is an estimate; ``done`` when the run has passed it already."""

    phase: str
    step: str
    effect: str
    count: int
    seconds: float
    undo: str
    done: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What the estimate rests on. ``rate`` is tasks per second."""

    waiting: int
    leased: int
    known: int
    data_bytes: int
    rate: float
    soak_seconds: float
    drain_seconds: float
    observation_seconds: float
    hybrid: bool
    no_hybrid_reason: str


def plan(facts: Facts, phase: Phase) -> list[PlannedStep]:
    """The steps of a forward run, in order. ``phase`` is where the run stands."""
    megabytes = facts.data_bytes / 1e6
    rows: list[tuple[Phase, str, str, int, float, str]] = [
        (Phase.PREPARED, "preflight", "reads both stores; writes the ledger's tables", 0, 6, "none needed"),
        (Phase.PREPARED, "accounts", "SQL and Redis accounts for the target's workers", 0, 2,
         "cleanup.yml removes them"),
        (Phase.PREPARED, "backup", f"dump of {size(facts.data_bytes)} and trial restore, Redis snapshot, configuration",
         0, 4 + megabytes / 15, "none needed; cleanup.yml keeps them"),
        (Phase.PREPARED, "configure", "managed keys in the application's .env, target still off", 0, 2,
         "keys back to their values"),
        (Phase.PREPARED, "baseline", "every id remembered, Redis stamped", facts.known, 1 + facts.known / 200_000,
         "stamp removed"),
    ]  # fmt: skip
    if facts.hybrid:
        rows.append(
            (
                Phase.HYBRID,
                "hybrid",
                "a share of new submissions to the target, watched",
                0,
                facts.soak_seconds,
                "share back to what it was",
            )
        )
    rows += [
        (Phase.ROUTED, "route", "target workers up; all new submissions to the target, behind a barrier", 0, 8,
         "share back, polling on"),
        (Phase.FENCED, "drain", "legacy polling off, running tasks finish", facts.leased,
         min(facts.drain_seconds, 5 + facts.leased), "legacy workers started again"),
        (Phase.FENCED, "fence", "the pollers' accounts locked, their connections closed", 0, 2, "accounts unlocked"),
        (Phase.TRANSFERRED, "transfer", "ready, then delayed tasks, in claim order", facts.waiting,
         facts.waiting / max(1.0, facts.rate), "until the first release: put back; after it: a rollback"),
        (Phase.VERIFIED, "verify", "the balance of all ids, by identity", facts.known, 3 + facts.known / 30_000,
         "a rollback"),
        (Phase.VALIDATED, "validate", "canaries, latency, user constraint, observation", 0,
         8 + facts.observation_seconds, "a rollback"),
    ]  # fmt: skip
    return [
        PlannedStep(p.value, step, effect, count, round(seconds, 1), undo, reached(phase, p))
        for p, step, effect, count, seconds, undo in rows
    ]


def digest(steps: list[PlannedStep], mapping_digest: str) -> str:
    """A digest of what is planned: steps and mapping, without the counts that change by the second."""
    shape = [(s.phase, s.step, s.effect if s.step != "backup" else "", s.undo) for s in steps]
    return hashlib.sha256(json.dumps([mapping_digest, shape]).encode()).hexdigest()[:32]


def lines(steps: list[PlannedStep], counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The plan as an operator reads it: counts by queue, then steps with estimate and undo."""
    places = [
        p
        for p in ("ready", "delayed", "leased", "claimed", "moved", "running", "unknown")
        if any(p in c for c in counts.values())
    ]
    out = ["tasks       " + "".join(f"{p:>10}" for p in places)]
    for queue, found in sorted(counts.items()):
        out.append(f"  {queue or '-':<10}" + "".join(f"{found.get(p, 0):>10,}" for p in places))
    out.append("")
    width = max((len(s.effect) for s in steps), default=0) + 2
    out.append(f"{'step':<10}{'tasks':>9}{'about':>9}  {'effect':<{width}}undo")
    for s in steps:
        about = "done" if s.done else f"{s.seconds:,.0f} s"
        count = f"{s.count:,}" if s.count else ""
        out.append(f"{s.step:<10}{count:>9}{about:>9}  {s.effect:<{width}}{s.undo}")
    left = sum(s.seconds for s in steps if not s.done)
    out.append(f"{'in all':<10}{'':>9}{f'{left:,.0f} s':>9}")
    return out


def as_data(steps: list[PlannedStep]) -> list[dict[str, object]]:
    """The steps as plain data."""
    return [asdict(step) for step in steps]
