"""A run that goes back, at the level of the services, and the pollers that finish what came home."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.sluice.adapters import redis_connect
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.rq_archive import RqArchive
from ansible.module_utils.sluice.adapters.rq_source import RqSource
from ansible.module_utils.sluice.adapters.sql_home import SqlHome, SqlJournal
from ansible.module_utils.sluice.adapters.sql_table import SqlTable
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.balance import Balance
from ansible.module_utils.sluice.core.homecoming import Policy
from ansible.module_utils.sluice.core.phases import Direction, Phase
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.core.verdicts import Check, Gate, Verdict
from ansible.module_utils.sluice.ports.ledger import Run
from ansible.module_utils.sluice.services.transfer import Moved, Pace, Transfer, abort
from ansible.module_utils.sluice.services.verify import Verification

from faults.mover import take_lease
from faults.scene import Scene
from oracle.patience import until

FENCED = Gate("fence target", (Check("fenced", Verdict.PASSED, "by the test"),))


def open_back(scene: Scene, run_id: str = "run-2", stamp: str = "stamp-2") -> Run:
    """Open a run that takes the open one back, as an operator's command does."""
    before = scene.ledger.open_run()
    assert before is not None
    settings = {"undoes": before.id}
    system, now = scene.mapping.system, datetime.now(UTC)
    run = Run(run_id, system, Direction.BACK, "tester", Phase.OPENED, "", "", stamp, now, None, settings)
    scene.ledger.take_over(run, before)
    return run


class Rollback:
    """The ends of the open run that goes back; RQ's side is fenced by there being no worker.

    Made twice it is the same command again: the lease is taken anew, and nothing of the first one's memory is there.
    """

    def __init__(self, scene: Scene, policy: Policy = Policy.HOLD, *, redis: bool = True) -> None:
        self.scene = scene
        run = scene.ledger.open_run()
        assert run is not None
        self.run = run if run.direction == Direction.BACK else open_back(scene)
        self.home = SqlHome(scene.engine, scene.mapping, policy)
        self.journal = SqlJournal(self.home)
        self.lease: Lease = take_lease(scene.ledger, "rollback", 30)
        self.adopted = ""
        if redis:
            self.queues = RqQueues(redis_connect.connect(scene.redis_url), scene.mapping)
            self.leaving = RqSource(self.queues, self.home, scene.mapping)
            undone = scene.ledger.find_run(str(self.run.settings["undoes"]))
            assert undone is not None
            self.adopted = self.leaving.adopt(self.lease, [undone.generation])

    def move(self, *, journal: bool = False, batch: int = 1000) -> Moved:
        """One of the two ends, to its end."""
        source: Any = self.journal if journal else self.leaving
        work = Transfer(
            source,
            self.home,
            self.scene.ledger,
            SystemClock(),
            prove_fence=lambda: FENCED,
            custody_in_row=True,
            pace=Pace(batch=batch),
        )
        moved = work.slice(self.lease, 60)
        assert moved.done
        return moved

    def bring_home(self) -> tuple[Moved, Moved]:
        """Both ends, to their end: nothing is left."""
        found = self.move(), self.move(journal=True)
        assert self.leaving.waiting() == self.journal.waiting() == 0
        return found

    def balance(self) -> Balance:
        """Every known id, in exactly one place."""
        scene = self.scene
        table = SqlTable(scene.engine, scene.mapping)
        return (
            Verification(table, self.queues, scene.ledger, SystemClock(), scene.mapping, self.run.id).balance().balance
        )


def undo(scene: Scene) -> Rollback:
    """What the rescue of a play does with a run that goes back and has released nothing."""
    back = Rollback(scene)
    undone = str(back.run.settings["undoes"])
    abort(back.leaving, back.home, back.lease)
    before = scene.ledger.find_run(undone)
    assert before is not None
    given = Lease(back.lease.system, before.id, back.lease.owner, back.lease.token, before.generation)
    back.leaving.adopt(given, [back.run.generation])
    scene.ledger.set_phase(back.lease, Phase.ABORTED, FENCED, undoes=undone)
    scene.ledger.give_up(back.lease)
    return back


def clean_up(scene: Scene, back: Rollback, folder: Path) -> int:
    """Export, read again, delete by manifest; the run has ended. Returns how many jobs were deleted."""
    archive = RqArchive(back.queues)
    exported = archive.export(back.leaving.returned(), folder / f"{back.run.id}.gz")
    assert archive.reread(exported.path) == exported
    purged = archive.purge(back.lease, archive.archived_ids(exported.path), workers_dead=True)
    back.leaving.clear(back.lease)
    back.queues.clear_stamp()
    for phase in ("prepared", "routed", "fenced", "transferred", "verified", "validated", "cleaned"):
        scene.ledger.set_phase(back.lease, Phase(phase), FENCED, undoes=str(back.run.settings["undoes"]))
    scene.ledger.give_up(back.lease)
    return int(purged.jobs)


def rows(scene: Scene) -> dict[str, int]:
    """Rows by custody and status."""
    found = scene.sql("SELECT CONCAT(custody, ' ', status), COUNT(*) FROM caption_tasks GROUP BY 1")
    return {row[0]: int(row[1]) for row in found}


def row(scene: Scene, task_id: str) -> Any:
    """One row."""
    [found] = scene.sql("SELECT * FROM caption_tasks WHERE id = :id", id=task_id)
    return found


def held(scene: Scene) -> dict[str, str]:
    """What waits for an operator, with the reasons."""
    return {seen.id: seen.where for seen in scene.ledger.held()}


def ids(scene: Scene) -> list[str]:
    """Every id of the table, in the order of claiming."""
    return [entry[0] for entry in scene.sql("SELECT id FROM caption_tasks ORDER BY priority, created_at, id")]


def places_of(scene: Scene) -> Iterator[tuple[str, str]]:
    """Each id with its place, as the source sees it."""
    return ((seen.id, str(seen.place)) for seen in SqlTable(scene.engine, scene.mapping).census())


def poll_off(scene: Scene, pollers: int = 2) -> None:
    """The application's guarded pollers, until nothing of theirs is queued or running."""
    started = [scene.start("captions.legacy", "--name", f"poller-{number}") for number in range(pollers)]

    def over() -> bool:
        dead = [process for process in started if process.poll() is not None]
        assert not dead, scene.log_of(dead[0])
        query = "SELECT COUNT(*) FROM caption_tasks WHERE custody = 'db' AND status IN ('queued', 'running')"
        return scene.sql(query) == [(0,)]

    until(over, "the pollers' last task", every=0.1)
    for process in started:
        process.send_signal(signal.SIGTERM)
        # The other one may have done everything before this one was ready to hear a signal.
        assert scene.ending_of_worker(process) in (0, -signal.SIGTERM), scene.log_of(process)
