"""RQ's workers killed at every row of what a kill can leave behind, then everything brought home and run by pollers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible.module_utils.sluice.core.homecoming import Policy

from faults import TESTS
from faults.generations import RQ_GENERATIONS, environment
from faults.rollback import Rollback, held, poll_off, rows
from faults.scene import FULL, QUEUES, Process, Scene
from oracle.judge import Allowances
from oracle.patience import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 200 if FULL else 12
WORK_MS = 20_000
ONE, SEVERAL = ("normal",), QUEUES
OURS = "ours"
#: Which RQ the workers are of, and how many queues they listen to: RQ takes jobs in another way from several.
WHOSE = [(OURS, ONE), (OURS, SEVERAL)] + [
    (generation, queues)
    for generation, short in zip(RQ_GENERATIONS, (ONE, SEVERAL), strict=True)
    for queues in ((ONE, SEVERAL) if FULL else (short,))
]


@dataclass
class Workers:
    """RQ's side of a scene, with settings of its own, so that its processes and their children can be told."""

    scene: Scene
    settings: Path
    python: Path

    def start(self, *options: str, queues: tuple[str, ...]) -> Process:
        """A worker with a work horse for each job."""
        return self.scene.start(
            *("--name", "rq", *options, *queues),
            environment={"CAPTIONS_ENV_FILE": str(self.settings)},
            program=(str(self.python), str(TESTS / "faults" / "dying_worker.py")),
        )

    def alive(self) -> dict[int, int]:
        """Process ids of workers, horses and schedulers, with those of their parents."""
        found = {}
        mark = f"CAPTIONS_ENV_FILE={self.settings}\0".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                    if stat[0] != "Z" and mark in (folder / "environ").read_bytes():
                        found[int(folder.name)] = int(stat[1])
        return found

    def children(self, worker: Process) -> list[int]:
        """Horses and schedulers of a worker."""
        return [pid for pid, parent in self.alive().items() if parent == worker.pid]

    def fence(self) -> int:
        """End whatever is left of RQ's side; returns how many processes that were."""
        left = self.alive()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.alive(), what="the end of RQ's processes")
        return len(left)

    def running(self) -> int:
        """Tasks whose rows say that RQ began them."""
        return rows(self.scene).get("rq running", 0)

    def horse(self, worker: Process) -> int:
        """The work horse, once its task has begun."""
        until(lambda: self.running() == 1, what="a running task")
        [pid] = self.children(worker)
        return pid

    def homes(self) -> dict[str, int]:
        """Entries of RQ's beside those that wait in the queues."""
        client = self.scene.client
        found: dict[str, int] = {}
        for queue in QUEUES:
            for word, number in (
                ("intermediate", client.llen(f"rq:queue:{queue}:intermediate")),
                ("wip", client.zcard(f"rq:wip:{queue}")),
                ("scheduled", client.zcard(f"rq:scheduled:{queue}")),
                ("failed", client.zcard(f"rq:failed:{queue}")),
            ):
                found[word] = found.get(word, 0) + int(number)
        return {word: number for word, number in found.items() if number}


@pytest.fixture
def python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of the workers, whose RQ is ours unless the test says otherwise."""
    generation = getattr(request, "param", OURS)
    return Path(sys.executable) if generation == OURS else environment(generation)


@pytest.fixture
def workers(scene: Scene, python: Path, request: pytest.FixtureRequest) -> Workers:
    """A moved backlog, a share of it with a time, and nobody at work."""
    settings = scene.directory / "rq.env"
    settings.touch(mode=0o600)
    settings.write_text(f"{scene.env_file.read_text()}WORK_MS={WORK_MS}\n")
    scene.seed(TASKS, delayed_share=getattr(request, "param", 0.0), delay=3600.0)
    scene.move_to_the_end()
    return Workers(scene, settings, python)


def dies(point: str) -> Callable[[Workers, tuple[str, ...]], None]:
    """A worker that ends by itself at a point."""

    def kill(workers: Workers, queues: tuple[str, ...]) -> None:
        worker = workers.start("--at", point, queues=queues)
        ended = workers.scene.ending_of_worker(worker)
        assert ended == (0 if point == "asked" else -signal.SIGKILL), workers.scene.log_of(worker)

    return kill


def both(workers: Workers, queues: tuple[str, ...]) -> None:
    """Worker and horse, in the middle of a task."""
    worker = workers.start(queues=queues)
    horse = workers.horse(worker)
    worker.kill()
    os.kill(horse, signal.SIGKILL)
    worker.wait(PATIENCE_SECONDS)


def only_the_worker(workers: Workers, queues: tuple[str, ...]) -> None:
    """Its horse goes on."""
    worker = workers.start(queues=queues)
    horse = workers.horse(worker)
    worker.kill()
    worker.wait(PATIENCE_SECONDS)
    assert horse in workers.alive(), "the horse survives its worker"


def only_the_horse(workers: Workers, queues: tuple[str, ...]) -> None:
    """The worker sees it, RQ plans another attempt, and the worker goes on to the next task."""
    worker = workers.start(queues=queues)
    os.kill(workers.horse(worker), signal.SIGKILL)
    until(lambda: workers.running() == 2, what="the next task")


def told_twice(workers: Workers, queues: tuple[str, ...]) -> None:
    """The second signal takes the horse down."""
    worker = workers.start(queues=queues)
    workers.horse(worker)
    worker.send_signal(signal.SIGTERM)

    def ended() -> bool:
        worker.send_signal(signal.SIGTERM)  # one that comes within a second is not heard
        return worker.poll() is not None

    until(ended, what="the cold end", every=0.3)


Kill = Callable[[Workers, tuple[str, ...]], None]
#: What ends them; where RQ has the job then with one queue, and with several; tasks that their rows show as begun.
KILLS: dict[str, tuple[Kill, dict[str, int], dict[str, int], int]] = {
    "after pop": (dies("popped"), {"intermediate": 1}, {}, 0),
    "told between pop and busy": (dies("asked"), {"intermediate": 1}, {}, 0),
    "before fork": (dies("forking"), {"intermediate": 1, "wip": 1}, {"wip": 1}, 0),
    "both": (both, {"wip": 1}, {"wip": 1}, 1),
    "only the worker": (only_the_worker, {"wip": 1}, {"wip": 1}, 1),
    "only the horse": (only_the_horse, {"scheduled": 1, "wip": 1}, {"scheduled": 1, "wip": 1}, 2),
    "a second signal": (told_twice, {"wip": 1}, {"wip": 1}, 1),
}


@pytest.mark.parametrize(
    ("python", "queues"),
    WHOSE,
    ids=[f"{whose}-{'one queue' if queues == ONE else 'several'}" for whose, queues in WHOSE],
    indirect=["python"],
)
@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_worker_costs_no_task(workers: Workers, kill: str, queues: tuple[str, ...]) -> None:
    scene = workers.scene
    end, one, several, begun = KILLS[kill]
    end(workers, queues)
    workers.fence()
    assert workers.homes() == (one if queues == ONE else several)
    assert workers.running() == begun

    back = Rollback(scene)
    moved = back.bring_home()

    assert rows(scene) == {"db queued": TASKS - begun} | ({"held running": begun} if begun else {})
    assert sum(end.held for end in moved) == len(held(scene)) == begun
    assert back.balance().holds
    poll_off(scene)
    verdict = scene.verdict(Allowances(kills=begun, held=bool(begun)))
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == TASKS - begun
    assert verdict.figures["starts"] == TASKS


def test_a_task_type_that_may_run_twice_is_queued_again(workers: Workers) -> None:
    scene = workers.scene
    both(workers, SEVERAL)
    Rollback(scene, Policy.REQUEUE).bring_home()
    assert rows(scene) == {"db queued": TASKS}
    poll_off(scene)
    verdict = scene.verdict(Allowances(kills=1))
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == TASKS
    assert verdict.figures["starts"] == TASKS + 1


def test_a_horse_that_was_not_ended_finishes_its_task_once(workers: Workers) -> None:
    """Unreachable is not dead: it runs on while its task is held, and what it did counts."""
    scene = workers.scene
    workers.settings.write_text(workers.settings.read_text().replace(f"={WORK_MS}", "=4000"))
    only_the_worker(workers, ONE)
    Rollback(scene).bring_home()
    assert rows(scene) == {"db queued": TASKS - 1, "held running": 1}
    poll_off(scene)
    until(lambda: not workers.alive(), what="the horse's own end")
    assert rows(scene) == {"db completed": TASKS - 1, "held completed": 1}
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS


@pytest.mark.parametrize("workers", [0.4], indirect=True)
def test_a_scheduler_that_outlives_its_worker(workers: Workers) -> None:
    scene = workers.scene
    due = dict(tuple(entry) for entry in scene.sql("SELECT id, available_at FROM caption_tasks"))
    assert workers.homes()["scheduled"] > 1
    worker = workers.start("--with-scheduler", queues=SEVERAL)
    until(lambda: workers.running() == 1, what="a running task")
    assert len(workers.children(worker)) == 2, "a horse and a scheduler"
    worker.kill()
    worker.wait(PATIENCE_SECONDS)
    assert workers.fence() == 2
    back = Rollback(scene)
    back.bring_home()
    assert rows(scene) == {"db queued": TASKS - 1, "held running": 1}
    assert dict(tuple(entry) for entry in scene.sql("SELECT id, available_at FROM caption_tasks")) == due
    assert back.balance().holds


def test_every_worker_at_once_and_each_at_another_point(workers: Workers) -> None:
    """Some end by themselves one after the other, three are killed while they work."""
    scene = workers.scene
    for point in ("popped", "asked", "forking"):
        dies(point)(workers, SEVERAL)
    for _ in range(3):
        workers.start(queues=SEVERAL)
    until(lambda: workers.running() == 3, what="three running tasks")
    assert workers.fence() == 6
    back = Rollback(scene)
    back.bring_home()
    assert rows(scene) == {"db queued": TASKS - 3, "held running": 3}
    assert back.balance().holds
    poll_off(scene)
    verdict = scene.verdict(Allowances(kills=3, held=True))
    assert verdict.clean, verdict.table()
