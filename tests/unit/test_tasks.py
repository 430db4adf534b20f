"""The id under which the target stores a task."""

from __future__ import annotations

import re

import pytest
from ansible.module_utils.sluice.adapters.ledger_sql import task_table
from ansible.module_utils.sluice.core.tasks import ENDED_MEANWHILE, LONGEST_ID, Home, Mark, Place, job_id_for, job_name


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


@pytest.mark.parametrize("raw", [b"a", b"a.b c", "é".encode(), b"x" * LONGEST_ID, b"a~" + b"0" * 39])
def test_a_job_is_called_by_its_id_where_every_store_takes_it(raw: bytes) -> None:
    assert job_name(raw) == raw.decode()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"", ""),
        (b"a ", "a "),
        (b"a\n", r"a\n"),
        (b"\xff", r"\xff"),
        (b"x" * (LONGEST_ID + 1), "x" * 120),
        (b"\0" * 100, r"\x00" * 30),
        (b"a~" + b"0" * 40, "a~" + "0" * 40),
    ],
)
def test_another_job_is_called_by_what_can_be_shown_and_its_digest(raw: bytes, shown: str) -> None:
    name = job_name(raw)
    assert re.fullmatch(re.escape(shown) + r"~[0-9a-f]{40}", name)
    assert len(name) <= LONGEST_ID
    assert job_name(name.encode()) != name, "nobody can take the name of another"


def test_the_words_that_ledgers_and_archives_keep() -> None:
    """A word that changes here is another word than the one that is already written there."""
    assert [*Place] == ["ready", "delayed", "leased", "claimed", "moved", "running", "finished", "failed", "cancelled",
                        "unknown"]  # fmt: skip
    assert [*Home] == ["staged", "queued", "intermediate", "scheduled", "deferred", "started", "finished", "failed",
                       "cancelled", "orphan", "bodiless"]  # fmt: skip
    assert [*Mark] == ["claimed", "moved", "returned", "held", "settled"]
    assert ENDED_MEANWHILE == "ended at the source while it was claimed"


def test_an_id_is_as_long_as_the_ledgers_column() -> None:
    assert task_table.c.task_id.type.length == LONGEST_ID == 190
