"""Workers that do not claim what they work on: fenced before anything is claimed, and what they had begun is held.

The run's own canaries, some of them urgent, stand before the task in hand by the time the worker is killed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from faults.playbook_lab import CANARY_USERS, ROOT, PlaybookLab, lab_in
from oracle.judge import Allowances
from oracle.patience import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TASKS = 40


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaybookLab]:
    """One unguarded worker that works for minutes on its first task; whoever starts later works fast."""
    with lab_in(tmp_path_factory.mktemp("ung"), legacy_kind="unguarded", work_ms=500_000) as made:
        made.seed(TASKS, weights=(0, 2, 6, 1))
        until(lambda: made.layout.effects_file.stat().st_size > 0, "the worker's first task")
        settings = made.layout.env_file.read_text()
        made.layout.env_file.write_text(re.sub(r"^WORK_MS=.*$", "WORK_MS=0", settings, flags=re.MULTILINE))
        yield made


@pytest.fixture(scope="module")
def mapping(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lab's mapping, which calls its claimers what they are."""
    data = yaml.safe_load((ROOT / "inventories" / "lab" / "mapping.yml").read_text())
    for claimer in data["source"]["claimers"]:
        claimer |= {"kind": "unguarded", "processes": 1}
    path = tmp_path_factory.mktemp("mapping") / "mapping.yml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(path)


def _starts(path: Path) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [(record["side"], record["task"]) for record in records if record["event"] == "start"]


def _perhaps_first(lab: PlaybookLab) -> list[tuple[str, str]]:
    """Ids and priorities of the tasks that were there before the fence and were the first ones when they came."""
    found: list[tuple[str, str]] = []
    oldest = None
    for task_id, priority, created in lab.sql(
        "SELECT id, priority, created_at FROM caption_tasks WHERE created_at <"
        " (SELECT MAX(at) FROM sluice_event WHERE name = 'fence source' AND verdict = 'passed')"
        " ORDER BY priority, created_at"
    ):
        if oldest is None or created < oldest:
            found.append((task_id, priority))
            oldest = created
    return found


def test_what_a_killed_worker_had_begun_is_held_and_nobody_claims_behind_the_fence(
    lab: PlaybookLab, mapping: str
) -> None:
    ((side, begun),) = _starts(lab.layout.effects_file)
    assert side == "db"

    outcome = lab.run("migrate", queue_mapping=mapping, queue_workers_deadline=2, queue_drain_deadline=2)

    outcome.done()
    assert lab.phase == "validated"
    perhaps = _perhaps_first(lab)
    assert perhaps[0][1] == "urgent", "none came before it"
    assert begun in dict(perhaps)
    assert {str(i): str(m) for i, m in lab.sql("SELECT task_id, mark FROM sluice_task WHERE mark <> 'moved'")} == (
        dict.fromkeys(dict(perhaps), "held")
    )
    assert lab.sql("SELECT custody, status FROM caption_tasks WHERE id = %s", begun) == (("held", "queued"),)
    assert lab.moved_of_users == TASKS - len(perhaps) + 1, "all but those, of which one is a canary"
    assert f"held        {len(perhaps)}" in outcome.output
    ((fenced, first_move),) = lab.sql(
        "SELECT (SELECT MAX(at) FROM sluice_event WHERE name = 'fence source' AND verdict = 'passed'),"
        " (SELECT MIN(at) FROM sluice_task WHERE mark = 'moved')"
    )
    assert fenced <= first_move

    # Its service manager starts it again, and somebody has even switched polling on: it is turned away.
    settings = lab.layout.env_file.read_text()
    assert "DATABASE_POLLING_ENABLED=false\n" in settings
    lab.layout.env_file.write_text(settings.replace("POLLING_ENABLED=false", "POLLING_ENABLED=true"))
    lab.sql("UPDATE captions_control SET polling = 1")
    log = lab.layout.logs / "legacy_0.log"
    before = log.stat().st_size
    lab.lab.supervisor.start_group("legacy")
    until(lambda: log.read_text()[before:].count("database error") >= 2, "two refusals")
    assert [task for side, task in _starts(lab.layout.effects_file) if side == "db"] == [begun]
    lab.lab.supervisor.stop_group("legacy")
    lab.layout.env_file.write_text(settings)
    lab.sql("UPDATE captions_control SET polling = 0")
    lab.clean(Allowances(kills=1, held=True, canary_users=CANARY_USERS))


def test_a_held_task_has_a_way_out(lab: PlaybookLab, mapping: str) -> None:
    held = [row[0] for row in lab.sql("SELECT task_id FROM sluice_task WHERE mark = 'held'")]
    begun = next(task for side, task in _starts(lab.layout.effects_file) if side == "db")
    assert begun in held
    listed = lab.run("holds", queue_mapping=mapping).done().output
    assert all(task in listed for task in held)
    lab.run("cleanup", queue_mapping=mapping).refused("holds decided")
    decision = {"queue_mapping": mapping, "queue_holds_state": "released", "queue_holds_ids": held}
    lab.run("holds", **decision).refused("reason")
    assert lab.sql("SELECT expires_at > UTC_TIMESTAMP(6) FROM sluice_lease") == ((0,),), (
        "a refusal keeps nobody waiting"
    )
    assert lab.sql("SELECT custody FROM caption_tasks WHERE id = %s", begun) == (("held",),)

    lab.run("holds", **decision, queue_holds_reason="the worker was killed before it wrote anything").done()
    lab.run("migrate", queue_mapping=mapping).done()

    assert lab.phase == "validated"
    assert "0 held" in lab.run("holds", queue_mapping=mapping).done().output
    lab.clean(Allowances(kills=1, canary_users=CANARY_USERS))
