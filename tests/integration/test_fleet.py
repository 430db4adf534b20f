"""Many application hosts: restarts go round in batches behind a health gate, and no host costs more than another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest

from fleet.run import STEPS, Fleet, Outcome, fleet_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TURNS = STEPS.with_name("turns.yml")
#: One answer of each host is enough here: there is one process behind its port.
ONE_ANSWER = {"queue_reload_answers": 1}
TOLD, HEALTHY = "signalProcessGroup web HUP", "health true"


@pytest.fixture(scope="module")
def twenty() -> tuple[Fleet, Outcome, list[tuple[str, str]], dict[str, dict[str, int]]]:
    """Twenty hosts through all the steps of a change window, and what was asked of each."""
    with fleet_of(20) as fleet:
        outcome = fleet.play(forks=10, **ONE_ANSWER)
        assert outcome.status == 0, outcome.output
        return fleet, outcome, fleet.calls(), {name: dict(found) for name, found in fleet.by_host().items()}


def assert_one_after_the_other(batches: Sequence[set[str]], calls: Sequence[tuple[str, str]]) -> None:
    """Each host is told once, and nobody of a batch before all of the batch before are well."""
    told = {name: place for place, (name, what) in enumerate(calls) if what == TOLD}
    well = {name: place for place, (name, what) in enumerate(calls) if what == HEALTHY}
    assert sorted(name for name, what in calls if what == TOLD) == sorted(name for batch in batches for name in batch)
    for before, after in pairwise(batches):
        assert max(well[name] for name in before) < min(told[name] for name in after), (before, after)


def test_restarts_go_round_in_batches_and_each_waits_for_the_one_before(
    twenty: tuple[Fleet, Outcome, list[tuple[str, str]], dict[str, dict[str, int]]],
) -> None:
    fleet, outcome, calls, _ = twenty
    names = list(fleet.names)
    assert_one_after_the_other([set(names[start : start + 5]) for start in range(0, 20, 5)], calls)
    assert set(re.findall(r"batch \d of \d", outcome.output)) == {f"batch {number} of 4" for number in range(1, 5)}


def test_no_host_costs_more_than_another_however_many_there_are(
    twenty: tuple[Fleet, Outcome, list[tuple[str, str]], dict[str, dict[str, int]]],
) -> None:
    """The same calls and the same tasks for each of twenty hosts as for each of three: the whole grows linearly."""
    _, outcome, _, by_host = twenty
    first = by_host["app001"]
    assert first[TOLD] == first[HEALTHY] == 1
    assert by_host == dict.fromkeys(by_host, first)
    counts = outcome.recap
    assert counts == dict.fromkeys(counts, counts["app001"])
    with fleet_of(3) as small:
        few = small.play(**ONE_ANSWER)
        assert few.status == 0, few.output
        assert {name: dict(found) for name, found in small.by_host().items()} == dict.fromkeys(small.names, first)
        assert few.recap == dict.fromkeys(small.names, counts["app001"])


def test_a_batch_that_does_not_get_well_is_the_last_one() -> None:
    with fleet_of(6) as fleet:
        (fleet.of("app004") / "deaf").touch()
        outcome = fleet.play(TURNS, queue_reload_batch="2", queue_reload_patience=2, **ONE_ANSWER)
        assert outcome.status != 0
        assert "app004: was told to read its settings and 2 s later still answers" in outcome.output
        assert "{'rq_enabled': False} instead of {'rq_enabled': True}" in outcome.output
        assert {name for name, what in fleet.calls() if what == TOLD} == {"app001", "app002", "app003", "app004"}
        # The same command goes on from there, and asks those again that are done: a reload costs no request.
        (fleet.of("app004") / "deaf").unlink()
        again = fleet.play(TURNS, queue_reload_batch="50%", **ONE_ANSWER)
        assert again.status == 0, again.output
        assert fleet.by_host()["app006"][TOLD] == 1


def test_a_slow_first_batch_still_goes_first() -> None:
    with fleet_of(4) as fleet:
        slow = "{{ lookup('ansible.builtin.pipe', 'sleep 1; echo 2') }}"
        for name in fleet.names:
            fleet.variables(name, queue_reload_batch=slow if name in ("app001", "app002") else "2")
        outcome = fleet.play(TURNS, forks=4, **ONE_ANSWER)
        assert outcome.status == 0, outcome.output
        assert_one_after_the_other([{"app001", "app002"}, {"app003", "app004"}], fleet.calls())


def test_a_host_that_cannot_be_reached_stops_the_others_before_anything_is_changed() -> None:
    with fleet_of(3) as fleet:
        before = {name: (fleet.of(name) / "app.env").read_bytes() for name in fleet.names}
        # A port at which nobody listens.
        fleet.variables("app002", ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
        outcome = fleet.play()
        assert outcome.recap["app002"]["unreachable"] == 1, outcome.output
        assert outcome.status == 4
        assert fleet.calls() == []
        assert {name: (fleet.of(name) / "app.env").read_bytes() for name in fleet.names} == before
