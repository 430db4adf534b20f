"""The plan: read-only, from where the run stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...adapters.http_application import parse_form
from ...core.mapping import supports_hybrid
from ...core.phases import Phase
from ...core.verdicts import Check, Verdict
from ...services import plan as plans
from ...services import run as runs
from ..runner import Result, gate_lines
from ..stores import Given
from .prepare import TASK_BYTES, preflight_gate

#: Tasks per second, the default of the role queue_transfer; a run of this system's own is taken where there is one.
USUAL_RATE = 2000.0


def plan(given: Given) -> Result:
    """Census, mapping check, strangers, capacity, fencing ability, time estimate, and every step with its undo."""
    # Whatever the caller says, this step reads: Redis by a client that cannot write, SQL by the account it was given.
    reading = replace(given, check_mode=True)
    system, params = reading.system, given.params
    parse_form(params["canary"])
    gate = preflight_gate(reading)
    gate = replace(gate, checks=(*gate.checks, *_answers(params["hosts"], params["answers"])))
    fitting = not [c for c in gate.checks if c.name == "mapping fits the schema" and c.verdict is Verdict.FAILED]
    if not fitting:
        return {
            "changed": False, "verdict": gate.verdict.value, "checks": [], "lines": gate_lines(gate),
            "blocking": [f"{c.name}: {c.reading}" for c in gate.blocking()], "failed_gate": True, "msg": gate.explain(),
        }  # fmt: skip
    counts = system.source.counts()
    standing = runs.standing(system.ledger)
    phase = standing.run.phase if standing.run else Phase.OPENED
    waiting = sum(p.get("ready", 0) + p.get("delayed", 0) + p.get("claimed", 0) for p in counts.values())
    known = sum(sum(p.values()) for p in counts.values())
    reason = supports_hybrid(system.mapping)
    facts = plans.Facts(
        waiting=waiting,
        leased=sum(p.get("leased", 0) for p in counts.values()),
        known=known,
        data_bytes=system.source.data_bytes(),
        rate=float(params["rate"]) or _measured_rate(reading) or USUAL_RATE,
        soak_seconds=0.0,
        drain_seconds=300.0,
        observation_seconds=0.0,
        hybrid=False,
        no_hybrid_reason=reason,
    )
    steps = plans.plan(facts, phase)
    notes = [
        f"run         {standing.run.id} stands at '{phase}'" if standing.run else "run         none is open",
        f"hybrid      {'possible; playbooks/hybrid.yml' if not reason else 'not possible: ' + reason}",
        f"redis       about {waiting * TASK_BYTES / 1e6:,.1f} MB for {waiting:,} tasks",
        "order       moved tasks queue behind tasks submitted after the route change, within a priority",
    ]
    if not system.mapping.source.journal:
        notes.append(f"journal     none: {waiting:,} tasks would die with Redis; keep the backup")
    blocking = [f"{c.name}: {c.reading}" for c in gate.blocking()]
    return {
        "changed": False,
        "verdict": gate.verdict.value,
        "checks": [{"name": c.name, "verdict": c.verdict.value, "reading": c.reading, "next_step": c.next_step}
                   for c in gate.checks],
        "counts": counts,
        "bytes": waiting * TASK_BYTES,
        "steps": plans.as_data(steps),
        "blocking": blocking,
        "plan_digest": plans.digest(steps, runs.mapping_digest(system.mapping)),
        "lines": [*plans.lines(steps, counts), "", *_host_lines(params["hosts"]), *notes, "", *gate_lines(gate),
                  "", f"blocking    {len(blocking)}" if blocking else "nothing blocks"],
    }  # fmt: skip


def _host_lines(hosts: Mapping[str, Sequence[str]]) -> list[str]:
    """Every host by its group."""
    return [f"{'hosts' if not n else '':<12}{group} {len(names)}: {', '.join(names) or 'none'}"
            for n, (group, names) in enumerate(hosts.items())]  # fmt: skip


def _answers(hosts: Mapping[str, Sequence[str]], answers: Mapping[str, bool]) -> list[Check]:
    """Whether every host that was asked has answered; empty when none was asked."""
    if not answers:
        return []
    asked = dict.fromkeys(host for names in hosts.values() for host in names)
    silent = [host for host in asked if not answers.get(host)]
    reading = f"silent: {', '.join(silent)}" if silent else f"{len(asked)} of {len(asked)}"
    advice = "make it answer, or take it out of the inventory: unreachable is not dead."
    return [Check.of("every host answers", not silent, reading, advice)]


def _measured_rate(given: Given) -> float:
    """The rate of an earlier transfer of this system, 0 when there was none."""
    last = given.system.ledger.last_run()
    events = given.system.ledger.events(last.id, "measure", "transfer") if last else []
    for event in reversed(events):
        moved, seconds = float(str(event.detail.get("moved", 0))), float(str(event.detail.get("seconds", 0)))
        if moved >= 1000 and seconds > 0:
            return moved / seconds
    return 0.0
