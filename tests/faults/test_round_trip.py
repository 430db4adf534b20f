"""The way home is tried with one copied task before any real one moves, and nothing of the trial stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible.module_utils.sluice.adapters.scratch import scratch
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.tasks import Claim
from ansible.module_utils.sluice.core.verdicts import Verdict
from ansible.module_utils.sluice.services.round_trip import round_trip

from faults.scene import Scene

pytestmark = pytest.mark.real


def _traces(scene: Scene) -> tuple[list[str], list[bytes], list[str]]:
    tables = [row[0] for row in scene.sql("SHOW TABLES LIKE 'sluice_try%'")]
    keys = [key for key in scene.client.scan_iter() if b"try" in key]
    systems = [row[0] for row in scene.sql("SELECT DISTINCT `system` FROM sluice_run")]
    return tables, keys, systems


def test_a_copied_task_goes_out_and_comes_home(scene: Scene) -> None:
    scene.seed(5)
    before = scene.fingerprint()
    with scratch(scene.engine, scene.client, scene.mapping) as tried:
        gate = round_trip(tried, SystemClock(), custody_in_row=True)
    assert gate.open, gate.explain()
    assert [check.name for check in gate.checks] == ["a task goes out", "and comes home", "its row is as it was"]
    assert _traces(scene) == ([], [], [scene.mapping.system])
    assert scene.fingerprint() == before


def test_a_finished_row_serves_when_none_waits(scene: Scene) -> None:
    scene.seed(1)
    scene.sql("UPDATE caption_tasks SET status = 'completed', caption = 'x'")
    with scratch(scene.engine, scene.client, scene.mapping) as tried:
        assert round_trip(tried, SystemClock(), custody_in_row=True).open


def test_a_row_that_is_due_later_serves_too(scene: Scene) -> None:
    scene.seed(1)
    scene.sql("UPDATE caption_tasks SET status = 'cancelled', available_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR")
    with scratch(scene.engine, scene.client, scene.mapping) as tried:
        gate = round_trip(tried, SystemClock(), custody_in_row=True)
    assert gate.open, gate.explain()
    assert "brought home" in gate.checks[1].reading


def test_rows_of_which_none_could_be_tried_prove_nothing(scene: Scene) -> None:
    """A hold's words that make no row ready: a skipped trial is not a passed one."""
    scene.seed(1)
    scene.sql("UPDATE caption_tasks SET status = 'completed'")
    hold = replace(scene.mapping.source.hold, requeue=())
    mapping = replace(scene.mapping, source=replace(scene.mapping.source, hold=hold))
    with scratch(scene.engine, scene.client, mapping) as tried:
        gate = round_trip(tried, SystemClock(), custody_in_row=True)
    assert gate.verdict is Verdict.UNKNOWN
    assert "no row could be made ready" in gate.checks[0].reading


def test_an_empty_table_says_that_nothing_could_be_tried(scene: Scene) -> None:
    with scratch(scene.engine, scene.client, scene.mapping) as tried:
        gate = round_trip(tried, SystemClock(), custody_in_row=True)
    assert gate.open
    assert "no row" in gate.checks[0].reading


def test_a_way_home_that_loses_something_closes_the_gate(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.seed(1)
    with scratch(scene.engine, scene.client, scene.mapping) as tried:
        monkeypatch.setattr(tried.leaving, "claim", lambda *_: Claim((), ()))
        gate = round_trip(tried, SystemClock(), custody_in_row=True)
    assert gate.verdict is Verdict.FAILED
    assert _traces(scene)[:2] == ([], [])
