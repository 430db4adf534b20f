"""The steps of the change window: route, workers, drain, fence, transfer, verify."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, cast

from ...adapters.strangers import rq_strangers
from ...core.balance import Term
from ...core.errors import GateClosed, GenerationMismatch
from ...core.phases import Phase, reached
from ...core.tasks import Place
from ...core.verdicts import Check, Gate, Verdict
from ...ports.ledger import Run
from ...services import fence as fences
from ...services import route as routes
from ...services import run as runs
from ...services.transfer import Pace, Transfer
from ...services.verify import Expected, Verification, Verified, balance_gate, rules_of
from ..progress import Reporter, pace
from ..runner import SLICE_SECONDS, Result, gate_lines, gate_result, names
from ..stores import Given
from . import back

#: On a host that it shares with the application, the mover's process yields to it.
GUEST_NICENESS = 10

#: A held reason that names why nobody can know.
LEFTOVER = "leased at the source when its claimers were fenced: whether it ran is unknown"
UNKNOWABLE = "its row meets no predicate of the mapping, or more than one: its state is unknown"
UNPROVED = "perhaps in hand when an unguarded claimer ended without proof: whether it ran is unknown"


def route(given: Given) -> Result:
    """Set the share of new submissions that go to the target, behind a barrier; and whether legacy polling is on."""
    system, share, polling = given.system, given.params["share"], given.params["polling"]
    before = system.router().read()
    wanted = {
        "share": share if share is not None else before.share,
        "polling": before.polling if polling is None else polling,
    }
    now = {"share": before.share, "polling": before.polling}
    emergency = given.params["emergency"] if system.mapping.route.emergency else None
    if emergency is not None:
        now["emergency"], wanted["emergency"] = system.router().read_emergency(), emergency
    described: Result = {"before": now, "after": wanted, "diff": {"before": now, "after": wanted}}
    if given.check_mode:
        line = (
            f"route would change from {before.share} % to {wanted['share']} %"
            if now != wanted
            else "route is as wanted"
        )
        return {**described, "changed": now != wanted, "verdict": "unknown", "checks": [], "lines": [line]}
    run, lease = given.resume()
    runs.require(run, Phase.PREPARED, step="changing the route")
    if runs.is_back(run):
        if share:
            raise GateClosed(
                f"run {run.id} goes back: no share goes to the target.", where="route", next_step="leave it at 0."
            )
    lower = (share is not None and share < (before.share or 0)) or (polling and not before.polling)
    if lower and reached(run.phase, Phase.FENCED) and not runs.is_back(run):
        raise GateClosed(
            f"the source is fenced (run {run.id} stands at '{run.phase}'): nobody there could run what it were sent.",
            where="route",
            next_step="the share stays as it is; a way back is a rollback run.",
        )
    if not system.ledger.events(run.id, "measure", "initial route"):
        system.ledger.record(lease, "measure", "initial route", "", {"share": before.share, "polling": before.polling})
    gates = []
    if emergency is not None:
        system.router().set_emergency(lease, emergency)
        reading = "every submission goes to the source" if emergency else "the share decides"
        flag = Check.of("emergency flag", system.router().read_emergency() is emergency, reading, "type it again.")
        gates.append(Gate("emergency", (flag,)))
    router = system.router(waiting=lambda _left: system.ledger.renew(lease, runs.LEASE_SECONDS))
    if share is not None:
        system.ledger.record(lease, "measure", "route", "", {"share": share})
        gates.append(runs.record_gate(system.ledger, lease, routes.change_share(router, lease, share)))
    if polling is not None and system.mapping.route.polling:
        gates.append(runs.record_gate(system.ledger, lease, routes.change_polling(router, lease, polling)))
    elif polling is not None:
        reading = "the mapping names no polling switch; the claimers' processes and the fence decide"
        gates.append(runs.record_gate(system.ledger, lease, Gate("polling", (Check.of("polling", True, reading),))))
    gate = Gate("route", tuple(check for one in gates for check in one.checks))
    return {**described, **gate_result(gate, changed=now != wanted)}


def workers_gate(given: Given) -> Result:
    """Record that the target's workers run and are heard of in the target: live, on every queue and every host.

    A worker is heard of some seconds after its supervisor says that it runs: it is waited for, to a deadline.
    """
    system, params = given.system, given.params
    gate, heard = _workers_seen(given)
    if given.check_mode:
        lines = ["not reached; as it is now:", *gate_lines(gate)]
        return {**gate_result(gate, changed=False), "failed_gate": False, "lines": lines}
    run, lease = given.resume()
    runs.require(run, Phase.PREPARED, step="judging the target's workers")
    until = float(params["cursor"].get("until", time.time() + params["deadline"]))
    end = system.clock.monotonic() + SLICE_SECONDS
    while not heard and time.time() < until:
        if system.clock.monotonic() >= end:
            line = f"not every queue and host has a worker that is heard of, at most {until - time.time():.0f} s more"
            return {"changed": False, "lines": [line], "cursor": {"until": until}}
        system.clock.wait(0.5)
        gate, heard = _workers_seen(given)
    return gate_result(runs.record_gate(system.ledger, lease, gate), changed=False)


def _workers_seen(given: Given) -> tuple[Gate, bool]:
    """The gate as it is now, and whether no more waiting is due: workers are heard of, or a stranger is, who stays."""
    system, hosts = given.system, given.params["worker_hosts"]
    wanted = system.target.worker_checks(system.clock.now(), given.params["workers_min"], hosts or ())
    strangers = (
        rq_strangers(system.redis, hosts, prefix=system.target.prefix, queues=system.target.queues())
        if hosts is not None
        else []
    )
    over = Gate("wanted", tuple(wanted)).open or any(check.verdict is not Verdict.PASSED for check in strangers)
    return Gate("workers", (*wanted, *strangers)), over


def drain(given: Given) -> Result:
    """Wait until no row is leased at the source, to a deadline; record what is left, and who ended without proof."""
    system, params = given.system, given.params
    if given.check_mode:
        leased = _leased(system.source.counts())
        return {
            "changed": False,
            "verdict": "unknown",
            "checks": [],
            "leased": leased,
            "lines": [f"{leased} tasks run now; not reached"],
        }
    cursor = params["cursor"]
    run, lease = given.resume()
    if runs.is_back(run):
        return back.drain(given, run, lease)
    runs.require(run, Phase.ROUTED, before=Phase.TRANSFERRED, step="draining the source")
    until = float(cursor.get("until", time.time() + params["deadline"]))
    end = system.clock.monotonic() + SLICE_SECONDS
    while True:
        leased = _leased(system.source.counts())
        if not leased or time.time() >= until or system.clock.monotonic() >= end:
            break
        system.clock.wait(0.5)
    if leased and time.time() < until:
        line = f"{leased} tasks still run at the source, at most {until - time.time():.0f} s more"
        return {"changed": False, "leased": leased, "lines": [line], "cursor": {"until": until}}
    left = list(system.source.ids_at(Place.LEASED, limit=20)) if leased else []
    unproved = params["unproved"]
    unguarded = {c.name for c in system.mapping.source.claimers if not c.guarded}
    system.ledger.record(
        lease,
        "measure",
        "leftovers",
        "",
        {"leased": leased, "ids": left, "unproved": unproved, "unguarded": sorted(unguarded)},
    )
    checks = [
        Check.of(
            "running tasks",
            True,
            f"{leased} left at the deadline: {', '.join(left)}; held after the fence" if leased else "0 left",
        ),
        Check.of(
            "claimers ended",
            True,
            f"{len(unproved)} without proof: {names(unproved)}" if unproved else "all by themselves",
        ),
    ]
    gate = runs.record_gate(system.ledger, lease, Gate("drain", tuple(checks)))
    return {**gate_result(gate, changed=False), "leased": leased}


def _leased(counts: Mapping[str, Mapping[str, int]]) -> int:
    return sum(places.get(Place.LEASED.value, 0) for places in counts.values())


def fence(given: Given) -> Result:
    """Fence the side that is left, or let the source in. Forward it also holds what nobody can know."""
    system = given.system
    closed = system.source_fence()
    if given.check_mode:
        found = system.ledger.open_run()
        sides = back.fences_of(system, found) if found and runs.is_back(found) else [closed]
        gate = fences.ability_of(sides, "target" if runs.is_back(found) else "source")
        return {**gate_result(gate, changed=True), "failed_gate": False}
    run, lease = given.resume()
    if given.params["state"] == "lifted":
        return back.let_in(given, run, lease)
    if runs.is_back(run):
        return back.fence(given, run, lease)
    runs.require(run, Phase.ROUTED, before=Phase.CLEANED, step="fencing the source")
    before = fences.prove_side([closed], "source")
    gate = before if before.open else fences.close_side([closed], lease, "source")
    runs.record_gate(system.ledger, lease, gate)
    held = 0
    if gate.open:
        held = _hold_unknown(given, run.id, lease)
        if not before.open:
            system.ledger.record(lease, "measure", "departed at the fence", "", {"ids": system.source.departed(run.id)})
    result = gate_result(gate, changed=not before.open or held > 0)
    if held:
        result["lines"] = [*result["lines"], f"held {held} tasks whose state nobody can know"]
    return {**result, "held": held}


def _hold_unknown(given: Given, run_id: str, lease: Any) -> int:
    system = given.system
    held = 0
    while leased := system.source.ids_at(Place.LEASED, limit=1000):
        held += system.source.hold(lease, leased, LEFTOVER)
    while unknown := system.source.ids_at(Place.UNKNOWN, limit=1000):
        held += system.source.hold(lease, unknown, UNKNOWABLE)
    leftovers = system.ledger.events(run_id, "measure", "leftovers")
    unguarded = [c for c in system.mapping.source.claimers if not c.guarded]
    already = system.ledger.events(run_id, "measure", "in hand")
    if leftovers and unguarded and not already:
        # Of all drains of this run: one that is resumed no longer sees whom an earlier one had to kill.
        number = max(len(cast("list[object]", event.detail["unproved"])) for event in leftovers)
        in_hand = system.source.in_hand(number) if number else []
        held += system.source.hold(lease, in_hand, UNPROVED)
        system.ledger.record(lease, "measure", "in hand", "", {"ids": list(in_hand)})
    return held


def transfer(given: Given) -> Result:
    """Move for one slice. The lease, the phase and the fence are proved in this slice, by this module."""
    system, params = given.system, given.params
    cursor: dict[str, Any] = dict(params["cursor"])
    if given.check_mode:
        counts = system.source.counts()
        waiting = sum(p.get("ready", 0) + p.get("delayed", 0) for p in counts.values())
        return {
            "changed": waiting > 0,
            "verdict": "unknown",
            "checks": [],
            "lines": [f"{waiting} tasks would be moved; not reached"],
        }
    run, lease = given.resume()
    if runs.is_back(run):
        return back.transfer(given, run, lease)
    runs.require(run, Phase.FENCED, step="the transfer")
    if system.target.read_stamp()[0] != run.generation:
        raise GenerationMismatch(
            "Redis no longer carries the stamp of this run: it was emptied, restored or replaced.",
            where="Redis",
            next_step="run playbooks/recover.yml: it places again what the witness shows unstarted.",
        )
    _same_server(given, run.id, lease)
    work = _transfer(
        given, pace=Pace(batch=params["batch"], rate=float(params["rate"]), lease_seconds=runs.LEASE_SECONDS)
    )
    total = int(cursor.get("total", 0)) or _waiting(system.source.counts())
    os.nice(GUEST_NICENESS)
    moved = work.slice(lease, SLICE_SECONDS)
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
        check = Check(
            "stop flag",
            Verdict.FAILED,
            f"an operator asked to stop after {done} tasks",
            "run the same command to go on.",
        )
        return {**gate_result(Gate("transfer", (check,)), changed=done > 0), **facts}
    if not moved.done:
        line = f"moved {pace(done, max(total, done), seconds, 'tasks', left=max(0, total - done - held))}"
        return {
            "changed": True, **facts, "lines": [line],
            "cursor": {"total": total, "done": done, "held": held, "lost": facts["lost"], "seconds": seconds},
        }  # fmt: skip
    left = _waiting(system.source.counts())
    gate = Gate(
        "transfer", (Check.of("source is empty", left == 0, f"{left} ready or delayed", "run the same command again."),)
    )
    runs.record_gate(system.ledger, lease, gate)
    system.ledger.record(lease, "measure", "transfer", "", facts)
    result = gate_result(gate, changed=done + held + moved.reactivated > 0)
    rate = done / seconds if seconds else 0.0
    result["lines"] = [
        f"moved {done:,} tasks in {seconds:.1f} s ({rate:,.0f}/s), held {held}, cancelled meanwhile {facts['lost']}"
    ]
    return {**result, **facts}


def _transfer(given: Given, pace: Pace | None = None) -> Transfer:
    system = given.system
    closed = system.source_fence()
    return Transfer(
        system.source,
        system.target,
        system.ledger,
        system.clock,
        prove_fence=lambda: fences.prove_side([closed], "source"),
        custody_in_row=rules_of(system.mapping).custody_in_row,
        pace=pace,
    )


def _same_server(given: Given, run_id: str, lease: Any) -> None:
    """Another run id of the Redis server means a restart: noted, and the balance decides what it cost."""
    system = given.system
    server = system.target.run_id_of_server()
    seen = system.ledger.events(run_id, "measure", "redis server")
    if not seen or seen[-1].detail.get("run_id") != server:
        system.ledger.record(lease, "measure", "redis server", "", {"run_id": server, "restarts": len(seen)})


def _waiting(counts: Mapping[str, Mapping[str, int]]) -> int:
    return sum(p.get(Place.READY.value, 0) + p.get(Place.DELAYED.value, 0) for p in counts.values())


def verify(given: Given) -> Result:
    """Take the balance by identity; prove that what was activated is on disk."""
    system = given.system
    checking = given.check_mode
    run = system.ledger.open_run()
    if checking and run is None:
        return {"changed": False, "verdict": "unknown", "checks": [], "lines": ["balance not reached: no run is open"]}
    if run is not None and runs.is_back(run):
        return _verify_back(given, run)
    if checking:
        run_id, lease = run.id if run else "", None
    else:
        opened, lease = given.resume()
        runs.require(opened, Phase.TRANSFERRED, step="the balance")
        run_id = opened.id
    stamp = system.target.read_stamp()[0]
    repaired = 0
    if lease is not None and run is not None and stamp == run.generation:
        # Redis may have come back without its last writes after the last slice: what was released is activated again.
        repaired = _transfer(given).resume(lease)
    checks = []
    generation = run.generation if run else ""
    checks.append(
        Check.of(
            "stamp of the run",
            stamp == generation,
            "present in Redis"
            if stamp == generation
            else "missing or different in Redis: it was emptied, restored or replaced",
            "run playbooks/recover.yml: it places again what the witness shows unstarted.",
        )
    )
    begun = system.clock.monotonic()
    with Reporter(given.params["progress_file"], system.clock) as progress:
        verified = Verification(
            system.source,
            system.target,
            system.ledger,
            system.clock,
            system.mapping,
            run_id,
            heartbeat=runs.heartbeat(system.ledger, lease, system.clock) if lease else lambda: None,
            progress=progress,
            stage=lambda word: progress.stage(f"balance, {word}", "ids" if word == "looking again" else "sightings"),
            expected=_expected(given, run_id),
        ).balance()
    seconds = system.clock.monotonic() - begun
    gate = balance_gate(verified, left_at_source=_waiting(system.source.counts()))
    fenced = system.ledger.events(run_id, "measure", "departed at the fence")
    if fenced:
        gone, before = system.source.departed(run_id), int(str(fenced[-1].detail["ids"]))
        reading = f"{gone} ids of the baseline without a row, {before} when the source was fenced"
        checks.append(
            Check.of("nothing departs behind the fence", gone <= before, reading, "find out who deletes rows.")
        )
    gate = Gate("balance", (*checks, *gate.checks))
    facts = _facts(verified, seconds)
    if lease is None:
        return {**gate_result(gate, changed=False), **facts, "failed_gate": False}
    runs.record_gate(system.ledger, lease, gate)
    system.ledger.record(lease, "measure", "balance", gate.verdict.value, facts)
    durable = Gate("durable", (Check.of("on disk", True, system.target.durable()),))
    runs.record_gate(system.ledger, lease, durable)
    result = gate_result(gate, changed=False)
    again = [f"{repaired} released tasks had lost their jobs and were activated again"] if repaired else []
    result["lines"] = [*again, *balance_lines(facts), *gate_lines(durable)]
    return {**result, **facts, "changed": repaired > 0}


def _verify_back(given: Given, run: Run) -> Result:
    """The balance of a run that goes back; what an unusable Redis may hide is said in it."""
    system = given.system
    lease = None
    if not given.check_mode:
        run, lease = given.resume()
        runs.require(run, Phase.TRANSFERRED, step="the balance")
    begun = system.clock.monotonic()
    with Reporter(given.params["progress_file"], system.clock) as progress:
        verified = back.verification(
            given,
            run,
            heartbeat=runs.heartbeat(system.ledger, lease, system.clock) if lease else lambda: None,
            progress=progress,
            stage=lambda word: progress.stage(f"balance, {word}", "ids" if word == "looking again" else "sightings"),
        ).balance()
    facts = _facts(verified, system.clock.monotonic() - begun)
    gate = back.balance_gate(given, run, verified)
    if lease is None:
        return {**gate_result(gate, changed=False), **facts, "failed_gate": False}
    runs.record_gate(system.ledger, lease, gate)
    system.ledger.record(lease, "measure", "balance", gate.verdict.value, facts)
    return {**gate_result(gate, changed=False), **facts, "lines": [*balance_lines(facts), *gate_lines(gate)]}


def _facts(verified: Verified, seconds: float) -> Result:
    return {
        "known": verified.balance.known,
        "terms": {term.value: number for term, number in verified.balance.terms.items()},
        "faults": [{"id": f.id, "fault": f.fault} for f in verified.balance.faults],
        "fault_count": verified.balance.fault_count,
        "seconds": round(seconds, 1),
    }


def _expected(given: Given, run_id: str) -> Expected | None:
    """What the run's own record says of the sizes: nothing is counted for it. A job is seen as hash and at home."""
    ledger = given.system.ledger
    known = [e.detail["counts"] for e in ledger.events(run_id, "measure", "counts at baseline")]
    moved = sum(int(str(e.detail.get("moved", 0))) for e in ledger.events(run_id, "measure", "transfer"))
    if not known or not isinstance(known[-1], dict):
        return None
    rows = sum(sum(p.values()) for p in known[-1].values())
    return Expected(target=2 * moved, rows=rows, marks=moved, baseline=rows)


def balance_lines(facts: Mapping[str, Any]) -> list[str]:
    """The conservation equation as an aligned table."""
    lines = [f"{'known':<12}{facts['known']:>12,}"]
    terms = facts["terms"]
    lines += [f"  {term:<10}{terms[term]:>12,}" for term in Term if terms.get(term)]
    lines.append(f"{'at fault':<12}{facts['fault_count']:>12,}")
    lines += [f"  {fault['id']}  {fault['fault']}" for fault in facts["faults"][:20]]
    return lines
