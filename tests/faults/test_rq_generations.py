"""Applications whose workers are of another RQ than ours: they run what Sluice writes, and what they leave is read.

The workers are real ones of their own environment (``generations/rq-*.txt``); the application is the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import cast

import pytest
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.strangers import rq_strangers
from ansible.module_utils.sluice.core.tasks import Home
from ansible.module_utils.sluice.core.verdicts import Verdict

from faults.generations import RQ_GENERATIONS, environment
from faults.rollback import Rollback, held, ids, poll_off, rows
from faults.scene import Process, Scene
from oracle.judge import Allowances
from oracle.patience import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]
TASKS = 12


@pytest.fixture(params=RQ_GENERATIONS)
def worker_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of a generation's workers."""
    python = environment(str(request.param))
    said = subprocess.run([python, "-c", "import rq; print(rq.VERSION)"], capture_output=True, text=True, check=True)
    assert said.stdout.strip().startswith(str(request.param).removeprefix("rq-")), "the environment has another RQ"
    return python


def start_worker(scene: Scene, python: Path, *flags: str) -> Process:
    """The application's own worker, on all queues, forking unless told otherwise."""
    return scene.start("captions.rqworker", "--name", "other", *flags, program=(str(python), "-m"))


def work_off(scene: Scene, python: Path, *flags: str) -> None:
    """Until the queues are empty."""
    worker = start_worker(scene, python, "--burst", *flags)
    assert scene.ending_of_worker(worker) == 0, scene.log_of(worker)


def census(scene: Scene) -> dict[str, set[str]]:
    """Each id with its homes, as Sluice reads them; the hash itself is no home."""
    found: dict[str, set[str]] = {}
    for seen in RqQueues(scene.client, scene.mapping).census():
        found.setdefault(seen.id, set())
        if seen.place != "hash":
            found[seen.id].add(str(seen.place))
    return found


def states_of_workers(scene: Scene) -> list[str]:
    """What registered workers say that they are at."""
    keys = cast("set[bytes]", scene.client.smembers("rq:workers"))
    return [cast(bytes, scene.client.hget(key.decode(), "state") or b"").decode() for key in keys]


@pytest.mark.parametrize("flags", [(), ("--simple",)], ids=["forking", "simple"])
def test_its_workers_run_what_was_moved(scene: Scene, worker_python: Path, flags: tuple[str, ...]) -> None:
    """Every task once, also those with a time, and the census of what is left says so."""
    scene.seed(TASKS, delayed_share=0.2, delay=3600)
    delayed = scene.sql("SELECT id FROM caption_tasks WHERE available_at > UTC_TIMESTAMP(6)")
    scene.move_to_the_end()
    assert Counter(place for homes in census(scene).values() for place in homes) == {
        "queued": TASKS - len(delayed), "scheduled": len(delayed)
    }  # fmt: skip

    work_off(scene, worker_python, *flags)

    left = census(scene)
    later = {str(row[0]) for row in delayed}
    assert {task_id for task_id, homes in left.items() if homes == {"scheduled"}} == later
    assert {task_id for task_id, homes in left.items() if homes == {"finished"}} == set(ids(scene)) - later
    verdict = scene.verdict(Allowances(in_flight=True))  # those with a time still wait
    assert verdict.clean, verdict.table()
    assert verdict.figures["starts"] == verdict.figures["ends"] == TASKS - len(later)


def test_both_generations_share_the_queues(scene: Scene, worker_python: Path) -> None:
    """As while an application's hosts are upgraded one after the other."""
    scene.seed(TASKS * 2)
    scene.move_to_the_end()
    started = [start_worker(scene, python, "--burst") for python in (worker_python, Path(sys.executable))]
    for worker in started:
        assert scene.ending_of_worker(worker) == 0, scene.log_of(worker)
    assert {place for homes in census(scene).values() for place in homes} == {"finished"}
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["starts"] == TASKS * 2


#: What an application of that RQ leaves when it uses all of it: one job for each home, by RQ's own functions.
LEAVES = """
import sys
from datetime import UTC, datetime, timedelta
from redis import Redis
from rq import Queue, Retry, SimpleWorker
from rq.serializers import JSONSerializer

redis = Redis.from_url(sys.stdin.readline().strip())
queue = Queue("normal", connection=redis, serializer=JSONSerializer)
run = dict(result_ttl=500, failure_ttl=500)
queue.enqueue("operator.add", 1, 2, job_id="finished", **run)
queue.enqueue("operator.truediv", 1, 0, job_id="failed", **run)
queue.enqueue("operator.truediv", 1, 0, job_id="retried", retry=Retry(max=2, interval=3600), **run)
SimpleWorker([queue], connection=redis, serializer=JSONSerializer).work(burst=True, logging_level="CRITICAL")
first = queue.enqueue("operator.add", 1, 2, job_id="queued", **run)
queue.enqueue("operator.add", 1, 2, job_id="deferred", depends_on=first, **run)
queue.enqueue("operator.add", 1, 2, job_id="cancelled", **run).cancel()
queue.enqueue_at(datetime.now(UTC) + timedelta(hours=1), "operator.add", 1, 2, job_id="scheduled", **run)
"""


def test_every_home_of_its_jobs_is_known(scene: Scene, worker_python: Path) -> None:
    subprocess.run(
        [worker_python, "-c", LEAVES], input=scene.redis_url, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    found = census(scene)
    assert found == {
        "finished": {Home.FINISHED},
        "failed": {Home.FAILED},
        "retried": {Home.SCHEDULED},
        "queued": {Home.QUEUED},
        "deferred": {Home.DEFERRED},
        "cancelled": {Home.CANCELLED},
        "scheduled": {Home.SCHEDULED},
    }
    queues = RqQueues(scene.client, scene.mapping)
    for job_id, homes in found.items():
        assert {seen.place for seen in queues.look(job_id) if seen.place != "hash"} == homes


def test_its_living_workers_are_seen(scene: Scene, worker_python: Path) -> None:
    """As workers; on a host of the inventory they are no strangers, elsewhere they are."""
    worker = start_worker(scene, worker_python)
    until(lambda: "idle" in states_of_workers(scene), what="a worker that waits for work")
    host = os.uname().nodename
    queues = RqQueues(scene.client, scene.mapping)
    assert all(check.verdict is Verdict.PASSED for check in queues.worker_checks(time.time(), 1))
    assert rq_strangers(scene.client, [host])[0].verdict is Verdict.PASSED
    (stranger,) = rq_strangers(scene.client, ["elsewhere"])
    assert stranger.verdict is Verdict.FAILED
    assert host in stranger.reading
    worker.send_signal(signal.SIGTERM)
    assert scene.ending_of_worker(worker) == 0, scene.log_of(worker)


def test_its_jobs_come_home(scene: Scene, worker_python: Path) -> None:
    """Some done by its workers, the rest brought back and run by pollers: each task once."""
    with scene.env_file.open("a", encoding="utf-8") as settings:
        settings.write("WORK_MS=300\n")  # so that it is told to end long before it has done all
    scene.seed(TASKS)
    scene.move_to_the_end()
    worker = start_worker(scene, worker_python, "--simple")
    until(lambda: rows(scene).get("rq completed", 0) >= 3, what="three completed tasks")
    worker.send_signal(signal.SIGTERM)
    assert scene.ending_of_worker(worker) == 0, scene.log_of(worker)
    done = rows(scene)["rq completed"]
    assert done < TASKS

    back = Rollback(scene)
    back.bring_home()

    assert rows(scene) == {"rq completed": done, "db queued": TASKS - done}
    assert held(scene) == {}
    assert back.balance().holds
    poll_off(scene)
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["starts"] == TASKS
