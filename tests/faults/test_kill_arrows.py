"""A mover killed at every arrow of the protocol, then the same command again."""

from __future__ import annotations

import signal

import pytest

from captions import tasks
from captions.database import make_engine
from faults.scene import FULL, Scene, is_frozen
from oracle.journal import Journal
from oracle.patience import until

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 1500 if FULL else 100
BATCH = TASKS // 5
SIZE = ("--batch", str(BATCH))
SHORT_LEASE = ("--lease-seconds", "1")
SIDES = [
    *[
        f"{arrow}:{side}"
        for arrow in ("claim", "stage", "confirm", "release", "activate")
        for side in ("before", "after")
    ],
    "commit:before",
]


def killed(scene: Scene, *traps: str) -> None:
    """Run a mover that must die of its trap on the second batch."""
    ending = scene.move(*(word for trap in traps for word in ("--kill", trap)), *SIZE, *SHORT_LEASE)
    assert ending.status == -signal.SIGKILL, (ending.report, ending.stderr)


def second_batch(scene: Scene) -> list[str]:
    """The ids that a mover claims second."""
    return [task for queue in scene.claim_order().values() for task in queue][BATCH : 2 * BATCH]


@pytest.mark.parametrize("arrow", SIDES)
def test_the_same_command_again_loses_and_doubles_nothing(scene: Scene, arrow: str) -> None:
    scene.seed(TASKS)
    order = scene.claim_order()

    killed(scene, f"{arrow}:2")
    assert scene.claim_order() != order, "the kill came before any work"
    assert scene.queued() != order, "the kill came after all work"

    scene.move_to_the_end(*SIZE)
    assert scene.queued() == order
    assert scene.staged() == set()

    scene.work_off()
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS


def test_killed_twice_in_a_row(scene: Scene) -> None:
    """The resume itself is killed: while it activates what the first left, and while it claims again."""
    scene.seed(TASKS)
    order = scene.claim_order()
    killed(scene, "activate:before:2")
    killed(scene, "activate:after:1")
    killed(scene, "stage:after:1")
    killed(scene, "commit:before:1")
    scene.move_to_the_end(*SIZE)
    assert scene.queued() == order
    assert scene.staged() == set()


@pytest.mark.parametrize("arrow", ["claim:after", "stage:after", "release:before"])
def test_what_users_cancel_while_a_dead_mover_holds_it_is_theirs_again(scene: Scene, arrow: str) -> None:
    """No hold and no stage is left on it: it can be retried like any cancelled task, and then runs once."""
    scene.seed(TASKS)
    cancelled = second_batch(scene)[:10]
    killed(scene, f"{arrow}:2")
    app = make_engine(scene.database_url)
    for task in cancelled:
        assert tasks.read_task(app, task)["custody"] == "held"
        tasks.cancel(app, task)

    scene.move_to_the_end(*SIZE)

    assert {tasks.read_task(app, task)["status"] for task in cancelled} == {"cancelled"}
    assert scene.staged() == set()
    retried_and_judged(scene, cancelled)


def test_killed_before_it_deletes_the_stages_of_cancelled_tasks(scene: Scene) -> None:
    """Between the release that found them cancelled and the deletion of their stages."""
    scene.seed(TASKS)
    cancelled = second_batch(scene)[:10]
    mover = scene.start_mover("--freeze", "release:before:2", "--kill", "discard:before:1", *SIZE, *SHORT_LEASE)
    until(lambda: is_frozen(mover), what="the mover's arrow")
    app = make_engine(scene.database_url)
    for task in cancelled:
        tasks.cancel(app, task)
    mover.send_signal(signal.SIGCONT)
    assert scene.ending(mover).status == -signal.SIGKILL
    assert scene.staged() >= set(cancelled)

    scene.move_to_the_end(*SIZE)

    assert scene.staged() == set()
    retried_and_judged(scene, cancelled)


def retried_and_judged(scene: Scene, cancelled: list[str]) -> None:
    """Half of the cancelled tasks are retried, at RQ and in the table; all that is promised runs once."""
    app = make_engine(scene.database_url)
    again, for_good = cancelled[:5], cancelled[5:]
    for task in again:
        assert tasks.retry(app, task, rq_usable=True) == "db"
    journal = Journal(scene.accepted)
    for task in for_good:
        journal.append({"cancel": task, "status": 200, "at": 0.0})
    journal.close()
    app.dispose()
    assert scene.move_to_the_end(*SIZE)["moved"] == len(again)
    scene.work_off()
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS - len(for_good)
