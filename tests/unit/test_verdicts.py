"""Three-valued verdicts: unknown never passes, and nothing checked is unknown."""

from __future__ import annotations

import itertools

import pytest
from ansible.module_utils.sluice.core.verdicts import Check, Gate, Verdict, combine

PASSED, FAILED, UNKNOWN = Verdict.PASSED, Verdict.FAILED, Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], UNKNOWN),
        ([PASSED], PASSED),
        ([FAILED], FAILED),
        ([UNKNOWN], UNKNOWN),
        ([PASSED, PASSED], PASSED),
        ([PASSED, UNKNOWN], UNKNOWN),
        ([PASSED, FAILED], FAILED),
        ([UNKNOWN, FAILED], FAILED),
        ([PASSED, UNKNOWN, FAILED], FAILED),
    ],
)
def test_failed_beats_unknown_beats_passed(verdicts: list[Verdict], expected: Verdict) -> None:
    for order in itertools.permutations(verdicts):
        assert combine(order) is expected
        gate = Gate("g", [Check(str(n), verdict, "") for n, verdict in enumerate(order)])
        assert gate.verdict is expected
        assert gate.open is (expected is PASSED)


@pytest.mark.parametrize(("passed", "verdict"), [(True, PASSED), (False, FAILED), (None, UNKNOWN)])
def test_a_check_of_what_was_read(passed: bool | None, verdict: Verdict) -> None:
    check = Check.of("free space", passed, "12 GiB", "free some")
    assert (check.verdict, check.reading) == (verdict, "12 GiB")
    assert check.next_step == ("" if passed else "free some")


def test_a_closed_gate_names_what_blocks_and_what_to_do() -> None:
    gate = Gate(
        "fence",
        [
            Check("accounts", PASSED, "2 locked"),
            Check("sessions", FAILED, "1 left", "kill it"),
            Check("workers", UNKNOWN, "host silent"),
        ],
    )
    assert gate.explain() == "gate 'fence' failed: sessions failed: 1 left (kill it); workers unknown: host silent"
    assert [check.name for check in gate.blocking()] == ["sessions", "workers"]


def test_an_open_gate_and_one_without_checks_say_so() -> None:
    assert Gate("g", [Check("a", PASSED, "")]).explain() == "gate 'g' passed (1 checks)"
    assert Gate("g").explain() == "gate 'g' is unknown: nothing was checked"
    assert not Gate("g").open


def test_the_words_are_those_of_the_ledger() -> None:
    assert [verdict.value for verdict in Verdict] == ["passed", "failed", "unknown"]
