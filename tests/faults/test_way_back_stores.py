"""A store is lost, restarted, full or read-only in the middle of the way back; half of the tasks were born in RQ."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
import redis
from ansible.module_utils.sluice.core.errors import StoreError

from captions import outbox, tasks
from captions.database import make_engine
from captions.schema import create_schema
from faults.mover import REFUSED
from faults.rollback import Rollback, held, open_back, poll_off, rows
from faults.scene import FULL, QUEUES, Process, Scene, is_frozen
from lab.stores import PrivateMariaDB, PrivateRedis, free_port
from oracle.patience import until

pytestmark = [pytest.mark.real, pytest.mark.slow]

HALF = 500 if FULL else 60
TASKS = 2 * HALF
OPTIONS = ("--batch", str(TASKS // 5), "--lease-seconds", "1.5")


def submit(scene: Scene, count: int) -> None:
    """Tasks that the application accepts for RQ: custody is RQ's from the first moment, the job is the outbox's."""
    engine, placer = make_engine(scene.database_url), outbox.RQPlacer(scene.redis_url, "rq")
    with scene.seeded.open("a") as promised:
        for number in range(count):
            task_id, custody = tasks.submit(
                engine,
                rq_usable=True,
                user_id=40_000_000 + number,
                image=scene.images[number % len(scene.images)],
                priority=QUEUES[number % 4],
                delay_seconds=0,
            )
            assert custody == "rq"
            assert outbox.place_row(engine, placer, task_id)
            promised.write(f"{task_id}\n")
    engine.dispose()


def fill(scene: Scene) -> Scene:
    """Half moved, half born in RQ; a run that goes back is open."""
    scene.seed(HALF)
    scene.move_to_the_end()
    scene.sql("INSERT INTO captions_control (id, rq_share) VALUES (1, 100) ON DUPLICATE KEY UPDATE rq_share = 100")
    submit(scene, HALF)
    scene.sql("UPDATE captions_control SET rq_share = 0")
    assert rows(scene) == {"rq queued": TASKS}
    open_back(scene)
    return scene


@pytest.fixture
def mixed(scene: Scene) -> Scene:
    """See fill."""
    return fill(scene)


def frozen(scene: Scene, trap: str, end: str = "--back") -> Process:
    """A mover that has frozen at an arrow of its second batch."""
    mover = scene.start_mover(end, "--freeze", trap, *OPTIONS)
    until(lambda: is_frozen(mover), what=f"the mover's arrow {trap}")
    return mover


def refused(scene: Scene, mover: Process, error: str) -> str:
    """Wake a mover that must end with an error; its message."""
    mover.send_signal(signal.SIGCONT)
    ending = scene.ending(mover)
    assert (ending.status, ending.report["error"]) == (REFUSED, error), ending
    return str(ending.report["message"])


def all_home_and_run_once(scene: Scene) -> None:
    """Everything waits at home; the pollers run each task once."""
    assert rows(scene) == {"db queued": TASKS}
    assert held(scene) == {}
    poll_off(scene)
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS


@pytest.mark.parametrize("arrow", ["claim:after:2", "release:after:2"] if FULL else ["release:after:2"])
def test_redis_is_emptied(mixed: Scene, arrow: str) -> None:
    mover = frozen(mixed, arrow)
    mixed.client.flushall()
    message = refused(mixed, mover, "GenerationMismatch")
    assert "run the same command again" in message
    totals = mixed.move_to_the_end("--back", *OPTIONS)
    assert totals["lost"] == totals["held"] == 0
    all_home_and_run_once(mixed)


@pytest.mark.parametrize("who", ["nobody looks", "its workers come first"] if FULL else ["its workers come first"])
def test_redis_is_stopped_and_comes_back_with_its_data(mixed: Scene, redis_server: PrivateRedis, who: str) -> None:
    """The rows alone finish. What lives again then runs nothing that it no longer owns, and is put in order."""
    mover = frozen(mixed, "stage:after:2")
    redis_server.kill()
    message = refused(mixed, mover, "StoreError")
    assert "Redis database" in message
    assert "Next:" in message
    assert mixed.move_to_the_end("--rows", *OPTIONS)["held"] == 0
    assert rows(mixed) == {"db queued": TASKS}

    redis_server.start()
    left = sum(len(ids) for ids in mixed.queued().values())
    assert left > 0, "Redis has its data"
    if who == "its workers come first":
        mixed.work_off(1)
        assert rows(mixed) == {"db queued": TASKS}, "they have done nothing"
        assert mixed.effects.read_bytes() == b""
    back = Rollback(mixed)
    assert back.adopted == "ours"
    assert [(end.moved, end.held, end.lost) for end in back.bring_home()] == [(0, 0, 0)] * 2
    assert mixed.queued() == {queue: [] for queue in QUEUES}
    assert back.balance().holds
    all_home_and_run_once(mixed)
    mixed.work_off(1)
    assert mixed.verdict().clean


def test_redis_that_was_dead_from_the_start_comes_back_while_the_pollers_work(
    mixed: Scene, redis_server: PrivateRedis
) -> None:
    redis_server.kill()
    mixed.move_to_the_end("--rows", *OPTIONS)
    assert rows(mixed) == {"db queued": TASKS}
    redis_server.start()
    worker = mixed.start_worker("restarted", burst=False)
    poll_off(mixed)
    until(lambda: not any(mixed.queued().values()), what="the end of RQ's queues")
    worker.terminate()
    assert mixed.ending_of_worker(worker) == 0
    back = Rollback(mixed)
    assert back.adopted == "adopted"
    back.bring_home()
    verdict = mixed.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS


def become_replica(client: redis.Redis) -> Callable[[], object]:
    """Of a primary that is not there."""
    client.replicaof("127.0.0.1", 1)
    return lambda: client.replicaof("NO", "ONE")


def want_replicas(client: redis.Redis) -> Callable[[], object]:
    """That are not there."""
    client.config_set("min-replicas-to-write", 1)
    return lambda: client.config_set("min-replicas-to-write", 0)


def be_full(client: redis.Redis) -> Callable[[], object]:
    """And refuse what needs more memory."""
    client.config_set("maxmemory", 1_000_000)
    return lambda: client.config_set("maxmemory", 0)


@pytest.mark.parametrize("spoil", [become_replica, want_replicas, be_full] if FULL else [become_replica, be_full])
def test_a_redis_that_takes_no_writes_is_named_and_nothing_is_half_done(
    mixed: Scene, spoil: Callable[[redis.Redis], Callable[[], object]]
) -> None:
    mover = frozen(mixed, "stage:before:2")
    client = mixed.client
    known = set(back_ids(mixed))
    mend = spoil(client)
    try:
        message = refused(mixed, mover, "StoreError")
        assert "Redis database" in message
        where = [set(client.hkeys("sluice:{captions}:claimed")), *(set(ids_) for ids_ in lists(client))]
        where.append(set(client.smembers("sluice:{captions}:returned")))
        assert {entry.decode() for found in where for entry in found} == known, "every job is somewhere"
        assert sum(map(len, where)) == len(known), "and in one place"
        again = mixed.move("--back", *OPTIONS)
        assert (again.status, again.report["error"]) == (REFUSED, "StoreError"), again
    finally:
        mend()
    assert mixed.move_to_the_end("--back", *OPTIONS)["held"] == 0
    all_home_and_run_once(mixed)


def back_ids(scene: Scene) -> list[str]:
    """Every task."""
    return [entry[0] for entry in scene.sql("SELECT id FROM caption_tasks")]


def lists(client: redis.Redis) -> Iterator[list[bytes]]:
    """The entries of each queue."""
    for queue in QUEUES:
        yield cast("list[bytes]", client.lrange(f"rq:queue:{queue}", 0, -1))


def test_a_redis_that_throws_keys_away_costs_no_task(mixed: Scene) -> None:
    """It evicts whatever it likes, also keys of ours; the same command is run until nothing is left."""
    client = mixed.client
    mover = frozen(mixed, "stage:before:2")
    before = client.dbsize()
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) - 60_000)
    until(lambda: client.dbsize() < before - 10, what="an eviction")
    client.config_set("maxmemory", 0)
    client.config_set("maxmemory-policy", "noeviction")
    mover.send_signal(signal.SIGCONT)
    mixed.ending(mover)  # with an error or without: what was thrown away decides
    mixed.move_to_the_end("--back", *OPTIONS)
    all_home_and_run_once(mixed)


def test_the_database_is_killed_and_restarted(tmp_path: Path, redis_url: str) -> None:
    server = PrivateMariaDB(tmp_path / "mariadb", free_port())
    server.start()
    try:
        with server.connect_as_root() as root:
            root.cursor().execute("CREATE DATABASE captions")
        create_schema(make_engine(server.root_url("captions")))
        scene = Scene(tmp_path, server.root_url("captions"), redis_url)
        scene.open_run()
        fill(scene)
        mover = frozen(scene, "release:before:2")
        server.kill()
        message = refused(scene, mover, "StoreError")
        assert "database " in message
        server.start()
        scene.move_to_the_end("--back", *OPTIONS)
        all_home_and_run_once(scene)
        scene.close()
    finally:
        server.stop()


def test_rows_that_the_application_had_still_to_enqueue_come_home_too(mixed: Scene) -> None:
    """Redis was away while they were accepted: the row is all there is."""
    mixed.sql("UPDATE captions_control SET rq_share = 100")
    app = make_engine(mixed.database_url)
    task_id, custody = tasks.submit(
        app, rq_usable=True, user_id=50_000_000, image=mixed.images[0], priority="high", delay_seconds=3600
    )
    app.dispose()
    assert custody == "rq"
    due = mixed.sql("SELECT available_at FROM caption_tasks WHERE id = :id", id=task_id)[0][0]
    assert due > datetime.now(UTC).replace(tzinfo=None)
    back = Rollback(mixed)
    queues, journal = back.bring_home()
    assert (queues.moved, journal.moved) == (TASKS, 1)
    assert rows(mixed) == {"db queued": TASKS + 1}
    assert mixed.sql("SELECT available_at FROM caption_tasks WHERE id = :id", id=task_id)[0][0] == due


def test_an_unusable_redis_is_said_before_anything_is_written(mixed: Scene, redis_server: PrivateRedis) -> None:
    before = {name: value for name, value in mixed.fingerprint().items() if name != "sluice_lease"}
    mixed.client.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreError, match="read-only replica"):
            Rollback(mixed)
    finally:
        mixed.client.replicaof("NO", "ONE")
    assert {name: value for name, value in mixed.fingerprint().items() if name != "sluice_lease"} == before
