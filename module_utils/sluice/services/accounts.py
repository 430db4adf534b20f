"""Accounts of a side in both stores, so that the side can be fenced without touching the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core.errors import StoreError
from ..core.verdicts import Check, Gate, Verdict
from ..ports.preparation import AccountChange, Accounts

GATE = "accounts"


@dataclass(frozen=True, slots=True)
class Wish:
    """An account that a side needs in one store."""

    account: str
    password: str = field(repr=False)
    rights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ensured:
    """The outcome: the gate, and what was done (check mode: would be done) per account."""

    gate: Gate
    changes: Sequence[AccountChange]

    @property
    def changed(self) -> bool:
        """Whether anything was, or would be, done."""
        return any(change.changed for change in self.changes)


def ensure(wishes: Sequence[tuple[Accounts, Wish]], *, check_mode: bool = False) -> Ensured:
    """Make each account with its password and rights; those that are right already are left alone.

    In check mode the gate says what would be done and is not passed while something would be.
    """
    changes: list[AccountChange] = []
    checks: list[Check] = []
    for store, wish in wishes:
        try:
            change = store.ensure(wish.account, wish.password, wish.rights, check_mode=check_mode)
        except StoreError as error:
            checks.append(Check(f"account_{wish.account}", Verdict.FAILED, str(error), error.next_step))
            continue
        changes.append(change)
        checks += change.checks
        if check_mode:
            to_do = "; ".join(change.actions)
            checks.append(
                Check.of(
                    f"account_{wish.account}",
                    None if change.changed else True,
                    f"not reached: would {to_do}" if change.changed else "as asked",
                    "run playbooks/prepare.yml",
                )
            )
    return Ensured(Gate(GATE, checks), changes)
