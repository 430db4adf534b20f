"""A transfer under live traffic: users submit and cancel, RQ workers of both kinds and guarded pollers work throughout.

The pollers have a share of the work, a third of it under each route; the rest is what the mover is to move.
The size of the backlog is 20,000 with SLUICE_TEST_FULL=1, or what SLUICE_LIVE_TASKS says; a fifth is submitted on top.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter

import pytest

from captions import control, tasks
from captions.database import in_transaction, make_engine
from captions.outbox import RQPlacer, place_row
from captions.settings import load_settings
from captions.sweeper import Sweeper
from faults.scene import FULL, Process, Scene
from oracle.effects import read_effects
from oracle.journal import Journal
from oracle.pace import Crew, Pace
from oracle.patience import until, until_none
from oracle.stores import TableFacts, unfinished

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(3600)]

TASKS = int(os.environ.get("SLUICE_LIVE_TASKS", "20000" if FULL else "2000"))
SUBMITTED = TASKS // 5
POLLED = TASKS // 20
#: Tasks a second: the transfer lasts about this long, so that everything else happens during it.
TRANSFER_SECONDS = max(12.0, TASKS / 500)
POLLERS = 2
#: What a polled task takes: the pollers' share lasts a sixth of the transfer, so that many batches pass beside it, and
#: that on a slow machine too the pollers have it before the mover has moved everything.
POLLED_WORK_MS = round(1000 * POLLERS * TRANSFER_SECONDS / 6 / POLLED)
WEIGHTS = (1, 2, 6, 1)
CANCEL_SHARE = 0.05
#: Which submissions, by their number, are made under which share for RQ; the later ones wait until it is set.
SHARES = {
    0: range(SUBMITTED * 3 // 20),
    30: range(SUBMITTED * 3 // 20, SUBMITTED // 2),
    100: range(SUBMITTED // 2, SUBMITTED),
}
FIRST_USER = 1_000_000


class Users:
    """Submit through the application's own code, as its web process does, and cancel some; everything goes to a log."""

    def __init__(self, scene: Scene) -> None:
        self.engine = make_engine(scene.database_url, connections=6)
        self.images = scene.images
        self.journal = Journal(scene.accepted)
        self.placer = RQPlacer(scene.redis_url, "rq")
        self.sweeper = Sweeper(load_settings(scene.env_file), self.engine, self.placer)
        self.stop = threading.Event()
        self.pace = Pace(SUBMITTED / TRANSFER_SECONDS, self.stop, count=SUBMITTED)
        self.crew = Crew(self._submit, 2, self.stop)
        self.custodies: Counter[str] = Counter()
        self.under = {share: threading.Event() for share in SHARES}

    def route(self, share: int) -> None:
        """Set RQ's share; those who submit under it may."""
        in_transaction(self.engine, lambda connection: control.set_route(connection, share))
        self.under[share].set()

    def start(self) -> None:
        """Users come, and the outbox is swept."""
        self.sweeper.start()
        self.crew.start()

    def join(self) -> None:
        """Wait until all have submitted."""
        self.crew.join()

    def close(self) -> None:
        """End the sweeper and the log."""
        self.stop.set()
        self.sweeper.end()
        self.sweeper.join()
        self.journal.close()
        self.engine.dispose()

    def _submit(self) -> None:
        chance = random.Random()
        while (number := self.pace.turn()) is not None:
            allowed = next(self.under[share] for share, numbers in SHARES.items() if number in numbers)
            while not allowed.wait(0.1):
                if self.stop.is_set():
                    return
            user = FIRST_USER + number
            priority = chance.choices(tasks.PRIORITIES, WEIGHTS)[0]
            image = self.images[number % len(self.images)]
            task, custody = tasks.submit(
                self.engine, rq_usable=True, user_id=user, image=image, priority=priority, delay_seconds=0
            )
            self.custodies[custody] += 1
            self.journal.append({"task": task, "user": user, "priority": priority, "at": time.time()})
            if custody == "rq":
                place_row(self.engine, self.placer, task)
            if chance.random() < CANCEL_SHARE:
                self._cancel(task)

    def _cancel(self, task: str) -> None:
        try:
            tasks.cancel(self.engine, task)
            status = 200
        except tasks.TaskStateConflict:
            status = 409
        self.journal.append({"cancel": task, "status": status, "at": time.time()})


def cancel_some_of_the_backlog(users: Users, ids: list[str], stop: threading.Event) -> None:
    """Old tasks are cancelled too, wherever the transfer has them at that moment."""
    for task in ids:
        if stop.wait(TRANSFER_SECONDS / len(ids)):
            return
        users._cancel(task)


def runners(scene: Scene) -> Counter[str]:
    """Completed effects by kind of worker: `db` for pollers, `rq/simple`, `rq/forking`."""
    found: Counter[str] = Counter()
    for history in read_effects([scene.effects]).tasks.values():
        for mark in history.ends:
            side, name, _ = mark.runner.split("/", 2)
            found[side if side == "db" else f"rq/{name.split('-', 1)[0]}"] += 1
    return found


def polled(scene: Scene) -> int:
    """How many tasks the pollers have completed."""
    ((count,),) = scene.sql("SELECT COUNT(*) FROM caption_tasks WHERE custody = 'db' AND status = 'completed'")
    return int(count)


def moved(scene: Scene) -> int:
    """How many tasks the mover has released."""
    ((count,),) = scene.sql("SELECT COUNT(*) FROM sluice_task WHERE mark = 'moved'")
    return int(count)


def start_pollers(scene: Scene) -> list[Process]:
    """Guarded pollers that are up, and claim as soon as polling is on."""
    settings = scene.directory / "pollers.env"
    settings.touch(mode=0o600)
    settings.write_text(f"{scene.env_file.read_text()}WORK_MS={POLLED_WORK_MS}\n", encoding="utf-8")
    started = [
        scene.start("captions.legacy", "--name", f"legacy-{n}", environment={"CAPTIONS_ENV_FILE": str(settings)})
        for n in range(POLLERS)
    ]
    until(lambda: all("worker legacy-" in scene.log_of(one) for one in started), "the pollers")
    return started


def let_pollers_work(scene: Scene, users: Users, share: int) -> None:
    """Polling is on until the pollers have completed ``share`` tasks in all and the mover released some beside them."""
    before = moved(scene)
    in_transaction(users.engine, lambda connection: control.set_polling(connection, True))
    until(lambda: polled(scene) >= share and moved(scene) > before, f"{share} polled tasks beside moved ones")
    in_transaction(users.engine, lambda connection: control.set_polling(connection, False))


def test_nothing_is_lost_and_nothing_runs_twice(scene: Scene) -> None:
    began = time.monotonic()
    scene.seed(TASKS)
    backlog = scene.seeded.read_text().split()
    users = Users(scene)
    ended = scene.directory / "submissions-ended"
    in_transaction(users.engine, lambda connection: control.set_polling(connection, False))
    pollers = start_pollers(scene)
    workers = [scene.start_worker(f"simple-{n}", "urgent", "high", "normal", burst=False) for n in range(2)]
    workers += [scene.start_worker(f"forking-{n}", "low", simple=False, burst=False) for n in range(2)]
    with contextlib.closing(users):
        mover = scene.start_mover("--follow", str(ended), "--rate", str(TASKS / TRANSFER_SECONDS), "--batch", "200")
        users.route(0)
        users.start()
        chosen = random.Random(1).sample(backlog, max(1, TASKS // 100))
        cancelling = Crew(lambda: cancel_some_of_the_backlog(users, chosen, users.stop), 1, users.stop)
        cancelling.start()

        until(lambda: moved(scene) > 0, "the first batch")
        let_pollers_work(scene, users, POLLED // 3)
        for share in (30, 100):
            first = SHARES[share].start
            until(lambda first=first: sum(users.custodies.values()) == first, "submissions", 0.1)  # type: ignore[misc]
            users.route(share)
            let_pollers_work(scene, users, POLLED if share == 100 else POLLED * 2 // 3)
        for process in pollers:
            process.send_signal(signal.SIGTERM)
        for process in pollers:
            assert scene.ending_of_worker(process) == 0, scene.log_of(process)
        users.join()
        cancelling.join()
        ended.touch()
        ending = scene.ending(mover, 300)
        assert ending.status == 0, (ending.report, ending.stderr)
        moved_after = time.monotonic() - began

        until_none(lambda: unfinished(scene.database_url, TableFacts()), "unfinished tasks", 1)
        for process in workers:
            process.send_signal(signal.SIGTERM)
        for process in workers:
            assert scene.ending_of_worker(process) == 0, scene.log_of(process)

    verdict = scene.verdict(seconds=10)
    by = runners(scene)
    counts = f"moved {ending.report['moved']}, cancelled under way {ending.report['lost']}"
    print(f"{counts}, by {dict(by)}, submitted to {dict(users.custodies)}")
    print(f"transfer over after {moved_after:.1f} s, all done after {time.monotonic() - began:.1f} s")
    print(verdict.table())
    assert verdict.clean, verdict.table()
    assert (ending.report["held"], scene.staged()) == (0, set())
    assert by["db"] >= POLLED
    assert by["rq/forking"] >= TASKS // 11
    assert by["rq/simple"] + by["rq/forking"] >= TASKS * 9 // 10
    assert verdict.figures["cancellations_confirmed"] > 0
    assert users.custodies["db"] > 0 < users.custodies["rq"]
    assert verdict.figures["starts"] == verdict.figures["ends"] == by.total()
