"""The phases of a run and every legal move between them."""

from __future__ import annotations

import enum

from .errors import RunConflict


class Phase(enum.StrEnum):
    """Where a run stands. Each is reached by one gate."""

    OPENED = "opened"
    PREPARED = "prepared"
    HYBRID = "hybrid"
    ROUTED = "routed"
    FENCED = "fenced"
    TRANSFERRED = "transferred"
    VERIFIED = "verified"
    VALIDATED = "validated"
    CLEANED = "cleaned"
    ABORTED = "aborted"
    ROLLED_BACK = "rolled_back"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.OPENED: frozenset(
        {
            Phase.PREPARED,  # backups verified, the probe finished
            Phase.ABORTED,  # preparation failed: nothing was routed
        }
    ),
    Phase.PREPARED: frozenset(
        {
            Phase.HYBRID,  # both sides run, a share is proved
            Phase.ROUTED,  # no hybrid by plan
            Phase.ABORTED,  # given up before anything moved
        }
    ),
    Phase.HYBRID: frozenset(
        {
            Phase.ROUTED,  # the share reached 100 %, proved by the barrier
            Phase.ABORTED,  # share back to 0
        }
    ),
    Phase.ROUTED: frozenset(
        {
            Phase.FENCED,  # no claimer of the side that was left can work any more
            Phase.HYBRID,  # the share was lowered again
            Phase.ABORTED,  # the drain or the fence failed: route back
        }
    ),
    Phase.FENCED: frozenset(
        {
            Phase.TRANSFERRED,  # nothing ready or delayed is left at the source
            Phase.ABORTED,  # nothing was released yet: fences lifted, holds put back
        }
    ),
    Phase.TRANSFERRED: frozenset(
        {
            Phase.VERIFIED,  # the balance holds, by identity
            Phase.FENCED,  # a straggler reopened the transfer
            Phase.ROUTED,  # the partial way back: the source is let in again
            Phase.ROLLED_BACK,  # a rollback run took everything home
        }
    ),
    Phase.VERIFIED: frozenset(
        {
            Phase.VALIDATED,  # every success criterion has a value
            Phase.FENCED,  # a straggler, or a store that lost data, reopened the transfer
            Phase.ROUTED,  # the partial way back: the source is let in again
            Phase.ROLLED_BACK,  # a rollback run took everything home
        }
    ),
    Phase.VALIDATED: frozenset(
        {
            Phase.CLEANED,  # stability time over, holds decided
            Phase.FENCED,  # a straggler was found late
            Phase.ROUTED,  # the partial way back: the source is let in again
            Phase.ROLLED_BACK,  # a rollback run took everything home
        }
    ),
    Phase.CLEANED: frozenset(),
    Phase.ABORTED: frozenset(),
    Phase.ROLLED_BACK: frozenset(),
}

ENDED = frozenset({Phase.CLEANED, Phase.ABORTED, Phase.ROLLED_BACK})

# The order of a forward run, for "where does it stand" and "not reached".
FORWARD = (
    Phase.OPENED,
    Phase.PREPARED,
    Phase.HYBRID,
    Phase.ROUTED,
    Phase.FENCED,
    Phase.TRANSFERRED,
    Phase.VERIFIED,
    Phase.VALIDATED,
    Phase.CLEANED,
)


def reached(current: Phase, wanted: Phase) -> bool:
    """True when a forward run that stands at ``current`` has already passed ``wanted``."""
    if current in (Phase.ABORTED, Phase.ROLLED_BACK):
        return False
    return FORWARD.index(current) >= FORWARD.index(wanted)


def require_transition(current: Phase, wanted: Phase) -> None:
    """Raise RunConflict unless ``current -> wanted`` is an arrow of the table."""
    if wanted not in TRANSITIONS[current]:
        allowed = ", ".join(sorted(TRANSITIONS[current])) or "nothing: the run has ended"
        raise RunConflict(
            f"a run that stands at '{current}' cannot go to '{wanted}'.",
            where="ledger",
            next_step=f"from '{current}' the legal phases are: {allowed}.",
        )


def ended_by_rollback(current: Phase, *, released: bool) -> Phase:
    """How a run ends that another one has taken back; one that had released nothing has aborted."""
    return Phase.ROLLED_BACK if released or Phase.ROLLED_BACK in TRANSITIONS[current] else Phase.ABORTED


class Direction(enum.StrEnum):
    """Which end of the mapping a run leaves."""

    FORWARD = "forward"  # leaves the table, goes to the queues
    BACK = "back"  # leaves the queues, comes home to the table


#: The gates that must stand as passed in the ledger before a forward run may enter a phase.
REQUIRED_GATES: dict[Phase, tuple[str, ...]] = {
    Phase.PREPARED: ("preflight", "accounts", "backups", "probe", "round trip", "baseline"),
    Phase.HYBRID: ("route", "soak"),
    Phase.ROUTED: ("workers", "route"),
    Phase.FENCED: ("polling", "drain", "fence source"),
    Phase.TRANSFERRED: ("transfer",),
    Phase.VERIFIED: ("balance", "durable"),
    Phase.VALIDATED: ("intake", "canaries", "latency", "pickup", "user constraint", "observation"),
    Phase.CLEANED: ("stability", "archive"),
}

#: The same for a run that goes back.
BACK_GATES: dict[Phase, tuple[str, ...]] = {
    Phase.PREPARED: ("evidence",),
    Phase.ROUTED: ("route",),
    Phase.FENCED: ("drain", "fence target"),
    Phase.TRANSFERRED: ("transfer",),
    Phase.VERIFIED: ("balance",),
    Phase.VALIDATED: ("intake", "canaries", "user constraint"),
    Phase.CLEANED: ("reconciled", "archive"),
}


def gates_before(direction: str, phase: Phase) -> tuple[str, ...]:
    """The gates that a run of this direction needs before it may enter a phase."""
    return (BACK_GATES if direction == Direction.BACK else REQUIRED_GATES)[phase]


#: Verdicts about the present expire: seconds for which a recorded gate may still open a phase.
GATE_LIFETIME: dict[str, float] = {
    "preflight": 4 * 3600,
    "accounts": 4 * 3600,
    "backups": 24 * 3600,
    "probe": 4 * 3600,
    "round trip": 4 * 3600,
    "baseline": 4 * 3600,
    "soak": 24 * 3600,
    "workers": 900,
    "route": 900,
    "polling": 900,
    "drain": 4 * 3600,
    "fence source": 900,
    "transfer": 900,
    "balance": 900,
    "durable": 900,
    "intake": 900,
    "canaries": 1800,
    "latency": 1800,
    "pickup": 1800,
    "user constraint": 1800,
    "observation": 1800,
    "stability": 900,
    "archive": 900,
    "evidence": 4 * 3600,
    "fence target": 900,
    "reconciled": 900,
}
