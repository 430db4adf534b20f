"""What every ledger promises: one open run, one holder of the lease, phases only through open gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import sql_connect
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.memory import MemoryClock, MemoryLedger
from ansible.module_utils.sluice.core.errors import GateClosed, LeaseLost, RunConflict
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.core.verdicts import Check, Gate, Verdict

from .rigs import SourceRig, Stoppable, make_run

Ledger = Stoppable
RUN = make_run()
OPEN = Gate("backups", (Check("dump restored", Verdict.PASSED, "12 rows"),))


@pytest.fixture(params=["memory", pytest.param("sql", marks=pytest.mark.real)])
def ledger(request: pytest.FixtureRequest) -> Stoppable:
    """Each ledger, not installed yet."""
    if request.param == "memory":
        return MemoryLedger(MemoryClock())
    return SqlLedger(sql_connect.connect(request.getfixturevalue("database_url")), "captions")


def begin(ledger: Ledger) -> Lease:
    """An open run and its lease."""
    ledger.install()
    ledger.start_run(RUN)
    return ledger.take_lease(RUN, "first", 60)


def phase(ledger: Ledger) -> Phase:
    """Where the newest run stands."""
    run = ledger.last_run()
    assert run is not None
    return run.phase


def test_is_installed_once(ledger: Ledger) -> None:
    assert ledger.open_run() is None
    assert ledger.last_run() is None
    assert ledger.lease_state() is None
    assert ledger.install() is True
    assert ledger.install() is False


def test_keeps_what_a_run_is(ledger: Ledger) -> None:
    begin(ledger)
    run = ledger.open_run()
    assert run is not None
    assert (run.id, run.direction, run.operator, run.phase) == ("run-1", "forward", "tester", Phase.OPENED)
    assert (run.plan_digest, run.mapping_digest, run.generation) == ("p", "m", "stamp-1")
    assert (run.settings, run.point_of_no_return_at) == ({"n": 1}, None)
    assert run.opened_at.tzinfo is not None


def test_one_open_run_only(ledger: Ledger) -> None:
    lease = begin(ledger)
    with pytest.raises(RunConflict, match="another run of this system is open"):
        ledger.start_run(make_run("run-2"))
    ledger.set_phase(lease, Phase.ABORTED, OPEN)
    assert ledger.open_run() is None
    assert phase(ledger) is Phase.ABORTED
    ledger.start_run(make_run("run-2"))
    run = ledger.open_run()
    assert run is not None
    assert run.id == "run-2"
    assert ledger.last_run() == run


# -- lease ------------------------------------------------------------------------------------------------------------


def test_every_taking_raises_the_token(ledger: Ledger) -> None:
    first = begin(ledger)
    assert (first.run_id, first.owner, first.generation) == ("run-1", "first", "stamp-1")
    second = ledger.take_lease(RUN, "first", 60)
    assert second.token == first.token + 1
    state = ledger.lease_state()
    assert state is not None
    assert (state.token, state.owner) == (second.token, "first")
    assert 50 < state.remaining <= 60


def test_a_foreign_lease_is_respected_while_it_lives(ledger: Ledger) -> None:
    lease = begin(ledger)
    with pytest.raises(RunConflict, match=r"'first' holds the lease for another (59|60) s"):
        ledger.take_lease(RUN, "second", 60)
    state = ledger.lease_state()
    assert state is not None
    assert state.token == lease.token
    ledger.renew(lease, 60)


def test_a_lease_that_ended_can_be_taken_and_its_holder_is_refused(ledger: Ledger) -> None:
    lease = begin(ledger)
    ledger.renew(lease, 0)
    state = ledger.lease_state()
    assert state is not None
    assert state.remaining == 0
    second = ledger.take_lease(RUN, "second", 60)
    assert second.token == lease.token + 1
    with pytest.raises(LeaseLost, match="'second'"):
        ledger.renew(lease, 60)


def test_giving_up_lets_the_next_one_in_at_once(ledger: Ledger) -> None:
    lease = begin(ledger)
    ledger.give_up(lease)
    second = ledger.take_lease(RUN, "second", 60)
    ledger.give_up(lease)  # late, and no longer ours to give up
    state = ledger.lease_state()
    assert state is not None
    assert (state.owner, state.token) == ("second", second.token)
    assert state.remaining > 50


WRITES: dict[str, Callable[[Ledger, Lease], object]] = {
    "renew": lambda ledger, lease: ledger.renew(lease, 60),
    "set_phase": lambda ledger, lease: ledger.set_phase(lease, Phase.PREPARED, OPEN),
    "record": lambda ledger, lease: ledger.record(lease, "note", "n", "", {}),
}


@pytest.mark.parametrize("call", WRITES)
def test_an_old_token_writes_nothing(ledger: Ledger, call: str) -> None:
    lease = begin(ledger)
    ledger.take_lease(RUN, "first", 60)
    with pytest.raises(LeaseLost):
        WRITES[call](ledger, lease)
    assert phase(ledger) is Phase.OPENED
    assert list(ledger.events("run-1")) == []


def test_the_stop_flag_is_seen_and_ends_with_the_lease(ledger: Ledger) -> None:
    lease = begin(ledger)
    assert ledger.stop_requested() is False
    ledger.request_stop()
    assert ledger.stop_requested() is True
    ledger.request_stop(False)
    assert ledger.stop_requested() is False
    ledger.request_stop()
    ledger.give_up(lease)
    assert ledger.stop_requested() is False


# -- phases and events ------------------------------------------------------------------------------------------------


def test_a_phase_is_kept_with_its_gate(ledger: Ledger) -> None:
    lease = begin(ledger)
    ledger.set_phase(lease, Phase.PREPARED, OPEN)
    assert phase(ledger) is Phase.PREPARED
    [event] = ledger.events("run-1")
    assert (event.kind, event.name, event.verdict) == ("phase", "prepared", "passed")
    assert event.detail == {
        "gate": "backups",
        "checks": [{"name": "dump restored", "verdict": "passed", "reading": "12 rows", "next_step": ""}],
    }
    assert event.at.tzinfo is not None


@pytest.mark.parametrize(
    "gate",
    [
        Gate("g", (Check("a", Verdict.PASSED, ""), Check("b", Verdict.FAILED, "no dump", "make one"))),
        Gate("g", (Check("b", Verdict.UNKNOWN, "no dump", "make one"),)),
        Gate("g"),
    ],
    ids=["failed", "unknown", "empty"],
)
def test_a_closed_gate_stops_a_phase(ledger: Ledger, gate: Gate) -> None:
    lease = begin(ledger)
    with pytest.raises(GateClosed, match=r"gate before 'prepared': gate 'g'"):
        ledger.set_phase(lease, Phase.PREPARED, gate)
    assert phase(ledger) is Phase.OPENED
    assert list(ledger.events("run-1")) == []


def test_an_arrow_that_does_not_exist_is_refused(ledger: Ledger) -> None:
    lease = begin(ledger)
    with pytest.raises(RunConflict, match="cannot go to 'transferred'"):
        ledger.set_phase(lease, Phase.TRANSFERRED, OPEN)
    assert phase(ledger) is Phase.OPENED
    assert list(ledger.events("run-1")) == []


def test_a_run_that_is_not_in_the_ledger_has_no_phase(ledger: Ledger) -> None:
    lease = begin(ledger)
    with pytest.raises(RunConflict, match="run-9 is not in the ledger"):
        ledger.set_phase(replace(lease, run_id="run-9"), Phase.PREPARED, OPEN)


def test_events_are_kept_in_order_and_found_by_kind_and_name(ledger: Ledger) -> None:
    lease = begin(ledger)
    ledger.record(lease, "measure", "latency", "passed", {"p99": 12.5})
    ledger.record(lease, "override", "soak", "failed", {"reason": "asked by the owner"})
    ledger.record(lease, "measure", "soak", "unknown", {})
    assert [event.name for event in ledger.events("run-1")] == ["latency", "soak", "soak"]
    assert [event.name for event in ledger.events("run-1", "measure")] == ["latency", "soak"]
    [event] = ledger.events("run-1", "override", "soak")
    assert (event.verdict, event.detail) == ("failed", {"reason": "asked by the owner"})
    assert [event.kind for event in ledger.events("run-1", name="soak")] == ["override", "measure"]
    assert list(ledger.events("run-2")) == []


# -- a run that goes back ---------------------------------------------------------------------------------------------

BACK = replace(RUN, id="run-2", direction="back", generation="stamp-2", settings={"undoes": "run-1"})


def walk(ledger: Ledger, lease: Lease, *phases: Phase, undoes: str = "") -> None:
    """Through open gates."""
    for wanted in phases:
        ledger.set_phase(lease, wanted, OPEN, undoes=undoes)


def taken_over(ledger: Ledger, *phases: Phase) -> Lease:
    """A run that stands at a phase, taken over by one that goes back; the lease of the latter."""
    walk(ledger, begin(ledger), *phases)
    run = ledger.open_run()
    assert run is not None
    ledger.take_over(BACK, run)
    return ledger.take_lease(BACK, "first", 60)


THERE = (Phase.PREPARED, Phase.ROUTED, Phase.FENCED, Phase.TRANSFERRED, Phase.VERIFIED)


def test_a_run_that_goes_back_takes_the_place_of_the_open_one_which_keeps_its_phase(ledger: Ledger) -> None:
    lease = taken_over(ledger, *THERE)
    run, suspended = ledger.open_run(), ledger.find_run("run-1")
    assert run is not None
    assert suspended is not None
    assert (run.id, run.direction, run.phase, run.generation) == ("run-2", "back", Phase.OPENED, "stamp-2")
    assert (suspended.direction, suspended.phase) == ("forward", Phase.VERIFIED)
    assert ledger.last_run() == run
    assert (lease.run_id, lease.generation) == ("run-2", "stamp-2")


def test_a_run_is_found_by_its_id_whatever_became_of_it(ledger: Ledger) -> None:
    assert ledger.find_run("run-1") is None
    lease = begin(ledger)
    assert ledger.find_run("run-1") == ledger.open_run()
    assert ledger.find_run("run-9") is None
    ledger.set_phase(lease, Phase.ABORTED, OPEN)
    found = ledger.find_run("run-1")
    assert found is not None
    assert found.phase is Phase.ABORTED


def test_only_the_open_run_is_taken_over_and_only_once(ledger: Ledger) -> None:
    taken_over(ledger)
    first = ledger.find_run("run-1")
    assert first is not None
    with pytest.raises(RunConflict, match="run-1 is not open any more"):
        ledger.take_over(replace(BACK, id="run-3"), first)
    with pytest.raises(RunConflict, match="another run of this system is open"):
        ledger.start_run(make_run("run-3"))
    assert ledger.find_run("run-3") is None
    run = ledger.open_run()
    assert run is not None
    assert run.id == "run-2"


def test_an_aborted_way_back_opens_the_run_before_it_again(ledger: Ledger) -> None:
    lease = taken_over(ledger, *THERE)
    walk(ledger, lease, Phase.PREPARED, Phase.ABORTED, undoes="run-1")
    run = ledger.open_run()
    assert run is not None
    assert (run.id, run.phase) == ("run-1", Phase.VERIFIED)
    ledger.give_up(lease)
    again = ledger.take_lease(run, "first", 60)
    assert (again.run_id, again.generation) == ("run-1", "stamp-1")
    ledger.set_phase(again, Phase.VALIDATED, OPEN)


@pytest.mark.parametrize(
    ("stood", "ended"),
    [((), Phase.ABORTED), (THERE[:3], Phase.ABORTED), (THERE[:4], Phase.ROLLED_BACK), (THERE, Phase.ROLLED_BACK)],
    ids=["opened", "fenced", "transferred", "verified"],
)
def test_a_verified_way_back_ends_the_run_before_it(ledger: Ledger, stood: tuple[Phase, ...], ended: Phase) -> None:
    lease = taken_over(ledger, *stood)
    walk(ledger, lease, *THERE[:4], undoes="run-1")
    before = ledger.find_run("run-1")
    assert before is not None
    assert before.phase not in (Phase.ABORTED, Phase.ROLLED_BACK), "not yet"
    walk(ledger, lease, Phase.VERIFIED, undoes="run-1")
    before = ledger.find_run("run-1")
    assert before is not None
    assert before.phase is ended
    walk(ledger, lease, Phase.VALIDATED, Phase.CLEANED, undoes="run-1")
    assert ledger.open_run() is None
    ledger.start_run(make_run("run-3"))


def test_the_settings_of_an_open_run_can_be_changed(ledger: Ledger) -> None:
    taken_over(ledger)
    run = ledger.open_run()
    assert run is not None
    changed = ledger.change_settings(run, {"undoes": "run-1", "emergency": True})
    assert changed == ledger.open_run()
    assert changed.settings == {"undoes": "run-1", "emergency": True}
    other = ledger.find_run("run-1")
    assert other is not None
    assert other.settings == {"n": 1}


# -- baseline: over each source ---------------------------------------------------------------------------------------


def test_the_baseline_remembers_ids_and_places_and_is_replaced(source: SourceRig) -> None:
    source.add("1")
    source.add("2", delay=3600)
    source.add("3")
    source.touch("3", "cancelled")
    assert source.ledger.save_baseline(source.lease) == 3
    source.touch("1", "finished")
    source.add("4")
    remembered = {seen.id: str(seen.place) for seen in source.ledger.baseline("run-1")}
    assert remembered == {"1": "ready", "2": "delayed", "3": "cancelled"}
    assert source.ledger.save_baseline(source.lease) == 4
    remembered = {seen.id: str(seen.place) for seen in source.ledger.baseline("run-1")}
    assert remembered == {"1": "finished", "2": "delayed", "3": "cancelled", "4": "ready"}
    assert list(source.ledger.baseline("run-2")) == []


def test_a_baseline_under_an_old_token_is_refused(source: SourceRig) -> None:
    source.add("1")
    source.another()
    with pytest.raises(LeaseLost):
        source.ledger.save_baseline(source.lease)
    assert list(source.ledger.baseline("run-1")) == []


def test_a_baseline_needs_a_source(ledger: Ledger) -> None:
    lease = begin(ledger)
    with pytest.raises(RunConflict, match="no source was named"):
        ledger.save_baseline(lease)


# -- SQL only ---------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_ledger_of_another_version_is_refused(database_url: str) -> None:
    engine = sql_connect.connect(database_url)
    ledger = SqlLedger(engine, "captions")
    ledger.install()
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE sluice_meta SET v = '0' WHERE k = 'version'"))
    for call in (ledger.install, ledger.open_run, ledger.last_run, ledger.lease_state):
        with pytest.raises(RunConflict, match="table layout 0"):
            call()
    engine.dispose()


@pytest.mark.real
def test_an_installation_that_was_cut_off_is_completed(database_url: str) -> None:
    engine = sql_connect.connect(database_url)
    ledger = SqlLedger(engine, "captions")
    ledger.install()
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE sluice_baseline"))
        connection.execute(sa.text("DELETE FROM sluice_meta"))
    assert ledger.installed() is False
    assert ledger.open_run() is None
    assert ledger.install() is True
    assert ledger.installed() is True
    engine.dispose()


@pytest.mark.real
def test_ledgers_of_two_systems_share_the_tables(database_url: str) -> None:
    engine = sql_connect.connect(database_url)
    one, two = SqlLedger(engine, "captions"), SqlLedger(engine, "watch")
    begin(one)
    two.start_run(make_run("run-w", "watch"))
    second = two.take_lease(make_run("run-w", "watch"), "other", 60)
    assert second.token == 1
    run = one.open_run()
    assert run is not None
    assert run.id == "run-1"
    engine.dispose()
