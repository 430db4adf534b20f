"""What is recommended when something is really wrong: stores down, frozen, emptied or slow, and work that fails."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from ansible.module_utils.sluice.core.phases import Phase

from conftest import PlantedSecrets
from lab.stores import PrivateMariaDB, PrivateRedis, free_port
from modules.site import Outcome, Site

pytestmark = pytest.mark.real

#: What assess.yml promises, with what Ansible itself takes.
PROMISE_SECONDS = 30.0
WELL = {"health": {"status": 200, "latency": 0.01, "detail": "OK"}, "logs": [], "workers": -1, "workers_problem": ""}
DOWN = {**WELL, "health": {"status": 0, "latency": 0.01, "detail": "[Errno 111] Connection refused"}}
NEXT = "ansible-playbook playbooks/"


def assess(site: Site, app: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """One assessment by the account that may only read; it writes nothing and keeps the promise."""
    hosts = {"app1": WELL if app is None else app}
    given: dict[str, Any] = {"db_url": site.read_url, "hosts": hosts, "application_hosts": ["app1"], **options}
    begun = time.monotonic()
    outcome: Outcome = site.call("queue_assess", **given).assert_done()
    assert time.monotonic() - begun < PROMISE_SECONDS
    assert outcome.result["changed"] is False
    assert outcome.result["lines"][-1] == f"next: {outcome.result['next']}"
    assert outcome.result["reasons"]
    return outcome.result


def answer(found: dict[str, Any], name: str) -> dict[str, str]:
    """The reading of that name."""
    [line] = [line for line in found["answers"] if line["name"] == name]
    return dict(line)


def in_target(site: Site, count: int = 8) -> list[str]:
    """A run at 'verified' whose tasks are all in RQ: rows, jobs, route and stamp."""
    ids = site.seed(count)
    site.open(Phase.VERIFIED)
    site.sql("UPDATE caption_tasks SET custody = 'rq', enqueued_at = UTC_TIMESTAMP(6)")
    site.sql("UPDATE captions_control SET rq_share = 100, polling = 0")
    for task_id, queue in site.sql("SELECT id, priority FROM caption_tasks ORDER BY created_at"):
        job(site, task_id, queue)
    return ids


def job(site: Site, task_id: str, queue: str, *, status: str = "queued", at: float | None = None) -> None:
    """A job as RQ writes it, in its queue when it is queued."""
    moment = datetime.fromtimestamp(time.time() if at is None else at, UTC)
    site.client.hset(
        f"rq:job:{task_id}",
        mapping={"status": status, "origin": queue, "enqueued_at": f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z", "data": b"x"},
    )
    site.client.sadd("rq:queues", f"rq:queue:{queue}")
    if status == "queued":
        site.client.rpush(f"rq:queue:{queue}", task_id)


# -- nothing is wrong --------------------------------------------------------------------------------------------------


def test_a_system_that_was_never_moved(site: Site) -> None:
    site.seed(5)
    with site.unchanged():
        found = assess(site)
    assert (found["standing"], found["action"]) == ("settled", "nothing to roll back")
    assert found["next"] == NEXT + "status.yml"
    assert answer(found, "stores compared")["reading"] == "nothing was ever moved"


def test_a_healthy_system_in_the_target(site: Site) -> None:
    in_target(site)
    with site.worker(), site.unchanged():
        found = assess(site)
        checked = site.call("queue_assess", check=True, db_url=site.read_url).assert_done()
    assert found["standing"] == checked.result["standing"] == "in target"
    assert [found[a] for a in ("severity", "function", "integrity", "performance", "stability")] == [
        "low", "works", "intact", "normal", "stable"
    ], found["lines"]  # fmt: skip
    assert (found["action"], found["next"]) == ("fix in place", NEXT + "assess.yml")
    assert "balance of every id: 8 known, 0 at fault" in answer(found, "stores compared")["reading"]
    assert {line["question"] for line in found["answers"]} == {
        "system health", "queue state", "processing tasks", "data integrity", "error logs"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stated", "book"),
    [
        ("low", "assess.yml"),
        ("medium", "hybrid.yml -e queue_share=25"),
        ("high", "planned-rollback.yml"),
        ("critical", "emergency-rollback.yml"),
    ],
)
def test_the_severity_that_is_stated(site: Site, stated: str, book: str) -> None:
    in_target(site)
    with site.worker():
        found = assess(site, severity=stated, inventory=["inventories/mine"])
    assert found["severity"] == stated
    assert found["next"] == f"ansible-playbook -i inventories/mine playbooks/{book}"
    assert any(line.startswith("standing     in target") for line in found["lines"]), found["lines"]


# -- Redis -------------------------------------------------------------------------------------------------------------


def test_redis_is_down(site: Site, planted_secrets: PlantedSecrets) -> None:
    in_target(site)
    port = site.redis_url.rsplit(":", 1)[1].split("/")[0]
    found = assess(site, redis_url=site.redis_url.replace(f":{port}/", f":{free_port()}/"), severity="low")
    assert (found["function"], found["integrity"], found["severity"]) == ("none", "unknown", "critical")
    assert (found["action"], found["next"]) == ("emergency rollback", NEXT + "emergency-rollback.yml")
    assert "no answer" in answer(found, "Redis")["reading"]
    assert "low was stated" in "\n".join(found["lines"])
    assert answer(found, "rows by place")["verdict"] == "passed", "the database's half is answered all the same"
    planted_secrets.assert_absent(str(found), "an assessment without Redis")


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that takes connections, since the kernel does, and answers none."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_redis_is_frozen(site: Site, redis_server: PrivateRedis) -> None:
    in_target(site)
    assert redis_server.pid is not None
    with frozen(redis_server.pid):
        found = assess(site)
    assert (found["function"], found["action"]) == ("none", "emergency rollback")
    assert answer(found, "Redis")["verdict"] == "failed"
    assert answer(found, "RQ queues")["verdict"] == "unknown"
    assert answer(found, "database")["verdict"] == "passed"


def test_redis_was_emptied(site: Site) -> None:
    in_target(site)
    site.client.flushdb()
    with site.worker():
        found = assess(site)
        assert (found["standing"], found["integrity"]) == ("emptied", "compromised")
        assert (found["action"], found["severity"]) == ("recover", "low")
        assert found["next"].startswith(NEXT + 'recover.yml -e \'{"queue_recover_reason":')
        assert assess(site, severity="critical")["action"] == "emergency rollback"
    assert assess(site)["action"] == "emergency rollback", "nor is there a worker"


def test_redis_refuses_writes(site: Site) -> None:
    in_target(site)
    site.client.config_set("maxmemory", "1")
    try:
        with site.worker():
            pass
    except redis.exceptions.OutOfMemoryError:
        found = assess(site)
    finally:
        site.client.config_set("maxmemory", "0")
    assert found["function"] == "none"
    assert "its memory is full" in answer(found, "Redis")["reading"]


# -- the application, the workers, the jobs ----------------------------------------------------------------------------


def test_the_application_is_down(site: Site) -> None:
    in_target(site)
    with site.worker():
        found = assess(site, app=DOWN)
    assert (found["function"], found["action"]) == ("none", "emergency rollback")
    assert answer(found, "application on app1")["verdict"] == "failed"


def test_an_application_host_that_cannot_be_reached_is_not_dead(site: Site) -> None:
    in_target(site)
    hosts = {"app1": WELL, "app2": {"unreachable": True, "msg": "timed out"}}
    with site.worker():
        found = assess(site, hosts=hosts, application_hosts=["app1", "app2"])
    assert (found["function"], found["stability"]) == ("works", "unstable")
    assert found["action"] == "partial rollback"
    assert answer(found, "application on app2") == {
        "question": "system health", "name": "application on app2", "verdict": "unknown", "reading": "cannot be reached"
    }  # fmt: skip


def test_no_worker_lives(site: Site) -> None:
    in_target(site)
    found = assess(site)
    assert (found["function"], found["action"]) == ("none", "emergency rollback")
    assert found["reasons"][0].startswith("function is none"), found["reasons"]


@pytest.mark.parametrize("how", ["no connection of theirs", "their supervisor keeps none"])
def test_workers_killed_a_moment_ago_still_look_alive_by_their_heartbeat(site: Site, how: str) -> None:
    in_target(site)
    with site.worker():
        if how == "no connection of theirs":
            found = assess(site, target_redis_users=["only-the-workers"])
        else:
            hosts = {"app1": WELL, "rq1": {**WELL, "health": {}, "workers": 0}}
            found = assess(site, hosts=hosts)
    assert (found["function"], found["action"]) == ("none", "emergency rollback")
    assert answer(found, "RQ workers")["verdict"] == "failed"


def test_many_jobs_failed(site: Site) -> None:
    in_target(site)
    for number in range(30):
        site.client.zadd("rq:failed:high", {f"job-{number}": time.time() + 31536000})
    with site.worker():
        found = assess(site)
        assert (found["stability"], found["action"]) == ("unstable", "partial rollback")
        assert answer(found, "RQ failed")["reading"] == "30 lately, 30 in all"
    # Those of yesterday are history.
    site.client.delete("rq:failed:high")
    site.client.zadd("rq:failed:high", {f"job-{n}": time.time() + 31536000 - 86400 for n in range(30)})
    with site.worker():
        assert assess(site)["stability"] == "stable"


def test_started_jobs_without_a_living_worker(site: Site) -> None:
    [task_id, *_] = in_target(site)
    site.client.lrem("rq:queue:urgent", 0, task_id)
    site.client.hset(f"rq:job:{task_id}", "status", "started")
    site.sql("UPDATE caption_tasks SET status = 'running' WHERE id = :id", id=task_id)
    site.client.zadd("rq:wip:urgent", {f"{task_id}:e1": time.time() - 5})
    with site.worker():
        found = assess(site)
    assert (found["integrity"], found["stability"]) == ("intact", "unstable")
    assert answer(found, "RQ started")["reading"] == "1 started, 1 without a live worker"


@pytest.mark.parametrize(("waits", "performance", "action"), [
    (10, "normal", "fix in place"), (600, "degraded", "partial rollback"), (4000, "severe", "planned rollback"),
])  # fmt: skip
def test_jobs_that_wait_long(site: Site, waits: int, performance: str, action: str) -> None:
    ids = in_target(site)
    site.client.lrem("rq:queue:urgent", 0, ids[0])
    site.client.lpush("rq:queue:urgent", ids[0])
    moment = datetime.fromtimestamp(time.time() - waits, UTC)
    site.client.hset(f"rq:job:{ids[0]}", "enqueued_at", f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z")
    with site.worker():
        found = assess(site)
    assert (found["performance"], found["action"]) == (performance, action)


# -- data --------------------------------------------------------------------------------------------------------------


def test_a_task_that_is_lost(site: Site) -> None:
    ids = in_target(site)
    site.client.delete(f"rq:job:{ids[3]}")
    site.client.lrem("rq:queue:low", 0, ids[3])
    with site.worker():
        found = assess(site)
    assert (found["integrity"], found["action"]) == ("compromised", "emergency rollback")
    assert ids[3] in answer(found, "stores compared")["reading"]


def test_a_balance_that_takes_too_long_leaves_a_sample_that_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ansible.module_utils.sluice.services import assess as service

    in_target(site)

    def out_of_time(*_: object) -> None:
        raise service._TimeIsUp

    monkeypatch.setattr(service.Comparison, "_balanced", out_of_time)
    with site.worker():
        found = assess(site)
        assert found["integrity"] == "intact"
        assert answer(found, "stores compared")["reading"].startswith("sample of 8 ids")
        site.client.flushdb()
        site.open(Phase.VERIFIED)  # the stamp is back, and nothing else
        found = assess(site)
    assert found["integrity"] == "compromised"
    assert "8 at fault" in answer(found, "stores compared")["reading"]


def test_the_database_was_restored_under_a_living_redis(site: Site) -> None:
    in_target(site)
    site.client.set("sluice:{captions}:token", 10**6)
    with site.worker():
        found = assess(site)
    assert (found["integrity"], found["action"]) == ("compromised", "emergency rollback")
    assert "the database was restored" in answer(found, "stores compared")["reading"]


# -- the database ------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_mariadb(tmp_path: Path) -> Iterator[PrivateMariaDB]:
    """A database server that may be frozen without holding up the other tests."""
    server = PrivateMariaDB(tmp_path / "other", free_port(), buffer_pool_mb=32)
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_the_database_is_frozen_or_down(site: Site, other_mariadb: PrivateMariaDB) -> None:
    assert other_mariadb.pid is not None
    engine = sa.create_engine(other_mariadb.root_url("mysql"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE DATABASE captions"))
    engine.dispose()
    url = other_mariadb.root_url("captions")
    with frozen(other_mariadb.pid):
        found = assess(site, db_url=url)
    assert (found["standing"], found["action"]) == ("database away", "bring the database back first")
    assert found["next"] == NEXT + "assess.yml"
    assert answer(found, "Redis")["verdict"] == "passed"
    other_mariadb.kill()
    found = assess(site, db_url=url)
    assert found["action"] == "bring the database back first"
    assert "check host and port" in answer(found, "database")["reading"]


def test_a_slow_database_is_not_an_absent_one(site: Site) -> None:
    """The task table is locked, so that counting it has no end; the ledger answers."""
    in_target(site)
    with site.worker(), site.engine.connect() as holder:
        holder.exec_driver_sql("LOCK TABLES caption_tasks WRITE")
        try:
            found = assess(site)
        finally:
            holder.exec_driver_sql("UNLOCK TABLES")
    assert found["standing"] == "in target"
    assert (found["integrity"], found["performance"]) == ("unknown", "degraded")
    assert found["action"] == "planned rollback"
    assert answer(found, "rows by place")["verdict"] == "unknown"


def test_a_ledger_that_cannot_be_read_is_taken_for_the_worse(site: Site) -> None:
    in_target(site)
    with site.worker(), site.engine.connect() as holder:
        holder.exec_driver_sql("LOCK TABLES sluice_run WRITE")
        try:
            found = assess(site)
        finally:
            holder.exec_driver_sql("UNLOCK TABLES")
    assert (found["standing"], found["integrity"]) == ("unreadable", "unknown")
    assert found["action"] == "planned rollback"
    assert answer(found, "run")["verdict"] == "unknown"


def test_nothing_that_is_left_running_keeps_the_database(site: Site) -> None:
    in_target(site)
    assess(site)
    user = site.accounts["sluice_read"].split("@")[0]
    until = time.monotonic() + 10
    while site.sql("SELECT COUNT(*) FROM information_schema.processlist WHERE user = :user", user=user) != [(0,)]:
        assert time.monotonic() < until, "a connection of the assessment is still open"
        time.sleep(0.05)


# -- where the run stands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "share", "standing", "action", "book"),
    [
        (Phase.PREPARED, 0, "begun", "undo", "planned-rollback.yml"),
        (Phase.HYBRID, 25, "shared", "planned rollback", "planned-rollback.yml"),
        (Phase.ROUTED, 100, "shared", "planned rollback", "planned-rollback.yml"),
        (Phase.FENCED, 100, "moving", "planned rollback", "planned-rollback.yml"),
        (Phase.TRANSFERRED, 100, "in target", "planned rollback", "planned-rollback.yml"),
        (Phase.VALIDATED, 100, "in target", "planned rollback", "planned-rollback.yml"),
    ],
)
def test_the_same_severity_where_the_run_stands_elsewhere(
    site: Site, phase: Phase, share: int, standing: str, action: str, book: str
) -> None:
    site.seed(4)
    site.open(phase)
    site.sql("UPDATE captions_control SET rq_share = :share", share=share)
    with site.worker():
        found = assess(site, severity="high")
    assert (found["standing"], found["action"], found["next"]) == (standing, action, NEXT + book)


def test_in_the_middle_of_a_transfer_mild_trouble_is_finished(site: Site) -> None:
    site.seed(4)
    site.open(Phase.FENCED)
    with site.worker():
        found = assess(site, severity="medium")
    assert (found["action"], found["next"]) == ("finish forward", NEXT + "migrate.yml")


@pytest.mark.parametrize(("emergency", "book"), [(False, "planned-rollback.yml"), (True, "emergency-rollback.yml")])
def test_a_rollback_that_is_open_is_finished(site: Site, emergency: bool, book: str) -> None:
    in_target(site)
    site.sql("UPDATE sluice_run SET direction = 'back', phase = 'routed', settings = :settings",
             settings=json.dumps({"emergency": emergency, "undoes": "x"}))  # fmt: skip
    found = assess(site)
    assert (found["standing"], found["action"], found["next"]) == ("going back", "finish the rollback", NEXT + book)
    assert assess(site, severity="critical")["next"] == NEXT + "emergency-rollback.yml"


def test_the_run_has_ended_and_the_target_is_in_service(site: Site) -> None:
    in_target(site)
    site.sql("UPDATE sluice_run SET open_system = NULL, phase = 'cleaned'")
    site.client.delete(*site.client.keys("sluice:*"))
    with site.worker():
        assert (found := assess(site))["standing"] == "in service"
        assert found["integrity"] == "intact", found["lines"]
        assert assess(site, severity="medium")["action"] == "planned rollback"


# -- the hosts ---------------------------------------------------------------------------------------------------------


def test_errors_in_the_logs(site: Site, planted_secrets: PlantedSecrets, tmp_path: Path) -> None:
    secret = planted_secrets.plant("log")
    now, old = datetime.now().astimezone(), datetime.fromtimestamp(time.time() - 7200).astimezone()
    log = tmp_path / "web.log"
    lines = [f"{old:%Y-%m-%d %H:%M:%S},000 web ERROR yesterday's trouble"] * 40
    lines += [f"{now:%Y-%m-%d %H:%M:%S},000 web ERROR {n}" for n in range(25)]
    lines += [f"{now:%Y-%m-%d %H:%M:%S},000 web INFO all is well"]
    lines += [
        f"{now:%Y-%m-%d %H:%M:%S},000 web CRITICAL cannot log in to redis://web:{secret}@host/0 password={secret}"
    ]
    lines += ["Traceback (most recent call last):", "  File ...", "ValueError: \x1b[31mred"]
    log.write_text("\n".join(lines) + "\n")
    (tmp_path / "quiet.log").write_text("nothing\n")
    said = site.call(
        "queue_assess_host", log_files=[str(tmp_path / "*.log"), str(tmp_path / "gone.txt")], host_label="app1"
    ).assert_done()
    found = {entry["path"].rpartition("/")[2]: entry for entry in said.result["logs"]}
    assert {name: entry["errors"] for name, entry in found.items()} == {"web.log": 27, "quiet.log": 0, "gone.txt": 0}
    assert found["gone.txt"]["problem"] == "No such file or directory"
    assert len(found["web.log"]["last"]) == 3
    assert found["web.log"]["last"][-1].startswith("Traceback")
    planted_secrets.assert_absent(said.printed, "the log lines that are shown")
    in_target(site)
    with site.worker():
        judged = assess(site, app={**WELL, "logs": said.result["logs"]})
    assert judged["stability"] == "unstable"
    assert judged["action"] == "partial rollback"
    assert answer(judged, "app1: web.log")["reading"] == "27 errors"


def test_a_log_of_hours_ago_has_no_errors_of_now(site: Site, tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("ERROR without a time\n" * 100)
    os.utime(log, (time.time() - 7200,) * 2)
    said = site.call("queue_assess_host", log_files=[str(log)]).assert_done()
    assert said.result["logs"][0]["errors"] == 0
    os.utime(log)
    said = site.call("queue_assess_host", log_files=[str(log)], log_kilobytes=1).assert_done()
    assert 0 < said.result["logs"][0]["errors"] < 60, "only the end of the file"


def test_a_host_whose_application_and_supervisor_do_not_answer(site: Site, tmp_path: Path) -> None:
    said = site.call(
        "queue_assess_host",
        health_url=f"http://127.0.0.1:{free_port()}/health",
        group="rqworkers",
        supervisor="supervisord",
        socket=str(tmp_path / "none.sock"),
    ).assert_done()
    assert said.result["health"]["status"] == 0
    assert said.result["workers"] == -1
    assert said.result["workers_problem"]
    in_target(site)
    with site.worker():
        found = assess(site, app=said.result)
    assert (found["function"], found["stability"]) == ("none", "unstable")


def test_nobody_was_asked(site: Site) -> None:
    """--limit control: the hosts are unknown, which is never taken for good."""
    in_target(site)
    with site.worker():
        found = assess(site, hosts={"app1": {}})
    assert found["stability"] == "unstable"
    assert answer(found, "application on app1")["reading"] == "was not asked"
