"""What captions' runtime does with RQ: tasks a minute, how soon one is begun, and how many workers of what size."""

from __future__ import annotations

import json
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from bench.figures import Figure
from bench.latency import TOKEN, application, route
from bench.stores import Addresses, Stores
from captions.payload import dump
from captions.workers import resident_mb

#: What the design document asks for, and what it may be 25 times of for tasks that do nothing.
AIM_TASKS_A_MINUTE = 25 * 100.0
AIM_PICKUP_P99_MS = 100.0
AIM_WORKERS_A_PRIORITY = 10.0
AIM_WORKER_MB = 500.0
AIM_KEPT_HOURS = 24.0
_NOTHING = "from captions.task_types import TaskType, register\n\nregister(TaskType('noop', lambda attempt: ''))\n"
_TASKS = 3000
_PICKUPS = 100
#: Seldom enough that a worker is idle: this measures the way of a task, not a backlog.
_EVERY_SECONDS = 0.25


def measure(stores: Stores, say: Callable[[str], None]) -> list[Figure]:
    """All on RQ's forking workers that begin and end with Gunicorn, over tasks that do nothing."""
    with stores.backlog(0) as where:
        route(stores, where, 100)
        folder = stores.directory / "few"
        folder.mkdir(mode=0o700)
        (folder / "noop.py").write_text(_NOTHING, encoding="utf-8")
        with application(stores, where, "few", TASK_MODULES="noop", RQ_WORKERS="urgent+high+normal+low:2") as url:
            _until(lambda: len(_workers(url)) == 2, "two workers")
            pickups = _pickups(stores, where, url)
            say(f"runtime: {len(pickups)} tasks were begun after p99 {_p99(pickups):.1f} ms")
        with application(stores, where, "few", TASK_MODULES="noop"):
            placed = _placed_a_second(stores, where)
            say(f"runtime: {placed:,.0f} rows that waited for Redis are placed a second")
        with application(stores, where, "few", TASK_MODULES="noop", RQ_WORKERS="urgent+high+normal+low:2") as url:
            rate = _rate(stores, where)
            say(f"runtime: {rate:,.0f} tasks a minute")
            sizes = [resident_mb(int(worker["pid"])) for worker in _workers(url)]
            kept = _kept_hours(stores, where, url)
            say(f"runtime: a clean-up leaves results of {kept:.0f} h alone")
    with (
        stores.backlog(0) as where,
        application(stores, where, "many", RQ_WORKERS="urgent:10 high:10 normal:10 low:10") as url,
    ):
        _until(lambda: len(_workers(url)) == 40, "forty workers")
        many = _workers(url)
        sizes += [resident_mb(int(worker["pid"])) for worker in many]
        fewest = min(
            sum(worker["queues"] == [queue] for worker in many) for queue in ("urgent", "high", "normal", "low")
        )
        say(f"runtime: {len(many)} workers, the largest of {max(sizes):.0f} MB")
    return [
        Figure(
            "runtime.tasks_a_minute", rate, "", (">=", AIM_TASKS_A_MINUTE), f"{_TASKS} that do nothing, two workers"
        ),
        Figure("runtime.placed_a_second", placed, "", None, f"{_TASKS} rows that have no job yet, two web processes"),
        Figure("runtime.pickup_p50_ms", statistics.median(pickups), "ms", None, f"{_PICKUPS} tasks, 4 a second"),
        Figure(
            "runtime.pickup_p99_ms",
            _p99(pickups),
            "ms",
            ("<=", AIM_PICKUP_P99_MS),
            "from the commit of its row to its claim",
        ),
        Figure("runtime.workers_a_priority", float(fewest), "", (">=", AIM_WORKERS_A_PRIORITY), "40 at the same time"),
        Figure(
            "runtime.results_kept_hours", kept, "h", (">=", AIM_KEPT_HOURS), "spared by the most eager clean-up allowed"
        ),
        Figure("runtime.worker_mb", max(sizes), "MB", ("<=", AIM_WORKER_MB), "resident, the largest"),
    ]


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within 300 s")
        time.sleep(0.2)


def _ask(url: str, body: object = None) -> Any:
    request = urllib.request.Request(
        url, headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    )
    if body is not None:
        request.data = json.dumps(body).encode()
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _workers(url: str) -> list[dict[str, Any]]:
    return [worker for worker in _ask(f"{url}/admin/workers")["workers"] if worker["system"] == "rq"]


def _pickups(stores: Stores, where: Addresses, url: str) -> list[float]:
    """Milliseconds from submission to claim, of tasks that find idle workers."""
    for user in range(1, _PICKUPS + 1):
        _ask(f"{url}/tasks", {"user_id": user, "kind": "noop", "payload": {}})
        time.sleep(_EVERY_SECONDS)
    _until(
        lambda: _sql(stores, where, "SELECT COUNT(*) FROM caption_tasks WHERE status <> 'completed'") == [(0,)],
        "the end",
    )
    rows = _sql(stores, where, "SELECT TIMESTAMPDIFF(MICROSECOND, created_at, started_at) FROM caption_tasks")
    return [float(row[0]) / 1000 for row in rows]


def _placed_a_second(stores: Stores, where: Addresses) -> float:
    """Rows a second that get their jobs as after an outage of Redis, while no worker is there."""
    _sql(
        stores,
        where,
        "INSERT INTO caption_tasks (id, user_id, image_path, kind, payload, available_at, created_at, custody)"
        f" SELECT UUID(), 100000 + seq, '', 'noop', '{dump({})}', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), 'rq'"
        f" FROM seq_1_to_{_TASKS}",
    )
    placed = f"SELECT COUNT(*) >= {_TASKS} FROM caption_tasks WHERE user_id > 100000 AND enqueued_at IS NOT NULL"
    _until(lambda: _sql(stores, where, placed) == [(1,)], "a job for each row")
    return _TASKS / _seconds(stores, where, "MIN(enqueued_at)", "MAX(enqueued_at)")


def _rate(stores: Stores, where: Addresses) -> float:
    """Tasks a minute of a backlog of jobs, from the first start to the last end."""
    ended = f"SELECT COUNT(*) >= {_TASKS} FROM caption_tasks WHERE user_id > 100000 AND status = 'completed'"
    _until(lambda: _sql(stores, where, ended) == [(1,)], "the end of the backlog")
    return 60 * _TASKS / _seconds(stores, where, "MIN(started_at)", "MAX(finished_at)")


def _seconds(stores: Stores, where: Addresses, begin: str, end: str) -> float:
    ((seconds,),) = _sql(
        stores,
        where,
        f"SELECT TIMESTAMPDIFF(MICROSECOND, {begin}, {end}) / 1000000 FROM caption_tasks WHERE user_id > 100000",
    )
    return float(seconds)


def _kept_hours(stores: Stores, where: Addresses, url: str) -> float:
    """Hours for which results are safe from every clean-up that is allowed, found with rows of 0.5, 1.5, ... hours."""
    age, ours = "(user_id MOD 48) + 0.5", "user_id > 100000"
    _sql(
        stores,
        where,
        f"UPDATE caption_tasks SET finished_at = UTC_TIMESTAMP(6) - INTERVAL 3600 * ({age}) SECOND WHERE {ours}",
    )
    ages = f"SELECT DISTINCT {age} FROM caption_tasks WHERE {ours}"
    before = _sql(stores, where, ages)
    for seconds in (0, 3600, 86_400 - 1, 86_400):
        try:
            while _ask(f"{url}/admin/maintenance/clean-up", {"older_than_seconds": seconds})["more"]:
                pass
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.BAD_REQUEST:
                raise
    gone = {float(row[0]) for row in before} - {float(row[0]) for row in _sql(stores, where, ages)}
    return min(gone) - 0.5 if gone else max(float(row[0]) for row in before)


def _sql(stores: Stores, where: Addresses, statement: str) -> list[tuple[Any, ...]]:
    connection = stores.connect(where)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            rows = list(cursor.fetchall())
        connection.commit()
        return rows
    finally:
        connection.close()
