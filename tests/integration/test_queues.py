"""Queues of captions' runtime, on both systems: order, pause, one active task per user, statistics, clean-up."""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter

import pytest

from captions import tasks
from integration.runtime import Runtime
from lab.images import BROKEN

pytestmark = pytest.mark.real
PRIORITIES = ("urgent", "high", "normal", "low")


def begun(runtime: Runtime) -> list[str]:
    """Ids in the order in which workers began them."""
    lines = [json.loads(line) for line in runtime.settings.effects_file.read_text().splitlines()]
    return [line["task"] for line in lines if line["event"] == "start"]


def work(runtime: Runtime, share: int) -> None:
    if share:
        runtime.work()
    else:
        runtime.poll()


@pytest.mark.parametrize("share", [0, 100])
def test_priorities_are_strict_and_first_come_first_served_within_one(runtime: Runtime, share: int) -> None:
    runtime.route(share)
    submitted = [(priority, runtime.submit(priority=priority)) for _ in range(3) for priority in reversed(PRIORITIES)]
    work(runtime, share)
    expected = [task_id for wanted in PRIORITIES for priority, task_id in submitted if priority == wanted]
    assert begun(runtime) == expected


@pytest.mark.parametrize("share", [0, 100])
def test_nothing_of_a_paused_queue_is_begun_until_it_is_resumed(runtime: Runtime, share: int) -> None:
    runtime.route(share)
    before = runtime.submit(priority="high")
    status, answer = runtime.ask("POST", "queues/high/pause", role="operate")
    assert status == 200
    assert {queue["queue"]: queue["paused"] for queue in answer["queues"]}["high"]
    during, other = runtime.submit(priority="high"), runtime.submit(priority="low")
    runtime.sql("UPDATE caption_tasks SET created_at = created_at - INTERVAL 1 MINUTE")
    work(runtime, share)
    assert begun(runtime) == [other]
    assert runtime.sweeper.sweep() == 0
    for task_id in (before, during):
        task = runtime.task(task_id)
        assert (task["status"], task["attempts"], task["enqueued_at"]) == ("queued", 0, None)
    assert runtime.ask("POST", "queues/high/resume", role="operate")[0] == 200
    assert runtime.sweeper.sweep() == (2 if share else 0)
    work(runtime, share)
    assert begun(runtime) == [other, before, during]
    assert {runtime.task(i)["attempts"] for i in (before, during, other)} == {1}


def test_a_queue_or_action_that_does_not_exist_is_named(runtime: Runtime) -> None:
    for path in ("queues/utmost/pause", "queues/high/stop"):
        status, answer = runtime.ask("POST", path)
        assert status == 404
        assert "urgent, high, normal, low" in answer["error"]
    assert runtime.ask("POST", "queues/high/pause", role="view")[0] == 403


@pytest.mark.parametrize("share", [0, 100])
def test_of_fifty_concurrent_submissions_of_a_user_one_is_accepted(runtime: Runtime, share: int) -> None:
    runtime.route(share)
    together = threading.Barrier(50)
    statuses: list[int] = []

    def submit() -> None:
        client = runtime.client.application.test_client()
        together.wait()
        statuses.append(client.post("/tasks", json={"user_id": 7, "image": "image-01.png"}).status_code)

    threads = [threading.Thread(target=submit) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(statuses) == {201: 1, 409: 49}
    assert runtime.sql("SELECT COUNT(*) FROM caption_tasks") == [(1,)]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize(("first", "second"), [(0, 100), (100, 0)])
def test_every_end_of_a_task_lets_its_user_submit_again_on_either_system(
    runtime: Runtime, end: str, first: int, second: int
) -> None:
    runtime.route(first)
    image = BROKEN if end == "failed" else "image-01.png"
    task_id = runtime.submit(user_id=7, image=image)
    runtime.route(second)
    body = {"user_id": 7, "image": "image-01.png"}
    assert runtime.client.post("/tasks", json=body).status_code == 409
    if end == "cancelled":
        assert runtime.client.post(f"/tasks/{task_id}/cancel").status_code == 200
    for _ in range(3):
        work(runtime, first)
        runtime.sql("UPDATE caption_tasks SET created_at = created_at - INTERVAL 1 MINUTE")
        runtime.sweeper.sweep()
    assert runtime.task(task_id)["status"] == end
    again = runtime.submit(user_id=7)
    assert runtime.task(again)["owner"] == ("rq" if second else "db")


def test_ids_cannot_be_guessed(runtime: Runtime) -> None:
    ids = [uuid.UUID(runtime.submit()) for _ in range(20)]
    assert {task_id.version for task_id in ids} == {4}  # 122 bits of the system's random source
    assert len({task_id.bytes[:4] for task_id in ids}) == 20


def test_what_waits_is_counted_by_queue_and_system(runtime: Runtime) -> None:
    runtime.submit(priority="low")
    runtime.submit(priority="low", delay_seconds=600)
    runtime.route(100)
    runtime.submit(priority="urgent")
    claim = tasks.claim_for_rq(runtime.engine, runtime.submit(priority="urgent"), "w", 60)
    assert claim is not None
    _, answer = runtime.ask("GET", "queues", role="view")
    shown = {(row["queue"], row["system"]): (row["ready"], row["delayed"], row["running"]) for row in answer["waiting"]}
    assert shown == {("low", "db"): (1, 1, 0), ("urgent", "rq"): (1, 0, 1)}
    assert all(row["oldest_ready_seconds"] > 0 for row in answer["waiting"])


def test_clean_up_takes_what_ended_long_ago_and_no_dead_letter(runtime: Runtime) -> None:
    old, young, failed = runtime.submit(), runtime.submit(), runtime.submit(image=BROKEN)
    runtime.poll()
    waiting = runtime.submit()
    runtime.sql("UPDATE caption_tasks SET finished_at = finished_at - INTERVAL 2 DAY WHERE id <> :id", id=young)
    assert runtime.ask("POST", "maintenance/clean-up", {"older_than_seconds": 60})[0] == 400
    assert runtime.ask("POST", "maintenance/clean-up", {"older_than_seconds": 86400}, role="operate")[0] == 403
    status, answer = runtime.ask("POST", "maintenance/clean-up", {"older_than_seconds": 86400})
    assert (status, answer) == (200, {"deleted": 1, "more": False})
    assert {row[0] for row in runtime.sql("SELECT id FROM caption_tasks")} == {young, failed, waiting}
    assert runtime.client.get(f"/tasks/{old}").status_code == 404
