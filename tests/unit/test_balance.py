"""Conservation by identity: each combination of row, mark and homes comes out in one term, or names its fault."""

from __future__ import annotations

import pytest
from ansible.module_utils.sluice.core.balance import (
    UNFINISHED,
    Account,
    Balance,
    Evidence,
    Rules,
    Term,
    account,
    homes_of,
    total,
)
from ansible.module_utils.sluice.core.tasks import Home, Mark, Place

#: captions: the row says who owns it, and records what the target did.
CAPTIONS = Rules(custody_in_row=True, journal=True, forgets=False)
#: a plain table: the ledger alone knows what was moved, and the target drops what ended.
PLAIN = Rules(custody_in_row=False, journal=False, forgets=True)

P, H, M, T = Place, Home, Mark, Term


def see(place: Place | None = None, *homes: Home, mark: Mark | None = None, **more: bool) -> Evidence:
    """Evidence of the id "x"."""
    return Evidence("x", place, mark=mark, homes=homes, **more)


IN_ONE_TERM = [
    # At the source, alone.
    (CAPTIONS, see(P.READY), T.READY),
    (CAPTIONS, see(P.DELAYED), T.DELAYED),
    (CAPTIONS, see(P.LEASED), T.LEASED),
    (CAPTIONS, see(P.CLAIMED), T.HELD),
    (CAPTIONS, see(P.CLAIMED, H.STAGED), T.HELD),
    (CAPTIONS, see(P.READY, H.STAGED), T.READY),
    (PLAIN, see(P.READY, mark=M.SETTLED), T.READY),
    # Ended by its row: what the target still shows of it does not count.
    (CAPTIONS, see(P.FINISHED), T.FINISHED),
    (CAPTIONS, see(P.FAILED, H.FAILED), T.FAILED),
    (CAPTIONS, see(P.CANCELLED, H.QUEUED, mark=M.MOVED), T.CANCELLED),
    (CAPTIONS, see(P.FINISHED, H.STARTED, mark=M.MOVED), T.FINISHED),
    # Given to nobody.
    (CAPTIONS, see(P.CLAIMED, mark=M.HELD), T.HELD),
    (PLAIN, see(P.READY, mark=M.HELD), T.HELD),
    (CAPTIONS, see(P.UNKNOWN, mark=M.HELD), T.HELD),
    (CAPTIONS, see(P.FINISHED, mark=M.HELD), T.FINISHED),
    # Moved, and at one place of the target.
    (CAPTIONS, see(P.MOVED, H.STAGED, mark=M.MOVED), T.STAGED),
    (CAPTIONS, see(P.MOVED, H.QUEUED, mark=M.MOVED), T.QUEUED),
    (CAPTIONS, see(P.MOVED, H.INTERMEDIATE, mark=M.MOVED), T.QUEUED),
    (CAPTIONS, see(P.MOVED, H.SCHEDULED, mark=M.MOVED), T.SCHEDULED),
    (CAPTIONS, see(P.MOVED, H.DEFERRED, mark=M.MOVED), T.DEFERRED),
    (CAPTIONS, see(P.MOVED, H.STARTED, mark=M.MOVED), T.RUNNING),
    (CAPTIONS, see(P.RUNNING, H.STARTED, mark=M.MOVED), T.RUNNING),
    (CAPTIONS, see(P.RUNNING, H.INTERMEDIATE, H.STARTED, mark=M.MOVED), T.RUNNING),
    (CAPTIONS, see(P.RUNNING, H.SCHEDULED), T.SCHEDULED),  # a retry that waits
    # Born in the target.
    (CAPTIONS, see(P.MOVED, pending=True), T.STAGED),
    (CAPTIONS, see(P.MOVED, H.QUEUED, pending=True), T.QUEUED),
    (CAPTIONS, see(None, H.QUEUED), T.QUEUED),
    (CAPTIONS, see(None, H.FINISHED), T.FINISHED),
    # A plain table: its row looks ready while the job lives at the target.
    (PLAIN, see(P.READY, H.QUEUED), T.QUEUED),
    (PLAIN, see(P.READY, H.STARTED), T.RUNNING),
    (PLAIN, see(P.LEASED, H.INTERMEDIATE, H.STARTED), T.RUNNING),
    (PLAIN, see(P.MOVED, H.QUEUED, mark=M.MOVED), T.QUEUED),
    (PLAIN, see(P.MOVED, H.FINISHED, mark=M.MOVED), T.FINISHED),
    (PLAIN, see(P.MOVED, H.FAILED, mark=M.MOVED), T.FAILED),
    (PLAIN, see(P.MOVED, H.CANCELLED, mark=M.MOVED), T.CANCELLED),
    (PLAIN, see(None, H.STARTED, mark=M.MOVED), T.RUNNING),
    # Gone from a store that forgets.
    (PLAIN, see(P.MOVED, mark=M.MOVED, marked=True), T.DEPARTED),
    (PLAIN, see(None, mark=M.MOVED, marked=True), T.DEPARTED),
    (PLAIN, see(None, baseline=True), T.DEPARTED),
    (CAPTIONS, see(None, baseline=True), T.DEPARTED),
    (CAPTIONS, see(None, mark=M.SETTLED), T.DEPARTED),
]

AT_FAULT = [
    (CAPTIONS, see(P.READY, H.QUEUED), "ready at the source and queued at the target"),
    (CAPTIONS, see(P.DELAYED, H.SCHEDULED), "delayed at the source and scheduled at the target"),
    (CAPTIONS, see(P.LEASED, H.STARTED), "leased at the source and started at the target"),
    (CAPTIONS, see(P.CLAIMED, H.QUEUED), "claimed at the source and queued at the target"),
    (CAPTIONS, see(P.CLAIMED, H.QUEUED, mark=M.HELD), "held, and also live at the target"),
    (PLAIN, see(P.READY, H.STARTED, mark=M.HELD), "held, and also live at the target"),
    (CAPTIONS, see(P.MOVED, H.QUEUED, H.QUEUED), "queued twice at the target"),
    (CAPTIONS, see(P.MOVED, H.QUEUED, H.STARTED), "in several places at the target: queued, started"),
    (PLAIN, see(None, H.SCHEDULED, H.QUEUED), "in several places at the target: queued, scheduled"),
    (CAPTIONS, see(P.UNKNOWN), "its row meets no predicate of the mapping, or more than one"),
    (CAPTIONS, see(P.UNKNOWN, H.QUEUED), "its row meets no predicate of the mapping, or more than one"),
    (CAPTIONS, see(P.RUNNING, mark=M.MOVED), "started, and its job is gone from the target"),
    (CAPTIONS, see(P.MOVED, H.FINISHED, mark=M.MOVED), "finished at the target, and its row never started"),
    (CAPTIONS, see(P.MOVED, H.FAILED), "failed at the target, and its row never started"),
    (CAPTIONS, see(P.MOVED, H.ORPHAN, mark=M.MOVED), "its job lives in no queue and no registry of the target"),
    (CAPTIONS, see(None, H.BODILESS), "an entry at the target without its job"),
    (CAPTIONS, see(P.MOVED, H.QUEUED, H.BODILESS), "queued at the target without its job"),
    (CAPTIONS, see(P.MOVED, mark=M.MOVED), "moved, and missing at the target"),
    (CAPTIONS, see(P.MOVED, mark=M.MOVED, marked=True), "moved, and missing at the target"),
    (CAPTIONS, see(None, mark=M.MOVED, baseline=True), "moved, and missing at the target"),
    (PLAIN, see(P.MOVED, mark=M.MOVED), "moved, and missing at the target"),
    (CAPTIONS, see(None), "known, and found nowhere"),
    (PLAIN, see(None, mark=M.CLAIMED), "known, and found nowhere"),
]


@pytest.mark.parametrize(("rules", "seen", "term"), IN_ONE_TERM)
def test_in_exactly_one_term(rules: Rules, seen: Evidence, term: Term) -> None:
    assert account(seen, rules) == Account("x", term)


@pytest.mark.parametrize(("rules", "seen", "fault"), AT_FAULT)
def test_at_fault_with_the_reason(rules: Rules, seen: Evidence, fault: str) -> None:
    assert account(seen, rules) == Account("x", None, fault)


@pytest.mark.parametrize("rules", [CAPTIONS, PLAIN])
@pytest.mark.parametrize("mark", [None, *Mark])
@pytest.mark.parametrize("place", [None, *Place])
def test_every_combination_is_decided(rules: Rules, mark: Mark | None, place: Place | None) -> None:
    for home in Home:
        for homes in ((), (home,), (home, Home.QUEUED)):
            entry = account(Evidence("x", place, mark=mark, homes=homes), rules)
            assert (entry.term is None) == bool(entry.fault)


@pytest.mark.parametrize("rules", [CAPTIONS, PLAIN])
@pytest.mark.parametrize("mark", [None, *Mark])
@pytest.mark.parametrize("place", [None, *(p for p in Place if p not in (P.FINISHED, P.FAILED, P.CANCELLED))])
def test_the_order_of_homes_is_no_matter(rules: Rules, mark: Mark | None, place: Place | None) -> None:
    for one in Home:
        for other in Home:
            first = account(Evidence("x", place, mark=mark, homes=(one, other)), rules)
            second = account(Evidence("x", place, mark=mark, homes=(other, one)), rules)
            assert (first.term, bool(first.fault)) == (second.term, bool(second.fault)), (one, other)


# -- homes of raw sightings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sightings", "homes"),
    [
        ([], ()),
        ([("hash", "created")], (H.STAGED,)),
        ([("hash", "queued")], (H.ORPHAN,)),
        ([("hash", "started")], (H.ORPHAN,)),
        ([("hash", "finished")], (H.FINISHED,)),
        ([("hash", "failed")], (H.FAILED,)),
        ([("hash", "stopped")], (H.FAILED,)),
        ([("hash", "canceled")], (H.CANCELLED,)),
        ([("queued", "high"), ("hash", "queued")], (H.QUEUED,)),
        ([("hash", "queued"), ("queued", "high"), ("queued", "low")], (H.QUEUED, H.QUEUED)),
        ([("queued", "high")], (H.QUEUED, H.BODILESS)),
        ([("finished", "high")], (H.FINISHED,)),  # the hash expired before its entry
        ([("finished", "high"), ("hash", "finished")], (H.FINISHED,)),
    ],
)
def test_homes(sightings: list[tuple[str, str]], homes: tuple[Home, ...]) -> None:
    assert homes_of(sightings) == homes


# -- the sum ----------------------------------------------------------------------------------------------------------


def test_adds_up_each_id_once() -> None:
    balance = total([Account("a", T.QUEUED), Account("b", T.QUEUED), Account("c", T.HELD)])
    assert (balance.known, balance.fault_count, balance.faults) == (3, 0, ())
    assert {term: count for term, count in balance.terms.items() if count} == {T.QUEUED: 2, T.HELD: 1}
    assert set(balance.terms) == set(Term)
    assert balance.holds


def test_one_id_at_fault_breaks_the_balance() -> None:
    balance = total([Account("a", T.QUEUED), Account("b", None, "why")])
    assert not balance.holds
    assert balance.faults == (Account("b", None, "why"),)
    assert (balance.known, balance.fault_count) == (2, 1)


def test_names_so_many_and_counts_the_rest() -> None:
    balance = total((Account(str(number), None, "why") for number in range(70)), cap=20)
    assert (len(balance.faults), balance.fault_count, balance.known) == (20, 70, 70)


def test_terms_that_do_not_add_up_do_not_hold() -> None:
    assert not Balance(3, {T.READY: 2}, 0).holds
    assert total([]).holds


def test_the_unfinished_terms_are_those_without_an_outcome() -> None:
    assert set(Term) - UNFINISHED == {T.FINISHED, T.FAILED, T.CANCELLED, T.DEPARTED}


def test_the_words_of_the_terms_are_printed_and_kept_in_the_ledger() -> None:
    assert [*Term] == ["ready", "delayed", "leased", "held", "staged", "queued", "scheduled", "deferred", "running",
                       "finished", "failed", "cancelled", "departed"]  # fmt: skip


def test_fifty_ids_at_fault_are_named_and_all_are_counted() -> None:
    found = total(Account(str(number), None, "known, and found nowhere") for number in range(60))
    assert [entry.id for entry in found.faults] == [str(number) for number in range(50)]
    assert (found.known, found.fault_count, found.holds) == (60, 60, False)
