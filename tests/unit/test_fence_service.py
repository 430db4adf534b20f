"""The fence of a side over several stores: what is not proved does not pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from ansible.module_utils.sluice.adapters.sql_fence import Account, account_of
from ansible.module_utils.sluice.core.errors import FenceOpen, LeaseLost, StoreError
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.core.verdicts import Check, Verdict
from ansible.module_utils.sluice.services.fence import ability_of, close_side, lift_side, prove_side

LEASE = Lease("captions", "run-1", "me", 3, "stamp")


class FakeFence:
    """A fence that does as the test says."""

    def __init__(self, name: str, error: Exception | None = None, checks: bool = True) -> None:
        self.name, self.error, self.checks = name, error, checks
        self.closed = False

    def ability(self) -> Sequence[Check]:
        return [Check(f"{self.name} can be locked", Verdict.PASSED, "yes")] if self.checks else []

    def close(self, lease: Lease) -> bool:
        if self.error is not None:
            raise self.error
        changed, self.closed = not self.closed, True
        return changed

    def prove(self) -> Sequence[Check]:
        if isinstance(self.error, StoreError):
            raise self.error
        return (
            [Check.of(f"{self.name} locked", self.closed, "locked" if self.closed else "open")] if self.checks else []
        )

    def lift(self, lease: Lease) -> bool:
        changed, self.closed = self.closed, False
        return changed


def test_a_side_is_closed_when_every_fence_is() -> None:
    sql, broker = FakeFence("sql"), FakeFence("redis")
    assert prove_side([sql, broker], "rq").verdict is Verdict.FAILED
    gate = close_side([sql, broker], LEASE, "rq")
    assert gate.open
    assert gate.name == "fence rq"
    assert [check.name for check in gate.checks] == ["sql locked", "redis locked"]
    assert lift_side([sql, broker], LEASE)
    assert not sql.closed
    assert not broker.closed
    assert not lift_side([sql, broker], LEASE)


def test_one_that_does_not_close_does_not_keep_the_others_open() -> None:
    stuck, other = FakeFence("stuck", FenceOpen("a session stays.", next_step="look.")), FakeFence("other")
    gate = close_side([stuck, other], LEASE, "legacy")
    assert gate.verdict is Verdict.FAILED
    assert "a session stays." in gate.explain()
    assert other.closed


def test_an_unreadable_fence_is_unknown_and_never_passes() -> None:
    dead = FakeFence("dead", StoreError("no answer.", where="Redis"))
    closed = FakeFence("closed")
    closed.closed = True
    gate = prove_side([dead, closed], "rq")
    assert gate.verdict is Verdict.UNKNOWN
    assert "no answer." in gate.explain()
    assert not close_side([dead, closed], LEASE, "rq").open


@pytest.mark.parametrize("fences", [[], [FakeFence("empty", checks=False)]], ids=["no fence", "no check"])
def test_nothing_checked_is_unknown(fences: list[FakeFence]) -> None:
    assert close_side(fences, LEASE, "legacy").verdict is Verdict.UNKNOWN
    assert prove_side(fences, "legacy").verdict is Verdict.UNKNOWN
    assert ability_of(fences, "legacy").verdict is Verdict.UNKNOWN


def test_a_fence_without_checks_is_not_covered_by_another() -> None:
    closed = FakeFence("closed")
    closed.closed = True
    assert prove_side([FakeFence("empty", checks=False), closed], "rq").verdict is Verdict.UNKNOWN


def test_a_lost_lease_ends_the_closing() -> None:
    after = FakeFence("after")
    with pytest.raises(LeaseLost):
        close_side([FakeFence("first", LeaseLost("newer.")), after], LEASE, "legacy")
    assert not after.closed


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.0.0.7", "app@10.0.0.7"),
        ("10.0.0.8", "app@10.0.0.%"),
        ("10.0.1.9", "app@10.0.1.0/255.255.255.0"),
        ("192.168.1.1", "app@%"),
        ("localhost", "app@127.0.0.1"),
    ],
)
def test_a_session_belongs_to_the_most_specific_account(host: str, expected: str) -> None:
    texts = ["app@%", "app@10.0.0.%", "app@10.0.0.7", "app@127.0.0.1", "app@10.0.1.0/255.255.255.0", "web@10.0.0.8"]
    assert str(account_of("app", host, [Account.parse(text) for text in texts])) == expected


def test_a_session_may_belong_to_no_account() -> None:
    assert account_of("app", "10.0.0.1", [Account("app", "10.0.0.2"), Account("web", "%")]) is None


@pytest.mark.parametrize("text", ["app", "@host", "app@"])
def test_half_an_account_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match="user@host"):
        Account.parse(text)
