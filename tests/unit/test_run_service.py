"""Gates and their age, and which run is open when one goes back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from ansible.module_utils.sluice.adapters.memory import MemoryClock, MemoryLedger
from ansible.module_utils.sluice.core.errors import RunConflict
from ansible.module_utils.sluice.core.phases import BACK_GATES, GATE_LIFETIME, Phase, ended_by_rollback
from ansible.module_utils.sluice.core.verdicts import Check, Gate, Verdict
from ansible.module_utils.sluice.ports.ledger import Run
from ansible.module_utils.sluice.services import run as runs

PASSED = Gate("x", (Check("seen", Verdict.PASSED, "by the test"),))


def _run(run_id: str, direction: str = "forward", **settings: object) -> Run:
    now = datetime.now(UTC)
    return Run(run_id, "memory", direction, "tester", Phase.OPENED, "", "", run_id, now, None, settings)


def _evidence_gate(recorded_later_by: float) -> Gate:
    clock = MemoryClock(1_700_000_000 + recorded_later_by)
    ledger = MemoryLedger(clock)
    ledger.install()
    run = _run("back", "back")
    ledger.start_run(run)
    lease = ledger.take_lease(run, "me", 30)
    runs.record_gate(ledger, lease, Gate("evidence", PASSED.checks))
    return runs.phase_gate(ledger, run, Phase.PREPARED, MemoryClock(1_700_000_000))


def test_a_verdict_of_now_opens_the_gate() -> None:
    assert _evidence_gate(0).open
    assert _evidence_gate(2).open, "the skew that preflight allows"


def test_a_verdict_from_the_future_says_nothing() -> None:
    gate = _evidence_gate(60)
    assert gate.verdict is Verdict.UNKNOWN
    assert "clocks" in gate.checks[0].reading


def test_an_old_verdict_says_nothing() -> None:
    assert _evidence_gate(-GATE_LIFETIME["evidence"] - 1).verdict is Verdict.UNKNOWN


def test_every_gate_of_the_way_back_has_a_lifetime() -> None:
    assert {name for names in BACK_GATES.values() for name in names} <= set(GATE_LIFETIME)


@pytest.fixture
def ledger() -> MemoryLedger:
    made = MemoryLedger(MemoryClock())
    made.install()
    made.start_run(_run("forward"))
    return made


def test_a_run_that_goes_back_takes_the_place_of_the_open_one(ledger: MemoryLedger) -> None:
    before = ledger.open_run()
    assert before is not None
    ledger.take_over(_run("back", "back", undoes="forward"), before)
    after = ledger.open_run()
    assert after is not None
    assert after.id == "back"
    found = ledger.find_run("forward")
    assert found is not None
    assert found.phase is Phase.OPENED
    with pytest.raises(RunConflict, match="not open any more"):
        ledger.take_over(_run("third", "back"), before)


def test_taken_off_again_the_run_before_is_open_again(ledger: MemoryLedger) -> None:
    before = ledger.open_run()
    assert before is not None
    back = _run("back", "back", undoes="forward")
    ledger.take_over(back, before)
    lease = ledger.take_lease(back, "me", 30)
    runs.undo(ledger, lease, back, "second thoughts", [])
    after = ledger.open_run()
    assert after is not None
    assert after.id == "forward"


@pytest.mark.parametrize(
    ("stood", "released", "ends"),
    [
        (Phase.PREPARED, False, Phase.ABORTED),
        (Phase.HYBRID, False, Phase.ABORTED),
        (Phase.HYBRID, True, Phase.ROLLED_BACK),  # the source was let in again behind a whole transfer
        (Phase.FENCED, False, Phase.ABORTED),
        (Phase.FENCED, True, Phase.ROLLED_BACK),
        (Phase.TRANSFERRED, False, Phase.ROLLED_BACK),
        (Phase.VALIDATED, True, Phase.ROLLED_BACK),
    ],
)
def test_how_a_run_ends_that_was_taken_back(stood: Phase, released: bool, ends: Phase) -> None:
    assert ended_by_rollback(stood, released=released) is ends


def test_only_an_emergency_does_without_the_target(ledger: MemoryLedger) -> None:
    before = ledger.open_run()
    assert before is not None
    emergency = _run("back", "back", undoes="forward", emergency=True)
    ledger.take_over(emergency, before)
    lease = ledger.take_lease(emergency, "me", 30)
    assert runs.target_usable(ledger, emergency)
    ledger.record(lease, "measure", "target store", "", {"usable": False})
    assert not runs.target_usable(ledger, emergency)
    assert runs.target_usable(ledger, _run("back", "back"))
    assert not runs.may_undo(emergency)
