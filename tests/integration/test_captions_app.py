"""captions in a lab of its own: real MariaDB, Redis, Gunicorn, polling workers and RQ workers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from captions.database import make_engine
from captions.lost_jobs import no_run
from lab.__main__ import Lab
from lab.images import BROKEN
from lab.layout import Layout
from lab.state import State, read_state
from lab.stores import PrivateMariaDB, PrivateRedis
from lab.supervision import Supervisor, leftovers
from oracle.patience import until

WEB_PROCESSES = 2


class Running:
    """The lab as its user sees it: HTTP, the effects file, and the processes."""

    def __init__(self, lab: Lab, state: State) -> None:
        self.lab = lab
        self.state = state
        self.layout = lab.layout
        self.supervisor: Supervisor = lab.supervisor
        self.last_user = 0

    def request(
        self, method: str, path: str, body: object = None, token: str | None = None
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.state.web_port}{path}", method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.load(answer), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), dict(error.headers)

    def admin(self, path: str, body: object = None) -> dict[str, Any]:
        method = "GET" if body is None else "POST"
        status, answer, _ = self.request(method, f"/admin/{path}", body, self.state.admin_token)
        assert status == 200, answer
        return answer

    def submit(self, image: str = "image-01.png", **more: object) -> str:
        self.last_user += 1
        status, answer, _ = self.request("POST", "/tasks", {"user_id": self.last_user, "image": image, **more})
        assert status == 201, answer
        return str(answer["id"])

    def task(self, task_id: str) -> dict[str, Any]:
        status, answer, _ = self.request("GET", f"/tasks/{task_id}")
        assert status == 200, answer
        return answer

    def finished(self, *task_ids: str) -> list[dict[str, Any]]:
        until(lambda: all(self.task(task_id)["status"] in ("completed", "failed") for task_id in task_ids))
        return [self.task(task_id) for task_id in task_ids]

    def effects(self, task_id: str) -> Counter[tuple[str, str]]:
        lines = [json.loads(line) for line in self.layout.effects_file.read_text().splitlines()]
        return Counter((line["event"], line["side"]) for line in lines if line["task"] == task_id)

    def sql(self, statement: str, *values: object) -> None:
        with PrivateMariaDB(self.layout.mariadb, self.state.db_port).connect_as_root("captions") as connection:
            connection.cursor().execute(statement, values)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    layout = Layout(tmp_path_factory.mktemp("checkout"))
    lab = Lab(layout)
    try:
        lab.up({"rq": 1})
        state = read_state(layout.state_file)
        assert state is not None
        yield Running(lab, state)
    finally:
        lab.down()


@pytest.fixture
def quiet(running: Running) -> Iterator[Running]:
    """Nobody claims, so that tasks stay as they are."""
    running.admin("polling", {"polling": False})
    yield running
    running.admin("polling", {"polling": True})


@pytest.fixture(scope="module")
def on_rq(running: Running) -> Running:
    """RQ switched on the way an operator does it: settings, then a graceful reload of the web processes."""
    with running.layout.env_file.open("a") as file:
        redis = running.lab._connection_settings(running.state)["SLUICE_LAB_REDIS_URL"]
        file.write(f"RQ_ENABLED=true\nRQ_REDIS_URL={redis}\nRQ_KEY_PREFIX=captions-rq\n")
    digest = hashlib.sha256(running.layout.env_file.read_bytes()).hexdigest()[:16]
    running.supervisor.signal("web", "HUP")
    until(lambda: {running.request("GET", "/health")[1]["settings_digest"] for _ in range(20)} == {digest})
    running.admin("route", {"share": 100})
    assert running.supervisor.start_group("rqworkers") == ["rq_0"]
    return running


def test_polling_workers_finish_tasks_and_each_effect_happens_once(running: Running) -> None:
    done = [running.submit(f"image-{number:02d}.png", priority=p) for number, p in enumerate(("low", "urgent", "high"))]
    for task in running.finished(*done):
        assert (task["status"], task["owner"], task["attempts"]) == ("completed", "db", 1)
        assert task["caption"].startswith("A ")
        assert running.effects(task["id"]) == {("start", "db"): 1, ("end", "db"): 1}


def test_an_unreadable_image_fails_after_all_attempts(running: Running) -> None:
    (task,) = running.finished(running.submit(BROKEN))
    assert (task["status"], task["attempts"]) == ("failed", 3)
    assert BROKEN in task["error"]
    assert running.effects(task["id"]) == {("start", "db"): 3}


def test_one_active_task_per_user_until_it_is_cancelled(quiet: Running) -> None:
    first = quiet.submit()
    body = {"user_id": quiet.last_user, "image": "image-02.png"}
    assert quiet.request("POST", "/tasks", body)[0] == 409
    assert quiet.request("POST", f"/tasks/{first}/cancel")[0] == 200
    assert quiet.request("POST", f"/tasks/{first}/cancel")[0] == 409
    status, second, _ = quiet.request("POST", "/tasks", body)
    assert status == 201
    assert quiet.request("POST", f"/tasks/{first}/retry")[0] == 409
    assert quiet.request("POST", f"/tasks/{second['id']}/cancel")[0] == 200
    assert quiet.request("POST", f"/tasks/{first}/retry")[0] == 200
    assert quiet.task(first)["status"] == "queued"


def test_a_held_task_can_be_cancelled_but_not_retried(quiet: Running) -> None:
    held = quiet.submit()
    quiet.sql("UPDATE caption_tasks SET custody = 'held', custody_token = 7 WHERE id = %s", held)
    assert quiet.task(held)["owner"] == "held"
    assert quiet.request("POST", f"/tasks/{held}/cancel")[0] == 200
    assert (quiet.task(held)["status"], quiet.task(held)["custody_token"]) == ("cancelled", 7)
    assert quiet.request("POST", f"/tasks/{held}/retry")[0] == 409


def test_a_delayed_task_waits(running: Running) -> None:
    delayed, at_once = running.submit(delay_seconds=600), running.submit()
    running.finished(at_once)
    assert running.task(delayed)["status"] == "queued"


@pytest.mark.parametrize(
    "body",
    [
        None,
        {"image": "image-01.png"},
        {"user_id": "1", "image": "image-01.png"},
        {"user_id": 1, "image": "../captions.env"},
        {"user_id": 1, "image": "/etc/passwd"},
        {"user_id": 1, "image": "image-01.png", "priority": "utmost"},
        {"user_id": 1, "image": "image-01.png", "delay_seconds": -1},
    ],
)
def test_what_cannot_be_understood_is_answered_400(running: Running, body: object) -> None:
    status, answer, _ = running.request("POST", "/tasks", body)
    assert status == 400
    assert answer["error"]


def test_a_paused_intake_turns_away_and_reopens_at_its_deadline(running: Running) -> None:
    paused_at = time.monotonic()
    assert running.admin("intake", {"action": "pause", "reason": "change 7", "seconds": 2})["intake"] == "paused"
    status, answer, headers = running.request("POST", "/tasks", {"user_id": 999_999, "image": "image-01.png"})
    assert (status, headers["Retry-After"]) in ((503, "1"), (503, "2"))
    assert "change 7" in answer["error"]
    until(lambda: running.admin("intake")["intake"] == "open")
    assert time.monotonic() - paused_at < 7, "at its deadline, give or take a slow machine"
    running.submit()
    longest = running.admin("intake")["longest_pause_seconds"]
    too_long = {"action": "pause", "reason": "r", "seconds": longest + 1}
    assert running.request("POST", "/admin/intake", too_long, running.state.admin_token)[0] == 400


def test_admin_requests_need_the_token(running: Running) -> None:
    for path in ("intake", "route", "polling", "stats"):
        assert running.request("GET", f"/admin/{path}")[0] == 401
        assert running.request("GET", f"/admin/{path}", token="wrong")[0] == 401


def test_a_load_balancer_is_told_whether_submissions_can_be_taken(running: Running) -> None:
    assert running.request("GET", "/health/live")[:1] == (200,)
    status, answer, _ = running.request("GET", "/health/ready")
    assert (status, answer["profile"], answer["notes"]) == (200, "development", [])
    running.admin("polling", {"polling": False})
    assert "nobody works" in running.request("GET", "/health/ready")[1]["notes"][0]
    running.admin("polling", {"polling": True})
    running.supervisor.stop_group("mariadb")
    try:
        assert running.request("GET", "/health/live")[0] == 200
        status, answer, _ = running.request("GET", "/health/ready")
        assert (status, answer["status"]) == (503, "not ready")
        assert "database" in answer["reason"]
    finally:
        running.supervisor.start_group("mariadb")
    until(lambda: running.request("GET", "/health/ready")[0] == 200)


def test_without_rq_a_share_sends_nobody_there_and_says_so(running: Running) -> None:
    answer = running.admin("route", {"share": 100})
    assert (answer["share"], answer["effective_share"], answer["rq_enabled"]) == (100, 0, False)
    assert "RQ is not enabled" in answer["note"]
    assert running.task(running.submit())["owner"] == "db"
    running.admin("route", {"share": 0})


def test_up_again_changes_nothing(running: Running) -> None:
    before = [(process.name, process.pid) for process in running.supervisor.processes()]
    settings = running.layout.env_file.read_bytes()
    running.lab.up({})
    assert [(process.name, process.pid) for process in running.supervisor.processes()] == before
    assert running.layout.env_file.read_bytes() == settings


def test_a_polling_worker_finishes_its_task_before_it_ends(tmp_path: Path, running: Running) -> None:
    running.lab.up({"work_ms": 1000})
    task_id = running.submit()
    until(lambda: running.task(task_id)["status"] == "running")
    running.supervisor.stop_group("legacy")
    assert running.task(task_id)["status"] == "completed"
    running.lab.up({"work_ms": 0})


def test_rq_workers_finish_what_is_routed_to_them(on_rq: Running) -> None:
    ids = [on_rq.submit(priority=priority) for priority in ("low", "normal", "high", "urgent")]
    for task in on_rq.finished(*ids):
        assert (task["status"], task["owner"], task["attempts"]) == ("completed", "rq", 1)
        assert task["worker"].startswith("rq_0-")
        assert on_rq.effects(task["id"]) == {("start", "rq"): 1, ("end", "rq"): 1}


def test_a_failed_attempt_goes_through_the_outbox_again(on_rq: Running) -> None:
    (task,) = on_rq.finished(on_rq.submit(BROKEN))
    assert (task["status"], task["owner"], task["attempts"]) == ("failed", "rq", 3)
    assert on_rq.effects(task["id"]) == {("start", "rq"): 3}


def test_a_delayed_task_is_scheduled_in_rq_and_runs_after_its_time(on_rq: Running) -> None:
    task_id = on_rq.submit(delay_seconds=1.5)
    (task,) = on_rq.finished(task_id)
    assert (task["status"], task["owner"]) == ("completed", "rq")
    assert task["started_at"] >= task["available_at"]


def test_tasks_are_accepted_without_redis_and_placed_when_it_is_back(on_rq: Running) -> None:
    on_rq.supervisor.stop_group("redis")
    task_id = on_rq.submit()
    task = on_rq.task(task_id)
    assert (task["status"], task["owner"], task["enqueued_at"]) == ("queued", "rq", None)
    on_rq.supervisor.start_group("redis")
    (task,) = on_rq.finished(task_id)
    assert task["status"] == "completed"
    assert task["enqueued_at"] is not None
    assert on_rq.effects(task_id) == {("start", "rq"): 1, ("end", "rq"): 1}


def test_what_an_emptied_redis_has_lost_is_placed_again(on_rq: Running) -> None:
    """No run is open, so no playbook would. With the rights that a web process has."""
    on_rq.supervisor.stop_group("rqworkers")
    waiting = [on_rq.submit(priority=("urgent", "low")[number % 2]) for number in range(20)]
    until(lambda: all(on_rq.task(task_id)["enqueued_at"] for task_id in waiting), "the jobs are made")
    with PrivateRedis(on_rq.layout.redis, on_rq.state.redis_port, on_rq.state.redis_password).client() as redis:
        assert redis.flushall()
    on_rq.supervisor.start_group("rqworkers")
    on_rq.finished(*waiting)
    for task_id in waiting:
        assert on_rq.effects(task_id) == {("start", "rq"): 1, ("end", "rq"): 1}


@pytest.mark.parametrize(("account", "open_run"), [("captions_web", False), ("captions_legacy", True)])
def test_a_run_that_an_account_may_not_see_is_taken_for_open(running: Running, account: str, open_run: bool) -> None:
    """No run was ever made here: one account sees that its table is not there, the other may not look."""
    password = running.state.db_passwords[account]
    engine = make_engine(f"mysql+pymysql://{account}:{password}@127.0.0.1:{running.state.db_port}/captions")
    with engine.connect() as connection:
        assert no_run(connection) is not open_run
    engine.dispose()


def _says_that_redis_is_away(running: Running) -> set[bool]:
    """What the two web processes say, asked until each of them has answered."""
    said: dict[int, bool] = {}

    def both() -> bool:
        status, answer, _ = running.request("GET", "/health/ready")
        assert status == 200
        said[answer["pid"]] = any("Redis" in note for note in answer["notes"])
        return len(said) == WEB_PROCESSES

    until(both, "an answer of each web process", every=0.001)
    return set(said.values())


def test_an_outage_of_redis_is_noticed_by_every_process_and_its_end_too(on_rq: Running) -> None:
    assert _says_that_redis_is_away(on_rq) == {False}
    on_rq.supervisor.stop_group("redis")
    began = time.monotonic()
    until(lambda: _says_that_redis_is_away(on_rq) == {True}, "the outage is noticed")
    assert time.monotonic() - began < 30
    route = on_rq.admin("route")
    assert (route["share"], route["effective_share"]) == (100, 0)
    assert "pollers work on them" in route["note"]
    for_pollers = on_rq.submit()
    on_rq.finished(for_pollers)
    assert on_rq.task(for_pollers)["owner"] == "db"
    on_rq.admin("polling", {"polling": False})
    assert on_rq.admin("route")["effective_share"] == 100
    waits = on_rq.submit()
    assert on_rq.task(waits)["owner"] == "rq"
    on_rq.admin("polling", {"polling": True})
    on_rq.supervisor.stop_group("legacy")
    left_behind = [on_rq.submit(priority=priority) for priority in ("low", "urgent")]
    assert {on_rq.task(task_id)["owner"] for task_id in left_behind} == {"db"}
    on_rq.supervisor.start_group("redis")
    until(lambda: _says_that_redis_is_away(on_rq) == {False}, "the end of the outage is noticed")
    on_rq.finished(waits, *left_behind)
    for task_id in (waits, *left_behind):
        assert on_rq.effects(task_id) == {("start", "rq"): 1, ("end", "rq"): 1}
    on_rq.supervisor.start_group("legacy")
    assert on_rq.admin("route")["effective_share"] == 100


@pytest.mark.parametrize("share", [0, 50, 100])
def test_redis_killed_under_load_loses_and_doubles_nothing(on_rq: Running, share: int) -> None:
    on_rq.admin("route", {"share": share})
    on_rq.admin("polling", {"polling": share < 100})
    accepted: list[str] = []

    def pid_of_redis() -> int:
        return next(process.pid for process in on_rq.supervisor.processes() if process.name == "redis")

    before = pid_of_redis()
    for number in range(30):
        if number == 10:
            on_rq.supervisor.signal("redis", "KILL")
            until(lambda: pid_of_redis() not in (before, 0), "Redis is started again")
        if number == 20:
            on_rq.supervisor.stop_group("redis")
        accepted.append(on_rq.submit(priority=("urgent", "low")[number % 2]))
    on_rq.supervisor.start_group("redis")
    until(lambda: all(on_rq.task(task_id)["status"] == "completed" for task_id in accepted), "all are completed")
    owners = {on_rq.task(task_id)["owner"] for task_id in accepted}
    assert owners == {0: {"db"}, 50: {"db", "rq"}, 100: {"rq"}}[share]
    for task_id in accepted:
        assert sorted(on_rq.effects(task_id).values()) == [1, 1]
    on_rq.admin("route", {"share": 100})
    on_rq.admin("polling", {"polling": True})


def test_redis_away_for_a_minute_costs_no_task_in_any_mode(on_rq: Running) -> None:
    """Database only, both, RQ only, forced legacy, RQ again: each for 12 of the 60 seconds, two tasks a second."""
    modes = [
        ("db only", 0, False, True),
        ("both", 50, False, True),
        ("rq only", 100, False, False),
        ("forced", 100, True, True),
        ("back", 100, False, False),
    ]
    accepted: dict[str, list[str]] = {}
    on_rq.supervisor.stop_group("redis")
    until(lambda: _says_that_redis_is_away(on_rq) == {True}, "the outage is noticed")
    began = time.monotonic()
    for number, (mode, share, forced, polling) in enumerate(modes):
        on_rq.admin("route", {"share": share})
        on_rq.admin("emergency", {"on": forced, "reason": "drill"})
        on_rq.admin("polling", {"polling": polling})
        while time.monotonic() - began < 12 * (number + 1):
            accepted.setdefault(mode, []).append(on_rq.submit(priority=("urgent", "low")[len(accepted) % 2]))
            time.sleep(0.5)
    on_rq.admin("polling", {"polling": True})
    assert not [task for task in accepted["rq only"] if on_rq.task(task)["enqueued_at"]], "Redis came back early"
    on_rq.finished(*(task for mode in ("db only", "both", "forced") for task in accepted[mode]))
    on_rq.supervisor.start_group("redis")
    everything = [task_id for tasks in accepted.values() for task_id in tasks]
    assert all(len(accepted[mode]) >= 5 for mode, *_ in modes)
    until(lambda: all(on_rq.task(task_id)["status"] == "completed" for task_id in everything), "all are completed")
    owners = {mode: {on_rq.task(task_id)["owner"] for task_id in tasks} for mode, tasks in accepted.items()}
    expected = {"db only": {"db"}, "both": {"db"}, "rq only": {"rq"}, "forced": {"db"}, "back": {"rq"}}
    assert owners == expected
    for task_id in everything:
        assert sorted(on_rq.effects(task_id).values()) == [1, 1]


def test_a_job_that_a_worker_died_with_is_taken_up_again(on_rq: Running) -> None:
    on_rq.supervisor.stop_group("rqworkers")
    task_id = on_rq.submit(priority="low")
    with Redis(port=on_rq.state.redis_port, password=on_rq.state.redis_password) as redis:
        # As it is when worker and horse end between the pop and the claim; the last heartbeat is good for 20 s yet.
        assert redis.lrem("captions-rq:queue:low", 1, task_id) == 1
        redis.hset(f"captions-rq:job:{task_id}", "status", "started")
        redis.zadd("captions-rq:wip:low", {f"{task_id}:{'0' * 32}": time.time() + 20})
        on_rq.supervisor.start_group("rqworkers")
        (task,) = on_rq.finished(task_id)
    assert (task["status"], task["attempts"]) == ("completed", 1)
    assert sorted(on_rq.effects(task_id).values()) == [1, 1]


def test_the_guard_turns_away_a_job_whose_task_was_cancelled_or_taken_back(on_rq: Running) -> None:
    on_rq.supervisor.stop_group("rqworkers")
    cancelled, taken_back = on_rq.submit(), on_rq.submit(delay_seconds=0)
    assert on_rq.request("POST", f"/tasks/{cancelled}/cancel")[0] == 200
    on_rq.sql("UPDATE caption_tasks SET custody = 'held' WHERE id = %s", taken_back)
    after = on_rq.submit(priority="low")
    on_rq.supervisor.start_group("rqworkers")
    on_rq.finished(after)
    assert on_rq.effects(cancelled) == on_rq.effects(taken_back) == {}
    assert on_rq.task(cancelled)["status"] == "cancelled"
    assert on_rq.task(taken_back)["status"] == "queued"


def test_in_an_emergency_new_tasks_stay_in_the_database(on_rq: Running) -> None:
    assert on_rq.admin("emergency", {"on": True, "reason": "drill"})["effective_share"] == 0
    assert on_rq.task(on_rq.submit())["owner"] == "db"
    assert on_rq.admin("emergency", {"on": False})["effective_share"] == 100


def test_statistics_add_up(on_rq: Running) -> None:
    stats = on_rq.admin("stats")
    total = sum(stats["by_status"].values())
    assert total == sum(stats["by_priority"].values()) == sum(stats["by_custody"].values()) > 10


def test_kill_of_a_store_is_survived(on_rq: Running) -> None:
    mariadb = next(p for p in on_rq.supervisor.processes() if p.name == "mariadb")
    on_rq.supervisor.signal("mariadb", "KILL")
    until(lambda: next(p for p in on_rq.supervisor.processes() if p.name == "mariadb").pid not in (0, mariadb.pid))
    until(lambda: on_rq.request("GET", "/health")[0] == 200)
    (task,) = on_rq.finished(on_rq.submit())
    assert task["status"] == "completed"


def test_a_lab_whose_supervisord_was_killed_is_taken_up_again(on_rq: Running) -> None:
    pid = on_rq.supervisor.pid
    assert pid is not None
    # Its children survive it and keep their ports and the data directory.
    os.kill(pid, signal.SIGKILL)
    until(lambda: not on_rq.supervisor.running)
    assert len(leftovers(on_rq.layout)) >= 5
    on_rq.lab.up({})
    assert {p.state for p in on_rq.supervisor.processes() if p.group in ("mariadb", "redis", "web")} == {"RUNNING"}
    assert on_rq.request("GET", "/health")[0] == 200
