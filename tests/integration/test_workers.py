"""The set of RQ workers of a machine: with Gunicorn, scaled, restarted, replaced, recycled, ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from captions.workers import Slot, WorkerSet, longest_job_seconds, resident_mb, slots
from integration.runtime import APP, Runtime
from lab.stores import free_port
from oracle.patience import PATIENCE_SECONDS, until

pytestmark = pytest.mark.real
SET = {"RQ_WORKERS": "urgent+high:1 low:1"}


@contextmanager
def running(runtime: Runtime, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module as a process with the runtime's settings, ended in the end."""
    environment = {**os.environ, "CAPTIONS_ENV_FILE": str(runtime.env_file), "PYTHONPATH": str(APP)}
    with (runtime.directory / "process.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def alive(runtime: Runtime) -> dict[str, dict[str, Any]]:
    """RQ's workers whose process is there, by name."""
    found = runtime.ask("GET", "workers")[1]["workers"]
    return {worker["name"]: worker for worker in found if Path(f"/proc/{worker['pid']}").exists()}


def queues(runtime: Runtime) -> Counter[str]:
    """How many living workers look into which queues."""
    return Counter("+".join(worker["queues"]) for worker in alive(runtime).values())


def has(runtime: Runtime, wanted: dict[str, int]) -> Callable[[], bool]:
    return lambda: queues(runtime) == wanted


@pytest.mark.parametrize("runtime", [SET], indirect=True)
def test_a_set_is_kept_scaled_and_restarted(runtime: Runtime) -> None:
    with running(runtime, "captions.workers") as process:
        until(has(runtime, {"urgent+high": 1, "low": 1}), "two workers")
        killed, told = alive(runtime).values()
        os.kill(killed["pid"], signal.SIGKILL)
        until(lambda: killed["name"] not in alive(runtime) and len(alive(runtime)) == 2, "one in place of the killed")
        assert runtime.ask("POST", f"workers/{told['name']}/restart", role="operate")[0] == 200
        until(lambda: told["name"] not in alive(runtime) and len(alive(runtime)) == 2, "one in place of the told")
        assert runtime.ask("POST", "workers/scale", {"workers": "urgent+high:3"}, role="operate")[0] == 200
        until(has(runtime, {"urgent+high": 3}), "three of the one kind and none of the other")
        assert runtime.ask("POST", "workers/scale", {"workers": None}, role="operate")[0] == 200
        until(has(runtime, {"urgent+high": 1, "low": 1}), "what the settings say")
        second = subprocess.run(
            [sys.executable, "-m", "captions.workers"],
            env={**os.environ, "CAPTIONS_ENV_FILE": str(runtime.env_file), "PYTHONPATH": str(APP)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert (second.returncode, "another set of workers" in second.stderr) == (1, True)
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert alive(runtime) == {}


@pytest.mark.parametrize("runtime", [SET | {"WORK_MS": "3000"}], indirect=True)
def test_workers_begin_and_end_with_gunicorn_and_finish_what_they_do(runtime: Runtime) -> None:
    runtime.route(100)
    port = free_port()
    gunicorn = ("gunicorn", "--config", "python:captions.gunicorn_conf", "--bind", f"127.0.0.1:{port}")
    with running(runtime, *gunicorn) as process:
        until(has(runtime, {"urgent+high": 1, "low": 1}), "workers of Gunicorn")
        task_id = runtime.submit(priority="high")
        until(lambda: runtime.task(task_id)["status"] == "running", "a running task")
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert alive(runtime) == {}
    assert runtime.task(task_id)["status"] == "completed"


def horse_of(worker: subprocess.Popen[bytes]) -> int:
    """The worker's child that leads a process group of its own; 0 when there is none."""
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    return next((int(child) for child in children if os.getpgid(int(child)) == int(child)), 0)


@pytest.mark.parametrize("runtime", [{"RETRY_BASE_SECONDS": "1", "WORK_MS": "600000"}], indirect=True)
def test_a_task_whose_work_horse_is_killed_is_tried_again_and_becomes_a_dead_letter(runtime: Runtime) -> None:
    """The commonest end of a process in the middle of a task: the kernel takes it for its memory."""
    runtime.route(100)
    task_id = runtime.submit(priority="low")

    def status() -> str:
        runtime.sql("UPDATE caption_tasks SET created_at = created_at - INTERVAL 1 MINUTE")  # or the sweeper waits
        runtime.sweeper.sweep()
        return str(runtime.task(task_id)["status"])

    with running(runtime, "captions.rqworker", "--queues", "low") as worker:
        for attempt in range(1, 4):
            until(lambda: status() == "running" and horse_of(worker) > 0, "an attempt")
            os.kill(horse_of(worker), signal.SIGKILL)
            until(lambda: status() != "running", "its end")
            task = runtime.task(task_id)
            assert (task["attempts"], task["error_category"]) == (attempt, "resource")
        assert task["status"] == "failed"
        (letter,) = runtime.ask("GET", "dead-letters")[1]["dead_letters"]
        assert letter["id"] == task_id


@pytest.mark.parametrize("runtime", [SET], indirect=True)
def test_workers_do_not_outlive_a_killed_gunicorn(runtime: Runtime) -> None:
    port = free_port()
    gunicorn = ("gunicorn", "--config", "python:captions.gunicorn_conf", "--bind", f"127.0.0.1:{port}")
    with running(runtime, *gunicorn) as process:
        until(has(runtime, {"urgent+high": 1, "low": 1}), "workers of Gunicorn")
        # RQ may swallow a SIGTERM while it starts; such a worker is ended by the set's bound, which is minutes.
        until(
            lambda: all(worker["state"] == "idle" for worker in alive(runtime).values()), "workers that wait for jobs"
        )
        process.kill()
        until(lambda: alive(runtime) == {}, "no workers")


#: A worker whose registries take a while to clean, and that drops every exception meanwhile, as RQ does for each job.
SLOW_TO_CLEAN = """
import contextlib, sys, time
import rq.worker.base
from captions import rqworker

def clean(*_):
    with contextlib.suppress(Exception):
        print("cleaning", flush=True)
        time.sleep(60)

rq.worker.base.clean_registries = clean
sys.argv = ["captions.rqworker", "--queues", "low", *sys.argv[1:]]
rqworker.main()
"""


@pytest.mark.parametrize("kind", [[], ["--simple"]], ids=["forking", "simple"])
def test_a_worker_that_is_told_to_end_while_it_cleans_registries_ends(runtime: Runtime, kind: list[str]) -> None:
    environment = {**os.environ, "CAPTIONS_ENV_FILE": str(runtime.env_file), "PYTHONPATH": str(APP)}
    command = [sys.executable, "-c", SLOW_TO_CLEAN, *kind]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        assert worker.stdout is not None
        lines = iter(worker.stdout.readline, b"")
        assert b"cleaning\n" in lines
        worker.terminate()
        try:
            worker.communicate(timeout=PATIENCE_SECONDS)
        finally:
            worker.kill()
        assert worker.returncode == 0


def test_without_a_set_the_program_ends_at_once(runtime: Runtime) -> None:
    assert runtime.process("captions.workers") == ""


def test_a_worker_that_does_not_exist_cannot_be_restarted(runtime: Runtime) -> None:
    assert runtime.ask("POST", "workers/nobody/restart")[0] == 404
    assert runtime.ask("POST", "workers/scale", {"workers": "utmost:1"})[0] == 400


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("normal", "is not"),
        ("normal:x", "is not"),
        ("utmost:1", "no queue"),
        ("low:1 low:2", "twice"),
        ("a b:1", "is not"),
    ],
)
def test_a_topology_that_cannot_be_had_is_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        slots(text)


def test_a_topology_is_slots() -> None:
    assert slots("urgent+high:2 low:0 normal:1") == [
        Slot(("urgent", "high"), 0), Slot(("urgent", "high"), 1), Slot(("normal",), 0)
    ]  # fmt: skip
    assert longest_job_seconds() == 900


class TestAnySet:
    """With sleeping processes for workers."""

    @pytest.fixture
    def workers(self) -> Iterator[WorkerSet]:
        made = WorkerSet(lambda _: ["sleep", "600"], memory_mb=500)
        yield made
        made.stop(10)

    def test_one_that_is_too_large_is_told_to_end_and_replaced(self, workers: WorkerSet) -> None:
        wanted = slots("low:1")
        workers.step(wanted)
        (first,) = workers.processes.values()
        assert 0 < resident_mb(first.pid) < 100
        workers.memory_mb = 0.001
        workers.step(wanted)
        assert first.wait(PATIENCE_SECONDS) == -signal.SIGTERM
        workers.memory_mb = 500
        until(lambda: workers.step(wanted) or bool(workers.processes), "another")
        assert [process.pid for process in workers.processes.values()] != [first.pid]

    def test_one_that_keeps_ending_at_once_is_started_more_and_more_rarely(self, workers: WorkerSet) -> None:
        workers.command = lambda _: ["false"]
        wanted = slots("low:1")
        starts = []
        while len(starts) < 4:
            before = set(workers.processes)
            workers.step(wanted)
            if set(workers.processes) > before:
                starts.append(time.monotonic())
        assert starts[2] - starts[1] >= 1
        assert starts[3] - starts[2] >= 3

    def test_one_that_does_not_end_in_time_is_killed(self, workers: WorkerSet) -> None:
        workers.command = lambda _: [
            sys.executable,
            "-c",
            "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(600)",
        ]
        workers.step(slots("low:1"))
        (process,) = workers.processes.values()

        def deaf() -> bool:
            (mask,) = re.findall(r"^SigIgn:\s+(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)

        until(deaf, "deaf to SIGTERM")
        workers.stop(0.2)
        assert process.returncode == -signal.SIGKILL
