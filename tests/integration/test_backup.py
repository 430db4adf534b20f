"""Backups on real stores: complete, consistent, private, verified; and a gate that sees what is wrong with one."""

from __future__ import annotations

import gzip
import json
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import redis_connect, sql_backup, sql_connect
from ansible.module_utils.sluice.adapters.redis_backup import RedisBackup
from ansible.module_utils.sluice.adapters.sql_backup import SqlBackup
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.errors import StoreError
from ansible.module_utils.sluice.core.verdicts import Verdict
from ansible.module_utils.sluice.ports.preparation import Attested, Progress, Taken, unheard
from ansible.module_utils.sluice.services import backup

from lab.stores import PrivateMariaDB, PrivateRedis

pytestmark = pytest.mark.real
MOVER_PASSWORD = "a\"b'c\\d #e;f%@:/"


@pytest.fixture
def mover(mariadb: PrivateMariaDB, database_url: str) -> Iterator[sa.Engine]:
    """The mover's own account, with a password that every notation must survive, and what it needs for a backup."""
    name = sa.make_url(database_url).database
    root = sa.create_engine(mariadb.root_url("mysql"))
    with root.begin() as connection:
        account = {"user": "mover", "host": "127.0.0.1"}
        connection.execute(
            sa.text("CREATE OR REPLACE USER :user@:host IDENTIFIED BY :p"), {**account, "p": MOVER_PASSWORD}
        )
        connection.execute(sa.text(f"GRANT ALL PRIVILEGES ON `{name}`.* TO :user@:host"), account)
        scratch = f"{name}_sluice_verify_%".replace("_", "\\_")
        connection.execute(sa.text(f"GRANT ALL PRIVILEGES ON `{scratch}`.* TO :user@:host"), account)
    engine = sql_connect.connect(mariadb.url("mover", MOVER_PASSWORD, str(name)))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO caption_tasks (id, user_id, status, image_path, available_at, created_at) "
            "SELECT UUID(), seq, 'queued', CONCAT('ü-', seq), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) FROM seq_1_to_3000"
        )
    yield engine
    engine.dispose()
    with root.begin() as connection:
        connection.execute(sa.text("DROP USER :user@:host"), account)
    root.dispose()


def _schemas(mariadb: PrivateMariaDB) -> set[str]:
    root = sa.create_engine(mariadb.root_url("mysql"))
    try:
        return set(sa.inspect(root).get_schema_names())
    finally:
        root.dispose()


def _take(part: SqlBackup | RedisBackup, tmp_path: Path) -> backup.Backups:
    return backup.back_up([part], tmp_path, "run-1", clock=SystemClock())


def test_a_dump_is_verified_by_restore_and_private(mover: sa.Engine, mariadb: PrivateMariaDB, tmp_path: Path) -> None:
    schemas = _schemas(mariadb)
    heard: list[tuple[int, int]] = []
    done = backup.back_up(
        [SqlBackup(mover, ["caption_tasks"])],
        tmp_path,
        "run-1",
        clock=SystemClock(),
        progress=lambda now, total: heard.append((now, total)),
    )
    assert done.gate.open, done.gate.explain()
    assert done.changed
    readings = {check.name: check.reading for check in done.gate.checks}
    assert readings["backup_sql_restored_caption_tasks"].startswith("3000 rows restored; 3000 rows unchanged")
    folder = Path(done.folder)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "tables.sql.gz", "structure.sql.gz"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    assert "ü-3000" in gzip.decompress((folder / "tables.sql.gz").read_bytes()).decode()
    assert _schemas(mariadb) == schemas, "the scratch schema is gone"
    assert heard[-1][0] == heard[-1][1]
    assert [now for now, _ in heard] == sorted(now for now, _ in heard)


def test_no_password_in_any_argument_or_environment(
    mover: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYSQL_PWD", "not for children")
    seen: list[str] = []
    real = subprocess.Popen

    def looking(command: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        seen.append(f"{command} {settings['env']}")
        return real(command, **settings)

    monkeypatch.setattr(sql_backup.subprocess, "Popen", looking)
    folder = tmp_path / "f"
    folder.mkdir()
    SqlBackup(mover, ["captions_control"]).take(folder, "r", unheard)
    assert sum("--defaults-file=" in text for text in seen) == 3  # rows, structure, trial restore
    assert not any("c\\\\d" in text or "not for children" in text for text in seen)
    assert not (folder / ".client.cnf").exists()


def test_tables_that_foreign_keys_lead_to_come_along(mover: sa.Engine, tmp_path: Path) -> None:
    with mover.begin() as connection:
        for statement in (
            "CREATE TABLE country (id INT PRIMARY KEY)",
            "CREATE TABLE customer (id INT KEY, country INT REFERENCES country (id), boss INT REFERENCES customer(id))",
            "CREATE TABLE orders (id INT PRIMARY KEY, customer INT, FOREIGN KEY (customer) REFERENCES customer (id))",
            "INSERT INTO country VALUES (1), (2)",
            "INSERT INTO customer VALUES (1, 1, NULL), (2, 2, 1)",
            "INSERT INTO orders VALUES (1, 2)",
        ):
            connection.exec_driver_sql(statement)
    part = SqlBackup(mover, ["orders"])
    assert part.wanted() == (["orders", "customer", "country"], [])
    done = _take(part, tmp_path)
    assert done.gate.open, done.gate.explain()
    whole = SqlBackup(mover, ["orders"], whole_database=True)
    assert set(whole.wanted()[0]) == {"orders", "customer", "country", "caption_tasks", "captions_control"}


def test_every_kind_of_column_survives_the_trial(mover: sa.Engine, tmp_path: Path) -> None:
    with mover.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE kinds (a INT, b DOUBLE, c DECIMAL(20,6), d DATETIME(6), e TIMESTAMP(3) NULL, f BLOB, "
            "g VARBINARY(9), "
            "h TEXT CHARACTER SET latin1, i JSON, j BIT(9), k ENUM('x','y'), l SET('p','q'), m YEAR, n TIME(2), "
            "`o``p` INT, "
            "q LONGTEXT, r INT AS (a + 1) VIRTUAL)"
        )  # no primary key either
        row = (
            "(1, 1e0/3, 1.5, '2020-01-01 00:00:00.123456', '2020-03-29 02:30:00.5', x'00ff27', x'0027', 'é', "
            "'{\"a\": 1}', b'101', "
            "'y', 'p,q', 2020, '10:00:00.25', 3, REPEAT('z', 3000000))"
        )
        columns = "(a, b, c, d, e, f, g, h, i, j, k, l, m, n, `o``p`, q)"
        connection.execute(sa.text(f"INSERT INTO kinds {columns} VALUES {row}".replace(":", "\\:")))
        connection.exec_driver_sql("INSERT INTO kinds (a) VALUES (NULL), (NULL)")
    done = _take(SqlBackup(mover, ["kinds"]), tmp_path)
    assert done.gate.open, done.gate.explain()
    assert any("3 rows unchanged" in check.reading for check in done.gate.checks)


def test_live_traffic_does_not_close_the_gate(
    mover: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    changes = [0]

    def traffic() -> None:
        number = 10_000
        while not stop.is_set():
            with mover.begin() as connection:
                number += 1
                connection.exec_driver_sql(
                    "INSERT INTO caption_tasks (id, user_id, image_path, available_at, created_at) "
                    f"VALUES (UUID(), {number}, 'new', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))"
                )
                connection.exec_driver_sql("UPDATE caption_tasks SET attempts = attempts + 1 ORDER BY RAND() LIMIT 3")
                connection.exec_driver_sql("DELETE FROM caption_tasks WHERE image_path = 'new' ORDER BY RAND() LIMIT 1")
                changes[0] += 1

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        done = _take(SqlBackup(mover, ["caption_tasks"]), tmp_path)
    finally:
        stop.set()
        thread.join()
    assert changes[0] > 5
    assert done.gate.open, done.gate.explain()
    assert any("changed during the dump" in check.reading for check in done.gate.checks)


def test_a_dump_that_lost_or_changed_a_row_closes_the_gate(
    mover: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SqlBackup._restore

    def lossy(self: SqlBackup, dump: Path, checksum: str, settings: Path, schema: str, heard: object) -> None:
        real(self, dump, checksum, settings, schema, lambda _: None)
        with self.scratch.begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM `{schema}`.caption_tasks LIMIT 1")
            connection.exec_driver_sql(f"UPDATE `{schema}`.caption_tasks SET image_path = 'x' LIMIT 1")

    monkeypatch.setattr(SqlBackup, "_restore", lossy)
    done = _take(SqlBackup(mover, ["caption_tasks"]), tmp_path)
    assert done.gate.verdict is Verdict.FAILED
    assert "2 of 3000 rows" in done.gate.explain()


def test_a_table_outside_innodb_is_not_consistent(mover: sa.Engine, tmp_path: Path) -> None:
    with mover.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE old (id INT PRIMARY KEY) ENGINE=MyISAM")
    done = _take(SqlBackup(mover, ["old"]), tmp_path)
    assert "old is MyISAM" in done.gate.explain()
    assert done.gate.verdict is Verdict.FAILED


def test_missing_rights_for_the_scratch_schema_are_said_before_anything_is_dumped(
    mover: sa.Engine, mariadb: PrivateMariaDB, tmp_path: Path
) -> None:
    name = str(mover.url.database)
    root = sa.create_engine(mariadb.root_url("mysql"))
    with root.begin() as connection:
        connection.exec_driver_sql(
            f"REVOKE ALL PRIVILEGES ON `{name}_sluice_verify_%%`.* FROM mover@127.0.0.1".replace("_", "\\_")
        )
    root.dispose()
    done = _take(SqlBackup(mover, ["caption_tasks"]), tmp_path)
    assert done.gate.verdict is Verdict.FAILED
    assert "GRANT ALL PRIVILEGES ON" in done.gate.explain()
    assert not (Path(done.folder) / "tables.sql.gz").exists()


def test_a_table_that_does_not_exist_is_named(mover: sa.Engine) -> None:
    with pytest.raises(StoreError, match="no table 'nowhere'"):
        SqlBackup(mover, ["nowhere"]).needed_bytes()


# -- Redis ----------------------------------------------------------------------------------------------------------


def test_a_redis_snapshot_is_newer_than_the_call(redis_url: str, tmp_path: Path) -> None:
    client = redis_connect.connect(redis_url)
    client.set("before", "1")
    began = time.time()
    done = _take(RedisBackup(client), tmp_path)
    assert done.gate.open, done.gate.explain()
    content = (Path(done.folder) / "redis.rdb").read_bytes()
    assert content.startswith(b"REDIS")
    assert b"before" in content
    assert int(client.info()["rdb_last_save_time"]) >= int(began)
    client.set("late-arrival", "1")
    again = backup.back_up([RedisBackup(client)], tmp_path, "run-2", clock=SystemClock())
    assert b"late-arrival" in (Path(again.folder) / "redis.rdb").read_bytes()


def test_a_snapshot_waits_for_one_that_is_running(redis_url: str, tmp_path: Path) -> None:
    client = redis_connect.connect(redis_url)
    client.set("first", "1")
    client.bgsave()
    done = _take(RedisBackup(client), tmp_path)
    assert done.gate.open, done.gate.explain()


def test_a_redis_elsewhere_is_fetched_over_the_wire(redis_url: str, tmp_path: Path, redis_server: PrivateRedis) -> None:
    client = redis_connect.connect(redis_url)
    client.set("far", "away")
    folder = tmp_path / "f"
    folder.mkdir()
    taken = RedisBackup(client, local=False).take(folder, "r", unheard)
    assert all(check.verdict is Verdict.PASSED for check in taken.checks)
    assert "fetched" in " ".join(check.reading for check in taken.checks)
    assert b"away" in (folder / "redis.rdb").read_bytes()
    assert stat.S_IMODE((folder / "redis.rdb").stat().st_mode) == 0o600


def test_a_failing_snapshot_closes_the_gate(redis_url: str, tmp_path: Path, redis_server: PrivateRedis) -> None:
    client = redis_connect.connect(redis_url)
    blocked = redis_server.directory / "dump.rdb"
    blocked.unlink(missing_ok=True)
    blocked.mkdir()  # a rename onto a folder fails, also for root
    try:
        done = _take(RedisBackup(client, deadline=20), tmp_path)
        assert done.gate.verdict is Verdict.FAILED
        assert "rdb_last_bgsave_status" in done.gate.explain()
    finally:
        blocked.rmdir()
        client.save()


# -- all of it ------------------------------------------------------------------------------------------------------


class Counted:
    """A part of one file that counts how often it is taken."""

    name = "counted"

    def __init__(self, size: int | None = 10) -> None:
        self.size = size
        self.times = 0

    def needed_bytes(self) -> int | None:
        return self.size

    def take(self, folder: Path, run_id: str, progress: Progress) -> Taken:
        self.times += 1
        source = folder.parent.parent / "source.env"
        source.write_bytes(b"A=1\xff\n")
        return backup.Files("counted", [source]).take(folder, run_id, progress)


def test_a_part_is_taken_once_and_again_when_its_file_is_damaged(tmp_path: Path) -> None:
    part = Counted()
    place = tmp_path / "backups"
    first = backup.back_up([part], place, "r", clock=SystemClock())
    assert first.gate.open, first.gate.explain()
    second = backup.back_up([part], place, "r", clock=SystemClock())
    assert (second.gate.open, second.changed, part.times) == (True, False, 1)
    [kept] = [path for path in Path(second.folder).iterdir() if path.name != backup.MANIFEST]
    assert kept.read_bytes() == b"A=1\xff\n"
    kept.write_bytes(b"A=2\xff\n")
    assert backup.verify(Path(second.folder)).verdict is Verdict.FAILED
    third = backup.back_up([part], place, "r", clock=SystemClock())
    assert (third.gate.open, third.changed, part.times) == (True, True, 2)


def test_a_file_open_to_others_or_missing_fails_verification(tmp_path: Path) -> None:
    done = backup.back_up([Counted()], tmp_path / "backups", "r", clock=SystemClock())
    [kept] = [path for path in Path(done.folder).iterdir() if path.name != backup.MANIFEST]
    kept.chmod(0o644)
    assert "read by others" in backup.verify(Path(done.folder)).reading
    kept.unlink()
    assert "missing" in backup.verify(Path(done.folder)).reading
    (Path(done.folder) / backup.MANIFEST).write_text(json.dumps({"layout": 1}))
    assert backup.verify(Path(done.folder)).verdict is Verdict.FAILED


@pytest.mark.parametrize(("size", "verdict"), [(10**18, Verdict.FAILED), (None, Verdict.UNKNOWN)])
def test_without_proved_space_nothing_is_written(tmp_path: Path, size: int | None, verdict: Verdict) -> None:
    part = Counted(size)
    done = backup.back_up([part], tmp_path / "backups", "r", clock=SystemClock())
    assert done.gate.verdict is verdict
    assert part.times == 0
    assert not (tmp_path / "backups").exists()


@pytest.mark.parametrize(
    ("word", "verdict"),
    [
        (Attested("vault://nightly", 3), Verdict.PASSED),
        (Attested("vault://nightly", 25), Verdict.FAILED),
        (Attested(" ", 1), Verdict.FAILED),
        (Attested("vault://nightly", -1), Verdict.FAILED),
    ],
)
def test_an_attested_backup_has_an_age(tmp_path: Path, word: Attested, verdict: Verdict) -> None:
    part = Counted()
    done = backup.back_up(
        [part], tmp_path / "b", "r", clock=SystemClock(), attested={"counted": word}, max_age_hours=24
    )
    assert done.gate.verdict is verdict
    assert part.times == 0
    assert f"{word.age_hours:g} h" in done.gate.checks[0].reading or not word.reference.strip()


def test_nothing_to_back_up_is_not_a_passed_gate(tmp_path: Path) -> None:
    assert backup.back_up([], tmp_path, "r", clock=SystemClock()).gate.verdict is Verdict.UNKNOWN


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_a_folder_of_someone_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    os.chown(tmp_path / "r", 12345, 12345)
    with pytest.raises(backup.SluiceError, match="belongs to someone else"):
        backup.back_up([Counted()], tmp_path, "r", clock=SystemClock())
