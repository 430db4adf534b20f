"""Change where new submissions go, and prove it."""

from __future__ import annotations

from ..core.errors import LeaseLost, SluiceError
from ..core.tasks import Lease
from ..core.verdicts import Check, Gate, Verdict
from ..ports.surroundings import Router


def change_share(router: Router, lease: Lease, share: int) -> Gate:
    """Set the share of the target (0 to 100 %) and prove it: read back, and no submission under the old share left.

    :raises LeaseLost: another run holds a newer token
    """
    try:
        router.set_share(lease, share)
    except LeaseLost:
        raise
    except SluiceError as error:
        return Gate("route", (Check("barrier", Verdict.FAILED, str(error), error.next_step), _share(router, share)))
    passed = Check("barrier", Verdict.PASSED, "no submission under another share is still under way")
    return Gate("route", (passed, _share(router, share)))


def prove_share(router: Router, share: int) -> Gate:
    """Read whether the route still is what an earlier gate proved. The barrier is proved by a change only."""
    return Gate("route", (_share(router, share),))


def change_polling(router: Router, lease: Lease, on: bool) -> Gate:
    """Allow or forbid polling where the application reads it, and read it back. No such switch is unknown.

    :raises LeaseLost: another run holds a newer token
    """
    wanted = "on" if on else "off"
    try:
        router.set_polling(lease, on)
        polling = router.read().polling
    except LeaseLost:
        raise
    except SluiceError as error:
        return Gate("polling", (Check(f"polling {wanted}", Verdict.UNKNOWN, str(error), error.next_step),))
    reading = "cannot be read" if polling is None else f"reads {'on' if polling else 'off'}"
    same = None if polling is None else polling == on
    return Gate("polling", (Check.of(f"polling {wanted}", same, reading, "run the same command again."),))


def _share(router: Router, wanted: int) -> Check:
    name = f"share {wanted} %"
    try:
        share = router.read().share
    except SluiceError as error:
        return Check(name, Verdict.UNKNOWN, str(error), error.next_step)
    return Check.of(
        name,
        share == wanted,
        f"reads {share} %",
        "someone else changed it: find out who, then run the same command again.",
    )
