"""What each side did, read from the rows."""

from __future__ import annotations

import pytest
from ansible.module_utils.sluice.adapters.sql_table import SqlTable

from faults.scene import Scene

pytestmark = pytest.mark.real


def test_each_row_counts_for_the_side_whose_it_is(scene: Scene) -> None:
    scene.seed(12)
    ids = [str(row[0]) for row in scene.sql("SELECT id FROM caption_tasks ORDER BY id")]
    changes = [
        (ids[0:3], "status = 'completed'"),
        (ids[3:5], "status = 'completed', custody = 'rq'"),
        (ids[5:6], "status = 'failed', custody = 'rq'"),
        (ids[6:8], "custody = 'rq', available_at = UTC_TIMESTAMP(6) - INTERVAL 90 SECOND"),
        (ids[8:9], "custody = 'rq', available_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR"),
        (ids[9:12], "available_at = UTC_TIMESTAMP(6) - INTERVAL 30 SECOND"),
    ]
    for chosen, assignments in changes:
        for task_id in chosen:
            scene.sql(f"UPDATE caption_tasks SET {assignments} WHERE id = :id", id=task_id)

    found = SqlTable(scene.engine, scene.mapping).by_side()

    assert (found["source"]["finished"], found["source"]["failed"]) == (3, 0)
    assert (found["target"]["finished"], found["target"]["failed"]) == (2, 1)
    assert 30 <= float(str(found["source"]["oldest"])) < 60
    assert 90 <= float(str(found["target"]["oldest"])) < 120


def test_nothing_waits_and_nothing_ended(scene: Scene) -> None:
    assert SqlTable(scene.engine, scene.mapping).by_side() == {
        "source": {"finished": 0, "failed": 0, "oldest": None},
        "target": {"finished": 0, "failed": 0, "oldest": None},
    }
