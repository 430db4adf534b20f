"""Steps on the hosts of the application and of the workers. They touch no store.

A host needs nothing but its Python for them: no driver is imported here, nor by what is imported here.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...adapters.dotenv_file import DotenvFile
from ...adapters.host_signs import ask_health, read_logs
from ...adapters.supervisors import supervisor
from ...core.errors import SluiceError, StoreError
from ...ports.assessment import HealthSigns, LogSigns
from ...ports.surroundings import Supervisor, WorkerProcess
from ...services import assess as service
from ...services import drain as drains
from ...services.assess import Answer, Asking
from ..runner import SLICE_SECONDS, Given, Result, redacted


def config(given: Given) -> Result:
    """Keep the managed keys of the application's configuration file, each exactly once; all else byte for byte."""
    params = given.params
    file = DotenvFile(Path(params["path"]), [str(k) for k in params["secrets"]])
    values = {str(k): _written(v) for k, v in [*params["values"].items(), *params["secrets"].items()]}
    absent: list[str] = []
    if params["state"] == "absent":
        values, absent = {}, list(values)
    change = file.apply(values, run_id=params["run_id"], absent=absent, check_mode=given.check_mode)
    return {
        "changed": change.changed,
        "backup_file": change.backup,
        "diff": {
            "before": change.before,
            "after": change.after,
            "before_header": change.path,
            "after_header": change.path,
        },
        "lines": [f"{change.path}: {_outcome(change.changed, given.check_mode)}"],
    }


def _outcome(changed: bool, check_mode: bool) -> str:
    if not changed:
        return "as wanted"
    return "would be written" if check_mode else "written"


def _written(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


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
            "processes": [_process(p) for p in found],
            "leftovers": [_process(p) for p in left],
            "lines": [_process_line(p) for p in [*found, *left]],
        }
    if state == "drained":
        return _drained(given, keeper, bool(running))
    changed = keeper.reload(params["group"]) if state == "reloaded" else keeper.start(params["group"])
    after = keeper.list(params["group"])
    return {
        "changed": changed,
        "processes": [_process(p) for p in after],
        "leftovers": [_process(p) for p in left],
        "lines": [_process_line(p) for p in [*after, *left]],
    }


def _killed(given: Given, keeper: Supervisor) -> Result:
    """No grace: whatever runs for the group is killed now. Nothing of it is left when this returns."""
    group = given.params["group"]
    killed = keeper.kill(group)
    found, left = keeper.list(group), keeper.leftovers(group)
    again = [p for p in [*found, *left] if p.alive and not p.unknown]
    if again:
        raise StoreError(
            f"after the kill there is still or again: {_names([_process(p) for p in again])}.",
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
            f"not drained: {'; '.join(outcome.unreachable) or _names([_process(p) for p in outcome.running])}.",
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


def _process_line(process: WorkerProcess) -> str:
    if process.unknown:
        return f"{process.host}  {process.name}: whether it is the group's cannot be read"
    return f"{process.host}  {process.name:<24} {process.state.lower():<10} pid {process.pid or '-'}"


def _names(processes: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{p.get('host', '')}:{p.get('name', '')}" for p in processes[:6])


def signs(given: Given) -> Result:
    """What one application host or worker host shows of itself: health, errors in the logs, worker processes."""
    params = given.params
    clock = given.clock
    logs = Asking(
        lambda: read_logs(
            params["log_files"],
            kilobytes=params["log_kilobytes"],
            minutes=params["log_minutes"],
            now=clock.now(),
            redact=lambda text: redacted(text, given.secrets),
        ),
        service.LOG_SECONDS,
        clock,
    )
    health = (
        Asking(lambda: ask_health(params["health_url"], seconds=service.HEALTH_SECONDS * service.SHARE_OF_LIMIT),
               service.HEALTH_SECONDS, clock)
        if params["health_url"] else None
    )  # fmt: skip
    workers = Asking(lambda: _workers(params), service.HEALTH_SECONDS, clock) if params["group"] else None
    read = logs.wait()
    found = read.value if read.value is not None else [LogSigns(p, problem=read.problem) for p in params["log_files"]]
    said = health.wait() if health else None
    kept = workers.wait() if workers else None
    result: Result = {
        "changed": False,
        "health": _health(said),
        "logs": [
            {"path": log.path, "errors": log.errors, "last": list(log.last), "problem": log.problem} for log in found
        ],
        "workers": kept.value if kept is not None and kept.value is not None else -1,
        "workers_problem": kept.problem if kept is not None else "",
    }
    return {**result, "lines": list(_host_lines(result))}


def _health(said: Answer[HealthSigns] | None) -> dict[str, Any]:
    if said is None:
        return {}
    if said.value is None:
        return {"status": 0, "latency": service.HEALTH_SECONDS, "detail": said.problem}
    return {"status": said.value.status, "latency": said.value.latency, "detail": said.value.detail}


def _workers(params: Mapping[str, Any]) -> int:
    keeper = supervisor(
        params["supervisor"],
        socket=params["socket"],
        units={params["group"]: params["units"]},
        host=params["host_label"],
    )
    try:
        return sum(process.alive for process in keeper.list(params["group"]))
    except OSError as error:
        raise SluiceError(f"the supervisor does not answer: {error}.", where=params["host_label"]) from error


def _host_lines(result: Mapping[str, Any]) -> Iterable[str]:
    health = result["health"]
    if health:
        said = f"HTTP {health['status']}" if health["status"] else health["detail"]
        yield f"health   {said}"
    if result["workers"] >= 0 or result["workers_problem"]:
        yield f"workers  {result['workers_problem'] or result['workers']}"
    if result["logs"]:
        errors = sum(log["errors"] for log in result["logs"])
        unread = sum(bool(log["problem"]) for log in result["logs"])
        yield f"logs     {errors} errors in {len(result['logs'])} files" + (
            f", {unread} not readable" if unread else ""
        )
