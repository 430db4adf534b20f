"""The way back on real stores, killed and frozen at every arrow: everything comes home once, in its order."""

from __future__ import annotations

import signal

import pytest
from ansible.module_utils.sluice.core.homecoming import Policy

from captions import tasks
from captions.database import make_engine
from faults.mover import REFUSED
from faults.rollback import Rollback, held, open_back, poll_off, rows
from faults.scene import FULL, Scene, is_frozen
from oracle.judge import Allowances
from oracle.patience import until

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 1500 if FULL else 100
BATCH = TASKS // 5
SIZE = ("--batch", str(BATCH))
SHORT_LEASE = ("--lease-seconds", "1")
PROTOCOL = [
    f"{arrow}:{side}" for arrow in ("claim", "stage", "confirm", "release", "activate") for side in ("before", "after")
]
#: Without Redis there is nothing to forget.
ROWS_ARROWS = [*PROTOCOL, "commit:before"]
ARROWS = [*ROWS_ARROWS, "done:before", "done:after"]
#: The workers are real after these; after the others the ids are compared.
WORKED_OFF = ("stage:after", "commit:before", "done:before")
ENDS = [*(("--back", arrow) for arrow in ARROWS), *(("--rows", arrow) for arrow in ROWS_ARROWS)]
#: What differs between the ends and between the arrows; the full size takes all of them.
CHOSEN = [
    *(("--back", arrow) for arrow in ("claim:after", "stage:after", "release:before", "commit:before", "done:before")),
    *(("--rows", arrow) for arrow in ("claim:after", "stage:after", "commit:before")),
]


def away(scene: Scene) -> dict[str, list[str]]:
    """A backlog that was moved to RQ as a whole; the order in which it was to be claimed."""
    scene.seed(TASKS)
    order = scene.claim_order()
    scene.move_to_the_end()
    assert rows(scene) == {"rq queued": TASKS}
    open_back(scene)
    return order


def is_home(scene: Scene, order: dict[str, list[str]]) -> None:
    """Every task is in the table, waits in its order, and nothing is left of the way."""
    assert rows(scene) == {"db queued": TASKS}
    assert scene.claim_order() == order
    assert held(scene) == {}
    assert {str(seen.place) for seen in scene.ledger.marks()} == {"returned"}


def nothing_is_left_in_redis(scene: Scene) -> None:
    """No entry of RQ's, and the manifest names every job."""
    back = Rollback(scene)
    assert back.leaving.waiting() == back.journal.waiting() == 0
    assert sum(1 for _ in back.leaving.returned()) == TASKS
    assert back.balance().holds


def test_what_was_moved_comes_home_in_one_piece(scene: Scene) -> None:
    order = away(scene)
    back = Rollback(scene)
    moved = back.move()
    assert back.adopted == "adopted"
    assert (moved.moved, moved.held, moved.lost) == (TASKS, 0, 0)
    is_home(scene, order)
    nothing_is_left_in_redis(scene)


def test_with_redis_emptied_the_rows_alone_bring_everything_home(scene: Scene) -> None:
    order = away(scene)
    scene.client.flushall()
    back = Rollback(scene)
    assert back.adopted == "missing"
    assert back.move().moved == 0
    moved = back.move(journal=True, batch=BATCH)
    # Five batches overlap: a row that was given twice would count as lost.
    assert (moved.moved, moved.held, moved.lost) == (TASKS, 0, 0)
    is_home(scene, order)


@pytest.mark.parametrize(("end", "arrow"), ENDS if FULL else CHOSEN)
def test_the_same_command_again_loses_and_doubles_nothing(scene: Scene, end: str, arrow: str) -> None:
    order = away(scene)
    before = scene.fingerprint()
    ending = scene.move(end, "--kill", f"{arrow}:2", *SIZE, *SHORT_LEASE)
    assert ending.status == -signal.SIGKILL, (ending.report, ending.stderr)
    assert scene.fingerprint() != before, "the kill came before any work"
    assert rows(scene) != {"db queued": TASKS}, "the kill came after all work"

    totals = scene.move_to_the_end(end, *SIZE)
    assert (totals["held"], totals["lost"]) == (0, 0)
    is_home(scene, order)
    if end == "--back":
        nothing_is_left_in_redis(scene)
    if arrow in WORKED_OFF:
        poll_off(scene)
        verdict = scene.verdict()
        assert verdict.clean, verdict.table()
        assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS


def test_killed_again_and_again(scene: Scene) -> None:
    """The resume itself is killed, in both ends."""
    order = away(scene)
    for trap in ("done:before:2", "claim:after:1", "stage:after:1", "commit:before:1"):
        assert scene.move("--back", "--kill", trap, *SIZE, *SHORT_LEASE).status == -signal.SIGKILL, trap
    for trap in ("stage:after:1", "release:before:1"):
        assert scene.move("--rows", "--kill", trap, *SIZE, *SHORT_LEASE).status == -signal.SIGKILL, trap
    scene.move_to_the_end("--back", *SIZE)
    is_home(scene, order)
    nothing_is_left_in_redis(scene)


@pytest.mark.parametrize(("end", "arrow"), ENDS if FULL else [CHOSEN[1], CHOSEN[4], CHOSEN[7]])
def test_an_orphan_that_wakes_later_writes_nothing(scene: Scene, end: str, arrow: str) -> None:
    order = away(scene)
    orphan = scene.start_mover(end, "--freeze", f"{arrow}:2", *SIZE, *SHORT_LEASE)
    until(lambda: is_frozen(orphan), what="the mover's arrow")

    scene.move_to_the_end(end, *SIZE)
    is_home(scene, order)
    before = scene.fingerprint()

    orphan.send_signal(signal.SIGCONT)
    ending = scene.ending(orphan)
    assert ending.status == REFUSED, (ending.report, ending.stderr)
    assert ending.report["error"] in ("LeaseLost", "StoreError"), ending.report
    assert scene.fingerprint() == before


def test_a_forward_mover_that_wakes_after_the_way_back_writes_nothing(scene: Scene) -> None:
    """The orphan is of the run that was taken back, frozen between the commit and the activation."""
    scene.seed(TASKS)
    order = scene.claim_order()
    orphan = scene.start_mover("--freeze", "activate:before:2", *SIZE, *SHORT_LEASE)
    until(lambda: is_frozen(orphan), what="the mover's arrow")
    open_back(scene)
    scene.move_to_the_end("--back", *SIZE)
    assert rows(scene) == {"db queued": TASKS}
    assert scene.claim_order() == order
    before = scene.fingerprint()
    orphan.send_signal(signal.SIGCONT)
    ending = scene.ending(orphan)
    assert ending.status == REFUSED, (ending.report, ending.stderr)
    # The database ends the transaction of a client that is silent for long.
    assert ending.report["error"] in ("LeaseLost", "GenerationMismatch", "StoreError"), ending.report
    assert scene.fingerprint() == before


@pytest.mark.parametrize("arrow", ["stage:after", "release:before"] if FULL else ["release:before"])
def test_what_users_cancel_while_a_dead_mover_holds_it_is_theirs_again(scene: Scene, arrow: str) -> None:
    order = away(scene)
    cancelled = [task for queue in order.values() for task in queue][BATCH : BATCH + 5]
    assert scene.move("--back", "--kill", f"{arrow}:2", *SIZE, *SHORT_LEASE).status == -signal.SIGKILL
    app = make_engine(scene.database_url)
    for task in cancelled:
        assert tasks.read_task(app, task)["custody"] == "held"
        tasks.cancel(app, task)

    scene.move_to_the_end("--back", *SIZE)

    assert {tasks.read_task(app, task)["status"] for task in cancelled} == {"cancelled"}
    for task in cancelled[:3]:
        assert tasks.retry(app, task, rq_usable=True) == "db"
    app.dispose()
    scene.move_to_the_end("--back", *SIZE)
    poll_off(scene)
    assert rows(scene)["db completed"] == TASKS - 2
    found = scene.verdict()
    assert set(found.violations) == {"cancelled_unasked"}, found.table()  # nobody told the judge


def test_workers_of_both_sides_and_a_mover_that_dies_in_between(scene: Scene) -> None:
    """The pollers are let in before the transfer, since each row says whose it is; RQ has run some."""
    order = away(scene)
    assert scene.ending_of_worker(scene.start_worker("early", "urgent")) == 0
    ran = len(order["urgent"])
    assert rows(scene) == {"rq queued": TASKS - ran, "rq completed": ran}
    assert scene.move("--back", "--kill", "release:after:2", *SIZE, *SHORT_LEASE).status == -signal.SIGKILL
    poll_off(scene)
    scene.move_to_the_end("--back", *SIZE)
    poll_off(scene)
    verdict = scene.verdict(Allowances())
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS


def test_the_policy_of_a_mover_is_its_commands(scene: Scene) -> None:
    away(scene)
    scene.sql("UPDATE caption_tasks SET status = 'running', worker = 'gone', attempts = 1 ORDER BY id LIMIT 3")
    assert scene.move_to_the_end("--back", "--started", Policy.REQUEUE.value)["moved"] == TASKS
    assert rows(scene) == {"db queued": TASKS}
