"""Open or resume a run and take its lease; enter a phase; undo; give the lease up."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NoReturn

from ...adapters.factory import System
from ...core.errors import RunConflict
from ...core.phases import GATE_LIFETIME, Direction, Phase, gates_before, reached, require_transition
from ...core.tasks import Lease
from ...core.verdicts import Check, Gate, Verdict
from ...ports.ledger import Run
from ...services import fence as fences
from ...services import route as routes
from ...services import run as runs
from ...services.transfer import abort
from ...services.verify import Verification, rules_of
from ..runner import Result, gate_lines
from ..stores import Given
from . import back

STAMP_LOST = (
    "Redis no longer carries the stamp of this run: it was emptied or replaced. "
    "Next: run playbooks/recover.yml; it places again what the witness shows unstarted."
)


def act(given: Given) -> Result:
    """The module `queue_run`: its option `state` chooses."""
    match given.params["state"]:
        case "opened":
            return opened(given)
        case "advanced":
            return advanced(given)
        case "undone":
            return undone(given)
        case "stopping":
            return stopping(given)
        case "reopened":
            return back.reopened(given)
        case _:
            return released(given)


def _described(system: System, owner: str) -> Result:
    found = runs.standing(system.ledger)
    run = found.run
    return {
        "run_id": run.id if run else "",
        "phase": run.phase.value if run else "none",
        "direction": run.direction if run else "",
        "opened_at": run.opened_at.isoformat(timespec="seconds") if run else "",
        "past_return": bool(run and run.point_of_no_return_at),
        "todo": dict(found.todo),
        "both": rules_of(system.mapping).custody_in_row,
        "target_usable": runs.target_usable(system.ledger, run),
        "restores": runs.restored_from(run) if run else "",
        "held": len(system.ledger.held()),
        "owner": owner,
    }


def opened(given: Given) -> Result:
    """Open a run or resume it. A foreign lease is waited for, visibly, at most half a minute."""
    system, params = given.system, given.params
    owner = params["owner"] or f"{getpass.getuser()}@{socket.gethostname()}:{os.urandom(4).hex()}"
    goes_back = params["direction"] == Direction.BACK
    if given.check_mode:
        now = _described(system, owner)
        if goes_back and now["direction"] != Direction.BACK:
            # A way back would begin at its beginning, wherever the run stands that it takes back.
            now |= {"todo": {phase: phase != Phase.OPENED for phase in now["todo"]}, "direction": Direction.BACK.value}
        return {**now, "changed": now["phase"] == "none" or goes_back, "lines": _lines(now, check=True)}
    if goes_back:
        return _opened_back(given, owner)
    before = system.ledger.open_run()
    if not runs.is_back(before):  # one that goes back is refused with its own advice, below
        _refuse_restored(system, before)
        _refuse_added(system, before, params["hosts"])
    installed = system.ledger.install()
    run = runs.open_run(
        system.ledger,
        system.mapping,
        system.clock,
        direction=params["direction"],
        operator=params["operator"] or owner,
        plan_digest=params["plan_digest"],
    )
    still = _wait_for_lease(given, owner)
    if still:
        return still
    owner = params["cursor"].get("owner", owner)
    lease = system.ledger.take_lease(run, owner, runs.LEASE_SECONDS)
    system.ledger.request_stop(False)  # whoever resumes a run means it to go on
    gone = _remember_hosts(system, run, lease, params["hosts"])
    reopened = _reopen_for_loss(system, run, lease) or _reopen_for_stragglers(system, run, lease)
    result = _described(system, owner)
    lines = _lines(result, resumed=before is not None) + gone + reopened
    return {**result, "changed": installed or before is None or bool(reopened), "lines": lines}


def _known_hosts(system: System, run: Run) -> dict[str, list[str]]:
    """The hosts of each group as the run saw them last; empty when it was never told."""
    seen = system.ledger.events(run.id, "measure", "hosts")
    return {group: list(names) for group, names in dict(seen[-1].detail).items()} if seen else {}  # type: ignore[call-overload]


def _refuse_added(system: System, run: Run | None, now: Mapping[str, Sequence[str]]) -> None:
    """A host that came after the preparation has neither its settings kept nor the target's written.

    Before, the steps that follow prepare it like all others; once the run is validated, it is one of the new world.

    :raises RunConflict: there is one
    """
    if run is None or not reached(run.phase, Phase.PREPARED) or reached(run.phase, Phase.VALIDATED):
        return
    known = _known_hosts(system, run)
    added = [
        f"{host} ({group})" for group, names in now.items() for host in names if host not in known.get(group, names)
    ]
    if added:
        raise RunConflict(
            f"{', '.join(added)} came into the inventory after run {run.id} was prepared: it was not prepared with the "
            "others.",
            where="inventory",
            next_step="take it out until this run is validated, and keep its workers stopped; the fence at the stores "
            "holds for them too.",
        )


def _remember_hosts(system: System, run: Run, lease: Lease, now: Mapping[str, Sequence[str]]) -> list[str]:
    """Keep which hosts the run has, when that has changed; names those that are gone."""
    known = _known_hosts(system, run)
    if not now or known == {group: list(names) for group, names in now.items()}:
        return []
    system.ledger.record(lease, "measure", "hosts", "", {group: list(names) for group, names in now.items()})
    gone = [f"{host} ({group})" for group, names in known.items() for host in names if host not in now.get(group, ())]
    return (
        [f"no longer in the inventory: {', '.join(gone)}; what holds there is the fence at the stores"] if gone else []
    )


def _wait_for_lease(given: Given, owner: str) -> Result:
    """Wait a slice for a foreign lease; empty when it may be taken.

    :raises RunConflict: it was waited for half a minute, and its holder renews it
    """
    system, cursor = given.system, given.params["cursor"]
    holder, remaining = runs.foreign_wait(system.ledger, owner)
    if not holder:
        return {}
    since = float(cursor.get("since", time.time()))
    if time.time() - since >= runs.LEASE_WAIT:
        raise RunConflict(
            f"'{holder}' holds the lease and renews it: another run is at work.",
            where="ledger",
            next_step="wait for it to end, or look at playbooks/status.yml.",
        )
    system.clock.wait(min(remaining + 0.2, 5.0))
    line = f"waiting for the lease of '{holder}' ({remaining:.0f} s left of it, at most {runs.LEASE_WAIT:.0f} s)"
    owner = cursor.get("owner", owner)
    described = _described(system, owner)
    return {**described, "changed": False, "lines": [line], "cursor": {"since": since, "owner": owner}}


def _opened_back(given: Given, owner: str) -> Result:
    """Open or resume a run that goes back; a forward run at work is asked to end first. Redis need not answer."""
    system, params = given.system, given.params
    before = system.ledger.open_run()
    system.impatient = bool(params["emergency"]) or runs.is_emergency(before)
    if before is not None and not runs.is_back(before):
        system.ledger.request_stop()
    still = _wait_for_lease(given, owner)
    if still:
        return still
    owner = params["cursor"].get("owner", owner)
    moved_back = system.source.back_again() if before is not None and not runs.is_back(before) else []
    if moved_back:
        _refuse_back_again(system, moved_back)
    run = runs.begin_back(
        system.ledger,
        system.mapping,
        system.clock,
        operator=params["operator"] or owner,
        settings={"emergency": bool(params["emergency"]), "started": params["started"], "reason": params["reason"]},
    )
    lease = system.ledger.take_lease(run, owner, runs.LEASE_SECONDS)
    system.ledger.request_stop(False)
    usable, reading = back.take_stamp(system, run, lease)
    lines = [reading]
    if before is not None and not runs.is_back(before):
        lines.insert(0, f"run {before.id} stood at '{before.phase}' and is taken back")
        if usable or not runs.is_emergency(run):
            put, stages = abort(system.source, system.target, lease) if before.phase is Phase.FENCED else (0, 0)
            lines += (
                [f"its {put} claimed tasks are back in the table, {stages} stages deleted"] if put or stages else []
            )
    if runs.is_back(before) and usable and reached(run.phase, Phase.TRANSFERRED) and back.waiting(system, run):
        found = Gate("target", (Check("reopened", Verdict.PASSED, "there is more at the target than was known"),))
        system.ledger.set_phase(lease, Phase.FENCED, found)
        lines.append("the target holds more than was known: the transfer is open again")
    result = _described(system, owner)
    return {**result, "changed": True, "lines": [*_lines(result, resumed=runs.is_back(before)), *lines]}


def _reopen_for_loss(system: System, run: Run, lease: Lease) -> list[str]:
    """A Redis without our stamp lost tasks, and one that was restarted may have: no verdict from before holds."""
    stamp = system.target.read_stamp()[0]
    if not reached(run.phase, Phase.ROUTED):
        return []
    if stamp != run.generation:
        lines = [STAMP_LOST]
        verified = Verification(
            system.source, system.target, system.ledger, system.clock, system.mapping, run.id
        ).balance()
        lines += [f"{verified.balance.fault_count:,} of {verified.balance.known:,} known ids are at fault"]
        lines += [f"  {fault.id}  {fault.fault}" for fault in verified.balance.faults[:20]]
        reading = f"the stamp is missing, {verified.balance.fault_count} ids are at fault"
    else:
        servers = system.ledger.events(run.id, "measure", "redis server")
        if not servers or servers[-1].detail.get("run_id") == system.target.run_id_of_server():
            return []
        reading = "Redis was restarted since the transfer: the balance is taken again"
        lines = [reading]
    if not reached(run.phase, Phase.TRANSFERRED):
        return lines
    system.ledger.set_phase(lease, Phase.FENCED, Gate("target", (Check("reopened", Verdict.PASSED, reading),)))
    return lines


def _reopen_for_stragglers(system: System, run: Run, lease: Lease) -> list[str]:
    """A task that came to the side that was left, after it was emptied, reopens the transfer."""
    if not reached(run.phase, Phase.TRANSFERRED):
        return []
    left = sum(p.get("ready", 0) + p.get("delayed", 0) + p.get("claimed", 0) for p in system.source.counts().values())
    left -= sum(
        1 for entry in system.source.look([h.id for h in system.ledger.held()]).values() if entry.place == "claimed"
    )
    if left <= 0:
        return []
    gate = Gate("stragglers", (Check("found", Verdict.PASSED, f"{left} at the source, which was empty"),))
    system.ledger.set_phase(lease, Phase.FENCED, gate)
    return [f"{left} stragglers at the source: the transfer is open again"]


def _refuse_restored(system: System, run: Run | None) -> None:
    """A ledger whose token is older than its mirror in the target was restored from a backup."""
    moved_back = system.source.back_again() if run is not None else []
    if moved_back:
        _refuse_back_again(system, moved_back)
    stamp, mirrored, _ = system.target.read_stamp()
    state = system.ledger.lease_state()
    generation = run.generation if run else ""
    if stamp == generation and state is not None and mirrored > state.token:
        raise RunConflict(
            f"the ledger's token {state.token} is older than its mirror {mirrored} in Redis: the database was restored "
            "from a backup while Redis lived on.",
            where="ledger",
            next_step="restore both to one moment, or decide by hand; playbooks/status.yml shows what each side has.",
        )
    if stamp and stamp != generation:
        raise RunConflict(
            "Redis carries the stamp of another run that this ledger does not have open: the database was restored, "
            "or that run was never cleaned up.",
            where="Redis",
            next_step="look at playbooks/status.yml; playbooks/cleanup.yml removes the stamp of an ended run.",
        )


def _refuse_back_again(system: System, ids: Sequence[str]) -> NoReturn:
    raise RunConflict(
        f"tasks that this run has moved stand at the source again (first: {', '.join(ids)}): the table was "
        "restored from a backup while Redis lived on. Moving them once more could run them twice.",
        where=f"table {system.mapping.source.table}",
        next_step="restore both stores to one moment, or decide by hand; playbooks/status.yml shows what each has.",
    )


def _lines(result: Result, *, check: bool = False, resumed: bool = False) -> list[str]:
    if result["phase"] == "none":
        return ["no run is open; one would be opened" if check else "no run is open"]
    word = "would be resumed" if check else "resumed" if resumed else "opened"
    return [f"run {result['run_id']} {word}; it stands at '{result['phase']}'"]


def advanced(given: Given) -> Result:
    """Enter a phase when every gate it needs stands as passed in the ledger."""
    system = given.system
    wanted = Phase(given.params["phase"])
    if given.check_mode:
        return {
            **_described(system, given.owner),
            "changed": True,
            "lines": [f"'{wanted}' not reached: its gates are read then"],
        }
    run, lease = given.resume()
    if run.phase is wanted:
        return {
            **_described(system, given.owner),
            "changed": False,
            "lines": [f"run {run.id} already stands at '{wanted}'"],
        }
    _prove_again(system, run, lease, wanted)
    override = given.params["override"]
    forward = wanted is Phase.PREPARED and not runs.is_back(run)
    if forward and runs.phase_gate(system.ledger, run, wanted, system.clock, override).open:
        # A way back has locked the target's workers out; this run gives them their work again.
        fences.lift_side(system.target_fences(), lease)
    gate = runs.advance(system.ledger, lease, run, wanted, system.clock, override)
    return {
        **_described(system, given.owner),
        "changed": True,
        "lines": [f"run {run.id} has reached '{wanted}'", *gate_lines(gate)],
    }


def _prove_again(system: System, run: Run, lease: Lease, wanted: Phase) -> None:
    """Read anew what expired during a long soak, drain or observation, so that its verdict is about now.

    Only what passed earlier in this run is read again: a verdict that failed, or was never given, stays as it is.
    """
    require_transition(run.phase, wanted)
    proofs: dict[str, Callable[[], Gate]] = {
        "route": lambda: routes.prove_share(system.router(), _share_of(system, run)),
        "polling": lambda: _polling_off(system),
        "fence source": lambda: fences.prove_side([system.source_fence()], "source"),
        "fence target": lambda: back.fence_gate(system, run, fences.prove_side(back.fences_of(system, run), back.SIDE)),
        "workers": lambda: Gate("workers", tuple(system.target.worker_checks(system.clock.now(), 1))),
        "intake": lambda: _intake_open(system),
    }
    for name in gates_before(run.direction, wanted):
        given = system.ledger.events(run.id, "gate", name)
        if name not in proofs or not given or given[-1].verdict != Verdict.PASSED:
            continue
        if system.clock.now() - given[-1].at.timestamp() > GATE_LIFETIME[name]:
            runs.record_gate(system.ledger, lease, proofs[name]())


def _share_of(system: System, run: Run) -> int:
    """The share that this run's last change of the route wanted."""
    wanted = system.ledger.events(run.id, "measure", "route")
    if not wanted:
        raise RunConflict("this run has not changed the route.", where="ledger", next_step="run the whole playbook.")
    return int(str(wanted[-1].detail["share"]))


def _polling_off(system: System) -> Gate:
    if not system.mapping.route.polling:
        reading = "the mapping names no polling switch; the claimers' processes and the fence decide"
        return Gate("polling", (Check.of("polling", True, reading),))
    polling = system.router().read().polling
    reading = "cannot be read" if polling is None else f"reads {'on' if polling else 'off'}"
    return Gate("polling", (Check.of("polling off", None if polling is None else not polling, reading),))


def _intake_open(system: System) -> Gate:
    port = system.intake()
    state = port.read() if port else None
    reading = "the mapping does not say" if state is None else "open" if state.open else "paused"
    return Gate("intake", (Check.of("intake", None if state is None else state.open, reading),))


def undone(given: Given) -> Result:
    """Take a run back before its point of no return; after it, say so and change nothing."""
    system = given.system
    reason = given.params["reason"] or "asked for by the operator"
    run = system.ledger.open_run()
    if run is None:
        return {**_described(system, given.owner), "changed": False, "lines": ["no run is open: nothing to take back"]}
    if not runs.may_undo(run):
        when = f" at {run.point_of_no_return_at:%H:%M:%S} UTC" if run.point_of_no_return_at else ""
        _let_go(given)
        return {
            **_described(system, given.owner),
            "changed": False,
            "undone": False,
            "lines": [f"run {run.id} passed its point of no return{when}: run the same command again to finish it"],
        }
    if runs.is_back(run):
        return _undone_back(given, run, reason)
    if reached(run.phase, Phase.ROUTED) and system.target.read_stamp()[0] != run.generation:
        # Tasks that were born in the target may be gone; recovery needs this run to place them again.
        _let_go(given)
        return {**_described(system, given.owner), "changed": False, "undone": False, "lines": [STAMP_LOST]}
    if given.check_mode:
        return {**_described(system, given.owner), "changed": True, "lines": [f"run {run.id} would be taken back"]}
    run, lease = given.resume()
    initial = next((e for e in system.ledger.events(run.id, "measure", "initial route")), None)
    share = int(str(initial.detail["share"])) if initial else 0

    def route_back() -> str:
        if system.mapping.route.kind != "sql_row":
            return "the mapping names no route"
        system.router().set_share(lease, share)
        if system.mapping.route.polling:
            system.router().set_polling(lease, True)
        return f"new submissions to the target: {share} %, polling on"

    def holds_back() -> str:
        back, stages = abort(system.source, system.target, lease)
        return f"{back} claimed tasks put back, {stages} stages deleted"

    def lift() -> str:
        return "lifted" if fences.lift_side([system.source_fence()], lease) else "was not closed"

    def open_intake() -> str:
        intake = system.intake()
        if intake is None:
            return "the mapping names none"
        return "opened" if intake.set_open(lease, True, 0) else "was open"

    def unstamp() -> str:
        return f"{system.target.clear_stamp()} keys of ours removed from the target"

    done = runs.undo(
        system.ledger,
        lease,
        run,
        reason,
        [
            ("evidence", lambda: back.bundle_before_undo(given, run, lease)),
            ("route", route_back),
            ("tasks", holds_back),
            ("fence", lift),
            ("intake", open_intake),
            ("stamp", unstamp),
        ],
    )
    system.ledger.give_up(lease)
    described = _described(system, given.owner)
    lines = [f"run {run.id} was taken back at {datetime.now(UTC):%H:%M:%S} UTC: {reason}", *done]
    return {
        **described,
        "changed": True,
        "undone": True,
        "run_id": run.id,
        "direction": run.direction,
        "phase": "aborted",
        "lines": lines,
    }


def _undone_back(given: Given, run: Run, reason: str) -> Result:
    """Take a planned way back off again: the run before it is open again, where it stood."""
    system = given.system
    if given.check_mode:
        return {**_described(system, given.owner), "changed": True, "lines": [f"run {run.id} would be taken back"]}
    run, lease = given.resume()
    undone = system.ledger.find_run(runs.undone_by(run)) if runs.undone_by(run) else None
    initial = next((e for e in system.ledger.events(run.id, "measure", "initial route")), None)

    def route_back() -> str:
        if initial is None or system.mapping.route.kind != "sql_row":
            return "was not changed"
        share = int(str(initial.detail["share"]))
        system.router().set_share(lease, share)
        if system.mapping.route.polling:
            system.router().set_polling(lease, bool(initial.detail["polling"]))
        return f"new submissions to the target: {share} %"

    def tasks_back() -> str:
        return f"{system.leaving.put_back(lease)} jobs back where they lay"

    def side_back() -> str:
        lifted = fences.lift_side(system.target_fences(), lease)
        closed = False
        if undone is not None and reached(undone.phase, Phase.FENCED):
            closed = fences.close_side([system.source_fence()], lease, "source").open
        return f"target's {'lifted' if lifted else 'was not closed'}, source's {'closed' if closed else 'as it was'}"

    def stamp_back() -> str:
        return back.give_stamp_back(system, run, lease)

    steps = [("tasks", tasks_back), ("fences", side_back), ("route", route_back), ("stamp", stamp_back)]
    done = runs.undo(system.ledger, lease, run, reason, steps)
    system.ledger.give_up(lease)
    lines = [f"run {run.id} was taken back at {datetime.now(UTC):%H:%M:%S} UTC: {reason}", *done]
    if undone is not None:
        lines.append(f"run {undone.id} is open again and stands at '{undone.phase}'")
    return {
        **_described(system, given.owner),
        "changed": True,
        "undone": True,
        "run_id": run.id,
        "direction": run.direction,
        "phase": "aborted",
        "lines": lines,
    }


def _let_go(given: Given) -> None:
    """Give the lease up at the end of a failed command, so that the next one need not wait for it."""
    system = given.system
    state = system.ledger.lease_state()
    if given.check_mode or state is None or state.owner != given.owner:
        return
    _, lease = given.resume()
    system.ledger.give_up(lease)


def stopping(given: Given) -> Result:
    """Ask the run at work, whoever's it is, to end politely between two batches. The same command goes on later."""
    system = given.system
    described = _described(system, given.owner)
    if described["phase"] == "none":
        return {**described, "changed": False, "lines": ["no run is open: nothing to stop"]}
    asked = system.ledger.stop_requested()
    if not asked and not given.check_mode:
        system.ledger.request_stop()
    word = "was asked before" if asked else "would be asked" if given.check_mode else "is asked"
    line = f"run {described['run_id']} {word} to end between two batches; the same command goes on with it"
    return {**described, "changed": not asked, "lines": [line]}


def released(given: Given) -> Result:
    """Give the lease up at the end of a command, so that the next one need not wait."""
    system = given.system
    if given.check_mode or system.ledger.open_run() is None:
        return {**_described(system, given.owner), "changed": False, "lines": []}
    _, lease = given.resume()
    system.ledger.give_up(lease)
    return {**_described(system, given.owner), "changed": False, "lines": ["lease given up"]}
