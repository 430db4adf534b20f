"""The balance as it is taken: readings one after the other, a second look at whatever is not in exactly one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.sluice.adapters.memory import (
    MemoryClock,
    MemoryLedger,
    MemorySource,
    MemoryTarget,
    Row,
)
from ansible.module_utils.sluice.core import mapping as mappings
from ansible.module_utils.sluice.core.balance import Account, Balance, Rules, Term
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.core.tasks import Home, Mark, Sighting
from ansible.module_utils.sluice.core.verdicts import Check, Gate, Verdict
from ansible.module_utils.sluice.ports.ledger import Run
from ansible.module_utils.sluice.services import verify
from ansible.module_utils.sluice.services.transfer import Transfer
from ansible.module_utils.sluice.services.verify import Expected, Verification, Verified, balance_gate, rules_of

ROOT = Path(__file__).resolve().parents[2]
MAPPING = mappings.parse(yaml.safe_load((ROOT / "inventories" / "lab" / "mapping.yml").read_text()))
RUN = Run("run-1", "captions", "forward", "tester", Phase.OPENED, "", "", "stamp-1", datetime.now(UTC), None, {})
FENCED = Gate("fence", [Check("accounts", Verdict.PASSED, "2 locked")])


class World:
    """Both stores and the ledger, a run with a lease."""

    def __init__(self) -> None:
        self.clock = MemoryClock()
        self.ledger = MemoryLedger(self.clock, "captions")
        self.ledger.install()
        self.ledger.start_run(RUN)
        self.source = MemorySource(self.ledger)
        self.target = MemoryTarget(self.clock)
        self.lease = self.ledger.take_lease(RUN, "first", 60)
        self.target.stamp(self.lease)
        self.ids = [f"t{number:04d}" for number in range(8)]
        for task_id in self.ids:
            self.source.rows[task_id] = Row(task_id, "normal", available=self.clock.now())

    def verification(self, rules: Rules | None = None, **more: object) -> Verification:
        """The service, with the mapping of captions or other rules."""
        made = Verification(
            self.source, self.target, self.ledger, self.clock, MAPPING, RUN.id, **more  # type: ignore[arg-type]
        )  # fmt: skip
        if rules is not None:
            made.rules = rules
        return made

    def move(self) -> None:
        """Everything."""
        work = Transfer(
            self.source, self.target, self.ledger, self.clock, prove_fence=lambda: FENCED, custody_in_row=True
        )
        assert work.slice(self.lease, 60).done

    def lose(self, task_id: str) -> None:
        """Its job and its entry at the target."""
        self.target._contents.places[Home.QUEUED, "normal"].remove(task_id)
        self.target.lose(task_id)


@pytest.fixture
def world() -> World:
    """Eight tasks, all ready at the source."""
    return World()


def terms(found: Balance) -> dict[str, int]:
    """Those that are not zero."""
    return {term.value: number for term, number in found.terms.items() if number}


def test_everything_is_in_one_place_before_and_after(world: World) -> None:
    world.ledger.save_baseline(world.lease)
    found = world.verification().balance()
    assert found == Verified(found.balance, 0)
    assert found.balance.holds
    assert (found.balance.known, terms(found.balance)) == (8, {"ready": 8})
    world.move()
    found = world.verification().balance()
    assert found.balance.holds
    assert terms(found.balance) == {"queued": 8}
    assert world.clock.monotonic() == 0, "nothing is looked at twice, so nothing waits"


def test_a_lost_task_is_named_after_three_looks_two_seconds_apart(world: World) -> None:
    world.move()
    world.lose(world.ids[3])
    stages: list[str] = []
    before = world.clock.monotonic()
    found = world.verification(stage=stages.append).balance()
    assert found.looked_at == 1
    assert not found.balance.holds
    assert found.balance.faults == (Account(world.ids[3], None, "moved, and missing at the target"),)
    assert (found.balance.fault_count, found.balance.known, terms(found.balance)) == (1, 8, {"queued": 7})
    assert world.clock.monotonic() - before == pytest.approx(4.0)
    assert stages == ["reading", "comparing", "looking again", "looking again", "looking again"]


@pytest.mark.parametrize(("comes_back", "waited"), [(1, 0.0), (2, 2.0), (3, 4.0)])
def test_one_look_that_finds_it_in_one_place_settles_it(
    world: World, monkeypatch: pytest.MonkeyPatch, comes_back: int, waited: float
) -> None:
    world.move()
    moving = world.ids[3]
    world.lose(moving)
    looks = 0
    look = world.target.look

    def arrives(job_id: str) -> list[Sighting]:
        nonlocal looks
        looks += 1
        if looks == comes_back:
            world.target.enter(Home.STARTED, "normal", job_id)
        return look(job_id)

    monkeypatch.setattr(world.target, "look", arrives)
    before = world.clock.monotonic()
    found = world.verification().balance()
    assert found.balance.holds
    assert found.looked_at == 1
    assert looks == comes_back
    assert terms(found.balance) == {"queued": 7, "running": 1}
    assert world.clock.monotonic() - before == pytest.approx(waited)


def test_more_suspects_than_are_looked_at_are_counted_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "MOST_LOOKED_AT", 3)
    monkeypatch.setattr(verify, "_CAP", 2)
    world.move()
    world.target.empty()
    found = world.verification().balance()
    assert found.looked_at == 3
    assert (found.balance.known, found.balance.fault_count, len(found.balance.faults)) == (8, 8, 2)


def test_a_row_that_is_gone_meanwhile_is_found_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.move()
    gone = world.ids[0]
    world.lose(gone)
    monkeypatch.setattr(world.source, "look", lambda _: {})
    found = world.verification().balance()
    assert [entry.id for entry in found.balance.faults] == [gone]
    assert found.balance.faults[0].fault == "moved, and missing at the target"


@pytest.mark.parametrize("pending", [True, False])
def test_a_row_that_the_application_has_still_to_enqueue_is_staged(world: World, pending: bool) -> None:
    world.source.rows["born"] = Row("born", "normal", custody="target", pending=pending)
    found = world.verification().balance()
    assert found.balance.holds is pending
    assert terms(found.balance) == ({"ready": 8, "staged": 1} if pending else {"ready": 8})


def test_a_row_that_becomes_pending_between_two_looks_is_settled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.source.rows["born"] = Row("born", "normal", custody="target")
    monkeypatch.setattr(world.source, "look", lambda _: {"born": Sighting("born", "moved", "pending")})
    assert terms(world.verification().balance().balance) == {"ready": 8, "staged": 1}


FORGETS = Rules(custody_in_row=False, journal=False, forgets=True)


def test_a_target_that_forgets_departs_what_it_had_been_given(world: World) -> None:
    """The marker is all that is left; without one the task was never activated."""
    world.move()
    for task_id in world.ids[:2]:
        world.lose(task_id)
    world.target._contents.markers.discard(world.ids[1])
    found = world.verification(FORGETS).balance()
    assert terms(found.balance) == {"queued": 6, "departed": 1}
    assert [entry.id for entry in found.balance.faults] == [world.ids[1]]
    assert found.looked_at == 1, "what has its marker is no suspect"


def test_a_marker_counts_only_for_a_moved_task_without_a_home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.move()
    asked: list[str] = []
    monkeypatch.setattr(world.target, "marked", lambda ids: asked.extend(ids) or [True])
    world.lose(world.ids[5])
    assert terms(world.verification(FORGETS).balance().balance) == {"queued": 7, "departed": 1}
    assert asked == [world.ids[5]]
    asked.clear()
    assert world.verification().balance().balance.fault_count == 1
    assert asked == [], "a journal tells, so no marker is asked for"


def test_a_job_that_moves_on_while_it_is_read_counts_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen at one place in the first reading of the target, at another in the second: the later one counts."""
    world.move()
    census = world.target.census
    readings = 0

    def moves_on() -> Iterator[Sighting]:
        nonlocal readings
        readings += 1
        for seen in census():
            if readings == 2 and seen.id == world.ids[0] and seen.place == Home.QUEUED:
                yield seen._replace(place=Home.STARTED)
            else:
                yield seen

    monkeypatch.setattr(world.target, "census", moves_on)
    assert terms(world.verification().balance().balance) == {"queued": 7, "running": 1}


def test_what_was_seen_only_in_the_first_reading_counts_as_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ends and is forgotten between two readings was there."""
    world.move()
    both = iter([list(world.target.census()), []])
    monkeypatch.setattr(world.target, "census", lambda: iter(next(both)))
    assert terms(world.verification().balance().balance) == {"queued": 8}


def test_marks_and_the_baseline_keep_an_id_known(world: World) -> None:
    world.ledger.save_baseline(world.lease)
    gone, held = world.ids[0], world.ids[1]
    del world.source.rows[gone]
    world.source.hold(world.lease, [held], "an operator decides")
    found = world.verification().balance()
    assert found.balance.holds
    assert (found.balance.known, terms(found.balance)) == (8, {"ready": 6, "held": 1, "departed": 1})
    [seen] = [seen for seen in world.verification().evidence() if seen.id == held]
    assert (seen.mark, seen.baseline, seen.task_id) == (Mark.HELD, True, held)


def test_an_id_that_the_target_cannot_take_is_one_id(world: World) -> None:
    world.source.rows["a task.1"] = Row("a task.1", "normal", available=world.clock.now())
    world.ledger.save_baseline(world.lease)
    world.move()
    found = world.verification().balance()
    assert (found.balance.known, terms(found.balance)) == (9, {"queued": 9})
    assert "a task.1" in {seen.task_id for seen in world.verification().evidence()}


# -- progress ---------------------------------------------------------------------------------------------------------


def recorded() -> tuple[list[tuple[int, int]], Callable[[int, int], None]]:
    """What a progress was told."""
    told: list[tuple[int, int]] = []
    return told, lambda done, total: told.append((done, total))


def test_the_heart_beats_while_it_reads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "HEARTBEAT", 5)
    world.ledger.save_baseline(world.lease)
    world.move()
    beats: list[int] = []
    told, progress = recorded()
    found = world.verification(heartbeat=lambda: beats.append(1), progress=progress).balance()
    assert found.balance.holds
    # 16 sightings of the target twice, 8 rows, 8 marks, 8 of the baseline; then each id, of 7 sightings, is compared.
    assert told == [(number, 0) for number in range(0, 56, 5)] + [(number, 56) for number in range(0, 56, 7)]
    assert len(beats) == len(told)


def test_the_total_is_estimated_and_put_right_as_it_reads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "HEARTBEAT", 1)
    world.ledger.save_baseline(world.lease)
    world.move()
    told, progress = recorded()
    expected = Expected(target=10, rows=8, marks=4, baseline=8)
    assert world.verification(progress=progress, expected=expected).balance().balance.holds
    reading = told[:56]
    assert [done for done, _ in reading] == list(range(56))
    assert reading[0] == (0, 40)
    assert reading[12] == (12, 42), "more than expected: never less than what was read"
    assert reading[16] == (16, 16 + 8 + 16 + 4 + 8), "the second reading of the target is as long as the first"
    assert reading[24] == (24, 24 + 16 + 4 + 8)
    assert reading[40] == (40, 40 + 4 + 8)
    assert reading[48] == (48, 48 + 8)
    assert reading[55] == (55, 56)


def test_a_store_with_nothing_in_it_is_skipped_in_the_estimate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "HEARTBEAT", 1)
    told, progress = recorded()
    expected = Expected(target=10, rows=8, marks=3, baseline=4)
    assert world.verification(progress=progress, expected=expected).balance().balance.holds
    assert told[0] == (0, 8 + 3 + 4), "the target was empty, and will be so in the second reading"
    assert told[7] == (7, 8 + 3 + 4)


def test_looking_again_tells_how_many(world: World) -> None:
    world.move()
    for task_id in world.ids[:3]:
        world.lose(task_id)
    told, progress = recorded()
    world.verification(progress=progress).balance()
    assert told[-9:] == [(0, 3), (1, 3), (2, 3)] * 3


# -- the gate ---------------------------------------------------------------------------------------------------------


def verified(*faults: str, known: int = 10, counted: int | None = None) -> Verified:
    """A balance with faulty ids."""
    number = len(faults) if counted is None else counted
    named = tuple(Account(task_id, None, "lost") for task_id in faults)
    return Verified(Balance(known, {Term.QUEUED: known - number}, number, named), number)


def test_the_gate_is_open_only_when_all_are_in_one_place_and_nothing_was_left() -> None:
    gate = balance_gate(verified(), left_at_source=0)
    assert (gate.name, gate.open) == ("balance", True)
    assert [check.name for check in gate.checks] == ["every id in exactly one place", "nothing left at the source"]
    assert [check.reading for check in gate.checks] == ["10 known, 0 at fault", "0 ready or delayed at the source"]
    assert not balance_gate(verified(), left_at_source=1).open
    assert not balance_gate(verified("a"), left_at_source=0).open


def test_the_gate_names_five_and_counts_the_rest() -> None:
    check = balance_gate(verified("a"), left_at_source=0).checks[0]
    assert check.reading == "10 known, 1 at fault: a: lost"
    assert check.next_step == (
        "if Redis lost jobs, or gave one to a worker whose host was gone, run playbooks/recover.yml: it places again"
        " what has not started; else look at the ids named here before going on."
    )
    check = balance_gate(verified(*"abcde"), left_at_source=0).checks[0]
    assert check.reading == "10 known, 5 at fault: a: lost; b: lost; c: lost; d: lost; e: lost"
    check = balance_gate(verified(*"abcdef", counted=9), left_at_source=3).checks[0]
    assert check.reading == "10 known, 9 at fault: a: lost; b: lost; c: lost; d: lost; e: lost and 4 more"
    check = balance_gate(verified(*"abcdef"), left_at_source=0).checks[0]
    assert check.reading.endswith("d: lost; e: lost and 1 more")
    left = balance_gate(verified(), left_at_source=3).checks[1]
    assert (left.reading, left.verdict) == ("3 ready or delayed at the source", Verdict.FAILED)
    assert left.next_step == "run playbooks/migrate.yml again: it moves stragglers."


def test_the_rules_are_the_mappings() -> None:
    assert rules_of(MAPPING) == Rules(custody_in_row=True, journal=True, forgets=False)
    example = ROOT / "inventories" / "example" / "mappings" / "laravel.yml"
    plain = mappings.parse(yaml.safe_load(example.read_text()))
    assert rules_of(plain) == Rules(custody_in_row=False, journal=False, forgets=True)
