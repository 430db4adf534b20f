"""What stands after playbooks/migrate.yml, read from outside: the stores, the processes, the settings file."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from sqlalchemy import create_engine, text

_STANDING = "SELECT id, custody, status FROM caption_tasks"
LAB = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / ".lab"


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """The lab's connection settings."""
    found: dict[str, str] = yaml.safe_load((LAB / "vars.yml").read_text(encoding="utf-8"))
    return found


def _rows(settings: dict[str, str], query: str) -> list[tuple[Any, ...]]:
    engine = create_engine(settings["sluice_lab_db_url"])
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]
    finally:
        engine.dispose()


def test_the_run_is_validated(settings: dict[str, str]) -> None:
    assert _rows(settings, "SELECT phase FROM sluice_run") == [("validated",)]


def test_every_seeded_task_is_in_one_hand(settings: dict[str, str]) -> None:
    seeded = set((LAB / "evidence" / "backlog.ids").read_text(encoding="ascii").split())
    rows = {task_id: (custody, status) for task_id, custody, status in _rows(settings, _STANDING)}
    assert len(seeded) == 500
    astray = {task_id for task_id in seeded if rows.get(task_id, ("", ""))[0] != "rq"}
    assert {task_id: rows.get(task_id) for task_id in astray if rows.get(task_id) != ("db", "completed")} == {}
    assert len(astray) < len(seeded), "nothing was left to move"


def test_legacy_workers_cannot_come_back(settings: dict[str, str]) -> None:
    locked = _rows(
        settings,
        "SELECT JSON_VALUE(Priv, '$.account_locked') FROM mysql.global_priv WHERE User = 'captions_legacy'",
    )
    assert locked == [("1",)]


def test_redis_carries_the_stamp_of_the_run(settings: dict[str, str]) -> None:
    client = redis.Redis.from_url(settings["sluice_lab_redis_url"], decode_responses=True)
    generation = client.get("sluice:{captions}:generation")
    assert _rows(settings, "SELECT generation FROM sluice_run") == [(generation,)]


def test_each_managed_key_is_there_once(settings: dict[str, str]) -> None:
    path = Path(settings["sluice_lab_env_file"])
    keys = [line.partition("=")[0] for line in path.read_text(encoding="utf-8").splitlines() if "=" in line]
    managed = ("RQ_ENABLED", "RQ_REDIS_URL", "RQ_WORKER_REDIS_URL", "RQ_DATABASE_URL", "DATABASE_POLLING_ENABLED")
    assert {key: keys.count(key) for key in managed} == dict.fromkeys(managed, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
