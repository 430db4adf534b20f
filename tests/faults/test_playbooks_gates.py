"""A gate that fails before the point of no return undoes the run; wrong inputs end in one message; secrets stay in."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymysql
import pytest
import yaml
from rq import Worker

from conftest import PlantedSecrets
from faults.playbook_lab import ROOT, PlaybookLab, family_of, lab_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MAPPING = ROOT / "inventories" / "lab" / "mapping.yml"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaybookLab]:
    """One lab for all tests of this file."""
    with lab_in(tmp_path_factory.mktemp("gates")) as made:
        yield made


@pytest.fixture
def lab(shared: PlaybookLab) -> PlaybookLab:
    """The lab with nobody submitting; runs that were taken back may lie behind."""
    assert shared.phase in ("none", "aborted")
    assert shared.route == (0, 1)
    return shared


def _taken_back(lab: PlaybookLab) -> None:
    """The legacy side has its work back: it takes what is submitted now and completes it."""
    assert lab.phase == "aborted"
    assert lab.route == (0, 1)
    assert not lab.legacy_locked
    assert lab.moved == 0
    assert lab.sql("SELECT intake FROM captions_control") == (("open",),)
    settings = lab.layout.env_file.read_text()
    assert re.search(r"^DATABASE_POLLING_ENABLED=true$", settings, re.MULTILINE), "polling stayed off"
    assert not re.search(r"^RQ_ENABLED=true$", settings, re.MULTILINE), "RQ stayed on"
    assert lab.running("legacy") == 1
    lab.clean()


def _mapping(tmp_path: Path, **source: Any) -> str:
    data = yaml.safe_load(MAPPING.read_text())
    data["source"] |= source
    path = tmp_path / "mapping.yml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(path)


def test_wrong_inputs_end_in_one_message_and_change_nothing(
    lab: PlaybookLab, tmp_path: Path, planted_secrets: PlantedSecrets
) -> None:
    given = lab.settings
    sql = quote(planted_secrets.plant("sql"), safe="")
    redis = quote(planted_secrets.plant("redis"), safe="")
    columns = yaml.safe_load(MAPPING.read_text())["source"]["columns"]
    wrong: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "SQL password": ({"queue_db_url": re.sub(r":[^:@]+@", f":{sql}@", given["db_url"])}, ("1045",)),
        "database name": ({"queue_db_url": given["db_url"].replace("/captions", "/nowhere")}, ("nowhere",)),
        "Redis password": ({"queue_redis_url": re.sub(r":[^:@]+@", f":{redis}@", given["redis_url"])}, ("Redis",)),
        "Redis database": ({"queue_redis_url": re.sub(r"/0$", "/99", given["redis_url"])}, ("99",)),
        "no mapping": ({"queue_mapping": str(tmp_path / "none.yml")}, ("none.yml", "cannot be read")),
        "unknown key": ({"queue_mapping": _mapping(tmp_path, tabel="x")}, ("tabel",)),
    }
    before = lab.fingerprint()
    for what, (variables, words) in wrong.items():
        outcome = lab.run("migrate", "-vvv", **variables)
        outcome.refused(*words)
        assert len(outcome.messages) == 1, (what, outcome.output)
        planted_secrets.assert_absent(outcome.output, what)
        assert lab.fingerprint() == before, what

    places = yaml.safe_load(MAPPING.read_text())["source"]["places"]
    unfitting: dict[str, dict[str, Any]] = {
        "made_at": {"columns": columns | {"created": "made_at"}},
        "halted": {"places": places | {"cancelled": {"column": "status", "equals": "halted"}}},
    }
    for word, change in unfitting.items():
        variables = {"queue_mapping": _mapping(tmp_path, **change)}
        lab.run("plan", **variables).refused(word)
        assert lab.fingerprint() == before, word


def test_a_store_that_is_down_is_named(lab: PlaybookLab) -> None:
    lab.lab.supervisor.stop_group("redis")
    try:
        outcome = lab.run("migrate").refused("Redis", str(lab.state.redis_port))
        assert outcome.changed == 0
        assert lab.phase in ("none", "aborted")
    finally:
        lab.lab.supervisor.start_group("redis")


def test_a_mapping_that_does_not_fit_is_refused_before_anything_moves(lab: PlaybookLab, tmp_path: Path) -> None:
    columns = yaml.safe_load(MAPPING.read_text())["source"]["columns"] | {"created": "made_at"}
    lab.run("migrate", queue_mapping=_mapping(tmp_path, columns=columns)).refused("made_at", "caption_tasks")
    assert lab.phase in ("none", "aborted")
    assert lab.route == (0, 1)
    assert "RQ_ENABLED=true" not in lab.layout.env_file.read_text()


def test_preflight_names_an_evicting_redis_and_strangers(lab: PlaybookLab) -> None:
    lab.seed(20)
    redis = lab.redis
    redis.config_set("maxmemory-policy", "allkeys-lru")
    foreign = Worker(["normal"], connection=redis, name="foreign-worker")
    foreign.hostname = "host-unknown"
    foreign.register_birth()  # type: ignore[no-untyped-call]
    with lab.root() as cursor:
        cursor.execute("CREATE USER intruder@127.0.0.1 IDENTIFIED BY 'intruder-password'")
        cursor.execute("GRANT SELECT ON captions.* TO intruder@127.0.0.1")
    stranger = pymysql.connect(
        host="127.0.0.1", port=lab.state.db_port, user="intruder", password="intruder-password", database="captions"
    )
    try:
        outcome = lab.run("migrate")
        assert stranger.open
    finally:
        stranger.close()
        lab.sql("DROP USER intruder@127.0.0.1")
        foreign.register_death()  # type: ignore[no-untyped-call]
        redis.flushall()
        redis.config_set("maxmemory-policy", "noeviction")
        redis.close()
    outcome.refused("allkeys-lru", "intruder", "host-unknown", "was taken back")
    _taken_back(lab)


def test_target_workers_that_cannot_start_bring_everything_back_and_no_secret_out(
    lab: PlaybookLab, tmp_path: Path
) -> None:
    config = lab.layout.supervisor_config
    right = config.read_text()
    assert "captions.rqworker" in right
    config.write_text(right.replace("captions.rqworker", "captions.no_such_program"))
    lab.lab.supervisor.reload_config()
    lab.seed(40, users_from=11_000_000)
    seen: set[str] = set()
    run = lab.start("migrate", "-vvv", "--diff")
    try:
        while run.process.poll() is None:
            for pid in [run.process.pid, *family_of(run.process.pid)]:
                try:
                    seen.add(Path(f"/proc/{pid}/cmdline").read_text(errors="replace"))
                except OSError:
                    continue  # it has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.process.wait(0.05)
    finally:
        outcome = run.wait()
        config.write_text(right)
        lab.lab.supervisor.reload_config()
    outcome.refused("rq_0", "was taken back")
    assert len(seen) > 3

    passwords = {path.name: path.read_text().split()[0] for path in (lab.layout.directory / "passwords").iterdir()}
    assert len(passwords) == 3
    secrets = {**passwords, **lab.state.db_passwords, "redis": lab.state.redis_password, "token": lab.state.admin_token}
    places = {"output": outcome.output, "command lines": "\n".join(seen)}
    places |= {str(path): path.read_text(errors="replace") for path in lab.layout.backups.glob("*.md")}
    assert [(name, where) for name, value in secrets.items() for where, text in places.items() if value in text] == []
    assert "DATABASE_URL" in lab.layout.env_file.read_text()

    lab.seed(10, users_from=12_000_000)  # and the legacy workers take what comes now
    _taken_back(lab)
