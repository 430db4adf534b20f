"""A mover that is frozen at an arrow, overtaken, and wakes when another has finished its work."""

from __future__ import annotations

import signal

import pytest

from faults.mover import REFUSED
from faults.scene import FULL, Scene, is_frozen
from oracle.patience import until

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 400 if FULL else 120
SIZE = ("--batch", str(TASKS // 5))
ARROWS = [
    f"{arrow}:{side}" for arrow in ("claim", "stage", "confirm", "release", "activate") for side in ("before", "after")
]


@pytest.mark.parametrize("arrow", [*ARROWS, "commit:before"])
def test_an_orphan_that_wakes_later_writes_nothing(scene: Scene, arrow: str) -> None:
    """Also when it froze in the middle of a transaction, with the lease and its rows locked (commit)."""
    scene.seed(TASKS)
    order = scene.claim_order()
    orphan = scene.start_mover("--freeze", f"{arrow}:2", "--lease-seconds", "1.5", *SIZE)
    until(lambda: is_frozen(orphan), what="the mover's arrow")

    scene.move_to_the_end(*SIZE)
    assert scene.queued() == order
    assert scene.staged() == set()
    before = scene.fingerprint()

    orphan.send_signal(signal.SIGCONT)
    ending = scene.ending(orphan)
    assert ending.status == REFUSED, (ending.report, ending.stderr)
    assert ending.report["error"] in ("LeaseLost", "StoreError"), ending.report
    assert scene.fingerprint() == before


def test_an_orphan_that_wakes_while_the_other_works_and_workers_run(scene: Scene) -> None:
    scene.seed(TASKS)
    orphan = scene.start_mover("--freeze", "release:after:2", "--lease-seconds", "1.5", *SIZE)
    until(lambda: is_frozen(orphan), what="the mover's arrow")
    other = scene.start_mover("--freeze", "release:before:2", "--lease-seconds", "1.5", *SIZE)
    until(lambda: is_frozen(other), what="the other mover's arrow")
    before = scene.fingerprint()
    orphan.send_signal(signal.SIGCONT)
    ending = scene.ending(orphan)
    assert ending.status == REFUSED, (ending.report, ending.stderr)
    # Its claim of the next batch may have been open: the database ends the transaction of a client that is silent long.
    by_the_database = ending.report["error"] == "StoreError" and "Redis" not in ending.report["message"]
    assert ending.report["error"] == "LeaseLost" or by_the_database, ending.report
    assert scene.fingerprint() == before
    other.send_signal(signal.SIGCONT)
    assert scene.ending(other).status == 0
    scene.work_off()
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS
