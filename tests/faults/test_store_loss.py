"""A store is lost, emptied or restarted in the middle of a transfer; a producer commits late."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from captions.database import make_engine
from captions.schema import create_schema
from faults.mover import REFUSED
from faults.scene import FULL, Process, Scene, is_frozen
from lab.stores import PrivateMariaDB, PrivateRedis, free_port
from oracle.patience import until

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 600 if FULL else 180
OPTIONS = ("--batch", str(TASKS // 6), "--lease-seconds", "1.5")


def aof(server: PrivateRedis) -> Path:
    """The part of the append-only file that is being written."""
    return max((server.directory / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)


def lose_the_last_writes(server: PrivateRedis, size: int) -> None:
    """Kill -9, and the machine's memory with it: of the append-only file only the first ``size`` bytes were on disk."""
    path = aof(server)
    server.kill()
    assert path.stat().st_size > size, "nothing would be lost"
    os.truncate(path, size)
    server.start()


def frozen(scene: Scene, *traps: str) -> Process:
    """A mover that has frozen at the first of its arrows."""
    mover = scene.start_mover(*(word for trap in traps for word in ("--freeze", trap)), *OPTIONS)
    until(lambda: is_frozen(mover), what=f"the mover's arrow {traps[0]}")
    return mover


def go_on_to_the_next(mover: Process, crossed: Path) -> None:
    """Wake a mover and wait until it has frozen once more."""
    before = crossed.stat().st_size
    mover.send_signal(signal.SIGCONT)
    until(lambda: crossed.stat().st_size > before and is_frozen(mover), what="the mover's next arrow")


@pytest.mark.parametrize("workers_ran", [False, True], ids=["nothing started", "workers had finished some"])
def test_redis_lost_its_last_writes_and_came_back(scene: Scene, redis_server: PrivateRedis, workers_ran: bool) -> None:
    """Two activated batches are gone from Redis, which answers again before the mover notices that it was away."""
    scene.seed(TASKS)
    order = scene.claim_order()
    mover = frozen(scene, "activate:after:1", "activate:after:3")
    size = aof(redis_server).stat().st_size
    go_on_to_the_next(mover, aof(redis_server))
    if workers_ran:
        scene.work_off(1)
    lose_the_last_writes(redis_server, size)
    mover.send_signal(signal.SIGCONT)

    ending = scene.ending(mover)
    assert (ending.status, ending.report["error"]) == (REFUSED, "StoreError"), ending
    scene.move_to_the_end(*OPTIONS)

    if not workers_ran:
        assert {queue: sorted(ids) for queue, ids in scene.queued().items()} == {
            queue: sorted(ids) for queue, ids in order.items()
        }
    scene.work_off()
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS


def test_redis_is_away_for_a_while(scene: Scene, redis_server: PrivateRedis) -> None:
    scene.seed(TASKS)
    order = scene.claim_order()
    mover = frozen(scene, "stage:after:2")
    redis_server.kill()
    mover.send_signal(signal.SIGCONT)
    ending = scene.ending(mover)
    assert (ending.status, ending.report["error"]) == (REFUSED, "StoreError"), ending
    assert "Redis database" in ending.report["message"]
    assert "Next:" in ending.report["message"]
    redis_server.start()
    scene.move_to_the_end(*OPTIONS)
    assert scene.queued() == order
    assert scene.staged() == set()


@pytest.mark.parametrize("arrow", ["stage:after:2", "release:after:2"])
def test_redis_is_emptied(scene: Scene, arrow: str) -> None:
    scene.seed(TASKS)
    mover = frozen(scene, arrow)
    scene.client.flushall()
    mover.send_signal(signal.SIGCONT)
    ending = scene.ending(mover)
    assert (ending.status, ending.report["error"]) == (REFUSED, "GenerationMismatch"), ending
    assert "recover.yml" in ending.report["message"]

    before = scene.fingerprint()
    again = scene.move(*OPTIONS)
    assert (again.status, again.report["error"]) == (REFUSED, "GenerationMismatch"), again
    after = scene.fingerprint()
    assert scene.client.dbsize() == 0
    # The lease was taken, and rows may have changed the token of their hold; nothing was released, nothing lost.
    assert after["sluice_task"] == before["sluice_task"]
    assert scene.sql("SELECT COUNT(*) FROM caption_tasks WHERE status = 'queued'") == [(TASKS,)]


@pytest.fixture
def mortal(tmp_path: Path, redis_url: str) -> Iterator[tuple[Scene, PrivateMariaDB]]:
    """A scene over a MariaDB of its own, which may be killed."""
    server = PrivateMariaDB(tmp_path / "mariadb", free_port())
    server.start()
    try:
        with server.connect_as_root() as root:
            root.cursor().execute("CREATE DATABASE captions")
        create_schema(make_engine(server.root_url("captions")))
        made = Scene(tmp_path, server.root_url("captions"), redis_url)
        made.open_run()
        yield made, server
        made.close()
    finally:
        server.stop()


def test_the_database_is_killed_and_restarted(mortal: tuple[Scene, PrivateMariaDB]) -> None:
    scene, mariadb = mortal
    scene.seed(TASKS)
    order = scene.claim_order()
    mover = frozen(scene, "claim:after:3")
    mariadb.kill()
    mover.send_signal(signal.SIGCONT)
    ending = scene.ending(mover)
    mariadb.start()
    assert (ending.status, ending.report["error"]) == (REFUSED, "StoreError"), ending
    assert "database " in ending.report["message"]
    scene.move_to_the_end(*OPTIONS)
    assert scene.queued() == order
    assert scene.staged() == set()
    scene.work_off()
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()


def test_a_producer_that_read_the_old_route_commits_late(scene: Scene) -> None:
    """Its row is locked and not yet visible: the transfer neither waits for it nor forgets it."""
    scene.seed(TASKS)
    late = "11111111-2222-4333-8444-555555555555"
    with scene.engine.connect() as producer:
        share = producer.execute(
            sa.text("SELECT rq_share FROM captions_control WHERE id = 1 LOCK IN SHARE MODE")
        ).scalar()
        assert share == 0
        producer.execute(
            sa.text(
                "INSERT INTO caption_tasks (id, user_id, priority, image_path, custody, created_at, available_at)"
                " VALUES (:id, 77, 'urgent', :image, 'db', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))"
            ),
            {"id": late, "image": scene.images[0]},
        )
        assert scene.move_to_the_end(*OPTIONS)["moved"] == TASKS
        producer.commit()
    with scene.seeded.open("a") as promised:
        promised.write(f"{late}\n")
    assert scene.move_to_the_end(*OPTIONS)["moved"] == 1
    assert scene.queued()["urgent"][-1] == late
    scene.work_off()
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()


def test_delayed_tasks_keep_their_time(scene: Scene) -> None:
    """Killed between release and activation: what is scheduled is scheduled once, at its own time."""
    scene.seed(TASKS, delayed_share=0.5, delay=3600.0)
    due = scene.sql("SELECT id, UNIX_TIMESTAMP(available_at) FROM caption_tasks WHERE available_at > UTC_TIMESTAMP(6)")
    times = {task: float(at) for task, at in due}
    assert len(times) > TASKS // 3
    for trap in ("release:after:5", "activate:after:1"):
        assert scene.move("--kill", trap, *OPTIONS).status == -signal.SIGKILL
    scene.move_to_the_end(*OPTIONS)
    scheduled = {
        member.decode(): score
        for queue in ("urgent", "high", "normal", "low")
        for member, score in scene.client.zrange(f"rq:scheduled:{queue}", 0, -1, withscores=True)
    }
    assert scheduled.keys() == times.keys()
    # RQ keeps whole seconds. The session's clock is UTC as the table's is.
    assert all(abs(scheduled[task] - times[task]) <= 1.0 for task in times)
    assert sum(len(ids) for ids in scene.queued().values()) == TASKS - len(times)
