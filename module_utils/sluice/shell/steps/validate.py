"""Validation of what is in service now: intake, soak in hybrid, canaries, latency, user constraint, observation."""

from __future__ import annotations

import time
from typing import Any

from ...adapters.http_application import CanaryForm, HttpApplication, parse_form
from ...core import criteria, sides
from ...core.errors import SluiceError
from ...core.phases import Phase
from ...core.tasks import Lease, Place
from ...core.verdicts import Check, Gate, Verdict
from ...ports.ledger import Run
from ...services import canary as canaries
from ...services import run as runs
from ...services.verify import Verification, balance_gate
from ..runner import SLICE_SECONDS, Result, gate_lines, gate_result
from ..stores import Given


def intake(given: Given) -> Result:
    """Read, open, or pause intake; a pause always has a deadline inside the application."""
    system, params = given.system, given.params
    port = system.intake()
    if port is None:
        check = Check(
            "intake", Verdict.UNKNOWN, "the mapping does not say where intake is kept", "see docs/mapping.md, 'intake'."
        )
        return {**gate_result(Gate("intake", (check,)), changed=False), "open": False}
    before = port.read()
    wanted = {"open": True, "paused": False}.get(params["state"], before.open)
    if given.check_mode:
        return {
            "changed": before.open != wanted, "open": before.open, "verdict": "unknown", "checks": [],
            "lines": [f"intake is {'open' if before.open else 'paused'}"],
            "diff": {"before": {"open": before.open}, "after": {"open": wanted}},
        }  # fmt: skip
    run, lease = given.resume()
    changed = False
    if params["state"] != "read":
        changed = port.set_open(lease, wanted, float(params["seconds"]))
    now = port.read()
    reading = "open" if now.open else f"paused, reopens by itself in {now.remaining or 0:.0f} s"
    right = now.open if params["state"] == "read" else now.open == wanted
    gate = Gate(
        "intake", (Check.of("intake", right, reading, "run playbooks/status.yml; a pause ends at its deadline."),)
    )
    runs.record_gate(system.ledger, lease, gate)
    diff = {"before": {"open": before.open}, "after": {"open": now.open}}
    return {**gate_result(gate, changed=changed), "open": now.open, "diff": diff, "run_id": run.id}


def application_of(given: Given) -> tuple[HttpApplication, CanaryForm, int]:
    """The application, the form of its canaries, and the first of a hundred canary users that are free.

    No earlier try of the last day used these users: an old canary may still be active.
    """
    form = parse_form(given.params["canary"])
    if form is None:
        raise SluiceError(
            "no canary is described, so nothing can be measured.",
            where="queue_canary",
            next_step="set queue_canary in the inventory.",
        )
    return HttpApplication(form), form, form.first_user + int(time.time()) % 86_400 * 100


def soak(given: Given) -> Result:
    """Watch both sides under a share: canaries finish on both, nothing grows old, no task is in two places."""
    system, params = given.system, given.params
    if given.check_mode:
        return {
            "changed": False,
            "verdict": "unknown",
            "checks": [],
            "lines": [f"soak of {params['seconds']} s not reached"],
        }
    run, lease = given.resume()
    runs.require(run, Phase.PREPARED, step="the soak")
    application, form, first = application_of(given)
    cursor: dict[str, Any] = dict(params["cursor"])
    now = time.time()
    if not cursor:
        answers, refused = canaries.submit_to_both(
            application, first, max(20, params["sample_min"]), form.priorities, params["share"], system.target.sides
        )
        cursor = {
            "until": now + params["seconds"], "ids": [a.task_id for a in answers], "refused": refused,
            "times": [a.seconds for a in answers], "begun": now, "sides": system.source.by_side(),
        }  # fmt: skip
    # The canaries may take half a minute longer than the soak; counted from its end, not from this slice.
    deadline = system.clock.monotonic() + cursor["until"] + 30 - now
    places, over = canaries.follow(system.source, cursor["ids"], system.clock, deadline, SLICE_SECONDS)
    left = cursor["until"] - time.time()
    if not over or left > 0:
        if over:
            system.clock.wait(min(left, SLICE_SECONDS))
        ended = sum(p == Place.FINISHED for p in places.values())
        line = f"soak at {params['share']} %: {ended} of {len(places)} canaries finished, {max(0.0, left):.0f} s left"
        if time.time() < cursor["until"] or not over:
            return {"changed": True, "lines": [line], "cursor": cursor}
    unfinished = [f"{i} {p}" for i, p in places.items() if p != Place.FINISHED]
    where = system.target.sides(cursor["ids"])
    measured = canaries.latency_of(cursor["times"])
    wanted_both = 0 < params["share"] < 100
    both = bool(where.get("source")) and bool(where.get("target"))
    checks = [
        Check.of("canaries finish", not unfinished and len(places) >= params["sample_min"],
                 f"{len(places) - len(unfinished)} of {len(places)} finished, {len(cursor['refused'])} refused",
                 "look at the workers of both sides."),
        Check.of("both sides progress", both if wanted_both else True,
                 f"source {where.get('source', 0)}, target {where.get('target', 0)} of the canaries",
                 "look at the side without any."),
    ]  # fmt: skip
    checks.append(
        Check.of("submission latency", measured is not None,
                 f"p50 {measured.p50:.0f} p95 {measured.p95:.0f} p99 {measured.p99:.0f} ms"
                 if measured else "nothing measured")
    )  # fmt: skip
    verified = Verification(
        system.source,
        system.target,
        system.ledger,
        system.clock,
        system.mapping,
        run.id,
        heartbeat=runs.heartbeat(system.ledger, lease, system.clock),
    ).balance()
    checks.append(balance_gate(verified, left_at_source=0).checks[0])
    checks += _sides_compared(given, cursor["sides"])
    gate = runs.record_gate(system.ledger, lease, Gate("soak", tuple(checks)))
    return gate_result(gate, changed=True)


def _sides_compared(given: Given, before: dict[str, Any]) -> list[Check]:
    """Real traffic on both sides during the soak; nothing where the row does not say whose it is."""
    now = given.system.source.by_side()
    if not before or not now:
        return []
    earlier = sides.sides_of(before)
    source, target = (sides.since(*pair) for pair in zip(sides.sides_of(now), earlier, strict=True))
    borne = float(given.params["oldest_seconds"])
    return sides.compare(source, target, oldest_before=earlier[1].oldest, oldest_seconds=borne)


def validate(given: Given) -> Result:
    """Each success criterion gets a value: canaries, latency against the baseline, the user constraint, observation."""
    system, params = given.system, given.params
    if given.check_mode:
        return {
            "changed": False,
            "verdict": "unknown",
            "checks": [],
            "criteria": [],
            "lines": ["validation not reached"],
        }
    run, lease = given.resume()
    if runs.is_back(run):
        return _validate_back(given, run, lease)
    runs.require(run, Phase.VERIFIED, step="validation")
    application, form, first = application_of(given)
    cursor: dict[str, Any] = dict(params["cursor"])
    if not cursor:
        waiting, finished, first_at = _waiting_at_target(system), _finished(system), time.time()
        answers, refused = canaries.submit(application, first, max(20, 4 * len(form.priorities)), form.priorities)
        cursor = {
            "until": time.time() + params["deadline"], "ids": [a.task_id for a in answers], "refused": refused,
            "times": [a.seconds for a in answers], "step": "canaries", "begun": time.time(),
            "accepted": canaries.accepted_at(answers, first_at), "picked_up": {}, "backlog": waiting,
            "finished": finished,
        }  # fmt: skip
    if cursor["step"] == "canaries":
        deadline = system.clock.monotonic() + max(0.0, cursor["until"] - time.time())
        cursor["picked_up"] = begun = dict(cursor["picked_up"])
        places, over = canaries.follow(system.source, cursor["ids"], system.clock, deadline, SLICE_SECONDS, begun)
        if not over:
            ended = sum(p == Place.FINISHED for p in places.values())
            return {"changed": True, "lines": [f"canaries: {ended} of {len(places)} finished"], "cursor": cursor}
        cursor |= {"step": "observation", "places": places, "took": time.time() - cursor["begun"],
                   "observe_until": time.time() + params["observation_seconds"],
                   "queues": _waiting_at_target(system)}  # fmt: skip
    left = cursor["observe_until"] - time.time()
    if left > 0:
        system.clock.wait(min(left, SLICE_SECONDS))
        if cursor["observe_until"] > time.time():
            return {
                "changed": True,
                "lines": [f"observing, {cursor['observe_until'] - time.time():.0f} s left"],
                "cursor": cursor,
            }
    picked_up = canaries.pickup(
        cursor["accepted"], cursor["picked_up"], float(params["pickup_seconds"]), cursor["backlog"]
    )
    gates = [
        Gate("canaries", (_canaries_finished(cursor),)),
        Gate("latency", (_latency(given, run.id, cursor),)),
        Gate("pickup", (picked_up,)),
        Gate("user constraint", (_constraint(given, application, first + 90),)),
        Gate("observation", tuple(_observed(given, cursor))),
    ]
    for gate in gates:
        runs.record_gate(system.ledger, lease, gate)
    whole = Gate("validation", tuple(check for gate in gates for check in gate.checks))
    values = [{"name": c.name, "value": c.reading, "verdict": c.verdict.value} for c in whole.checks]
    system.ledger.record(lease, "measure", "validation", whole.verdict.value, {"criteria": values})
    return {**gate_result(whole, changed=True), "criteria": values, "lines": gate_lines(whole)}


def _validate_back(given: Given, run: Run, lease: Lease) -> Result:
    """Legacy canaries finish, and the user constraint holds: the old system is in service. Needs no target."""
    system, params = given.system, given.params
    runs.require(run, Phase.FENCED, step="validation")
    application, form, first = application_of(given)
    cursor: dict[str, Any] = dict(params["cursor"])
    now = time.time()
    if not cursor:
        cursor = {"until": now + params["deadline"], "ids": [], "refused": [], "begun": now}
    if not cursor["ids"]:
        # The application may be on its way up: it is asked again until the deadline.
        answers, refused = canaries.submit(application, first, max(4, len(form.priorities)), form.priorities)
        cursor |= {"ids": [a.task_id for a in answers], "refused": refused}
        if not answers and now < cursor["until"]:
            system.clock.wait(1.0)
            return {"changed": True, "lines": [f"no canary accepted yet: {refused[0]}"], "cursor": cursor}
    deadline = system.clock.monotonic() + max(0.0, cursor["until"] - time.time())
    places, over = canaries.follow(system.source, cursor["ids"], system.clock, deadline, SLICE_SECONDS)
    if not over:
        ended = sum(p == Place.FINISHED for p in places.values())
        return {"changed": True, "lines": [f"canaries: {ended} of {len(places)} finished"], "cursor": cursor}
    finished = _canaries_finished({**cursor, "places": places, "took": time.time() - cursor["begun"]}, "source")
    gates = [
        Gate("canaries", (finished,)),
        Gate("user constraint", (_constraint(given, application, first + 90),)),
    ]
    for gate in gates:
        runs.record_gate(system.ledger, lease, gate)
    since = time.time() - run.opened_at.timestamp()
    lines = []
    if gates[0].open and not system.ledger.events(run.id, "measure", "in service again"):
        system.ledger.record(lease, "measure", "in service again", "", {"seconds": round(since, 1)})
        lines = [f"in service again {since:.0f} s after the command began"]
    whole = Gate("validation", tuple(check for gate in gates for check in gate.checks))
    values = [{"name": c.name, "value": c.reading, "verdict": c.verdict.value} for c in whole.checks]
    system.ledger.record(lease, "measure", "validation", whole.verdict.value, {"criteria": values})
    return {**gate_result(whole, changed=True), "criteria": values, "lines": [*gate_lines(whole), *lines]}


def _waiting_at_target(system: Any) -> int:
    return sum(system.target.depths().values())


def _finished(system: Any) -> int:
    return sum(places.get("finished", 0) for places in system.source.counts().values())


def _canaries_finished(cursor: dict[str, Any], side: str = "target") -> Check:
    places = cursor["places"]
    bad = [f"{task_id} {place}" for task_id, place in places.items() if place != Place.FINISHED]
    reading = (
        f"{len(places) - len(bad)} of {len(places)} finished in {cursor['took']:.1f} s, "
        f"{len(cursor['refused'])} refused"
    )
    if bad or cursor["refused"]:
        reading += f": {'; '.join([*bad, *cursor['refused']][:3])}"
    return Check.of(
        "canaries finish", bool(places) and not bad and not cursor["refused"], reading, f"look at the {side}'s workers."
    )


def _latency(given: Given, run_id: str, cursor: dict[str, Any]) -> Check:
    measured = canaries.latency_of(cursor["times"])
    if measured is None:
        return Check.of("submission latency", None, "nothing measured", "look at why no canary was accepted.")
    base = given.system.ledger.events(run_id, "measure", "latency baseline")
    reading = f"p50 {measured.p50:.0f} p95 {measured.p95:.0f} p99 {measured.p99:.0f} ms over {measured.samples}"
    if not base:
        return Check.of("submission latency", True, f"{reading}; no baseline, so reported and not gated")
    before = float(str(base[-1].detail["p95"]))
    limit = max(before * given.params["latency_factor"], float(given.params["latency_floor_ms"]))
    return Check.of(
        "submission latency",
        measured.p95 <= limit,
        f"{reading}; baseline p95 {before:.0f}, limit {limit:.0f} ms",
        "look at the application and Redis before going on.",
    )


def _constraint(given: Given, application: HttpApplication, user: int) -> Check:
    if not given.system.mapping.user_constraint:
        return Check.of("one active task per user", True, "the mapping states no such constraint")
    return canaries.one_active_per_user(application, given.system.source, user)


def _observed(given: Given, cursor: dict[str, Any]) -> list[Check]:
    """After the observation time: nothing ready at the side that was left, workers alive, the backlog not growing."""
    system, params = given.system, given.params
    counts = system.source.counts()
    left = sum(p.get("ready", 0) + p.get("delayed", 0) for p in counts.values())
    waiting, before = _waiting_at_target(system), int(cursor["queues"])
    checks = [
        Check.of(
            "source stays empty",
            left == 0,
            f"{left} ready or delayed",
            "run playbooks/migrate.yml again: it moves stragglers.",
        ),
        *system.target.worker_checks(system.clock.now(), params["workers_min"]),
        Check.of(
            "backlog",
            True,
            f"{waiting} waiting, {before} at the start of {params['observation_seconds']} s of observation",
        ),
    ]
    ended = [task_id for task_id, place in cursor["places"].items() if place == Place.FINISHED]
    # Rows that are deleted on success count for nothing; the canaries were seen.
    finished = max(_finished(system) - int(cursor["finished"]), len(ended))
    took, least = time.time() - cursor["begun"], float(params["tasks_per_minute"])
    checks.append(criteria.throughput(finished, took, system.target.queued(), least))
    kept = sum(seen.place == Place.FINISHED for seen in system.source.look(ended).values())
    life = system.target.shortest_life(ended)
    checks.append(criteria.results_kept(kept, len(ended), life, float(params["results_hours"])))
    if params["processes"] is not None:
        checks.append(criteria.worker_memory(params["processes"], float(params["worker_memory_mb"])))
    failed = sum(p.get("failed", 0) for p in counts.values())
    checks.append(Check.of("failed tasks", True, f"{failed} in all"))
    return checks
