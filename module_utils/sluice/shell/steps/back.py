"""The steps of a run that goes back, where they differ from those of a forward run."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...adapters.factory import System
from ...core.errors import GateClosed, RunConflict, StoreError
from ...core.homecoming import Policy
from ...core.phases import Phase, reached
from ...core.tasks import Lease, Place, Sighting
from ...core.verdicts import Check, Gate, Verdict
from ...ports.ledger import Run
from ...ports.surroundings import Fence
from ...services import fence as fences
from ...services import run as runs
from ...services.transfer import Pace, Transfer
from ...services.verify import Verification, Verified, rules_of
from ..runner import SLICE_SECONDS, Result, gate_lines, gate_result
from ..stores import Given

SIDE = "target"
#: The two ends that a way back empties one after the other.
QUEUES, ROWS = "queues", "rows"
#: Both ends are gone through again while the application's outbox still enqueues.
MOST_TURNS = 8


class NothingThere:
    """What can be seen of a target whose store cannot be reached: nothing, which the rows make up for."""

    def census(self) -> Iterator[Sighting]:
        """No job."""
        return iter(())

    def look(self, job_id: str) -> list[Sighting]:
        """No job."""
        return []

    def marked(self, job_ids: Sequence[str]) -> Sequence[bool]:
        """No marker."""
        return [False] * len(job_ids)


def policy_of(run: Run) -> Policy:
    """What this run does with tasks that a fenced worker had begun."""
    return Policy(str(run.settings.get("started", Policy.HOLD)))


def usable(system: System, run: Run) -> bool:
    """Whether this command works with the target's store."""
    return runs.target_usable(system.ledger, run)


def take_stamp(system: System, run: Run, lease: Lease) -> tuple[bool, str]:
    """Make Redis this run's, so that movers of the run before it write nothing; in an emergency Redis may be unusable.

    :returns: whether the store can be used, and what was found, in words
    """
    undone = system.ledger.find_run(runs.undone_by(run)) if runs.undone_by(run) else None
    last = [undone.generation] if undone else []
    try:
        word = system.leaving.adopt(lease, last)
        reading = {
            "ours": "Redis carries the stamp of this run",
            "adopted": f"Redis was {undone.id if undone else ''}'s and is this run's now",
            "missing": "Redis carried no stamp: it was emptied, or nothing was ever moved; the rows decide",
        }[word]
        system.ledger.record(lease, "measure", "target store", "", {"usable": True, "reason": reading, "stamp": word})
    except StoreError as error:
        if not runs.is_emergency(run):
            raise
        reading = f"Redis cannot be used ({error.where}: {error.what.rstrip('.')}): the rows alone decide"
        system.ledger.record(lease, "measure", "target store", "", {"usable": False, "reason": reading})
        return False, reading
    return True, reading


def give_stamp_back(system: System, run: Run, lease: Lease) -> str:
    """Undo of :func:`take_stamp`: the run before has Redis again."""
    undone = system.ledger.find_run(runs.undone_by(run)) if runs.undone_by(run) else None
    if undone is None:
        return f"{system.target.clear_stamp()} keys of ours removed from the target"
    given = Lease(lease.system, undone.id, lease.owner, lease.token, undone.generation)
    system.leaving.adopt(given, [run.generation])
    return f"Redis is {undone.id}'s again"


# -- fences -----------------------------------------------------------------------------------------------------------


def fences_of(system: System, run: Run) -> list[Fence]:
    """What locks the target's workers out; without a usable Redis, what the database can lock."""
    return list(system.target_fences()) if usable(system, run) else [system.target_sql_fence()]


def fence_gate(system: System, run: Run, gate: Gate) -> Gate:
    """The gate of the fence, with what an unusable Redis means for it."""
    if usable(system, run):
        return gate
    if rules_of(system.mapping).custody_in_row:
        reading = "cannot be switched off now; their database accounts are locked, and every row says whose it is"
        return Gate(gate.name, (*gate.checks, Check("Redis users", Verdict.PASSED, reading)))
    reading = "cannot be switched off now, and no row says whose it is"
    advice = "make Redis answer, or prove every worker dead and say so with queue_advance_override."
    return Gate(gate.name, (*gate.checks, Check("Redis users", Verdict.UNKNOWN, reading, advice)))


def fence(given: Given, run: Run, lease: Lease) -> Result:
    """Lock RQ's workers out at both stores and prove it."""
    system = given.system
    runs.require(run, Phase.ROUTED, before=Phase.CLEANED, step="fencing the target")
    closed = fences_of(system, run)
    before = fences.prove_side(closed, SIDE)
    gate = before if before.open else fences.close_side(closed, lease, SIDE)
    gate = runs.record_gate(system.ledger, lease, fence_gate(system, run, gate))
    return {**gate_result(gate, changed=not before.open), "held": 0}


def let_in(given: Given, run: Run, lease: Lease) -> Result:
    """Give the source's claimers their accounts back. Only where no row that is not theirs looks ready to them."""
    system = given.system
    runs.require(run, Phase.PREPARED if runs.is_back(run) else Phase.ROUTED, step="letting the source's workers in")
    if not rules_of(system.mapping).custody_in_row:
        runs.require(run, Phase.VERIFIED, step="letting the source's workers in")
        exposed = system.home.exposed()
        if exposed:
            raise GateClosed(
                f"{exposed} rows look ready to the source's workers and are not theirs: held, or run at the target.",
                where=f"table {system.mapping.source.table}",
                next_step="decide them with playbooks/holds.yml, and remove the rows of what ran.",
            )
    changed = fences.lift_side([system.source_fence()], lease)
    system.ledger.record(lease, "note", "source let in", "", {"changed": changed})
    line = "the source's workers have their accounts back" if changed else "the source's workers were not locked out"
    return {"changed": changed, "verdict": "passed", "checks": [], "held": 0, "lines": [line]}


# -- drain ------------------------------------------------------------------------------------------------------------


def running(system: System) -> int:
    """Rows that the target's workers have begun and not ended."""
    return sum(places.get(Place.RUNNING.value, 0) for places in system.source.counts().values())


def drain(given: Given, run: Run, lease: Lease) -> Result:
    """Wait until nothing runs at the target, to a deadline; what is left goes by policy once it is fenced."""
    system, params, cursor = given.system, given.params, given.params["cursor"]
    runs.require(run, Phase.ROUTED, before=Phase.TRANSFERRED, step="draining the target")
    until = float(cursor.get("until", time.time() + params["deadline"]))
    end = system.clock.monotonic() + SLICE_SECONDS
    while (left := running(system)) and time.time() < until and system.clock.monotonic() < end:
        system.clock.wait(0.5)
    if left and time.time() < until:
        line = f"{left} tasks still run at the target, at most {until - time.time():.0f} s more"
        return {"changed": False, "leased": left, "lines": [line], "cursor": {"until": until}}
    ids = list(system.source.ids_at(Place.RUNNING, limit=20)) if left else []
    unproved = params["unproved"]
    system.ledger.record(lease, "measure", "leftovers", "", {"running": left, "ids": ids, "unproved": unproved})
    word = {Policy.HOLD: "held", Policy.REQUEUE: "queued again", Policy.FAIL: "failed"}[policy_of(run)]
    checks = (
        Check.of("running tasks", True, f"{left} left: {', '.join(ids)}; {word} after the fence" if left else "0 left"),
        Check.of(
            "workers ended", True, f"{len(unproved)} without proof; the fence counts" if unproved else "all of them"
        ),
    )
    gate = runs.record_gate(system.ledger, lease, Gate("drain", checks))
    return {**gate_result(gate, changed=False), "leased": left}


# -- transfer ---------------------------------------------------------------------------------------------------------


def waiting(system: System, run: Run) -> int:
    """What is still to come home: jobs, or rows that no job answers for."""
    jobs = system.leaving.waiting() if usable(system, run) else 0
    return jobs + system.journal.waiting()


def _expected(system: System, run: Run) -> int:
    """Most tasks that wait are seen twice, as a job and as a row."""
    return max(system.leaving.waiting() if usable(system, run) else 0, system.journal.waiting())


def _mover(given: Given, run: Run, end: str, pace: Pace | None = None) -> Transfer:
    system = given.system

    def prove() -> Gate:
        return fence_gate(system, run, fences.prove_side(fences_of(system, run), SIDE))

    if end == QUEUES:
        system.leaving.since = run.opened_at.timestamp()
    return Transfer(
        system.leaving if end == QUEUES else system.journal,
        system.home,
        system.ledger,
        system.clock,
        prove_fence=prove,
        custody_in_row=rules_of(system.mapping).custody_in_row,
        pace=pace,
    )


def transfer(given: Given, run: Run, lease: Lease) -> Result:
    """Bring home for one slice: what RQ holds, then the rows that no job answers for."""
    system, params = given.system, given.params
    runs.require(run, Phase.FENCED, step="the transfer")
    system.home.policy = policy_of(run)
    cursor: dict[str, Any] = dict(params["cursor"])
    end = str(cursor.get("end", QUEUES if usable(system, run) else ROWS))
    total = int(cursor.get("total", 0)) or _expected(system, run)
    pace = Pace(batch=params["batch"], rate=float(params["rate"]), lease_seconds=runs.LEASE_SECONDS)
    moved = _mover(given, run, end, pace).slice(lease, SLICE_SECONDS)
    done = int(cursor.get("done", 0)) + moved.moved
    held = int(cursor.get("held", 0)) + moved.held
    seconds = float(cursor.get("seconds", 0.0)) + moved.seconds
    facts: Result = {
        "moved": done,
        "held": held,
        "lost": int(cursor.get("lost", 0)) + moved.lost,
        "seconds": round(seconds, 1),
    }
    if moved.stopped:
        text = f"an operator asked to stop after {done} tasks"
        gate = Gate("transfer", (Check("stop flag", Verdict.FAILED, text, "run the same command to go on."),))
        return {**gate_result(gate, changed=done > 0), **facts}
    next_end, turns = end, int(cursor.get("turns", 0)) + moved.done
    if moved.done and end == QUEUES:
        next_end = ROWS
    elif moved.done and turns < MOST_TURNS and usable(system, run) and system.leaving.waiting():
        # The application has enqueued a row of its outbox meanwhile.
        next_end = QUEUES
    if not moved.done or next_end != end:
        rate = done / seconds if seconds else 0.0
        left = max(0, total - done - held)
        remaining = f"{left / rate if rate else 0:.0f} s left"
        line = f"brought home {done:,} of {max(total, done):,}, {rate:,.0f} tasks/s, {remaining}"
        return {
            "changed": True,
            **facts,
            "lines": [line],
            "cursor": {**facts, "done": done, "total": total, "seconds": seconds, "end": next_end, "turns": turns},
        }
    left = waiting(system, run)
    gate = Gate(
        "transfer",
        (Check.of("target is empty", left == 0, f"{left} still at the target", "run the same command again."),),
    )
    runs.record_gate(system.ledger, lease, gate)
    system.ledger.record(lease, "measure", "transfer", "", facts)
    rate = done / seconds if seconds else 0.0
    lines = [
        f"brought home {done:,} tasks in {seconds:.1f} s ({rate:,.0f}/s), held {held}, ended meanwhile {facts['lost']}"
    ]
    return {**gate_result(gate, changed=done + held > 0), **facts, "lines": lines}


# -- balance ----------------------------------------------------------------------------------------------------------


def verification(given: Given, run: Run, **more: Any) -> Verification:
    """The balance of this run, over the stores that can be read."""
    system = given.system
    target = system.target if usable(system, run) else NothingThere()
    return Verification(system.source, target, system.ledger, system.clock, system.mapping, run.id, **more)


def balance_gate(given: Given, run: Run, verified: Verified) -> Gate:
    """Nothing at fault, nothing left at the target, and what an unusable Redis may hide is said."""
    balance = verified.balance
    faults = "; ".join(f"{entry.id}: {entry.fault}" for entry in balance.faults[:5])
    left = waiting(given.system, run)
    checks = [
        Check.of(
            "every id in exactly one place",
            balance.holds,
            f"{balance.known} known, {balance.fault_count} at fault" + (f": {faults}" if faults else ""),
            "look at the ids named here, then run the same command again.",
        ),
        Check.of("nothing left at the target", left == 0, f"{left} at the target", "run the same command again."),
    ]
    if not usable(given.system, run):
        reading = "unusable: jobs without a row, if there are any, are not counted; the same command looks again"
        checks.append(Check("Redis", Verdict.PASSED, reading))
    return Gate("balance", tuple(checks))


# -- evidence ---------------------------------------------------------------------------------------------------------


def evidence(given: Given) -> Result:
    """Bundle what is known before anything is undone: where the run stood, its verdicts, both stores' counts."""
    system, params = given.system, given.params
    folder = Path(params["directory"])
    if given.check_mode:
        line = f"evidence would be written below {folder}"
        return {"changed": True, "verdict": "unknown", "checks": [], "file": "", "sha256": "", "lines": [line]}
    run, lease = given.resume()
    runs.require(run, Phase.OPENED, step="the evidence")
    emergency = runs.is_emergency(run)
    path = folder / run.id / "evidence.json"
    content = _gathered(given, run)
    try:
        digest = _written(path, content)
        checks = [Check.of("evidence", True, f"{path.name}, sha256 {digest[:16]}, {len(content)} parts")]
    except OSError as error:
        digest = ""
        reading = f"{path} cannot be written ({error.strerror})"
        verdict = Verdict.PASSED if emergency else Verdict.FAILED
        text = f"{reading}; an emergency goes on without" if emergency else reading
        checks = [Check("evidence", verdict, text, "free space, or set queue_evidence_directory.")]
    gate = runs.record_gate(system.ledger, lease, Gate("evidence", tuple(checks)))
    system.ledger.record(
        lease, "measure", "evidence", "", {"file": str(path), "sha256": digest, "logs": params["logs"]}
    )
    result = gate_result(gate, changed=bool(digest))
    return {**result, "file": str(path), "sha256": digest, "lines": [*gate_lines(gate), *_summary(content)]}


def bundle_before_undo(given: Given, run: Run, lease: Lease) -> str:
    """The same bundle of a forward run that is about to be taken back; a full disk does not keep it from that."""
    folder = given.params["evidence_directory"]
    if not folder:
        return "not bundled: no folder is named"
    path = Path(folder) / run.id / "evidence.json"
    try:
        digest = _written(path, _gathered(given, run))
    except OSError as error:
        return f"{path} cannot be written ({error.strerror})"
    facts = {"file": str(path), "sha256": digest, "logs": given.params["logs"]}
    given.system.ledger.record(lease, "measure", "evidence", "", facts)
    return f"{path}, sha256 {digest[:16]}"


def _gathered(given: Given, run: Run) -> dict[str, Any]:
    system, params = given.system, given.params
    undone = system.ledger.find_run(runs.undone_by(run)) if runs.undone_by(run) else None
    parts: dict[str, Any] = {
        "run": {"id": run.id, "operator": run.operator, "opened_at": run.opened_at.isoformat(), **run.settings},
        "reason": params["reason"],
        "undone": asdict(undone or run),
        "events": [asdict(event) for event in system.ledger.events((undone or run).id)[-500:]],
        "rows": system.source.counts(),
        "held": [entry._asdict() for entry in system.ledger.held()],
        "configuration": params["configuration"],
        "logs": params["logs"],
    }
    if usable(system, run):
        with suppress(StoreError):  # absent from the bundle, as the gate of the fence will say
            parts["jobs"] = system.leaving.counts()
    return parts


def _summary(content: Mapping[str, Any]) -> list[str]:
    lines = []
    for title in ("rows", "jobs"):
        for queue, places in sorted(content.get(title, {}).items()):
            found = ", ".join(f"{number:,} {place}" for place, number in sorted(places.items()))
            lines.append(f"{title:<5} {queue:<10} {found}")
    return lines


def _written(path: Path, content: Mapping[str, Any]) -> str:
    """Write once, durably, and give the digest of what is read back."""
    data = json.dumps(content, indent=1, sort_keys=True, default=str).encode()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- the partial way back ---------------------------------------------------------------------------------------------


def reopened(given: Given) -> Result:
    """Let the source in again beside the target: a forward run that was fenced stands at 'routed' from now on."""
    system = given.system
    run = system.ledger.open_run()
    if run is None or runs.is_back(run):
        raise RunConflict("no forward run is open.", where="ledger", next_step="look at playbooks/status.yml.")
    if not reached(run.phase, Phase.FENCED):
        return {"changed": False, "lines": [f"run {run.id} stands at '{run.phase}': the source was never fenced"]}
    if not rules_of(system.mapping).custody_in_row:
        raise GateClosed(
            "both sides cannot run at once: the table has no word for custody.",
            where="mapping",
            next_step="a planned way back (playbooks/planned-rollback.yml) brings everything home.",
        )
    if not reached(run.phase, Phase.TRANSFERRED):
        raise GateClosed(
            f"run {run.id} stands at '{run.phase}', in the middle of its transfer.",
            where="ledger",
            next_step="finish it with playbooks/migrate.yml, or take it back with playbooks/planned-rollback.yml.",
        )
    if given.check_mode:
        return {"changed": True, "lines": [f"run {run.id} would stand at 'routed', the source let in again"]}
    run, lease = given.resume()
    gate = Gate(
        "partial way back", (Check("asked for", Verdict.PASSED, given.params["reason"][:300] or "a lower share"),)
    )
    system.ledger.set_phase(lease, Phase.ROUTED, gate)
    fences.lift_side([system.source_fence()], lease)
    return {
        "changed": True,
        "lines": [f"run {run.id} stands at 'routed': the source's workers have their accounts back"],
    }
