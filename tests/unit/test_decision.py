"""The decision table: complete, one action for everything, and never a milder one for something worse."""

from __future__ import annotations

import dataclasses
import enum
from itertools import product
from pathlib import Path

import pytest
from ansible.module_utils.sluice.core.decision import (
    LADDER,
    MEANING,
    WHY,
    Action,
    Decision,
    Function,
    Integrity,
    Measure,
    Performance,
    Severity,
    Stability,
    Standing,
    State,
    all_states,
    decide,
    ladder_lines,
    state_of,
    table_lines,
)
from ansible.module_utils.sluice.ports.ledger import Run
from ansible.module_utils.sluice.ports.surroundings import RouteState
from ansible.module_utils.sluice.services.assess import LedgerSigns, command_for

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "decision-table.md").read_text()
AXES: tuple[tuple[str, type[enum.StrEnum]], ...] = (
    ("severity", Severity),
    ("function", Function),
    ("integrity", Integrity),
    ("performance", Performance),
    ("stability", Stability),
)
STATES = all_states()
FAR = {action: number for number, action in enumerate(Action)}


def expected(state: State) -> Measure:
    """The rules once more, as a person reads them on the page."""
    if (
        state.severity is Severity.CRITICAL
        or state.function is Function.NONE
        or state.integrity is Integrity.COMPROMISED
    ):
        return Measure.EMERGENCY
    if (
        state.severity is Severity.HIGH
        or state.function is Function.PARTIAL
        or state.integrity is Integrity.UNKNOWN
        or state.performance is Performance.SEVERE
    ):
        return Measure.PLANNED
    if (
        state.severity is Severity.MEDIUM
        or state.performance is Performance.DEGRADED
        or state.stability is Stability.UNSTABLE
    ):
        return Measure.PARTIAL
    return Measure.FIX


def worse(state: State) -> list[State]:
    """The states in which exactly one axis is one step worse."""
    found = []
    for name, values in AXES:
        order = list(values)
        position = order.index(getattr(state, name))
        if position + 1 < len(order):
            found.append(dataclasses.replace(state, **{name: order[position + 1]}))
    return found


def test_the_table_has_every_combination_once() -> None:
    assert len(STATES) == len(set(STATES)) == 4 * 3 * 3 * 3 * 2


@pytest.mark.parametrize("standing", Standing)
def test_every_combination_gives_one_action_with_its_reasons(standing: Standing) -> None:
    for state in STATES:
        decision = decide(state, standing)
        asked = dataclasses.replace(state, integrity=Integrity.INTACT) if standing is Standing.EMPTIED else state
        assert decision.measure is expected(asked), state
        assert decision.action is LADDER[standing][decision.measure], state
        assert len(decision.reasons) >= 2, state
        assert all(reason for reason in decision.reasons), state
        assert decision == decide(state, standing)


@pytest.mark.parametrize("standing", Standing)
def test_something_worse_never_gives_a_milder_action(standing: Standing) -> None:
    compared = 0
    for state in STATES:
        for other in worse(state):
            assert FAR[decide(other, standing).action] >= FAR[decide(state, standing).action], (state, other)
            compared += 1
    assert compared > 400


def test_every_standing_is_described_and_has_a_ladder() -> None:
    assert set(LADDER) == set(MEANING) == set(WHY) == set(Standing)
    assert {action for ladder in LADDER.values() for action in ladder} == set(Action), "an action that nothing gives"


def test_every_axis_value_is_named_when_it_decides() -> None:
    for state, standing in product(STATES, (Standing.IN_TARGET, Standing.SHARED)):
        decision = decide(state, standing)
        text = " ".join(decision.reasons)
        for name, _ in AXES:
            alone = dataclasses.replace(
                State(Severity.LOW, Function.WORKS, Integrity.INTACT, Performance.NORMAL, Stability.STABLE),
                **{name: getattr(state, name)},
            )
            decides = decision.measure is not Measure.FIX and expected(alone) is decision.measure
            assert (f"{name} is {getattr(state, name)}:" in text) is decides, (state, name)


@pytest.mark.parametrize(
    ("state", "reasons"),
    [
        (State(Severity.LOW, Function.WORKS, Integrity.INTACT, Performance.NORMAL, Stability.STABLE),
         ["no axis asks for more than a fix in place"]),
        (State(Severity.LOW, Function.WORKS, Integrity.INTACT, Performance.DEGRADED, Stability.UNSTABLE),
         ["performance is degraded: asks for a partial rollback",
          "stability is unstable: asks for a partial rollback"]),
        (State(Severity.MEDIUM, Function.PARTIAL, Integrity.INTACT, Performance.NORMAL, Stability.UNSTABLE),
         ["function is partial: asks for a planned rollback"]),
        (State(Severity.CRITICAL, Function.WORKS, Integrity.COMPROMISED, Performance.SEVERE, Stability.STABLE),
         ["severity is critical: asks for an emergency rollback",
          "integrity is compromised: asks for an emergency rollback"]),
    ],
)  # fmt: skip
def test_the_reasons_are_these_words(state: State, reasons: list[str]) -> None:
    assert decide(state, Standing.IN_TARGET).reasons == (*reasons, WHY[Standing.IN_TARGET])


def test_a_severity_that_comes_from_the_readings_is_no_reason_of_its_own() -> None:
    state = State(Severity.CRITICAL, Function.NONE, Integrity.INTACT, Performance.NORMAL, Stability.STABLE)
    said = decide(state, Standing.IN_TARGET, stated=False)
    assert said.action is decide(state, Standing.IN_TARGET).action
    assert not any("severity" in reason for reason in said.reasons)
    for other in STATES:
        assert decide(other, Standing.IN_TARGET, stated=False).action is decide(other, Standing.IN_TARGET).action


GOOD = (Function.WORKS, Integrity.INTACT, Performance.NORMAL, Stability.STABLE)


@pytest.mark.parametrize("stated", [None, *Severity])
def test_a_stated_severity_raises_and_never_lowers(stated: Severity | None) -> None:
    order = list(Severity)
    for readings in product(Function, Integrity, Performance, Stability):
        alone = state_of(*readings, stated=None, standing=Standing.IN_TARGET)
        state = state_of(*readings, stated=stated, standing=Standing.IN_TARGET)
        assert order.index(state.severity) >= order.index(alone.severity)
        if stated is not None:
            assert order.index(state.severity) == max(order.index(stated), order.index(alone.severity))
    assert state_of(*GOOD, stated=stated, standing=Standing.IN_TARGET).severity is (stated or Severity.LOW)


@pytest.mark.parametrize(
    ("state", "standing", "action"),
    [
        # The rows of the old matrix, and where the tree contradicted it.
        (State(Severity.CRITICAL, Function.NONE, Integrity.COMPROMISED, Performance.NORMAL, Stability.STABLE),
         Standing.IN_TARGET, Action.EMERGENCY_ROLLBACK),
        (State(Severity.HIGH, Function.PARTIAL, Integrity.INTACT, Performance.NORMAL, Stability.STABLE),
         Standing.IN_TARGET, Action.PLANNED_ROLLBACK),
        (State(Severity.MEDIUM, *GOOD), Standing.IN_TARGET, Action.PARTIAL_ROLLBACK),
        (State(Severity.LOW, *GOOD), Standing.IN_TARGET, Action.FIX_IN_PLACE),
        (State(Severity.CRITICAL, *GOOD), Standing.IN_TARGET, Action.EMERGENCY_ROLLBACK),
        (State(Severity.LOW, Function.WORKS, Integrity.COMPROMISED, Performance.NORMAL, Stability.STABLE),
         Standing.IN_TARGET, Action.EMERGENCY_ROLLBACK),
        (State(Severity.LOW, Function.WORKS, Integrity.INTACT, Performance.SEVERE, Stability.STABLE),
         Standing.IN_TARGET, Action.PLANNED_ROLLBACK),
        (State(Severity.LOW, Function.WORKS, Integrity.INTACT, Performance.NORMAL, Stability.UNSTABLE),
         Standing.IN_TARGET, Action.PARTIAL_ROLLBACK),
        # Unknown is worse than good.
        (State(Severity.LOW, Function.WORKS, Integrity.UNKNOWN, Performance.NORMAL, Stability.STABLE),
         Standing.IN_TARGET, Action.PLANNED_ROLLBACK),
        # The same trouble where the run stands elsewhere.
        (State(Severity.HIGH, *GOOD), Standing.BEGUN, Action.UNDO),
        (State(Severity.MEDIUM, *GOOD), Standing.MOVING, Action.FINISH_FORWARD),
        (State(Severity.HIGH, *GOOD), Standing.GOING_BACK, Action.FINISH_ROLLBACK),
        (State(Severity.LOW, Function.WORKS, Integrity.COMPROMISED, Performance.NORMAL, Stability.STABLE),
         Standing.EMPTIED, Action.RECOVER),
        (State(Severity.CRITICAL, Function.NONE, Integrity.COMPROMISED, Performance.NORMAL, Stability.STABLE),
         Standing.EMPTIED, Action.EMERGENCY_ROLLBACK),
        (State(Severity.CRITICAL, Function.NONE, Integrity.UNKNOWN, Performance.NORMAL, Stability.STABLE),
         Standing.SETTLED, Action.NOTHING),
        (State(Severity.CRITICAL, Function.NONE, Integrity.UNKNOWN, Performance.NORMAL, Stability.STABLE),
         Standing.DATABASE_AWAY, Action.DATABASE_FIRST),
    ],
)  # fmt: skip
def test_the_cases_that_were_argued_about(state: State, standing: Standing, action: Action) -> None:
    assert decide(state, standing).action is action


def test_an_emptied_redis_alone_is_no_critical_severity() -> None:
    readings = (Function.WORKS, Integrity.COMPROMISED, Performance.NORMAL, Stability.STABLE)
    assert state_of(*readings, stated=None, standing=Standing.EMPTIED).severity is Severity.LOW
    assert state_of(*readings, stated=None, standing=Standing.IN_TARGET).severity is Severity.CRITICAL


# -- the page ----------------------------------------------------------------------------------------------------------


def table_under(heading: str) -> list[str]:
    """The lines of the first table under a heading of the page."""
    text = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_page_has_the_complete_table() -> None:
    assert table_under("The measure: the complete table") == table_lines()
    assert len(table_lines()) == 2 + 54


def test_the_page_has_every_ladder() -> None:
    assert table_under("The action: where the run stands") == ladder_lines()


def test_the_page_says_what_each_standing_means() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_under("The standings")[2:]]
    assert rows == [[f"`{standing}`", MEANING[standing], WHY[standing]] for standing in Standing]


@pytest.mark.parametrize("action", Action)
def test_the_page_says_the_command_of_each_action(action: Action) -> None:
    rows = {line.strip("|").split("|")[0].strip(): line for line in table_under("The commands")[2:]}
    book = command_for(action, None).split()[1].removeprefix("playbooks/")
    assert f"`{book}`" in rows[action]


# -- the command -------------------------------------------------------------------------------------------------------


def signs(run: Run | None, share: int) -> LedgerSigns:
    return LedgerSigns(run, run, 1, 0, RouteState(share, True), None)


@pytest.mark.parametrize(("share", "lower"), [(100, 25), (26, 25), (25, 0), (10, 0)])
def test_a_partial_rollback_lowers_the_share(share: int, lower: int) -> None:
    command = command_for(Action.PARTIAL_ROLLBACK, signs(None, share))
    assert command == f"ansible-playbook playbooks/hybrid.yml -e queue_share={lower}"


def test_the_command_names_the_inventory_that_was_given() -> None:
    command = command_for(Action.PLANNED_ROLLBACK, None, ["/etc/sluice/my hosts.yml"])
    assert command == "ansible-playbook -i '/etc/sluice/my hosts.yml' playbooks/planned-rollback.yml"


def test_a_decision_is_plain_data() -> None:
    decision = decide(STATES[0], Standing.IN_TARGET)
    assert decision == Decision(Action.FIX_IN_PLACE, Measure.FIX, decision.reasons)
