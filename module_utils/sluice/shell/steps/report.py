"""What stands in the ledger, for a change ticket and for whoever takes over."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...core.errors import SluiceError
from ...core.phases import Phase
from ...ports.ledger import Event, Run
from ...services import run as runs
from ..runner import Result
from ..stores import Given
from .movement import balance_lines

NEXT = {
    Phase.OPENED: "playbooks/migrate.yml (prepares first), or playbooks/prepare.yml",
    Phase.PREPARED: "playbooks/hybrid.yml, or playbooks/migrate.yml",
    Phase.HYBRID: "playbooks/migrate.yml, or playbooks/hybrid.yml with another share",
    Phase.ROUTED: "playbooks/migrate.yml",
    Phase.FENCED: "playbooks/migrate.yml",
    Phase.TRANSFERRED: "playbooks/migrate.yml",
    Phase.VERIFIED: "playbooks/validate.yml, or playbooks/migrate.yml",
    Phase.VALIDATED: "playbooks/cleanup.yml after the stability time",
}


#: What may be run next on a way back: planned, emergency.
NEXT_BACK = ("playbooks/planned-rollback.yml", "playbooks/emergency-rollback.yml")


def _next(run: Run) -> str:
    if not runs.is_back(run):
        return f"{NEXT[run.phase]}; back: playbooks/assess.yml" if run.phase in NEXT else "playbooks/plan.yml"
    again = NEXT_BACK[runs.is_emergency(run)]
    return (
        f"{again}: it goes on, and reconciles"
        if run.phase is not Phase.VALIDATED
        else f"{again}, once holds are decided"
    )


def status(given: Given) -> Result:
    """Where the run stands, who holds the lease, what may be run next. Reads only; Redis is asked nothing."""
    system = given.system
    run = system.ledger.open_run()
    last = run or system.ledger.last_run()
    if last is None:
        return {
            "changed": False, "run_id": "", "phase": "none", "next": "playbooks/plan.yml",
            "lines": ["run      none yet", "next     playbooks/plan.yml"],
        }  # fmt: skip
    lease = system.ledger.lease_state()
    counts = system.source.counts()
    held = system.ledger.held()
    what_next = _next(last) if run else "playbooks/plan.yml"
    lines = [
        f"run      {last.id} ({last.direction}), opened {last.opened_at:%Y-%m-%d %H:%M:%S} UTC by {last.operator}",
        f"phase    {last.phase}" + ("" if run else " (ended)"),
        f"return   {_way_back(last)}",
        f"lease    {f'{lease.owner}, {lease.remaining:.0f} s left' if lease and lease.remaining > 0 else 'free'}",
        "source   " + ", ".join(f"{place} {number:,}" for place, number in _totals(counts).items()),
        f"held     {len(held)}",
        f"next     {what_next}",
    ]
    lines += [f"         {entry.id}  {entry.where}" for entry in held[:10]]
    return {"changed": False, "run_id": last.id, "phase": last.phase.value, "next": what_next, "lines": lines}


def _way_back(run: Run) -> str:
    """Whether the run can still be taken back, in words."""
    if runs.is_back(run):
        return f"this run takes back {runs.undone_by(run) or 'what was moved'}"
    if run.point_of_no_return_at:
        return f"passed {run.point_of_no_return_at:%H:%M:%S} UTC: forward only, or a run that goes back"
    return "still possible" if runs.may_undo(run) else "over: the target has taken over"


def _totals(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for places in counts.values():
        for place, number in places.items():
            totals[place] = totals.get(place, 0) + number
    return totals


def report(given: Given) -> Result:
    """The balance of the run for the change ticket; also written as Markdown when a directory is given."""
    system, params = given.system, given.params
    run = system.ledger.open_run() or system.ledger.last_run()
    if run is None:
        return {"changed": False, "lines": ["no run yet: nothing to report"], "report_file": ""}
    events = system.ledger.events(run.id)
    lines = [
        f"Change {run.id}: {system.mapping.system}, {run.direction}, by {run.operator}",
        f"phase       {run.phase}",
        "",
        *_balance(events),
        "",
        *_moved(system.ledger.moved_by_queue(run.id)),
        *_held(given),
        *_criteria(events),
        "",
        *_turned_away(params["prober_log"], run),
        "",
        *_times(run, events, params["budgets"]),
        *_overrides(events),
    ]
    if runs.is_back(run):
        lines[2:2] = _incident(run, events)
    path = ""
    if params["directory"] and not given.check_mode:
        more = _timeline(given, run, events) if runs.is_back(run) else []
        path = _write(Path(params["directory"]), run, lines, more)
    return {"changed": False, "lines": lines + ([f"written to  {path}"] if path else []), "report_file": path}


def _last(events: list[Event] | Any, kind: str, name: str) -> Event | None:
    return next((e for e in reversed(events) if e.kind == kind and e.name == name), None)


def _balance(events: Any) -> list[str]:
    found = _last(events, "measure", "balance")
    if found is None:
        return ["balance     not taken yet"]
    return [
        f"balance     {found.verdict}, at {found.at:%H:%M:%S} UTC, by identity",
        *[f"  {line}" for line in balance_lines(found.detail)],
    ]


def _moved(by_queue: dict[str, int]) -> list[str]:
    total = sum(by_queue.values())
    return [f"moved       {total:,}", *[f"  {queue:<24}{number:>10,}" for queue, number in sorted(by_queue.items())]]


def _held(given: Given) -> list[str]:
    held = given.system.ledger.held()
    reasons: dict[str, int] = {}
    for entry in held:
        reasons[entry.where] = reasons.get(entry.where, 0) + 1
    return [f"held        {len(held)}", *[f"  {number:>6,}  {reason}" for reason, number in sorted(reasons.items())]]


def _criteria(events: Any) -> list[str]:
    found = _last(events, "measure", "validation")
    if found is None:
        return ["validation  not reached"]
    criteria = found.detail.get("criteria", [])
    if not isinstance(criteria, list):  # the validation step writes a list
        return [f"validation  {found.verdict}, its criteria cannot be read"]
    width = max((len(c["name"]) for c in criteria), default=0)
    return [
        f"validation  {found.verdict}",
        *[f"  {c['verdict']:<8}{c['name']:<{width}}  {c['value']}" for c in criteria],
    ]


def _turned_away(path: str, run: Run) -> list[str]:
    """Read from the log of a prober that submits all the time; without one, nobody knows, and that is said."""
    if not path:
        return ["turned away not measured (no prober ran; see docs/reading-the-output.md)"]
    since = run.opened_at.timestamp()
    probes: list[tuple[float, int]] = []
    try:
        with Path(path).open(encoding="utf-8") as log:
            for line in log:
                try:
                    entry = json.loads(line)
                    if entry["at"] >= since:
                        probes.append((float(entry["at"]), int(entry["status"])))
                except (ValueError, KeyError, TypeError):
                    continue  # the prober is writing this line now
    except OSError as error:
        return [f"turned away unknown: the prober's log cannot be read ({error.strerror})"]
    if not probes:
        return ["turned away unknown: the prober logged nothing during the run"]
    probes.sort()
    away, seconds, last_good = 0, 0.0, probes[0][0]
    gap = False
    for at, status in probes:
        if status in (200, 201, 202):
            if gap:
                seconds += at - last_good
            last_good, gap = at, False
        else:
            away, gap = away + 1, True
    if gap:
        seconds += probes[-1][0] - last_good
    span = probes[-1][0] - probes[0][0]
    return [f"turned away {away} of {len(probes):,} probes, {seconds:.1f} s, over {span:.0f} s"]


def _times(run: Run, events: Any, budgets: dict[str, Any]) -> list[str]:
    """When each phase was reached, how long it took, and what it was allowed, where a budget is given (seconds)."""
    lines = ["phase         reached    took" + ("     budget" if budgets else "")]
    before = run.opened_at
    for event in events:
        if event.kind == "phase":
            took = (event.at - before).total_seconds()
            line = f"{event.name:<14}{event.at:%H:%M:%S}{took:>7.1f} s"
            lines.append(line + _against(took, budgets.get(event.name)))
            before = event.at
    service = _last(events, "measure", "in service again")
    if service is not None:
        took = float(str(service.detail["seconds"]))
        lines.append(f"{'in service':<14}{service.at:%H:%M:%S}{took:>7.1f} s{_against(took, budgets.get('service'))}")
    return lines


def _against(took: float, budget: Any) -> str:
    if budget is None:
        return ""
    return f"{float(budget):>7.0f} s  {'within' if took <= float(budget) else 'OVER'}"


def _incident(run: Run, events: Any) -> list[str]:
    """What an incident report says of a way back: why, what was taken back, what was found, where the evidence lies."""
    store, evidence = _last(events, "measure", "target store"), _last(events, "measure", "evidence")
    left = _last(events, "measure", "leftovers")
    kind = "emergency" if runs.is_emergency(run) else "planned"
    return [
        f"kind        {kind}; tasks that were begun: {run.settings.get('started')}",
        f"reason      {run.settings.get('reason') or 'none given'}",
        f"takes back  {runs.undone_by(run) or 'no open run'}",
        f"redis       {store.detail.get('reason') if store else 'not looked at'}",
        f"evidence    {evidence.detail.get('file') if evidence else 'none'}",
        f"running     {left.detail.get('running') if left else 'not counted'} at the target when it was drained",
    ]


def _overrides(events: Any) -> list[str]:
    return [f"override      {e.name}: {e.detail.get('reason')}" for e in events if e.kind == "override"]


#: Held ids that are named one by one.
_NAMED = 200


def _timeline(given: Given, run: Run, events: Any) -> list[str]:
    """The Markdown of an incident report behind its summary: what happened when, each verdict, each held id."""
    undone = given.system.ledger.find_run(runs.undone_by(run)) if runs.undone_by(run) else None
    rows = ["", "## Timeline", "", "| UTC | step | verdict | what was seen |", "| --- | --- | --- | --- |"]
    if undone is not None:
        rows.append(
            f"| {undone.opened_at:%Y-%m-%d %H:%M:%S} | run {undone.id} opened | | by {_cell(undone.operator)} |"
        )
    rows.append(f"| {run.opened_at:%Y-%m-%d %H:%M:%S} | this run opened | | by {_cell(run.operator)} |")
    rows += [_line_of(e.at, f"{e.kind} {e.name}", e.verdict, _seen(e)) for e in events if e.kind != "note"]
    held = given.system.ledger.held()
    rows += ["", "## Held", "", f"{len(held)} tasks wait for a decision (playbooks/holds.yml).", ""]
    if held:
        rows += ["| task | reason |", "| --- | --- |", *[f"| {h.id} | {_cell(h.where)} |" for h in held[:_NAMED]]]
    if len(held) > _NAMED:
        rows.append(f"\n{len(held) - _NAMED} more: export them with playbooks/holds.yml.")
    evidence = _last(events, "measure", "evidence")
    rows += ["", "## Evidence", ""]
    if evidence is None:
        return [*rows, "None was bundled."]
    logs = evidence.detail.get("logs")
    rows.append(f"- bundle: `{evidence.detail.get('file')}`, sha256 `{evidence.detail.get('sha256')}`")
    rows += [f"- log: `{path}`" for path in (logs if isinstance(logs, list) else [])]
    return rows


def _line_of(at: datetime, step: str, verdict: str, seen: str) -> str:
    return f"| {at:%Y-%m-%d %H:%M:%S} | {step} | {verdict} | {_cell(seen)} |"


def _seen(event: Event) -> str:
    """An event's detail in a few words."""
    checks = event.detail.get("checks")
    if isinstance(checks, list):
        return "; ".join(f"{check['name']}: {check['reading']}" for check in checks)
    return "; ".join(f"{name} {value}" for name, value in event.detail.items() if not isinstance(value, list | dict))


def _cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.replace("|", "/").split())[:300]


def _write(directory: Path, run: Run, lines: list[str], more: list[str]) -> str:
    path = directory / f"{run.id}.md"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            title = "Incident" if runs.is_emergency(run) else "Change"
            file.write(f"# {title} {run.id}\n\nWritten {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC.\n\n```text\n")
            file.write("\n".join(lines) + "\n```\n" + "".join(f"{line}\n" for line in more))
    except OSError as error:
        raise SluiceError(
            f"the report cannot be written ({error.strerror}).",
            where=str(path),
            next_step="set queue_report_directory.",
        ) from error
    return str(path)
