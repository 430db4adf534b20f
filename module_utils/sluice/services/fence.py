"""Close, prove and lift the fence of a side: all stores in which its workers claim, start or commit work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.errors import GenerationMismatch, LeaseLost, SluiceError
from ..core.tasks import Lease
from ..core.verdicts import Check, Gate, Verdict
from ..ports.surroundings import Fence


def ability_of(fences: Sequence[Fence], side: str) -> Gate:
    """Whether every fence of the side could be closed. Reads only; without a fence the verdict is unknown."""
    return Gate(
        f"fencing ability {side}", tuple(check for fence in fences for check in _asked(fence.ability, "ability"))
    )


def close_side(fences: Sequence[Fence], lease: Lease, side: str) -> Gate:
    """Close every fence of the side, then prove each. One that cannot be closed does not keep the others open.

    :raises LeaseLost: another run holds a newer token
    :raises GenerationMismatch: Redis carries another stamp
    """
    checks: list[Check] = []
    for fence in fences:
        try:
            fence.close(lease)
        except (LeaseLost, GenerationMismatch):
            raise
        except SluiceError as error:
            checks.append(Check("fence closes", Verdict.FAILED, str(error), error.next_step))
    return Gate(f"fence {side}", (*checks, *prove_side(fences, side).checks))


def prove_side(fences: Sequence[Fence], side: str) -> Gate:
    """Read from the stores that the fence holds now. Nothing to read, or nothing readable, is unknown."""
    return Gate(f"fence {side}", tuple(check for fence in fences for check in _asked(fence.prove, "fence holds")))


def lift_side(fences: Sequence[Fence], lease: Lease) -> bool:
    """Give the side its accounts back; True when something changed. For the transition that gives it its work back."""
    changed = [fence.lift(lease) for fence in fences]
    return any(changed)


def _asked(question: Callable[[], Sequence[Check]], name: str) -> Sequence[Check]:
    """The checks of one fence; none at all is one unknown check, so that the others cannot pass for it."""
    try:
        checks = question()
    except SluiceError as error:
        return [Check(name, Verdict.UNKNOWN, str(error), error.next_step)]
    return checks or [Check(name, Verdict.UNKNOWN, "nothing was checked", "name the accounts of the side.")]
