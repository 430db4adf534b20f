"""After a loss, and at the end: recover, decide holds, clean up."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...adapters.factory import System
from ...adapters.rq_archive import RqArchive
from ...core.errors import GateClosed, RunConflict, SluiceError
from ...core.phases import Phase, reached
from ...core.verdicts import Check, Gate, Verdict
from ...ports.ledger import Run
from ...services import fence as fences
from ...services import run as runs
from ...services.recover import recover as place_again
from ...services.verify import Verification
from ..runner import Result, gate_lines, gate_result
from ..stores import Given
from . import back


def recover(given: Given) -> Result:
    """Fence the target's workers, renew a lost stamp in Redis, place again what never started, hold the rest."""
    system, params = given.system, given.params
    run = system.ledger.open_run()
    if run is None or not reached(run.phase, Phase.ROUTED):
        raise RunConflict(
            "nothing to recover: no open run has routed tasks to the target.",
            where="ledger",
            next_step="look at playbooks/status.yml.",
        )
    if runs.is_back(run):
        again = "emergency-rollback.yml" if runs.is_emergency(run) else "planned-rollback.yml"
        raise RunConflict(
            f"run {run.id} goes back: what is lost at the target comes home from its row, and is not placed again.",
            where="ledger",
            next_step=f"type playbooks/{again} again.",
        )
    stamp = system.target.read_stamp()[0]
    if given.check_mode:
        lost = "missing" if not stamp else "there" if stamp == run.generation else "another run's"
        return {
            "changed": True,
            "verdict": "unknown",
            "checks": [],
            "lines": [f"the stamp in Redis is {lost}; the balance would be taken and lost tasks placed again"],
        }
    run, lease = given.resume()
    closed = system.target_fences()
    gate = fences.close_side(closed, lease, "target")
    runs.record_gate(system.ledger, lease, gate)
    if not gate.open:
        return {**gate_result(gate, changed=True), "placed": 0, "held": 0}
    if stamp != run.generation:
        system.target.restamp(lease, system.ledger.next_batch(lease) - 1)
    begun = system.clock.monotonic()
    beat = runs.heartbeat(system.ledger, lease, system.clock)
    verification = Verification(
        system.source, system.target, system.ledger, system.clock, system.mapping, run.id, heartbeat=beat
    )
    done = place_again(
        verification,
        system.source,
        system.target,
        system.ledger,
        lease,
        prove_fence=lambda: fences.prove_side(closed, "target"),
    )
    fences.lift_side(closed, lease)
    facts = {
        "known": done.known,
        "placed": done.placed,
        "held": done.held,
        "reason": params["reason"],
        "stamp": "anew" if stamp != run.generation else "kept",
    }
    system.ledger.record(lease, "measure", "recovery", "", facts)
    if run.phase not in (Phase.FENCED, Phase.ROUTED):
        reopened = Gate("recovered", (Check("reopened", Verdict.PASSED, params["reason"][:300]),))
        system.ledger.set_phase(lease, Phase.FENCED, reopened)
    seconds = system.clock.monotonic() - begun
    lines = [
        f"{done.known:,} ids known; {done.placed:,} placed again, {done.held:,} held, in {seconds:.1f} s",
        f"stamp in Redis {facts['stamp']}; the run stands at '{Phase.FENCED}' until the balance holds",
    ]
    return {
        "changed": True,
        "verdict": "passed",
        "checks": [],
        "placed": done.placed,
        "held": done.held,
        "lines": lines,
    }


def holds(given: Given) -> Result:
    """List, export, release or fail held ids. A decision names its ids and its reason, and the ledger keeps both."""
    system, params = given.system, given.params
    held = list(system.ledger.held())
    state, ids = params["state"], [str(i) for i in params["ids"]]
    chosen = [entry for entry in held if not ids or entry.id in ids]
    shown = [{"id": entry.id, "reason": entry.where} for entry in chosen]
    lines = [f"{len(held)} held"] + [f"  {entry.id}  {entry.where}" for entry in chosen[:50]]
    result: Result = {"changed": False, "holds": shown, "count": len(held), "lines": lines}
    if state == "listed":
        return result
    if state == "exported":
        return {**result, **_export(given, [e.id for e in chosen])}
    unknown = sorted(set(ids) - {entry.id for entry in held})
    already = [e for e in system.ledger.marks() if e.id in unknown] if unknown else []
    if unknown and len(already) < len(unknown):
        raise SluiceError(
            f"not held: {', '.join(unknown[:5])}.",
            where="queue_holds_ids",
            next_step="list the held ids with playbooks/holds.yml.",
        )
    if not ids or not params["reason"].strip():
        raise SluiceError(
            "a decision names its ids and its reason.",
            where="queue_holds_ids, queue_holds_reason",
            next_step="give both.",
        )
    to_do = [entry.id for entry in held if entry.id in ids]
    if given.check_mode or not to_do:
        return {**result, "changed": bool(to_do)}
    run, lease = given.resume()
    if state == "failed":
        number = system.source.settle(lease, to_do, params["reason"])
        word = "settled as failed"
    else:
        number, word = _release(given, run.phase, lease, to_do)
    system.ledger.record(
        lease, "note", f"holds {state}", "", {"ids": to_do, "reason": params["reason"], "to": params["to"]}
    )
    return {
        **result,
        "changed": number > 0,
        "count": len(held) - number,
        "lines": [f"{number} {word}: {params['reason']}"],
    }


def _release(given: Given, phase: Phase, lease: Any, ids: list[str]) -> tuple[int, str]:
    system, to = given.system, given.params["to"]
    run = system.ledger.open_run()
    if runs.is_back(run):
        if to == "target":
            raise GateClosed(
                "this run goes back: the target has given everything away.",
                where="queue_holds_to",
                next_step="release them to the source, or fail them.",
            )
        return system.source.give_back(lease, ids, requeue=True), "given back to the source"
    fenced = reached(phase, Phase.FENCED)
    if to == "source" and fenced:
        raise GateClosed(
            f"the source is fenced (run stands at '{phase}'): nobody there could run these tasks.",
            where="queue_holds_to",
            next_step="release them to the target, or fail them.",
        )
    if to == "target" and not fenced:
        raise GateClosed(
            f"the run stands at '{phase}': the target has not taken over.",
            where="queue_holds_to",
            next_step="release them to the source.",
        )
    number = system.source.give_back(lease, ids, requeue=True)
    if to == "target":
        if phase is not Phase.FENCED:
            system.ledger.set_phase(
                lease, Phase.FENCED, Gate("holds", (Check("released", Verdict.PASSED, given.params["reason"][:300]),))
            )
        return number, "back in circulation; playbooks/migrate.yml moves them now"
    return number, "given back to the source"


def _export(given: Given, ids: list[str]) -> Result:
    path = Path(given.params["file"])
    if not path.is_absolute():
        raise SluiceError("the file must be an absolute path.", where="queue_holds_file")
    if given.check_mode:
        return {"changed": True, "lines": [f"{len(ids)} held ids would be exported to {path}"]}
    rows = list(_lines_of(given.system, ids))
    digest = _write_lines(path, rows, compress=False)
    return {"changed": True, "lines": [f"{len(rows)} held ids exported to {path}, sha256 {digest[:16]}"]}


def _lines_of(system: System, ids: list[str]) -> Iterator[str]:
    reasons = {entry.id: entry.where for entry in system.ledger.held()}
    places = system.source.look(ids)
    for task_id in ids:
        place = places[task_id].place if task_id in places else "no row"
        yield json.dumps({"id": task_id, "reason": reasons[task_id], "place": place}, sort_keys=True)


def _write_lines(path: Path, rows: list[str], *, compress: bool) -> str:
    """Write lines, read them back, and give the SHA-256 of what was read."""
    data = ("\n".join(rows) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(gzip.compress(data) if compress else data)
            file.flush()
            os.fsync(file.fileno())
        back = path.read_bytes()
    except OSError as error:
        raise SluiceError(
            f"cannot be written ({error.strerror}).", where=str(path), next_step="check rights and free space."
        ) from error
    if (gzip.decompress(back) if compress else back) != data:
        raise SluiceError("does not read back as it was written.", where=str(path), next_step="check the disk.")
    return hashlib.sha256(back).hexdigest()


def cleanup(given: Given) -> Result:
    """Archive the run's record, re-read it, then remove what the manifest names: our keys in Redis, the baseline."""
    system, params = given.system, given.params
    run = system.ledger.open_run()
    if run is None:
        return {
            "changed": False,
            "verdict": "passed",
            "checks": [],
            "removed": [],
            "archive": "",
            "lines": ["no run is open: nothing to clean up"],
        }
    runs.require(run, Phase.VALIDATED, step="cleanup")
    if runs.is_back(run):
        return _cleanup_back(given, run)
    since = next(e.at for e in reversed(system.ledger.events(run.id, "phase", Phase.VALIDATED.value)))
    age = time.time() - since.timestamp()
    held = len(system.ledger.held())
    left = sum(p.get("ready", 0) + p.get("delayed", 0) for p in system.source.counts().values())
    checks = (
        Check.of(
            "stability time",
            age >= params["stability_seconds"],
            f"validated {age:,.0f} s ago, {params['stability_seconds']:,} s wanted",
            "wait.",
        ),
        Check.of("holds decided", held == 0, f"{held} held", "decide them with playbooks/holds.yml."),
        Check.of(
            "source stays empty",
            left == 0,
            f"{left} ready or delayed",
            "run playbooks/migrate.yml again: it moves stragglers.",
        ),
    )
    stability = Gate("stability", checks)
    manifest = [*system.target.our_keys(), f"sluice_baseline of {run.id}"]
    if given.check_mode:
        return {**gate_result(stability, changed=True), "failed_gate": False, "removed": manifest, "archive": ""}
    run, lease = given.resume()
    runs.record_gate(system.ledger, lease, stability)
    if not stability.open:
        return {**gate_result(stability, changed=False), "removed": [], "archive": ""}
    path, archive = _archive_record(given, run)
    runs.record_gate(system.ledger, lease, archive)
    system.ledger.forget_baseline(lease)
    system.target.clear_stamp()
    runs.advance(system.ledger, lease, run, Phase.CLEANED, system.clock)
    system.ledger.give_up(lease)
    lines = [*gate_lines(stability), *gate_lines(archive), *[f"removed  {name}" for name in manifest]]
    return {
        "changed": True,
        "verdict": "passed",
        "checks": [],
        "removed": manifest,
        "archive": str(path),
        "lines": lines,
    }


def _cleanup_back(given: Given, run: Run) -> Result:
    """Export every job that RQ still keeps of ours, read the export back, delete by it; then the run has ended."""
    system, params = given.system, given.params
    folder = Path(params["archive_dir"])
    held = len(system.ledger.held())
    usable = back.usable(system, run)
    left = back.waiting(system, run)
    checks = (
        Check.of(
            "target's store", usable, "usable" if usable else "unusable", "make Redis answer, then type it again."
        ),
        Check.of("target is empty", left == 0, f"{left} still there", "run the same way back again."),
        Check.of("holds decided", held == 0, f"{held} held", "decide them with playbooks/holds.yml."),
    )
    # What is deleted must be nobody's: the fence is proved anew, not remembered.
    fence = fences.prove_side(back.fences_of(system, run), back.SIDE)
    gate = Gate("reconciled", (*checks, *fence.checks))
    if given.check_mode:
        return {**gate_result(gate, changed=True), "failed_gate": False, "removed": [], "archive": ""}
    run, lease = given.resume()
    runs.record_gate(system.ledger, lease, gate)
    if not gate.open:
        return {**gate_result(gate, changed=False), "removed": [], "archive": ""}
    if system.mapping.route.emergency:
        system.router().set_emergency(lease, False)  # the share is 0; a flag left up would outvote the next forward run
    beat = runs.heartbeat(system.ledger, lease, system.clock)
    archive = RqArchive(system.target)
    jobs = folder / f"{run.id}.jobs.ndjson.gz"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not jobs.exists():  # an earlier attempt may have ended behind its export
        archive.export(None, jobs, beat)
    exported = archive.reread(jobs)
    differing = next(iter(archive.differing(jobs)), "")
    path, record = _archive_record(given, run)
    same = Check.of(
        "jobs as exported", not differing, differing or f"{exported.jobs:,} in {jobs.name}", f"move {jobs.name} away."
    )
    both = Gate("archive", (*record.checks, same))
    runs.record_gate(system.ledger, lease, both)
    if not both.open:
        return {**gate_result(both, changed=True), "removed": [], "archive": str(path)}
    purged = archive.purge(lease, archive.archived_ids(jobs), workers_dead=True, beat=beat)
    keys = system.leaving.clear(lease) + system.target.clear_stamp()
    removed = [f"{number:,} {kind}" for kind, number in purged.counts.items() if number]
    removed += [f"{keys} keys of ours", f"sluice_baseline of {run.id}"]
    system.ledger.forget_baseline(lease)
    runs.advance(system.ledger, lease, run, Phase.CLEANED, system.clock)
    system.ledger.give_up(lease)
    lines = [*gate_lines(gate), *gate_lines(both), *[f"removed  {name}" for name in removed]]
    return {
        "changed": True,
        "verdict": "passed",
        "checks": [],
        "removed": removed,
        "archive": str(path),
        "lines": lines,
    }


def _archive_record(given: Given, run: Run) -> tuple[Path, Gate]:
    """The ledger's record of a run in a file, read back."""
    system = given.system
    path = Path(given.params["archive_dir"]) / f"{run.id}.ndjson.gz"
    rows = [json.dumps({"run": run.id, "phase": run.phase.value, "direction": run.direction, "operator": run.operator})]
    rows += [
        json.dumps(
            {"event": e.kind, "name": e.name, "verdict": e.verdict, "at": e.at.isoformat(), "detail": e.detail},
            sort_keys=True,
            default=str,
        )
        for e in system.ledger.events(run.id)
    ]
    rows += [json.dumps({"task": s.id, "mark": s.place, "job": s.where}) for s in system.ledger.marks()]
    digest = _write_lines(path, rows, compress=True)
    reading = f"{path.name}, {len(rows):,} lines, sha256 {digest[:16]}"
    return path, Gate("archive", (Check.of("archive re-read", True, reading),))
