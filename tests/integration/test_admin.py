"""Administration and metrics of captions' runtime."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from captions import metrics
from integration.runtime import TOKENS, Runtime
from lab.images import BROKEN

pytestmark = pytest.mark.real


def samples(runtime: Runtime) -> dict[tuple[str, str, str], float]:
    """What Prometheus would read, by name, system and queue."""
    answer = runtime.client.get("/metrics", headers={"Authorization": f"Bearer {TOKENS['VIEW_TOKEN']}"})
    assert answer.status_code == 200
    return {
        (sample.name, sample.labels.get("system", ""), sample.labels.get("queue", "")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


@pytest.fixture
def counting(runtime: Runtime) -> Iterator[Runtime]:
    """With a directory for counters, which this process shares with the workers that it starts."""
    directory = runtime.directory / "metrics"
    made = Runtime(runtime.directory, runtime.database_url, runtime.redis_url, {"METRICS_DIR": str(directory)})
    yield made
    made.close()


def test_both_systems_are_counted_under_the_same_names(counting: Runtime) -> None:
    for share in (0, 100):
        counting.route(share)
        for image in ("image-01.png", "image-02.png", BROKEN):
            counting.submit(image=image, priority="high")
        if share:
            for _ in range(3):
                counting.work()
                counting.sql("UPDATE caption_tasks SET created_at = created_at - INTERVAL 1 MINUTE")
                counting.sweeper.sweep()
        else:
            counting.poll()
    found = samples(counting)
    for system in ("db", "rq"):
        assert {
            name: found[f"captions_{name}", system, "high"]
            for name in ("tasks_submitted_total", "tasks_started_total", "tasks_completed_total", "tasks_failed_total")
        } == {
            "tasks_submitted_total": 3,
            "tasks_started_total": 5,
            "tasks_completed_total": 2,
            "tasks_failed_total": 1,
        }
        assert found["captions_attempts_retried_total", system, "high"] == 2
        assert found["captions_submission_seconds_count", system, ""] == 3
        assert found["captions_pickup_seconds_count", system, ""] == 3
    assert found["captions_dead_letters", "", ""] == 2


def test_what_waits_and_who_works_is_read_from_the_stores(counting: Runtime) -> None:
    counting.submit(priority="low")
    counting.submit(priority="low", delay_seconds=600)
    counting.route(100)
    counting.submit(priority="urgent")
    found = samples(counting)
    depths = {key[1:]: value for key, value in found.items() if key[0] == "captions_queue_depth" and value}
    assert depths == {("db", "low"): 1, ("rq", "urgent"): 1}
    assert found["captions_queue_delayed", "db", "low"] == 1
    assert found["captions_oldest_ready_seconds", "db", "low"] > 0
    assert found["captions_redis_up", "", ""] == 1
    assert found["captions_rq_share", "", ""] == 100
    assert (found["captions_workers", "db", ""], found["captions_workers", "rq", ""]) == (0, 0)
    metrics.beat("poller")
    assert samples(counting)["captions_workers", "db", ""] == 1
    assert [worker["name"] for worker in counting.ask("GET", "workers", role="view")[1]["workers"]] == ["poller"]


def test_without_redis_the_metrics_say_so(counting: Runtime, redis_server: object) -> None:
    redis_server.stop()  # type: ignore[attr-defined]
    try:
        found = samples(counting)
    finally:
        redis_server.start()  # type: ignore[attr-defined]
    assert found["captions_redis_up", "", ""] == 0
    assert ("captions_workers", "rq", "") not in found


def test_metrics_need_a_token(runtime: Runtime) -> None:
    assert runtime.client.get("/metrics").status_code == 401


def test_tasks_are_listed_inspected_cancelled_and_requeued(runtime: Runtime) -> None:
    runtime.route(100)
    on_rq = runtime.submit(user_id=7, priority="urgent")
    runtime.route(0)
    on_db = runtime.submit(user_id=8, image="image-02.png")
    _, answer = runtime.ask("GET", "tasks", role="view")
    assert [task["id"] for task in answer["tasks"]] == sorted([on_rq, on_db])
    assert not {"payload", "image_path", "caption"} & set(answer["tasks"][0])
    for query, ids in {
        "system=rq": [on_rq],
        "system=db&status=queued": [on_db],
        "queue=urgent": [on_rq],
        "user_id=8": [on_db],
        "kind=caption&status=completed": [],
        "system=x' OR '1'='1": [],
    }.items():
        assert [task["id"] for task in runtime.ask("GET", f"tasks?{query}")[1]["tasks"]] == ids, query
    assert runtime.ask("GET", f"tasks/{on_rq}")[1]["rq_job"] == "queued"
    assert runtime.ask("GET", f"tasks/{on_db}")[1]["rq_job"] is None
    assert runtime.ask("GET", "tasks/absent")[0] == 404
    assert runtime.ask("POST", f"tasks/{on_db}/cancel", role="view")[0] == 403
    assert runtime.ask("POST", f"tasks/{on_db}/cancel", role="operate")[0] == 200
    status, answer = runtime.ask("POST", f"tasks/{on_db}/cancel", role="operate")
    assert (status, answer["error"]) == (409, "the task is cancelled; only a queued task can be cancelled")
    assert runtime.ask("POST", f"tasks/{on_db}/requeue", role="operate")[1]["custody"] == "db"
    assert runtime.poll() == 1
    assert runtime.task(on_db)["status"] == "completed"


def test_a_living_rq_worker_is_listed(runtime: Runtime) -> None:
    from rq import Worker
    from rq.serializers import JSONSerializer

    worker = Worker(["high"], name="w1", connection=runtime.redis, serializer=JSONSerializer)
    worker.register_birth()
    (shown,) = runtime.ask("GET", "workers")[1]["workers"]
    assert (shown["name"], shown["system"], shown["queues"]) == ("w1", "rq", ["high"])
    worker.register_death()
    assert runtime.ask("GET", "workers")[1]["workers"] == []


def test_every_administrative_endpoint_asks_for_a_token(runtime: Runtime) -> None:
    application = runtime.client.application
    rules = [rule for rule in application.url_map.iter_rules() if rule.rule.startswith(("/admin", "/metrics"))]
    # The page holds no data: what it shows it asks for, with the token that it asks for.
    page = {"/admin/dashboard/", "/admin/dashboard/<path:filename>"}
    assert page < {rule.rule for rule in rules}
    assert len(rules) > 15
    for rule in [rule for rule in rules if rule.rule not in page]:
        path = rule.rule.replace("<task_id>", "x").replace("<queue>", "high").replace("<action>", "pause")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            assert runtime.client.open(path, method=method, json={}).status_code == 401, path


def test_an_announced_pause_begins_and_ends_by_itself(runtime: Runtime) -> None:
    plan = {"reason": "new disks", "in_seconds": 600, "seconds": 300}
    status, answer = runtime.ask("POST", "maintenance", plan)
    assert status == 200
    assert 595 < answer["planned"]["starts_in_seconds"] <= 600 < 895 < answer["planned"]["left_seconds"] <= 900
    runtime.submit()
    assert runtime.client.get("/health/ready").get_json()["notes"][-1].endswith("s: new disks")

    def at(seconds: int) -> None:
        """As if so much time had passed since it was announced."""
        runtime.sql(
            "UPDATE captions_control SET planned_from = UTC_TIMESTAMP(6) + INTERVAL :a SECOND,"
            " planned_until = UTC_TIMESTAMP(6) + INTERVAL :b SECOND",
            a=600 - seconds,
            b=900 - seconds,
        )

    at(700)
    refused = runtime.client.post("/tasks", json={"user_id": 900, "image": "image-01.png"})
    assert (refused.status_code, refused.get_json()["error"]) == (503, "submissions are paused: new disks")
    assert 100 < int(refused.headers["Retry-After"]) <= 200
    assert runtime.ask("GET", "intake")[1]["reason"] == "new disks"
    # A pause of somebody else's that lasts longer is the one that counts, and its end ends both.
    runtime.ask("POST", "intake", {"action": "pause", "reason": "longer", "seconds": 800})
    assert runtime.ask("GET", "intake")[1]["reason"] == "longer"
    runtime.ask("POST", "intake", {"action": "resume"})
    runtime.submit()
    assert runtime.ask("GET", "maintenance")[1] == {"planned": None}

    runtime.ask("POST", "maintenance", plan)
    at(901)
    runtime.submit()
    runtime.ask("POST", "maintenance", plan)
    # To resume ends what lasts, not what is to come; taking the announcement back does.
    runtime.ask("POST", "intake", {"action": "resume"})
    assert runtime.ask("GET", "maintenance")[1]["planned"]["reason"] == "new disks"
    assert runtime.ask("DELETE", "maintenance")[1] == {"planned": None}
    at(700)
    runtime.ask("DELETE", "maintenance")
    runtime.submit()
    for wrong in ({**plan, "seconds": 0}, {**plan, "in_seconds": -1}, {"in_seconds": 1, "seconds": 1}):
        assert runtime.ask("POST", "maintenance", wrong)[0] == 400
    assert runtime.ask("POST", "maintenance", plan, role="operate")[0] == 403
