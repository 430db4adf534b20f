"""``migrate.yml`` from untouched to validated under live traffic; what the other playbooks say then; cleanup."""

from __future__ import annotations

import gzip
import json
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from faults.playbook_lab import Outcome, PlaybookLab, lab_in
from oracle.patience import until
from oracle.prober import ProbeSummary, turned_away

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MANAGED = ("RQ_ENABLED", "RQ_REDIS_URL", "RQ_WORKER_REDIS_URL", "RQ_DATABASE_URL", "DATABASE_POLLING_ENABLED")
FOREIGN = b'\n# ours, not theirs\nexport  ODD = "a b"\nTRAILING=x   \nPRICE=5$ # not a comment\nUMLAUT=\xc3\xa4\n\n'


@dataclass(frozen=True)
class Migrated:
    """A lab that was migrated under traffic, and what was seen of it."""

    lab: PlaybookLab
    outcome: Outcome
    again: Outcome
    settings_before: bytes
    probes: ProbeSummary


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Migrated]:
    """The migration of 2,000 waiting tasks, a fifth of them for later, with users and a prober at work."""
    with lab_in(tmp_path_factory.mktemp("fw"), rq=2, work_ms=20) as lab:
        with lab.layout.env_file.open("ab") as file:
            file.write(FOREIGN)
        before = lab.layout.env_file.read_bytes()
        lab.seed(2000, delayed_share=0.2, delay=60)
        with lab.traffic():
            began = time.time()
            prober = str(lab.layout.prober_file)
            outcome = lab.run("migrate", queue_report_prober_log=prober)
            probes = turned_away(lab.layout.prober_file, began, time.time())
            outcome.done()
            again = lab.run("migrate", queue_report_prober_log=prober)
        yield Migrated(lab, outcome, again, before, probes)


def test_it_is_validated_and_nobody_was_turned_away(migrated: Migrated) -> None:
    lab = migrated.lab
    assert lab.phase == "validated"
    assert lab.moved > 200, "the legacy workers had done it all"
    assert lab.count("custody = 'db' AND status IN ('queued', 'running')") == 0
    assert lab.route == (100, 0)
    assert lab.legacy_locked and lab.running("legacy") == 0
    assert migrated.probes.turned_away_probes == 0, migrated.probes
    lab.clean()


def test_the_report_is_a_balance_for_a_change_ticket(migrated: Migrated) -> None:
    report = migrated.outcome.output.partition("Print the balance")[2]
    assert "balance     passed" in report, report
    known = int(next(line for line in report.splitlines() if "known" in line).split()[-1].replace(",", ""))
    terms = report.partition("known")[2].partition("at fault")[0].splitlines()[1:]
    assert known == sum(int(line.split()[-1].replace(",", "")) for line in terms if line.strip()), report
    assert known >= 2000
    assert "at fault               0" in report
    assert "turned away 0 of" in report
    for words in ("normal", "low", "canaries finish", "held        0", "fenced", "took"):
        assert words in report, report
    files = list(migrated.lab.layout.backups.glob("captions-*.md"))
    assert len(files) == 1
    assert "balance     passed" in files[0].read_text()


def test_the_same_command_again_changes_nothing(migrated: Migrated) -> None:
    again = migrated.again.done()
    assert again.changed == 0, again.output
    assert "stands at 'validated'" in again.output
    assert migrated.lab.phase == "validated"
    assert migrated.lab.count("1 = 1", "sluice_run") == 1


def test_the_settings_file_keeps_what_is_not_ours(migrated: Migrated) -> None:
    lab = migrated.lab
    path = lab.layout.env_file
    after = path.read_bytes()
    lines = after.splitlines(keepends=True)
    for key in MANAGED:
        assert sum(line.startswith(f"{key}=".encode()) for line in lines) == 1, key
    managed = tuple(f"{key}=".encode() for key in MANAGED)
    kept = [line for line in migrated.settings_before.splitlines(keepends=True) if not line.startswith(managed)]
    positions = iter(lines)
    assert all(line in positions for line in kept), "a foreign line was changed, lost or moved"
    assert FOREIGN in after
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    copies = [file for file in lab.layout.directory.rglob("*captions.env*") if file != path]
    assert any(file.read_bytes() == migrated.settings_before for file in copies), copies
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in copies)


def test_what_the_other_playbooks_say_of_a_validated_run(migrated: Migrated) -> None:
    lab = migrated.lab
    status = lab.run("status").done().output
    assert "validated" in status
    assert "cleanup.yml" in status
    assert "0 held" in lab.run("holds").done().output
    assert "canaries finish" in lab.run("validate").done().output
    assert lab.phase == "validated"
    lab.run("prepare").done()
    lab.run("hybrid", queue_share=100).refused("the source is fenced")
    assert lab.phase == "validated"
    assert lab.route == (100, 0), "users were sent to a side where nobody works"
    assert lab.legacy_locked


def test_cleanup_archives_and_removes_what_is_ours(migrated: Migrated) -> None:
    lab = migrated.lab
    redis = lab.redis
    assert redis.keys("sluice:*")
    lab.run("cleanup", queue_cleanup_stability_seconds=86_400).refused("stability time")
    assert redis.keys("sluice:*")

    outcome = lab.run("cleanup").done()

    assert "archive re-read" in outcome.output
    assert lab.phase == "cleaned"
    assert redis.keys("sluice:*") == []
    assert lab.count("1 = 1", "sluice_baseline") == 0
    redis.close()
    (archive,) = lab.layout.backups.glob("*.ndjson.gz")
    records = [json.loads(line) for line in gzip.decompress(archive.read_bytes()).splitlines()]
    moved = {record["task"] for record in records if record.get("mark") == "moved"}
    assert moved == {row[0] for row in lab.sql("SELECT task_id FROM sluice_task WHERE mark = 'moved'")}
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    lab.clean()


def test_what_went_to_the_pollers_afterwards_moves_by_itself_and_comes_home_with_the_others(migrated: Migrated) -> None:
    """The mover's small run is no operator's: a way back still takes back the migration."""
    lab = migrated.lab

    def waiting() -> set[str]:
        return {row[0] for row in lab.sql("SELECT id FROM caption_tasks WHERE custody = 'db' AND status = 'queued'")}

    def moved() -> set[str]:
        return {row[0] for row in lab.sql("SELECT task_id FROM sluice_task WHERE mark = 'moved'")}

    with lab.traffic():
        lab.sql("UPDATE captions_control SET rq_share = 0, polling = 1 WHERE id = 1")
        until(lambda: len(waiting()) >= 20, "tasks wait for pollers")
        fallback = waiting()
        lab.sql("UPDATE captions_control SET rq_share = 100 WHERE id = 1")
        lab.lab.supervisor.start_group("mover")
        until(lambda: lab.count("custody <> 'rq' AND status IN ('queued', 'running')") == 0, "they are moved")
    left = {row[0] for row in lab.sql("SELECT id FROM caption_tasks WHERE custody <> 'rq' AND status = 'cancelled'")}
    assert fallback <= moved() | left, "neither moved nor cancelled by its user"
    assert len(fallback & moved()) > 10
    lab.clean()
    outcome = lab.run("planned-rollback", queue_run_reason="the test says so").done()
    assert "fallback" not in outcome.output
    assert lab.phase == "cleaned" and lab.route == (0, 1)
    assert lab.running("legacy") == 1 and not lab.legacy_locked
    assert lab.running("mover") == 1
