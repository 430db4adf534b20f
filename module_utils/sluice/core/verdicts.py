"""Three-valued checks and the gates made of them. Unknown never passes; a skipped check is not a passed check."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


class Verdict(enum.StrEnum):
    """The outcome of a check."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One named check with its reading, in words an operator can act on."""

    name: str
    verdict: Verdict
    reading: str
    next_step: str = ""

    @classmethod
    def of(cls, name: str, passed: bool | None, reading: str, next_step: str = "") -> Check:
        """Make a check from True, False or None (could not be read)."""
        verdict = Verdict.UNKNOWN if passed is None else Verdict.PASSED if passed else Verdict.FAILED
        return cls(name, verdict, reading, "" if verdict is Verdict.PASSED else next_step)


@dataclass(frozen=True, slots=True)
class Gate:
    """A named set of checks. It passes when it has checks and every one of them passed."""

    name: str
    checks: Sequence[Check] = field(default_factory=tuple)

    @property
    def verdict(self) -> Verdict:
        """Failed if any failed, unknown if any is unknown or nothing was checked, else passed."""
        return combine(check.verdict for check in self.checks)

    @property
    def open(self) -> bool:
        """True only when the verdict is passed."""
        return self.verdict is Verdict.PASSED

    def blocking(self) -> Sequence[Check]:
        """The checks that keep the gate closed."""
        return [check for check in self.checks if check.verdict is not Verdict.PASSED]

    def explain(self) -> str:
        """One line that names each blocking check and what to do."""
        if self.open:
            return f"gate '{self.name}' passed ({len(self.checks)} checks)"
        if not self.checks:
            return f"gate '{self.name}' is unknown: nothing was checked"
        parts = [
            f"{c.name} {c.verdict}: {c.reading}" + (f" ({c.next_step})" if c.next_step else "") for c in self.blocking()
        ]
        return f"gate '{self.name}' {self.verdict}: " + "; ".join(parts)


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Fold verdicts: failed beats unknown beats passed; nothing at all is unknown."""
    seen = set(verdicts)
    if Verdict.FAILED in seen:
        return Verdict.FAILED
    if Verdict.UNKNOWN in seen or not seen:
        return Verdict.UNKNOWN
    return Verdict.PASSED
