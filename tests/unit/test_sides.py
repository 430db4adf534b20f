"""Both sides compared: failures and age, with and without traffic."""

from __future__ import annotations

import pytest
from ansible.module_utils.sluice.core.sides import Side, compare, sides_of, since
from ansible.module_utils.sluice.core.verdicts import Verdict

QUIET = Side(0, 0, None)


def verdicts(source: Side, target: Side, before: float | None = None) -> tuple[Verdict, Verdict]:
    failures, oldest = compare(source, target, oldest_before=before, oldest_seconds=60)
    return failures.verdict, oldest.verdict


@pytest.mark.parametrize(
    ("source", "target", "passes"),
    [
        (Side(100, 0, None), Side(100, 5, None), True),  # just under one in twenty
        (Side(100, 0, None), Side(90, 10, None), False),
        (Side(90, 10, None), Side(85, 15, None), True),  # the source fails as often
        (Side(90, 10, None), Side(70, 30, None), False),
        (QUIET, Side(90, 10, None), False),  # nothing to compare with does not excuse it
        (Side(100, 0, None), Side(3, 16, None), True),  # too few to judge, and that is said
    ],
)
def test_failures(source: Side, target: Side, passes: bool) -> None:
    assert (verdicts(source, target)[0] is Verdict.PASSED) is passes


def test_too_few_to_judge_is_said() -> None:
    assert "too few" in compare(QUIET, QUIET, oldest_before=None, oldest_seconds=60)[0].reading


@pytest.mark.parametrize(
    ("source", "target", "before", "passes"),
    [
        (None, None, None, True),
        (None, 59.0, None, True),
        (None, 61.0, None, False),
        (40.0, 79.0, None, True),
        (40.0, 81.0, None, False),
        (None, 86_000.0, 86_400.0, True),  # an old backlog that is worked down
        (None, 86_500.0, 86_400.0, False),  # one that only grows older
    ],
)
def test_age(source: float | None, target: float | None, before: float | None, passes: bool) -> None:
    found = verdicts(Side(0, 0, source), Side(0, 0, target), before)[1]
    assert (found is Verdict.PASSED) is passes


def test_what_happened_between_two_looks() -> None:
    assert since(Side(10, 2, 3.0), Side(4, 5, 9.0)) == Side(6, 0, 3.0)


def test_plain_data() -> None:
    rows = {
        "source": {"finished": 1, "failed": 2, "oldest": None},
        "target": {"finished": 3, "failed": 0, "oldest": 1.5},
    }
    assert sides_of(rows) == (Side(1, 2, None), Side(3, 0, 1.5))
