"""The transition table: each arrow there is, and each that is absent."""

from __future__ import annotations

import itertools

import pytest
from ansible.module_utils.sluice.core.errors import RunConflict
from ansible.module_utils.sluice.core.phases import (
    ENDED,
    FORWARD,
    GATE_LIFETIME,
    TRANSITIONS,
    Direction,
    Phase,
    ended_by_rollback,
    gates_before,
    reached,
    require_transition,
)

# Written out anew, so that the table cannot agree with itself.
LEGAL = {
    ("opened", "prepared"), ("opened", "aborted"),
    ("prepared", "hybrid"), ("prepared", "routed"), ("prepared", "aborted"),
    ("hybrid", "routed"), ("hybrid", "aborted"),
    ("routed", "fenced"), ("routed", "hybrid"), ("routed", "aborted"),
    ("fenced", "transferred"), ("fenced", "aborted"),
    ("transferred", "verified"), ("transferred", "fenced"), ("transferred", "routed"), ("transferred", "rolled_back"),
    ("verified", "validated"), ("verified", "fenced"), ("verified", "routed"), ("verified", "rolled_back"),
    ("validated", "cleaned"), ("validated", "fenced"), ("validated", "routed"), ("validated", "rolled_back"),
}  # fmt: skip
PAIRS = list(itertools.product(Phase, Phase))
ABSENT = [(current, wanted) for current, wanted in PAIRS if (str(current), str(wanted)) not in LEGAL]


def test_the_table_speaks_of_every_phase() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert len(LEGAL) + len(ABSENT) == len(Phase) ** 2


@pytest.mark.parametrize(("current", "wanted"), sorted(LEGAL))
def test_a_legal_arrow_is_taken(current: str, wanted: str) -> None:
    require_transition(Phase(current), Phase(wanted))


@pytest.mark.parametrize(("current", "wanted"), ABSENT)
def test_an_absent_arrow_is_refused_and_the_legal_ones_are_named(current: Phase, wanted: Phase) -> None:
    with pytest.raises(RunConflict) as caught:
        require_transition(current, wanted)
    assert caught.value.what == f"a run that stands at '{current}' cannot go to '{wanted}'."
    assert caught.value.where == "ledger"
    named = sorted(target for origin, target in LEGAL if origin == current) or ["nothing: the run has ended"]
    assert caught.value.next_step == f"from '{current}' the legal phases are: {', '.join(named)}."


@pytest.mark.parametrize("phase", list(Phase))
def test_exactly_the_ended_phases_lead_nowhere(phase: Phase) -> None:
    assert (not TRANSITIONS[phase]) == (phase in ENDED)


def test_each_step_of_a_forward_run_is_an_arrow() -> None:
    for current, wanted in itertools.pairwise(FORWARD):
        require_transition(current, wanted)


@pytest.mark.parametrize(("current", "wanted"), list(itertools.product(FORWARD, FORWARD)))
def test_a_forward_run_has_reached_what_lies_behind_it(current: Phase, wanted: Phase) -> None:
    assert reached(current, wanted) == (FORWARD.index(wanted) <= FORWARD.index(current))


@pytest.mark.parametrize("ended", [Phase.ABORTED, Phase.ROLLED_BACK])
@pytest.mark.parametrize("wanted", FORWARD)
def test_an_undone_run_has_reached_nothing(ended: Phase, wanted: Phase) -> None:
    assert reached(ended, wanted) is False


# Written out anew as well: what must have passed before a phase, by direction.
GATES = {
    ("forward", "prepared"): ("preflight", "accounts", "backups", "probe", "round trip", "baseline"),
    ("forward", "hybrid"): ("route", "soak"),
    ("forward", "routed"): ("workers", "route"),
    ("forward", "fenced"): ("polling", "drain", "fence source"),
    ("forward", "transferred"): ("transfer",),
    ("forward", "verified"): ("balance", "durable"),
    ("forward", "validated"): ("intake", "canaries", "latency", "pickup", "user constraint", "observation"),
    ("forward", "cleaned"): ("stability", "archive"),
    ("back", "prepared"): ("evidence",),
    ("back", "routed"): ("route",),
    ("back", "fenced"): ("drain", "fence target"),
    ("back", "transferred"): ("transfer",),
    ("back", "verified"): ("balance",),
    ("back", "validated"): ("intake", "canaries", "user constraint"),
    ("back", "cleaned"): ("reconciled", "archive"),
}
# Hours for which a verdict counts; a quarter of an hour where nothing is said.
LIFETIMES = {
    **dict.fromkeys(("backups", "soak"), 24.0),
    **dict.fromkeys(("preflight", "accounts", "probe", "round trip", "baseline", "drain", "evidence"), 4.0),
    **dict.fromkeys(("canaries", "latency", "pickup", "user constraint", "observation"), 0.5),
}


@pytest.mark.parametrize(("direction", "phase"), list(GATES))
def test_the_gates_before_each_phase(direction: str, phase: str) -> None:
    assert gates_before(direction, Phase(phase)) == GATES[direction, phase]


def test_each_gate_has_its_lifetime_and_no_other() -> None:
    gates = {name for names in GATES.values() for name in names}
    assert {gate: seconds / 3600 for gate, seconds in GATE_LIFETIME.items()} == dict.fromkeys(gates, 0.25) | LIFETIMES


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("released", [True, False])
def test_a_run_that_was_taken_back_has_aborted_only_if_nothing_moved(phase: Phase, released: bool) -> None:
    moved = released or phase in (Phase.TRANSFERRED, Phase.VERIFIED, Phase.VALIDATED)
    assert ended_by_rollback(phase, released=released) is (Phase.ROLLED_BACK if moved else Phase.ABORTED)


def test_the_words_of_the_directions_are_those_of_the_ledger() -> None:
    assert [direction.value for direction in Direction] == ["forward", "back"]
