"""A disk, or a memory, is full in the middle: one message, nothing lost, and the same command finishes later."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import sql_connect
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.redis_backup import RedisBackup
from ansible.module_utils.sluice.adapters.redis_health import RedisServerHealth
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.sql_backup import SqlBackup
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.errors import SluiceError, StoreError
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.core.verdicts import Verdict
from ansible.module_utils.sluice.ports.preparation import Progress, unheard
from ansible.module_utils.sluice.services import backup
from ansible.module_utils.sluice.services.preflight import preflight, redis_checks
from ansible.module_utils.sluice.services.transfer import Pace, Transfer

from captions.database import make_engine
from captions.schema import create_schema
from faults.mover import REFUSED, passed_fence
from faults.scene import FULL, Ending, Scene
from lab.stores import PrivateMariaDB, PrivateRedis, free_port
from oracle.patience import until
from stores_fixture import ChangedMariaDB, SmallDisk, attach, load_mapping, small_disk

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 1500
PREFIXES = ("rq:", "sluice:")
OPTIONS = ("--batch", "100", "--lease-seconds", "4")
#: Redis' files, and room to fill in mid-transfer.
REDIS_DISK_MIB = 64
#: MariaDB's redo log, system tablespace and tables, and some room.
DATABASE_DISK_MIB = 240


def database_on(server: PrivateMariaDB) -> str:
    """Start a server and make captions' tables there; the database's URL."""
    server.start()
    with server.connect_as_root() as root:
        root.cursor().execute("CREATE DATABASE captions")
    url = server.root_url("captions")
    engine = make_engine(url)
    create_schema(engine)
    engine.dispose()
    return url


def assert_refused(ending: Ending, *words: str) -> None:
    """One message of ours: where, what, and what next."""
    assert (ending.status, ending.report["error"]) == (REFUSED, "StoreError"), ending
    message = ending.report["message"]
    for word in (*words, "Next: ", "then run the same command again"):
        assert word in message, message
    assert "\n" not in message
    assert "Traceback" not in ending.stderr


def assert_conserved(scene: Scene) -> None:
    """Every task is where exactly one side owns it: what can run at the target is no longer ready at the source."""
    rows = {row.id: row.custody for row in scene.sql("SELECT id, custody FROM caption_tasks")}
    runnable = [task for ids in scene.queued().values() for task in ids]
    assert len(rows) == TASKS
    assert len(runnable) == len(set(runnable))
    assert {rows[task] for task in runnable} <= {"rq"}
    assert not scene.staged() & set(runnable)


def assert_clean_in_the_end(scene: Scene, order: dict[str, list[str]], worked: bool = FULL) -> None:
    """Everything is moved, in order; and runs once where the workers are real, else the ids are compared."""
    scene.move_to_the_end(*OPTIONS)
    assert scene.queued() == order
    assert scene.staged() == set()
    assert_conserved(scene)
    if not worked:
        return
    scene.work_off()
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS


# -- the database's disk ----------------------------------------------------------------------------------------


@pytest.fixture
def cramped_database(tmp_path: Path, redis_url: str) -> Iterator[tuple[Scene, PrivateMariaDB, SmallDisk]]:
    """A scene whose database has a small disk of its own; no run is open yet."""
    server = ChangedMariaDB(tmp_path / "mariadb", free_port())
    with small_disk(server.data, DATABASE_DISK_MIB) as disk:
        try:
            scene = Scene(tmp_path, database_on(server), redis_url)
            yield scene, server, disk
            scene.close()
        finally:
            server.kill()


def taken_back(scene: Scene, server: PrivateMariaDB) -> bool:
    """Nobody's transaction is left in the database, or taking it back has ended the server, which may answer first."""
    with suppress(sa.exc.DBAPIError):
        return scene.sql("SELECT COUNT(*) FROM information_schema.innodb_trx") == [(0,)]
    return not server.running


@pytest.mark.parametrize("room", [0, 300_000], ids=["no room at all", "some room"])
def test_the_databases_disk_fills_up(cramped_database: tuple[Scene, PrivateMariaDB, SmallDisk], room: int) -> None:
    """InnoDB answers with error 1114 and takes the transaction back; a rollback that finds no room ends the server."""
    scene, server, disk = cramped_database
    scene.open_run()
    scene.seed(TASKS)
    order = scene.claim_order()
    disk.fill(leave=room)

    for _ in range(2):
        ending = scene.move(*OPTIONS)
        answered = "is full (error 1114)" in str(ending.report.get("message"))
        assert_refused(
            ending, "database captions at localhost", "disk is full" if answered else "a full disk may end it"
        )
        until(lambda: taken_back(scene, server), what="the end of the mover's transaction")
        if not server.running:
            assert "Out of disk space" in server.log.read_text()
            break
        assert answered
        assert_conserved(scene)

    disk.give_back()
    server.start()  # where it has ended; else it goes on
    assert_conserved(scene)
    assert_clean_in_the_end(scene, order, worked=FULL or room == 0)


def test_the_databases_disk_is_full_before_the_ledger_is_there(
    cramped_database: tuple[Scene, PrivateMariaDB, SmallDisk],
) -> None:
    scene, _, disk = cramped_database
    scene.seed(TASKS)
    order = scene.claim_order()
    disk.fill()
    with pytest.raises(StoreError, match=r"database captions at localhost.*disk is full.*Next: free space"):
        SqlLedger(scene.engine, scene.mapping.system).install()
    disk.give_back()
    scene.open_run()
    assert_clean_in_the_end(scene, order)


def test_the_databases_disk_fills_up_under_the_trial_restore(
    cramped_database: tuple[Scene, PrivateMariaDB, SmallDisk], tmp_path: Path
) -> None:
    scene, _, disk = cramped_database
    scene.seed(TASKS)
    disk.fill(leave=200_000)
    part = SqlBackup(scene.engine, ["caption_tasks"])
    gate = backup.back_up([part], tmp_path / "backups", "run-1", clock=SystemClock()).gate
    assert [check.name for check in gate.blocking()] == ["backup_sql"]
    assert "square-" not in gate.explain(), "rows of the table are in the message"
    # 1180 is what MariaDB makes of it when it loads an empty table in bulk: "Operation not permitted" at COMMIT.
    assert "is full" in gate.explain() or "ERROR 1180" in gate.explain(), gate.explain()
    assert "disk" in gate.explain(), gate.explain()
    assert not any("sluice_verify" in name for name in sa.inspect(scene.engine).get_schema_names())

    disk.give_back()
    gate = backup.back_up([part], tmp_path / "backups", "run-1", clock=SystemClock()).gate
    assert gate.open, gate.explain()


def test_the_disk_of_the_binary_log_fills_up(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MariaDB refuses nothing then: every COMMIT waits until somebody frees space. The mover does not wait with it."""
    with small_disk(tmp_path / "log", 64) as disk, ExitStack() as open_:
        log = disk.path / "binlog"
        server = ChangedMariaDB(
            tmp_path / "mariadb", free_port(), f"--log-bin={log}", "--server-id=1", "--binlog-format=ROW"
        )
        open_.callback(server.kill)  # a server that waits for space does not end in order
        scene = Scene(tmp_path, database_on(server), redis_url)
        open_.callback(scene.close)
        scene.open_run()
        scene.seed(TASKS)
        order = scene.claim_order()
        disk.fill(leave=100_000)

        # A lock is waited for twice, and in vain, while a COMMIT hangs; of both the COMMIT is told.
        monkeypatch.setattr(sql_connect, "LOCK_WAIT_SECONDS", 1)
        monkeypatch.setattr(sql_connect, "COMMIT_SECONDS", 5.0)
        run = scene.ledger.open_run()
        assert run is not None
        ends = attach(scene.database_url, scene.redis_url, scene.mapping, run, "in this process")
        open_.callback(ends.engine.dispose)
        transfer = Transfer(
            ends.source,
            ends.target,
            ends.ledger,
            SystemClock(),
            prove_fence=passed_fence,
            custody_in_row=True,
            pace=Pace(batch=100, largest=100, lease_seconds=1.5),
        )
        with pytest.raises(StoreError, match=r"database captions at .*COMMIT had no answer within 5 s.*Next: look for"):
            transfer.slice(ends.lease, 30)
        with server.connect_as_root() as root:
            cursor = root.cursor()
            cursor.execute(
                "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE LIKE 'Waiting for someone%'"
            )
            assert cursor.fetchone() == (1,), "the server waits, which the message tells to look for"

        # It would go on within a minute of the space being there; a restart decides the waiting COMMIT as well.
        server.kill()
        disk.give_back()
        server.start()
        assert_conserved(scene)
        assert_clean_in_the_end(scene, order)


# -- Redis' disk and memory -------------------------------------------------------------------------------------


@pytest.fixture
def cramped_redis(tmp_path: Path, database_url: str) -> Iterator[tuple[Scene, PrivateRedis, SmallDisk]]:
    """A scene whose Redis has a small disk of its own, with an open run."""
    server = PrivateRedis(tmp_path / "redis", free_port(), "test-password")
    with small_disk(server.directory, REDIS_DISK_MIB) as disk:
        try:
            server.start()
            scene = Scene(tmp_path, database_url, server.url())
            scene.open_run()
            yield scene, server, disk
            scene.close()
        finally:
            server.kill()


def persists(client: redis.Redis) -> bool:
    """Whether Redis says that it can write its files (again)."""
    info = client.info("persistence")
    return {info["aof_last_write_status"], info["rdb_last_bgsave_status"]} == {"ok"}


@pytest.mark.parametrize("killed", [False, True], ids=["lives on", "killed before space was freed"])
def test_the_disk_of_redis_fills_up(cramped_redis: tuple[Scene, PrivateRedis, SmallDisk], killed: bool) -> None:
    """What Redis has answered and could not write any more is lost when it is killed then: it is placed again."""
    scene, server, disk = cramped_redis
    scene.seed(TASKS)
    order = scene.claim_order()
    disk.fill(leave=200_000)

    for _ in range(2):
        assert_refused(scene.move(*OPTIONS), "Redis database 0 at 127.0.0.1", "append-only file (No space left")
        assert_conserved(scene)
    assert sum(map(len, scene.queued().values())) > 0, "some were moved before"
    gate = preflight(RedisServerHealth(scene.client), None, tables=(), prefixes=PREFIXES, backlog_bytes=1)
    assert gate.verdict is Verdict.FAILED
    assert "append-only file (No space left" in gate.explain(), "Redis refuses a PING then, so no other check is made"
    with pytest.raises(StoreError, match="no AOF fsync"):
        RqQueues(scene.client, scene.mapping).durable(deadline=2.0)

    if killed:
        server.kill()
        disk.give_back()
        server.start()
        while (ending := scene.move(*OPTIONS)).status == REFUSED:
            assert "the same command again" in ending.report["message"], ending
    else:
        disk.give_back()
        until(lambda: persists(scene.client), what="Redis' next write to its disk")
    assert_clean_in_the_end(scene, order, worked=FULL or killed)


def test_the_disk_of_a_redis_that_syncs_always_fills_up(cramped_redis: tuple[Scene, PrivateRedis, SmallDisk]) -> None:
    """Such a Redis ends itself rather than answer what it could not write."""
    scene, server, disk = cramped_redis
    scene.seed(TASKS)
    order = scene.claim_order()
    scene.client.config_set("appendfsync", "always")
    disk.fill(leave=200_000)
    ending = scene.move(*OPTIONS)
    assert (ending.status, ending.report["error"]) == (REFUSED, "StoreError"), ending
    assert "no answer" in ending.report["message"]
    assert "its log says why" in ending.report["message"]
    until(lambda: not server.running, what="the end of Redis")
    disk.give_back()
    server.start()
    assert_clean_in_the_end(scene, order)


def test_a_snapshot_finds_no_room(cramped_redis: tuple[Scene, PrivateRedis, SmallDisk], tmp_path: Path) -> None:
    """In the preparation: the backup says so, and so does the stamp once Redis refuses writes for it."""
    scene, _, disk = cramped_redis
    lease = Lease("captions", "run-2", "tester", 9, "stamp-2")
    queues = RqQueues(scene.client, scene.mapping)
    queues.clear_stamp()
    scene.client.set("rq:weight", os.urandom(100_000))
    disk.fill(leave=30_000)
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(StoreError, match=r"Redis database 0 at .*snapshot failed.*Next: look at the server's log"):
        RedisBackup(scene.client).take(folder, "run-1", unheard)
    assert list(folder.iterdir()) == []
    scene.client.config_set("save", "1 1")
    with pytest.raises(StoreError, match=r"Redis database 0 at .*RDB snapshot failed.*Next: free space on its disk"):
        queues.stamp(lease)
    assert queues.our_keys() == []
    disk.give_back()
    # Redis tries again by itself, five seconds after a failure at the earliest.
    until(lambda: persists(scene.client), what="Redis' next snapshot")
    assert queues.stamp(lease)
    assert RedisBackup(scene.client).take(folder, "run-1", unheard).checks


def test_the_memory_of_redis_is_full(cramped_redis: tuple[Scene, PrivateRedis, SmallDisk]) -> None:
    """`maxmemory` with `noeviction`: reached in mid-transfer, and again by what the preparation writes first."""
    scene, _, _ = cramped_redis
    scene.seed(TASKS)
    order = scene.claim_order()
    scene.client.config_set("maxmemory", scene.client.info("memory")["used_memory"] + 500_000)
    words = ("Redis database 0 at 127.0.0.1", "memory is full", "raise maxmemory")
    for _ in range(2):
        assert_refused(scene.move(*OPTIONS), *words)
        assert_conserved(scene)

    queues = RqQueues(scene.client, load_mapping())
    queues.generation_key += ":of another run"
    with pytest.raises(StoreError, match=r"memory is full.*Next: raise maxmemory"):
        queues.stamp(Lease("captions", "run-2", "tester", 9, "stamp-2"))
    assert not scene.client.exists(queues.generation_key)
    seen = RedisServerHealth(scene.client).read(PREFIXES)
    checks = {check.name: check for check in redis_checks(seen, backlog_bytes=TASKS * 500)}
    assert checks["redis_memory"].verdict is Verdict.FAILED, "preflight says so before anything is written"

    scene.client.config_set("maxmemory", 0)
    assert_clean_in_the_end(scene, order)


# -- the control host's disk ------------------------------------------------------------------------------------


def test_the_folder_of_the_backups_fills_up_in_mid_dump(scene: Scene, tmp_path: Path) -> None:
    """The estimate found enough room; something else took it while the dump ran."""
    scene.seed(12_000)
    part = SqlBackup(scene.engine, ["caption_tasks"])
    with small_disk(tmp_path / "control", 64) as disk:
        folder = disk.path / "backups"
        filled: list[int] = []

        def fills_the_disk(done: int, total: int) -> None:
            if not filled:
                disk.fill()
                filled.append(done)

        def attempt(progress: Progress) -> backup.Backups:
            return backup.back_up([part], folder, "run-1", clock=SystemClock(), progress=progress)

        before = scene.fingerprint()
        with pytest.raises(SluiceError, match=r"cannot be written \(No space left.*Next: check rights and free space"):
            attempt(fills_the_disk)
        assert filled, "the disk was filled in the middle"
        assert scene.fingerprint() == before
        assert not any("sluice_verify" in name for name in sa.inspect(scene.engine).get_schema_names())
        assert not (folder / "run-1" / ".client.cnf").exists(), "a password is left behind"
        assert not (folder / "run-1" / "manifest.json").exists(), "what is not whole is in no manifest"

        again = attempt(unheard)
        assert not again.gate.open, "still full: refused before anything is dumped"
        assert "backup_space" in [check.name for check in again.gate.blocking()]

        disk.give_back()
        done = attempt(unheard)
        assert done.gate.open, done.gate.explain()
