"""What becomes of a task on the way back: the whole table, every combination, and what must hold in all of them."""

from __future__ import annotations

import itertools

import pytest
from ansible.module_utils.sluice.core.homecoming import Decision, Policy, Step, decide, job_home
from ansible.module_utils.sluice.core.tasks import Home, Place

#: The columns: where the job was found; '-': no job answers for the row.
HOMES = "- staged queued intermediate scheduled deferred started finished failed cancelled orphan bodiless".split()
#: A word a cell. ``policy``: what the run does with started tasks; ``shown``: taken when the row would show a start,
#: else by policy; ``shown!``: taken when the row would show a start, else held; ``again``: a row is made of the job
#: only when started tasks may run again, else held.
TABLE = """
             -      staged queued intermediate scheduled deferred started finished failed cancelled orphan bodiless
no row       hold   make   make   make         make      hold     again   over     over   over      make   hold
ready        over   over   over   over         over      over     over    over     over   over      over   over
delayed      over   over   over   over         over      over     over    over     over   over      over   over
leased       over   over   over   over         over      over     over    over     over   over      over   over
finished     over   over   over   over         over      over     over    over     over   over      over   over
failed       over   over   over   over         over      over     over    over     over   over      over   over
cancelled    over   over   over   over         over      over     over    over     over   over      over   over
unknown      hold   hold   hold   hold         hold      hold     hold    hold     hold   hold      hold   hold
claimed      take   take   take   take         take      take     take    take     take   take      take   take
moved        shown! take   take   take         take      hold     shown   hold     fail   cancel    take   shown!
moved pending take  take   take   take         take      take     take    take     take   take      take   take
running      policy policy policy policy       policy    policy   policy  hold     fail   hold      policy policy
"""
BY_POLICY = {Policy.HOLD: Step.HOLD, Policy.REQUEUE: Step.TAKE, Policy.FAIL: Step.FAIL}
ENDED = (Place.FINISHED, Place.FAILED, Place.CANCELLED)
AT_HOME = (Place.READY, Place.DELAYED, Place.LEASED)


def cells() -> dict[tuple[str, str], str]:
    """The table by row and column."""
    head, *lines = TABLE.strip().splitlines()
    assert head.split() == HOMES
    found = {}
    for line in lines:
        *name, _, _, _, _, _, _, _, _, _, _, _, _ = line.split()
        for home, word in zip(HOMES, line.split()[len(name) :], strict=True):
            found[" ".join(name), home] = word
    return found


CELLS = cells()
Case = tuple[Place | None, Home | None, Policy, bool, bool, bool]
CASES: list[Case] = list(
    itertools.product([None, *Place], [None, *Home], Policy, (True, False), (True, False), (True, False))
)


def made(case: Case) -> Decision:
    """The decision of a case."""
    place, home, policy, witness, pending, held = case
    return decide(place, home, policy=policy, witness=witness, pending=pending, held=held)


def expected(case: Case) -> Step:
    """The step that the table names."""
    place, home, policy, witness, pending, held = case
    if held:
        return Step.OVER
    row = "no row" if place is None else "moved pending" if place is Place.MOVED and pending else place.value
    match CELLS[row, home.value if home else "-"]:
        case "policy":
            return BY_POLICY[policy]
        case "shown":
            return Step.TAKE if witness else BY_POLICY[policy]
        case "shown!":
            return Step.TAKE if witness else Step.HOLD
        case "again":
            return Step.MAKE if policy is Policy.REQUEUE else Step.HOLD
        case word:
            return Step(word)


def test_the_table_names_every_place_and_every_home() -> None:
    rows = {row for row, _ in CELLS}
    assert rows == {"no row", "moved pending", *(place.value for place in Place)}
    assert set(HOMES) == {"-", *(home.value for home in Home)}
    assert len(CASES) == 11 * 12 * 3 * 8


@pytest.mark.parametrize("place", [None, *Place])
def test_every_combination_is_decided_as_the_table_says(place: Place | None) -> None:
    cases = [case for case in CASES if case[0] is place]
    assert {case: made(case).step for case in cases} == {case: expected(case) for case in cases}


def test_a_row_that_ended_or_is_at_home_is_never_touched() -> None:
    touched = [case for case in CASES if case[0] in (*ENDED, *AT_HOME) and made(case).step is not Step.OVER]
    assert touched == []


def test_only_rows_of_the_target_are_taken_and_a_begun_one_only_when_it_may_run_twice() -> None:
    taken = [case for case in CASES if made(case).step is Step.TAKE]
    assert {case[0] for case in taken} == {Place.CLAIMED, Place.MOVED, Place.RUNNING}
    assert {case[2] for case in taken if case[0] is Place.RUNNING} == {Policy.REQUEUE}


def test_rows_are_ended_only_where_the_target_owned_them_and_made_only_where_there_are_none() -> None:
    for case in CASES:
        step = made(case).step
        if step in (Step.FAIL, Step.CANCEL):
            assert case[0] in (Place.MOVED, Place.RUNNING), case
        if step is Step.MAKE:
            assert case[0] is None, case


def test_what_nobody_can_know_is_held() -> None:
    for case in CASES:
        place, home, policy, witness, pending, held = case
        if held:
            continue
        if place is Place.UNKNOWN:
            assert made(case).step is Step.HOLD, case
        if place is Place.RUNNING and policy is Policy.HOLD and home is not Home.FAILED:
            assert made(case).step is Step.HOLD, case
        if place is Place.MOVED and not witness and not pending and home in (None, Home.BODILESS):
            assert made(case).step is Step.HOLD, case


def test_an_operators_hold_is_left_to_the_operator() -> None:
    assert {made(case).step for case in CASES if case[5]} == {Step.OVER}


def test_everything_but_taking_and_making_says_why() -> None:
    silent = [case for case in CASES if made(case).step not in (Step.TAKE, Step.MAKE) and not made(case).reason]
    assert silent == []


STATUSES = {
    "queued": None,  # the list or registry counts
    "scheduled": None,
    "deferred": None,
    "created": None,
    "rate_limited": None,
    "ready_to_enqueue": None,
    "started": Home.STARTED,
    "finished": Home.FINISHED,
    "failed": Home.FAILED,
    "stopped": Home.FAILED,
    "canceled": Home.CANCELLED,
}
FINAL = (Home.FINISHED, Home.FAILED, Home.CANCELLED, Home.BODILESS)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("home", Home)
def test_a_jobs_status_tells_apart_what_a_kill_leaves_in_the_same_list(home: Home, status: str) -> None:
    found = job_home(home, status)
    if home in FINAL:
        assert found is home
    elif STATUSES[status] is not None:
        assert found is STATUSES[status]
    else:
        # Registered as running, and never marked as begun: the worker died before its horse was there.
        assert found is (Home.ORPHAN if home is Home.STARTED else home)


def test_the_words_of_the_policies_are_those_of_the_ledger() -> None:
    assert [policy.value for policy in Policy] == ["hold", "requeue", "fail"]


def test_a_task_is_neither_held_nor_still_to_be_enqueued_unless_that_is_said() -> None:
    assert decide(Place.MOVED, Home.FAILED, policy=Policy.HOLD, witness=True).step is Step.FAIL
