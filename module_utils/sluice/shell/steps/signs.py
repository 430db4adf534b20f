"""What one application host shows of its health.

Those hosts have a Python and nothing else of ours, so nothing here leads to a driver of a store or to its packages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...adapters.host_signs import read_logs
from ...adapters.http_health import ask_health
from ...adapters.supervision import supervisor
from ...core.errors import SluiceError
from ...ports.assessment import HealthSigns, LogSigns
from ...services import assess as service
from ...services.assess import Answer, Asking
from ..runner import SHARE_OF_LIMIT, Given, Result, redacted


def host(given: Given) -> Result:
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
        Asking(lambda: ask_health(params["health_url"], seconds=service.HEALTH_SECONDS * SHARE_OF_LIMIT),
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
