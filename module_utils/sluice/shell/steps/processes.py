"""The worker processes of one application host: started, drained, reloaded, killed.

Those hosts have a Python and nothing else of ours, so nothing here leads to a driver of a store or to its packages.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

from ...adapters.http_health import ask_settings
from ...adapters.processes import Processes
from ...adapters.supervision import supervisor
from ...core.errors import StoreError
from ...ports.surroundings import Supervisor, WorkerProcess
from ...services import drain as drains
from ..runner import SLICE_SECONDS, Given, Result, names

#: How long one answer may take (seconds), and the pause after one that is not the one that is waited for.
_ANSWER_SECONDS = 5.0
_PAUSE_SECONDS = 0.5


def workers(given: Given) -> Result:
    """Start, drain, or reload the worker processes of one host's group. Touches no store."""
    params = given.params
    host = params["host_label"] or socket.gethostname()
    keeper = supervisor(
        params["supervisor"], socket=params["socket"], units={params["group"]: params["units"]}, host=host
    )
    state = params["state"]
    if state == "killed" and not given.check_mode:
        return _killed(given, keeper)
    found = keeper.list(params["group"])
    left = keeper.leftovers(params["group"])
    running = [p for p in [*found, *left] if p.alive and not p.unknown]
    if given.check_mode or state == "listed":
        resting = any(not p.alive for p in found)
        would = {"started": resting, "drained": bool(running), "killed": bool(running), "reloaded": True}
        return {
            "changed": would.get(state, False),
            "processes": [_measured(p) for p in found],
            "leftovers": [_process(p) for p in left],
            "lines": [_process_line(p) for p in [*found, *left]],
        }
    if state == "drained":
        return _drained(given, keeper, bool(running))
    if state == "reloaded":
        return _reloaded(given, keeper)
    changed = keeper.start(params["group"])
    after = keeper.list(params["group"])
    return {
        "changed": changed,
        "processes": [_process(p) for p in after],
        "leftovers": [_process(p) for p in left],
        "lines": [_process_line(p) for p in [*after, *left]],
    }


def _reloaded(given: Given, keeper: Supervisor) -> Result:
    """Have them read their settings; where they can be asked, wait until so many answers in a row say that they did."""
    params, cursor = given.params, given.params["cursor"]
    group, url = params["group"], params["health_url"]
    changed = bool(cursor["changed"]) if cursor else keeper.reload(group)
    until = float(cursor.get("until", time.time() + params["patience"]))
    right, said = int(cursor.get("right", 0)), ""
    over = min(until, time.time() + SLICE_SECONDS)
    while url and right < params["answers"]:
        said = _otherwise(url, params["expect"])
        right = 0 if said else right + 1
        if time.time() >= over:
            break
        if said:
            given.clock.wait(_PAUSE_SECONDS)
    found, left = keeper.list(group), keeper.leftovers(group)
    result: Result = {
        "changed": changed,
        "processes": [_process(p) for p in found],
        "leftovers": [_process(p) for p in left],
    }
    if url and right < params["answers"]:
        if time.time() >= until:
            raise StoreError(
                f"was told to read its settings and {params['patience']} s later still answers {url} with "
                f"{said or 'them, and not often enough'} instead of {params['expect']}. "
                "Hosts of later batches were not touched.",
                where=params["host_label"],
                next_step=f"read the log of '{group}' there.",
            )
        line = f"{group}: not all of its processes have the new settings, at most {until - time.time():.0f} s more"
        return {**result, "lines": [line], "cursor": {"until": until, "changed": changed, "right": right}}
    return {**result, "lines": [_process_line(p) for p in [*found, *left]]}


def _otherwise(url: str, expected: Mapping[str, object]) -> str:
    """What the application says of the settings that are asked for, where it is not what is expected; else ''."""
    answer = ask_settings(url, seconds=_ANSWER_SECONDS)
    if answer is None:
        return "nothing"
    said = {key: answer.get(key, "nothing") for key in expected}
    return "" if said == expected else str(said)


def _killed(given: Given, keeper: Supervisor) -> Result:
    """No grace: whatever runs for the group is killed now. Nothing of it is left when this returns."""
    group = given.params["group"]
    killed = keeper.kill(group)
    found, left = keeper.list(group), keeper.leftovers(group)
    again = [p for p in [*found, *left] if p.alive and not p.unknown]
    if again:
        raise StoreError(
            f"after the kill there is still or again: {names([_process(p) for p in again])}.",
            where=given.params["host_label"],
            next_step="find out who starts it, and run the same command again.",
        )
    ended = {p.name: p for p in killed} | {p.name: p for p in [*found, *left] if not p.graceful}
    lines = [_process_line(p) for p in [*found, *left]]
    return {
        "changed": bool(killed),
        "processes": [_process(p) for p in found],
        "leftovers": [_process(p) for p in left],
        "killed": [_process(p) for p in killed],
        "unproved": [_process(p) for p in ended.values()],
        "lines": [*lines, *(f"killed: {p.name} (pid {p.pid})" for p in killed)],
    }


def _drained(given: Given, keeper: Supervisor, running: bool) -> Result:
    clock, cursor, group = given.clock, given.params["cursor"], given.params["group"]
    until = float(cursor.get("until", time.time() + given.params["deadline"]))
    changed = bool(cursor.get("changed", running))
    outcome = drains.drain(
        dict, [keeper], group, clock, deadline=until, slice_seconds=SLICE_SECONDS, first=not cursor,
        leftovers=[WorkerProcess(**p, alive=True, leftover=True) for p in cursor.get("leftovers", [])],
    )  # fmt: skip
    found, left = keeper.list(group), keeper.leftovers(group)
    result: Result = {
        "changed": changed,
        "processes": [_process(p) for p in found],
        "leftovers": [_process(p) for p in left],
        "killed": [_process(p) for p in outcome.killed],
        "unproved": [_process(p) for p in outcome.unproved],
    }
    if not outcome.done:
        line = f"{group}: {len(outcome.running)} still at work, at most {until - time.time():.0f} s more"
        seen = [_process(p) for p in outcome.leftovers]
        return {**result, "lines": [line], "cursor": {"until": until, "changed": changed, "leftovers": seen}}
    if outcome.unreachable or outcome.running:
        raise StoreError(
            f"not drained: {'; '.join(outcome.unreachable) or names([_process(p) for p in outcome.running])}.",
            where=given.params["host_label"],
            next_step="unreachable is not dead: make the supervisor answer, then run the same command again.",
        )
    lines = [_process_line(p) for p in [*found, *left]]
    lines += [f"had to be killed: {p.name} (pid {p.pid})" for p in outcome.killed]
    lines += [f"left by a dead worker, ended by itself: {p.name}" for p in outcome.leftovers if p not in outcome.killed]
    return {**result, "lines": lines}


def _process(process: WorkerProcess) -> Result:
    return {
        "name": process.name, "host": process.host, "pid": process.pid, "state": process.state, "exit": process.exit,
    }  # fmt: skip


def _measured(process: WorkerProcess) -> Result:
    """The process with ``memory_mb`` when it runs: its largest process' own, None when that cannot be read."""
    if not process.pid:
        return _process(process)
    size = Processes().resident(process.pid)
    return {**_process(process), "memory_mb": None if size is None else round(size / 1e6, 1)}


def _process_line(process: WorkerProcess) -> str:
    if process.unknown:
        return f"{process.host}  {process.name}: whether it is the group's cannot be read"
    return f"{process.host}  {process.name:<24} {process.state.lower():<10} pid {process.pid or '-'}"
