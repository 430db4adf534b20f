"""Progress in the browser: at once, over WebSocket, each user's own, and unbroken while a task is moved."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from captions import tasks
from integration.runtime import APP, Runtime
from oracle.patience import PATIENCE_SECONDS, until

pytestmark = pytest.mark.real

HEADER = {"USER_HEADER": "X-User"}


@dataclass
class Service:
    """The process that tells progress."""

    port: int
    process: subprocess.Popen[bytes]

    def watch(self, task_id: str, **headers: str) -> ClientConnection:
        url = f"ws://127.0.0.1:{self.port}/tasks/{task_id}/progress"
        return connect(url, additional_headers=headers, proxy=None)


@pytest.fixture
def service(runtime: Runtime, tmp_path: Path) -> Iterator[Service]:
    environment = {**os.environ, "CAPTIONS_ENV_FILE": str(runtime.env_file), "PYTHONPATH": str(APP)}
    log = tmp_path / "progress.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "captions.progress", "--port", "0"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: b"progress is told at port" in log.read_bytes(), "the service listens")
        (port,) = re.findall(r"told at port (\d+)", log.read_text())
        yield Service(int(port), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def told(page: ClientConnection) -> dict[str, Any]:
    """The next thing that a page is told."""
    said: dict[str, Any] = json.loads(page.recv(timeout=PATIENCE_SECONDS))
    return said


def claimed(engine: Engine, task_id: str, share: int) -> tasks.Claim:
    claim = tasks.claim_for_rq(engine, task_id, "w", 60) if share else tasks.claim_for_poller(engine, "w", 60)
    assert claim is not None
    assert claim.task_id == task_id
    return claim


@pytest.mark.parametrize("share", [0, 100])
def test_each_step_is_told_and_the_end_closes_the_page(runtime: Runtime, service: Service, share: int) -> None:
    runtime.route(share)
    task_id = runtime.submit()
    with service.watch(task_id) as page, service.watch(task_id) as second:
        first = told(page)
        assert (first["id"], first["status"], first["owner"]) == (task_id, "queued", "rq" if share else "db")
        claim = claimed(runtime.engine, task_id, share)
        assert told(page)["status"] == "running"
        for percent in (30, 60):
            tasks.report_progress(runtime.engine, claim, percent, f"at {percent}")
            assert (said := told(page))["progress"] == percent
            assert said["progress_note"] == f"at {percent}"
        # Whoever comes back is told the present state at once.
        with service.watch(task_id) as again:
            assert told(again)["progress"] == 60
        assert tasks.complete(runtime.engine, claim, "a caption", lambda: None)
        assert told(page)["status"] == "completed"
        with pytest.raises(ConnectionClosed):
            page.recv(timeout=PATIENCE_SECONDS)
        assert page.close_code == 1000
        with contextlib.suppress(ConnectionClosed):
            while said := told(second):
                last = said
        assert last["caption"] == "a caption"


def test_a_page_stays_open_while_its_task_goes_there_and_back(runtime: Runtime, service: Service) -> None:
    task_id = runtime.submit()
    with service.watch(task_id) as page:
        assert told(page)["owner"] == "db"
        for custody in ("held", "rq", "held", "db"):
            runtime.sql("UPDATE caption_tasks SET custody = :custody WHERE id = :id", custody=custody, id=task_id)
            assert told(page)["owner"] == custody
        assert runtime.poll() == 1
        while (said := told(page))["status"] != "completed":
            assert said["id"] == task_id


@pytest.mark.parametrize("runtime", [HEADER], indirect=True)
def test_a_user_sees_and_changes_only_their_own(runtime: Runtime, service: Service) -> None:
    mine = {"X-User": "7"}
    answer = runtime.client.post("/tasks", json={"image": "image-01.png"}, headers=mine)
    assert answer.status_code == 201
    task_id = answer.get_json()["id"]
    assert runtime.client.get(f"/tasks/{task_id}", headers=mine).get_json()["user_id"] == 7
    for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry")):
        for headers, status in (({"X-User": "8"}, 404), ({"X-User": "x"}, 401), ({}, 401)):
            found = runtime.client.open(f"/tasks/{task_id}{path}", method=method, headers=headers)
            assert found.status_code == status, (path, headers)
    other = runtime.client.post("/tasks", json={"image": "image-01.png", "user_id": 8}, headers=mine)
    assert (other.status_code, "leave it out" in other.get_json()["error"]) == (400, True)

    with service.watch(task_id, **mine) as page:
        assert told(page)["status"] == "queued"
    for headers, status in (({"X-User": "8"}, 404), ({}, 401)):
        with pytest.raises(InvalidStatus) as refused:
            service.watch(task_id, **headers)
        assert refused.value.response.status_code == status


def test_a_task_that_is_not_there_has_no_page(service: Service) -> None:
    for task_id in ("gone", "x/../y", "a" * 65):
        with pytest.raises(InvalidStatus) as refused:
            service.watch(task_id)
        assert refused.value.response.status_code == 404


def test_pages_survive_the_database(runtime: Runtime, service: Service, mariadb: Any) -> None:
    task_id = runtime.submit()
    with service.watch(task_id) as page:
        assert told(page)["status"] == "queued"
        mariadb.kill()
        mariadb.start()
        until(lambda: runtime.sql("SELECT 1") == [(1,)] if mariadb.running else False, "the database answers again")
        tasks.cancel(runtime.engine, task_id)
        assert told(page)["status"] == "cancelled"
