"""What becomes of a task on the way back, decided from its row, its job and the policy. Pure.

The row decides first: what has ended, or is at home, is never touched. Then the job: where RQ kept it tells whether it
can have been started. What nobody can know is held, with the reason.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from .tasks import Home, Place


class Policy(enum.StrEnum):
    """What becomes of a task that was started at the target by a worker that is proved dead or fenced."""

    HOLD = "hold"
    REQUEUE = "requeue"  # for task types that may run twice
    FAIL = "fail"


class Step(enum.StrEnum):
    """What the way back does with one task."""

    TAKE = "take"  # its row comes home
    MAKE = "make"  # it has no row: one is made of the job
    HOLD = "hold"
    FAIL = "fail"  # its row says failed from now on
    CANCEL = "cancel"  # its row says cancelled from now on
    OVER = "over"  # nothing is left to do: the job is a remainder


class Decision(NamedTuple):
    """A step and the reason, in an operator's words."""

    step: Step
    reason: str = ""


_ENDED_ROWS = frozenset({Place.FINISHED, Place.FAILED, Place.CANCELLED})
_HOME_ROWS = frozenset({Place.READY, Place.DELAYED, Place.LEASED})
_ENDED_JOBS = frozenset({Home.FINISHED, Home.FAILED, Home.CANCELLED})

UNSURE = "started at the target by a worker that was ended: whether it ran is unknown"


def job_home(home: Home, status: str) -> Home:
    """The home that counts: a job's status tells apart what a kill leaves in the same list.

    A worker that died after it had taken a job leaves it ``queued`` in a list, in a registry or nowhere; one that died
    while it ran leaves it ``started``, wherever its id lies (research: RQ 2.6 and 3.0, killed at each point).
    """
    if home in _ENDED_JOBS or home is Home.BODILESS:
        return home
    match status:
        case "started":
            return Home.STARTED
        case "finished":
            return Home.FINISHED
        case "failed" | "stopped":
            return Home.FAILED
        case "canceled":
            return Home.CANCELLED
        case _:
            return Home.ORPHAN if home is Home.STARTED else home


def decide(
    place: Place | None,
    home: Home | None,
    *,
    policy: Policy,
    witness: bool,
    pending: bool = False,
    held: bool = False,
) -> Decision:
    """One task's step.

    :param place: where its row stands; None when there is no row
    :param home: where its job was found, see :func:`job_home`; None when no job answers for the row
    :param witness: the row shows a start, so that a row which shows none was not started
    :param pending: the row waits for the application to enqueue it: a job of its id is one of an earlier attempt
    :param held: an operator still has to decide on it
    """
    if held:
        return Decision(Step.OVER, "held: an operator decides")
    if place in _ENDED_ROWS:
        return Decision(Step.OVER, f"its row says {place}")
    if place in _HOME_ROWS:
        return Decision(Step.OVER, "its row is at home")
    if place is Place.UNKNOWN:
        return Decision(Step.HOLD, "its row meets no predicate of the mapping, or more than one: its state is unknown")
    if place is Place.CLAIMED:
        return Decision(Step.TAKE)
    if place is Place.RUNNING:
        return _started(home, policy)
    if place is Place.MOVED:
        return Decision(Step.TAKE) if pending else _moved(home, policy, witness)
    if home is None:
        return Decision(Step.HOLD, "its row is gone, and no job answers for it")
    if home in _ENDED_JOBS:
        return Decision(Step.OVER, f"{home} at the target, and never had a row")
    if home is Home.BODILESS:
        return Decision(Step.HOLD, "an entry at the target without its job, and no row")
    if home is Home.DEFERRED:
        return Decision(Step.HOLD, "born at the target without a row, and waits for other jobs")
    if home is Home.STARTED and policy is not Policy.REQUEUE:
        return Decision(Step.HOLD, f"born at the target without a row, {UNSURE}")
    return Decision(Step.MAKE)


def _started(home: Home | None, policy: Policy) -> Decision:
    """The row says that the target's worker began it."""
    match home:
        case Home.FAILED:
            return Decision(Step.FAIL, "failed at the target")
        case Home.FINISHED:
            return Decision(Step.HOLD, "finished at the target, and its row says running: whether it ran is unknown")
        case Home.CANCELLED:
            return Decision(Step.HOLD, "cancelled at the target, and its row says running")
        case _:
            return _by(policy)


def _by(policy: Policy) -> Decision:
    match policy:
        case Policy.REQUEUE:
            return Decision(Step.TAKE)
        case Policy.FAIL:
            return Decision(Step.FAIL, UNSURE)
        case _:
            return Decision(Step.HOLD, UNSURE)


def _moved(home: Home | None, policy: Policy, witness: bool) -> Decision:
    """The row says that the target owns it and has not begun it."""
    match home:
        case Home.FAILED:
            return Decision(Step.FAIL, "failed at the target")
        case Home.CANCELLED:
            return Decision(Step.CANCEL, "cancelled at the target")
        case Home.FINISHED:
            return Decision(Step.HOLD, "finished at the target, and its row never started")
        case Home.DEFERRED:
            return Decision(Step.HOLD, "waits at the target for other jobs, which the table has no word for")
        case Home.STARTED:
            return Decision(Step.TAKE) if witness else _by(policy)
        case None | Home.BODILESS:
            if witness:
                return Decision(Step.TAKE)
            return Decision(Step.HOLD, "its job is gone, and no row shows whether it ran")
        case _:
            return Decision(Step.TAKE)
