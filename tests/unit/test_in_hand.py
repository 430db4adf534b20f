"""What a claimer that marks nothing may have had in hand, checked against every history of a small queue."""

from __future__ import annotations

import itertools

import pytest
from ansible.module_utils.sluice.core.in_hand import Waiting, perhaps_in_hand

IDS = "abcde"  # the order of claim


@pytest.mark.parametrize("arrivals", list(itertools.permutations(range(len(IDS)))))
def test_it_is_every_row_that_was_first_at_some_moment_and_no_other(arrivals: tuple[int, ...]) -> None:
    arrived = dict(zip(IDS, arrivals, strict=True))
    firsts = {min(i for i in IDS if arrived[i] <= moment) for moment in range(len(IDS))}

    named = perhaps_in_hand([Waiting(i, arrived[i], arrived[i]) for i in IDS], 1)

    assert named == sorted(firsts)


@pytest.mark.parametrize("left", [{"a"}, {"b"}, {"a", "c"}])
@pytest.mark.parametrize("arrivals", list(itertools.permutations(range(len(IDS)))))
def test_what_left_since_hides_nothing(arrivals: tuple[int, ...], left: set[str]) -> None:
    arrived = dict(zip(IDS, arrivals, strict=True))
    firsts = {min(i for i in IDS if arrived[i] <= moment) for moment in range(len(IDS))}

    named = perhaps_in_hand([Waiting(i, arrived[i], arrived[i]) for i in IDS if i not in left], 1)

    assert set(named) >= firsts - left


def test_an_urgent_task_that_came_later_does_not_hide_the_one_in_hand() -> None:
    assert perhaps_in_hand([Waiting("urgent", 9, 9), Waiting("in hand", 1, 1), Waiting("next", 2, 2)], 1) == [
        "urgent",
        "in hand",
    ]


def test_of_one_age_nobody_knows_which_came_first() -> None:
    assert perhaps_in_hand([Waiting("a", 7, 7), Waiting("b", 7, 7), Waiting("c", 8, 8)], 1) == ["a", "b"]


def test_a_retry_may_have_come_back_at_any_time_and_hides_nothing() -> None:
    waiting = [Waiting("retry", 1, None), Waiting("in hand", 5, 5), Waiting("next", 6, 6)]
    assert perhaps_in_hand(waiting, 1) == ["retry", "in hand"]


def test_what_was_delayed_is_as_young_as_its_time_at_the_latest() -> None:
    assert perhaps_in_hand([Waiting("was delayed", 1, 9), Waiting("in hand", 5, 5)], 1) == ["was delayed", "in hand"]


def test_a_row_of_unknown_age_is_named() -> None:
    assert perhaps_in_hand([Waiting("a", 1, 1), Waiting("b", None, None), Waiting("c", 2, 2)], 1) == ["a", "b"]


def test_the_first_row_of_each_process_is_named() -> None:
    waiting = [Waiting("a", 1, 1), Waiting("b", 2, 2), Waiting("c", 3, 3)]
    assert perhaps_in_hand(waiting, 2) == ["a", "b"]
    assert perhaps_in_hand([], 2) == []
