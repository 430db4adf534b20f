"""There, back and there again: an undone way back, a second forward run, a partial way back, a companion hold."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters.rq_archive import RqArchive
from ansible.module_utils.sluice.adapters.rq_source import RqSource
from ansible.module_utils.sluice.adapters.sql_home import SqlHome, SqlJournal
from ansible.module_utils.sluice.adapters.sql_table import SqlTable
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.phases import Direction, Phase
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.ports.ledger import Run
from ansible.module_utils.sluice.services.transfer import Transfer
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from captions import tasks
from captions.database import make_engine
from faults import ROOT
from faults.mover import REFUSED
from faults.rollback import FENCED, Rollback, clean_up, held, ids, open_back, poll_off, row, rows, undo
from faults.scene import QUEUES, Scene
from stores_fixture import Ends, load_mapping, open_ends

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 120
WORDS = ("scheduled", "deferred", "wip", "failed", "finished", "canceled")


def entries(scene: Scene) -> dict[str, Any]:
    """Everything in lists and registries of our queues, with order and scores."""
    found: dict[str, Any] = {}
    for queue in QUEUES:
        for tail in ("", ":intermediate"):
            found[f"{queue}{tail}"] = scene.client.lrange(f"rq:queue:{queue}{tail}", 0, -1)
        for word in WORDS:
            found[f"{word}:{queue}"] = scene.client.zrange(f"rq:{word}:{queue}", 0, -1, withscores=True)
    return found


def test_an_undone_way_back_leaves_rq_as_it_was(scene: Scene) -> None:
    scene.seed(TASKS, delayed_share=0.2, delay=3600.0)
    scene.move_to_the_end()
    first = scene.client.lmove("rq:queue:normal", "rq:queue:normal:intermediate", "LEFT", "RIGHT")
    stranded = scene.client.lpop("rq:queue:high").decode()
    scene.client.zadd("rq:wip:high", {f"{stranded}:e1": 1234567})
    before, due = entries(scene), ids(scene)
    open_back(scene)
    # Some of the first batch are over, so that what is claimed is not numbered without gaps.
    over = [entry.decode() for entry in scene.client.lrange("rq:queue:urgent", 0, 3)]
    for task_id in over:
        scene.sql("UPDATE caption_tasks SET status = 'completed', caption = 'x' WHERE id = :id", id=task_id)
        before["urgent"].remove(task_id.encode())
    ending = scene.move("--back", "--kill", "release:before:1", "--batch", "25", "--lease-seconds", "1")
    assert ending.status == -9
    assert entries(scene) != before
    assert "held queued" in rows(scene)
    [[cancelled]] = scene.sql("SELECT id FROM caption_tasks WHERE custody = 'held' LIMIT 1")
    app = make_engine(scene.database_url)
    tasks.cancel(app, cancelled)

    undo(scene)

    assert entries(scene) == before
    assert tasks.read_task(app, cancelled)["custody"] == "db", "it is its user's again"
    app.dispose()
    assert before["normal:intermediate"] == [first]
    assert before["wip:high"] == [(f"{stranded}:e1".encode(), 1234567.0)]
    assert rows(scene) == {"rq queued": TASKS - len(over) - 1, "rq completed": len(over), "db cancelled": 1}
    assert ids(scene) == due
    assert scene.client.exists("sluice:{captions}:claimed", "sluice:{captions}:returned") == 0
    run = scene.ledger.open_run()
    assert run is not None
    assert (run.id, run.direction) == ("run-1", "forward")
    scene.move_to_the_end()  # the forward run can go on: its stamp is there
    scene.work_off()
    # What has a time, or was in the hands of a worker that is dead, is for others.
    left = sum(len(before[f"{word}:{queue}"]) for word in ("scheduled", "wip") for queue in QUEUES) + 1
    assert rows(scene) == {"rq queued": left, "rq completed": TASKS - left - 1, "db cancelled": 1}


def test_an_undone_way_back_gives_the_registries_of_ended_jobs_back(scene: Scene) -> None:
    scene.seed(20)
    scene.move_to_the_end()
    scene.work_off(1)
    failed = ids(scene)[0]
    scene.client.zrem(f"rq:finished:{row(scene, failed).priority}", failed)
    scene.client.zadd(f"rq:failed:{row(scene, failed).priority}", {failed: 9e9})
    scene.client.hset(f"rq:job:{failed}", "status", "failed")
    before = entries(scene)
    back = Rollback(scene)
    assert back.move().moved == 0
    assert not any(entries(scene).values())
    scene.ledger.give_up(back.lease)
    undo(scene)
    after = entries(scene)
    for key in (f"finished:{queue}" for queue in QUEUES):
        assert dict(after[key]).keys() == dict(before[key]).keys()
        # RQ forgets a job when its hash expires; of that Redis tells whole seconds.
        assert all(abs(score - dict(before[key])[entry]) <= 2 for entry, score in after[key])
    assert failed.encode() in [entry[0] for entry in after[f"failed:{row(scene, failed).priority}"]]


def test_there_and_back_and_there_and_back(scene: Scene, tmp_path: Path) -> None:
    """The same ids each time; what was there before is in nobody's way. Each task then runs once."""
    scene.seed(TASKS)
    order = scene.claim_order()
    for number in (1, 2):
        assert scene.move_to_the_end()["moved"] == TASKS
        assert scene.queued() == order
        open_back(scene, f"run-{number}-back", f"stamp-{number}-back")
        back = Rollback(scene)
        back.bring_home()
        assert scene.claim_order() == order
        assert clean_up(scene, back, tmp_path) == TASKS
        assert list(scene.client.scan_iter("sluice:*")) == list(scene.client.scan_iter("rq:job:*")) == []
        assert scene.ledger.open_run() is None
        ended = scene.ledger.find_run(str(back.run.settings["undoes"]))
        assert ended is not None
        assert ended.phase is Phase.ROLLED_BACK
        run = Run(
            f"run-{number + 1}-there",
            scene.mapping.system,
            Direction.FORWARD,
            "tester",
            Phase.OPENED,
            "",
            "",
            f"stamp-{number + 1}",
            back.run.opened_at,
            None,
            {},
        )
        scene.ledger.start_run(run)
        lease = scene.ledger.take_lease(run, "preparation", 5)
        assert back.queues.stamp(lease)
        scene.ledger.give_up(lease)
    assert scene.move_to_the_end()["moved"] == TASKS
    scene.work_off()
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["starts"] == TASKS


def partial(scene: Scene) -> list[str]:
    """A forward run that has moved everything; then submissions go to the table again. The ids."""
    scene.seed(TASKS)
    everything = ids(scene)
    scene.sql("INSERT INTO captions_control (id, rq_share) VALUES (1, 0) ON DUPLICATE KEY UPDATE rq_share = 0")
    scene.move_to_the_end()
    return everything


def test_a_failed_task_that_a_user_retries_after_a_partial_way_back_moves_again(scene: Scene) -> None:
    everything = partial(scene)
    failing, image = everything[:3], row(scene, everything[0]).image_path
    for task_id in failing:
        scene.sql("UPDATE caption_tasks SET image_path = 'none.png', max_attempts = 1 WHERE id = :id", id=task_id)
    scene.work_off()
    assert rows(scene) == {"rq failed": 3, "rq completed": TASKS - 3}
    app = make_engine(scene.database_url)
    for task_id in failing:
        scene.sql("UPDATE caption_tasks SET image_path = :image WHERE id = :id", id=task_id, image=image)
        assert tasks.retry(app, task_id, rq_usable=True) == "db"
    app.dispose()
    table = SqlTable(scene.engine, scene.mapping)
    assert table.renewed(everything) == set(failing)
    assert table.back_again() == []

    assert scene.move_to_the_end()["moved"] == 3

    scene.work_off()
    assert rows(scene) == {"rq completed": TASKS}
    assert held(scene) == {}


def test_a_retry_whose_first_job_still_waits_is_held_and_stops_nobody(scene: Scene) -> None:
    """Cancelled and queued again by its user while RQ has not come to its first job yet."""
    everything = partial(scene)
    again = everything[0]
    late = everything[-1]
    app = make_engine(scene.database_url)
    for task_id in (again, late):
        tasks.cancel(app, task_id)
        assert tasks.retry(app, task_id, rq_usable=True) == "db"
    app.dispose()
    # The worker finds that the first job of one of them is not RQ's to run any more.
    scene.client.lrem(f"rq:queue:{row(scene, late).priority}", 0, late)
    scene.client.hset(f"rq:job:{late}", "status", "finished")
    totals = scene.move_to_the_end()
    assert (totals["moved"], totals["held"]) == (1, 1)
    assert held(scene) == {again: "queued again, and the job it had before is still at the target"}
    scene.work_off()
    assert rows(scene) == {"rq completed": TASKS - 1, "held queued": 1}


def test_a_restored_table_is_still_refused(scene: Scene) -> None:
    everything = partial(scene)
    scene.sql("UPDATE caption_tasks SET custody = 'db', custody_token = 0, enqueued_at = NULL")  # as a dump has it
    assert set(SqlTable(scene.engine, scene.mapping).back_again()) <= set(everything)
    ending = scene.move()
    assert (ending.status, ending.report["error"]) == (REFUSED, "RunConflict"), ending
    assert "restored from a backup" in ending.report["message"]


def test_what_came_home_and_went_again_is_no_restored_table(scene: Scene) -> None:
    scene.seed(10)
    scene.move_to_the_end()
    Rollback(scene).bring_home()
    assert SqlTable(scene.engine, scene.mapping).back_again() == []
    poll_off(scene)
    assert rows(scene) == {"db completed": 10}


# -- a table without a word for custody --------------------------------------------------------------------------------

LARAVEL = ROOT / "inventories" / "example" / "mappings" / "laravel.yml"
JOBS = ROOT / "tests" / "integration" / "tables" / "jobs.sql"


def transfer(source: Any, target: Any, ends: Ends, lease: Lease) -> int:
    """From one end to the other; how many were moved."""
    work = Transfer(source, target, ends.ledger, SystemClock(), prove_fence=lambda: FENCED, custody_in_row=False)
    return int(work.slice(lease, 60).moved)


def execute(ends: Ends, statement: str) -> Sequence[Any]:
    """One statement of the application."""
    with ends.engine.begin() as connection:
        done = connection.execute(sa.text(statement))
        return done.all() if done.returns_rows else ()


def test_laravels_jobs_go_and_come_home_and_its_workers_stay_out_while_rows_only_look_ready(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapping = load_mapping(LARAVEL)
    ends = open_ends(database_url, redis_url, mapping)
    text = "\n".join(line for line in JOBS.read_text().splitlines() if not line.startswith("--"))
    for statement in filter(str.strip, text.split(";")):
        execute(ends, statement)
    for number in range(1, 7):
        queue = "high" if number < 3 else "default"
        later = 3600 if number == 6 else 0
        execute(
            ends,
            "INSERT INTO jobs (id, queue, payload, attempts, available_at, created_at) VALUES "
            f"({number}, '{queue}', 'p', 0, UNIX_TIMESTAMP() - 10 + {later}, UNIX_TIMESTAMP() - 20)",
        )
    before = execute(ends, "SELECT * FROM jobs ORDER BY id")
    assert transfer(ends.source, ends.target, ends, ends.lease) == 6
    bridge = types.ModuleType("bridge.laravel")
    bridge.run = lambda *_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bridge.laravel", bridge)
    client = ends.target.client
    high = Queue("laravel-high", connection=client, serializer=JSONSerializer)
    assert SimpleWorker([high], connection=client, serializer=JSONSerializer).work(burst=True, logging_level="ERROR")
    assert execute(ends, "SELECT * FROM jobs ORDER BY id") == before, "this table tells nothing of what ran"

    back = Run(
        "run-2", mapping.system, Direction.BACK, "tester", Phase.OPENED, "", "", "stamp-2", ends.run.opened_at, None, {}
    )
    ends.ledger.take_over(back, ends.run)
    lease = ends.ledger.take_lease(back, "first", 30)
    home = SqlHome(ends.engine, mapping)
    leaving = RqSource(ends.target, home, mapping)
    assert leaving.adopt(lease, [ends.run.generation]) == "adopted"
    assert home.exposed() == 6
    assert transfer(leaving, home, ends, lease) == 4
    journal = SqlJournal(home)
    assert transfer(journal, home, ends, lease) == 0
    assert leaving.waiting() == journal.waiting() == 0

    assert execute(ends, "SELECT * FROM jobs ORDER BY id") == before
    marks = {seen.id: str(seen.place) for seen in ends.ledger.marks()}
    assert marks == {"1": "held", "2": "held", "3": "returned", "4": "returned", "5": "returned", "6": "returned"}
    assert all("finished at the target" in seen.where for seen in ends.ledger.held())
    assert home.exposed() == 2, "Laravel's workers would run them a second time"
    execute(ends, "DELETE FROM jobs WHERE id IN (1, 2)")
    assert home.exposed() == 0

    # What came home is in circulation: a later run takes it, and nothing of the first one is in its way.
    archive = RqArchive(ends.target)
    archive.purge(lease, list(leaving.returned()), workers_dead=True)
    assert [task.id for task in SqlTable(ends.engine, mapping).claim(lease, 10).tasks] == ["3", "4", "5"]
    ends.engine.dispose()
