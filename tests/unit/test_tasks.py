"""The id under which the target stores a task."""

from __future__ import annotations

import re

import pytest
from ansible.module_utils.sluice.core.tasks import job_id_for


@pytest.mark.parametrize("task_id", ["1", "9f1c6f3e-5a3b-4c55-9f0e-0d2d6d1f9f3b", "a_b-C", "x" * 180])
def test_an_id_that_the_target_takes_is_kept(task_id: str) -> None:
    assert job_id_for("captions", task_id) == task_id


@pytest.mark.parametrize("task_id", ["", "a b", "a:b", "a/b", "a\n", "ü", "x" * 181, "a.b"])
def test_any_other_id_gets_a_derived_one_that_the_target_takes(task_id: str) -> None:
    job_id = job_id_for("captions", task_id)
    assert re.fullmatch(r"captions-[0-9a-f]{40}", job_id)
    assert job_id_for("captions", task_id) == job_id
    assert job_id_for("watch", task_id) != job_id


def test_different_ids_get_different_job_ids() -> None:
    ids = ["a:b", "a b", "a/b", "a.b", "A:b", "a:B"]
    assert len({job_id_for("captions", task_id) for task_id in ids}) == len(ids)
