"""Open, resume, advance and undo a run. Gates are read from the ledger, by the module that acts, when it acts."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ..core.errors import GateClosed, RunConflict
from ..core.mapping import TaskMapping
from ..core.phases import FORWARD, GATE_LIFETIME, Direction, Phase, gates_before, reached, require_transition
from ..core.tasks import Lease
from ..core.verdicts import Check, Gate, Verdict
from ..ports.ledger import Ledger, Run
from ..ports.surroundings import Clock

LEASE_SECONDS = 20.0
#: A verdict further in the future than this (seconds) says nothing of its age.
CLOCK_SKEW = 5.0
#: How long the same command waits for a lease that a killed run left behind (seconds).
LEASE_WAIT = 30.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a system stands: its open run, if any, and the phases that are still to be reached."""

    run: Run | None
    todo: Mapping[str, bool]


def mapping_digest(mapping: TaskMapping) -> str:
    """A digest of the mapping: a run goes on only under the mapping it began with."""
    return hashlib.sha256(repr(asdict(mapping)).encode()).hexdigest()[:32]


def standing(ledger: Ledger) -> Standing:
    """Read where the system stands."""
    run = ledger.open_run()
    phase = run.phase if run else Phase.OPENED
    return Standing(run, {p.value: not reached(phase, p) for p in FORWARD})


def open_run(
    ledger: Ledger,
    mapping: TaskMapping,
    clock: Clock,
    *,
    direction: str,
    operator: str,
    plan_digest: str = "",
    settings: Mapping[str, object] | None = None,
) -> Run:
    """The open run, or a new one.

    :raises RunConflict: a run of another direction or under another mapping is open
    """
    ledger.install()
    run = ledger.open_run()
    digest = mapping_digest(mapping)
    if run is not None:
        if run.direction != direction:
            raise RunConflict(
                f"run {run.id} ({run.direction}) of '{run.operator}' is open and stands at '{run.phase}'.",
                where="ledger",
                next_step="type playbooks/emergency-rollback.yml again: it finishes what the target still holds."
                if is_emergency(run)
                else "type playbooks/planned-rollback.yml again: it finishes that run.",
            )
        if run.mapping_digest != digest:
            raise RunConflict(
                f"the mapping has changed since run {run.id} began.",
                where="ledger",
                next_step="put the mapping back as it was, or end that run first.",
            )
        return run
    run = _new_run(mapping, clock, direction, operator, plan_digest, settings or {})
    ledger.start_run(run)
    return run


def foreign_wait(ledger: Ledger, owner: str) -> tuple[str, float]:
    """Who else holds the lease, and for how many seconds more; ('', 0) when it may be taken."""
    state = ledger.lease_state()
    if state is None or state.remaining <= 0 or state.owner == owner:
        return "", 0.0
    return state.owner, state.remaining


def continue_run(ledger: Ledger, mapping: TaskMapping, owner: str, mirrored_token: int = 0) -> tuple[Run, Lease]:
    """What every writing step begins with: the open run, and its lease under a new token.

    :param mirrored_token: the token kept in the other store; a ledger older than it was restored from a backup
    :raises RunConflict: no run is open, it is another owner's, its mapping changed, or the database was restored
    """
    run = ledger.open_run()
    if run is None:
        raise RunConflict("no run is open.", where="ledger", next_step="run playbooks/migrate.yml from its beginning.")
    if run.mapping_digest != mapping_digest(mapping):
        raise RunConflict(
            f"the mapping has changed since run {run.id} began.", where="ledger", next_step="put it back as it was."
        )
    state = ledger.lease_state()
    if state is None or state.owner != owner:
        holder = "nobody" if state is None else f"'{state.owner}'"
        raise RunConflict(
            f"the lease of run {run.id} belongs to {holder}, not to '{owner}'. Nothing was written.",
            where="ledger",
            next_step="run the whole playbook; its first play takes the lease. Do not use --tags or --start-at-task.",
        )
    if mirrored_token > state.token:
        raise RunConflict(
            f"the ledger's token {state.token} is older than its mirror {mirrored_token} in the target: "
            "the database was restored from a backup while the target lived on.",
            where="ledger",
            next_step="do not go on: restore the target to the same moment, or decide by hand with "
            "playbooks/status.yml.",
        )
    return run, ledger.take_lease(run, owner, LEASE_SECONDS)


def is_back(run: Run | None) -> bool:
    """Whether the run leaves the target and goes back to the source."""
    return run is not None and run.direction == Direction.BACK


def is_emergency(run: Run | None) -> bool:
    """Whether the run is a way back that does not wait for what is dead."""
    return run is not None and bool(run.settings.get("emergency"))


def undone_by(run: Run) -> str:
    """The id of the run that this one takes back; '' when none was open."""
    return str(run.settings.get("undoes", ""))


def restored_from(run: Run) -> str:
    """The forward run whose archive of the application's files a way back restores."""
    return str(run.settings.get("restores", "")) if is_back(run) else run.id


def target_usable(ledger: Ledger, run: Run | None) -> bool:
    """Whether the target's store could be used when the command began. Only an emergency goes on without."""
    if run is None or not is_emergency(run):
        return True
    readings = ledger.events(run.id, "measure", "target store")
    return not readings or bool(readings[-1].detail.get("usable"))


def begin_back(
    ledger: Ledger,
    mapping: TaskMapping,
    clock: Clock,
    *,
    operator: str,
    settings: Mapping[str, object],
) -> Run:
    """The open run that goes back, or a new one in the place of the open forward run.

    :raises RunConflict: nothing was ever moved, the mapping changed, or a planned way back meets an emergency
    """
    found = ledger.open_run()
    if found is not None and found.mapping_digest != mapping_digest(mapping):
        raise RunConflict(
            f"the mapping has changed since run {found.id} began.", where="ledger", next_step="put it back as it was."
        )
    if found is not None and is_back(found):
        if settings.get("emergency") and not is_emergency(found):
            return ledger.change_settings(found, {**found.settings, "emergency": True})
        return found
    last = found or ledger.last_run()
    if last is None or (is_back(last) and last.phase is Phase.CLEANED):
        raise RunConflict(
            f"nothing to take back: run {last.id} brought everything home and has ended."
            if last
            else "nothing to take back: no run was ever made here.",
            where="ledger",
            next_step="look at playbooks/status.yml.",
        )
    given = {**settings, "undoes": found.id if found else "", "restores": restored_from(last)}
    run = _new_run(mapping, clock, Direction.BACK, operator, "", given)
    if found is None:
        ledger.start_run(run)
    else:
        ledger.take_over(run, found)
    return run


def _new_run(
    mapping: TaskMapping,
    clock: Clock,
    direction: str,
    operator: str,
    plan_digest: str,
    settings: Mapping[str, object],
) -> Run:
    now = datetime.fromtimestamp(clock.now(), UTC)
    return Run(
        id=f"{mapping.system}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        system=mapping.system,
        direction=direction,
        operator=operator,
        phase=Phase.OPENED,
        plan_digest=plan_digest,
        mapping_digest=mapping_digest(mapping),
        generation=secrets.token_hex(16),
        opened_at=now,
        point_of_no_return_at=None,
        settings=dict(settings),
    )


def heartbeat(ledger: Ledger, lease: Lease, clock: Clock) -> Callable[[], None]:
    """What a long step calls now and then: it renews the lease when a quarter of its time has passed."""
    renewed = clock.monotonic()

    def beat() -> None:
        nonlocal renewed
        if clock.monotonic() - renewed > LEASE_SECONDS / 4:
            ledger.renew(lease, LEASE_SECONDS)
            renewed = clock.monotonic()

    return beat


def require(run: Run, at_least: Phase, *, before: Phase | None = None, step: str) -> None:
    """Refuse a step unless the ledger says that the run stands where the step may begin.

    :raises GateClosed: naming the phase that is missing
    """
    if not reached(run.phase, at_least):
        raise GateClosed(
            f"{step} needs a run that has reached '{at_least}'; run {run.id} stands at '{run.phase}'.",
            where="ledger",
            next_step="run the whole playbook; steps cannot be skipped.",
        )
    if before is not None and reached(run.phase, before):
        raise GateClosed(
            f"{step} is over: run {run.id} already stands at '{run.phase}'.",
            where="ledger",
            next_step="look at playbooks/status.yml for what may be run next.",
        )


def record_gate(ledger: Ledger, lease: Lease, gate: Gate) -> Gate:
    """Keep a gate's verdict in the ledger, and give it back."""
    ledger.record(
        lease,
        "gate",
        gate.name,
        gate.verdict.value,
        {
            "checks": [
                {"name": c.name, "verdict": c.verdict.value, "reading": c.reading, "next_step": c.next_step}
                for c in gate.checks
            ]
        },
    )
    return gate


def phase_gate(
    ledger: Ledger, run: Run, wanted: Phase, clock: Clock, overrides: Mapping[str, str] | None = None
) -> Gate:
    """The gate before a phase: the newest verdict of each gate it needs must be passed and not expired.

    :param overrides: gate name -> reason; lets a failed or unknown verdict pass, and the reason stays in the ledger
    """
    given = overrides or {}
    checks = []
    events = ledger.events(run.id, kind="gate")
    for name in gates_before(run.direction, wanted):
        newest = next((e for e in reversed(events) if e.name == name), None)
        if newest is None:
            checks.append(Check(name, Verdict.UNKNOWN, "never checked in this run", "run the whole playbook."))
            continue
        age = clock.now() - newest.at.timestamp()
        if age < -CLOCK_SKEW:
            reading = f"recorded {-age:.0f} s in the future: the clocks of this host and the database disagree"
            checks.append(Check(name, Verdict.UNKNOWN, reading, "set the clocks, then run the same command again."))
            continue
        if newest.verdict == Verdict.PASSED.value and age <= GATE_LIFETIME[name]:
            checks.append(Check(name, Verdict.PASSED, f"passed {age:.0f} s ago"))
        elif newest.verdict != Verdict.PASSED.value and given.get(name, "").strip():
            checks.append(Check(name, Verdict.PASSED, f"{newest.verdict}, overridden: {given[name]}"))
        elif newest.verdict == Verdict.PASSED.value:
            checks.append(
                Check(name, Verdict.UNKNOWN, f"passed {age:.0f} s ago: too old", "run the same command again.")
            )
        else:
            checks.append(Check(name, Verdict(newest.verdict), _reading(newest.detail), "see the check's own advice."))
    return Gate(f"to {wanted}", tuple(checks))


def _reading(detail: Mapping[str, object]) -> str:
    checks = detail.get("checks", [])
    if not isinstance(checks, list):  # record_gate writes a list
        return json.dumps(checks, default=str)[:200]
    bad = [c for c in checks if c["verdict"] != Verdict.PASSED.value]
    return "; ".join(f"{c['name']} {c['verdict']}: {c['reading']}" for c in bad[:4]) or json.dumps(checks)[:200]


def advance(
    ledger: Ledger, lease: Lease, run: Run, wanted: Phase, clock: Clock, overrides: Mapping[str, str] | None = None
) -> Gate:
    """Enter a phase if its gate is open.

    :raises GateClosed: naming each check that keeps it closed
    :raises RunConflict: no arrow leads there
    """
    require_transition(run.phase, wanted)
    gate = phase_gate(ledger, run, wanted, clock, overrides)
    if gate.open:
        # Only what let the run pass is an override; one that changed nothing would mislead whoever reads the report.
        without = {check.name for check in phase_gate(ledger, run, wanted, clock).blocking()}
        for name, reason in (overrides or {}).items():
            if name in without and reason.strip():
                ledger.record(lease, "override", name, "", {"reason": reason, "phase": wanted.value})
    ledger.set_phase(lease, wanted, gate, undoes=undone_by(run))
    return gate


def may_undo(run: Run) -> bool:
    """Whether the run can still be taken back: nothing was released yet. An emergency only goes on."""
    return (
        not is_emergency(run)
        and run.point_of_no_return_at is None
        and run.phase
        in (
            Phase.OPENED,
            Phase.PREPARED,
            Phase.HYBRID,
            Phase.ROUTED,
            Phase.FENCED,
        )
    )


def undo(
    ledger: Ledger, lease: Lease, run: Run, reason: str, steps: Sequence[tuple[str, Callable[[], str]]]
) -> list[str]:
    """Take a run back, step by step in the given order, and record it as aborted.

    :raises GateClosed: the point of no return has passed
    """
    if not may_undo(run):
        raise GateClosed(
            f"run {run.id} passed its point of no return at {run.point_of_no_return_at:%H:%M:%S} UTC: it goes forward."
            if run.point_of_no_return_at
            else f"run {run.id} stands at '{run.phase}' and cannot be taken back.",
            where="ledger",
            next_step="run the same command again to finish it.",
        )
    done = []
    for name, step in steps:
        outcome = step()
        done.append(f"{name}: {outcome}")
        ledger.record(lease, "note", f"undo {name}", "", {"outcome": outcome})
    gate = Gate("undo", (Check("taken back", Verdict.PASSED, reason[:400]),))
    ledger.set_phase(lease, Phase.ABORTED, gate, undoes=undone_by(run))
    return done
