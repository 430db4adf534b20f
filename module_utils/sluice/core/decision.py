"""Which way to go when something is wrong: one action for every state of a system. Pure.

Two steps. First each of the five axes asks for one of four measures, and the furthest one asked for is the *measure*:

====================  ===========  =================  =================  ==================
axis                  fix          partial            planned            emergency
====================  ===========  =================  =================  ==================
severity              low          medium             high               critical
function              works                           partial            none
integrity             intact                          unknown            compromised
performance           normal       degraded           severe
stability             stable       unstable
====================  ===========  =================  =================  ==================

Then the *standing* (where the run stands) turns the measure into the action, by a ladder of its own: the same trouble
asks for something else before anything moved, in the middle of a transfer, and while a rollback is under way.

The procedures that this table replaces gave a matrix and a tree which contradict each other. Where they do:

1. The furthest measure wins, whichever asks for it. The matrix had no row for critical with intact data; the tree asks
   for the failure first, and so does this table.
2. Compromised data, or no function at all, is an emergency whatever severity was stated. The matrix wanted all three
   columns together; the tree is right.
3. Severe slowness is a planned rollback (the tree), not an emergency (the list of scenarios): an emergency ends running
   work by force, and slow work is still work. Who cannot wait states ``critical``.
4. Instability and degraded speed are a partial rollback (the tree; the list said planned): a lower share takes load off
   at once, and is itself taken back by one command.
5. The severity that an operator states can raise what the readings say, never lower it.
6. Unknown is worse than good: data that could not be compared ask for a planned rollback, whose own gates compare them.
   It is better than proved harm, so it is no emergency by itself.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product


class Severity(enum.StrEnum):
    """How much the operator, or the readings, say it hurts; mildest first."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Function(enum.StrEnum):
    """Whether tasks are taken in and worked on."""

    WORKS = "works"
    PARTIAL = "partial"
    NONE = "none"


class Integrity(enum.StrEnum):
    """Whether each known task is in exactly one place."""

    INTACT = "intact"
    UNKNOWN = "unknown"
    COMPROMISED = "compromised"


class Performance(enum.StrEnum):
    """How fast the stores answer, and how long tasks wait."""

    NORMAL = "normal"
    DEGRADED = "degraded"
    SEVERE = "severe"


class Stability(enum.StrEnum):
    """Whether work fails, hangs, or fills the logs with errors."""

    STABLE = "stable"
    UNSTABLE = "unstable"


class Measure(enum.IntEnum):
    """How far an axis wants to go, before it is asked where the run stands."""

    FIX = 0
    PARTIAL = 1
    PLANNED = 2
    EMERGENCY = 3


class Action(enum.StrEnum):
    """What an operator does next; the further down, the further it goes."""

    NOTHING = "nothing to roll back"
    FIX_IN_PLACE = "fix in place"
    FINISH_FORWARD = "finish forward"
    UNDO = "undo"
    PARTIAL_ROLLBACK = "partial rollback"
    FINISH_ROLLBACK = "finish the rollback"
    RECOVER = "recover"
    PLANNED_ROLLBACK = "planned rollback"
    EMERGENCY_ROLLBACK = "emergency rollback"
    DATABASE_FIRST = "bring the database back first"


class Standing(enum.StrEnum):
    """Where the run stands, as far as it decides what can be done."""

    SETTLED = "settled"
    IN_SERVICE = "in service"
    BEGUN = "begun"
    SHARED = "shared"
    MOVING = "moving"
    IN_TARGET = "in target"
    EMPTIED = "emptied"
    GOING_BACK = "going back"
    UNREADABLE = "unreadable"
    DATABASE_AWAY = "database away"


#: What each standing means.
MEANING: Mapping[Standing, str] = {
    Standing.SETTLED: "no run is open, and RQ neither holds tasks nor gets new ones",
    Standing.IN_SERVICE: "no run is open, and RQ holds tasks or gets new ones",
    Standing.BEGUN: "a forward run is open, and RQ neither holds tasks nor gets new ones",
    Standing.SHARED: "a forward run is open, RQ gets tasks, and the legacy side is not fenced",
    Standing.MOVING: "a forward run has fenced the legacy side and is not done with its transfer",
    Standing.IN_TARGET: "a forward run has transferred everything: RQ does the work",
    Standing.EMPTIED: "RQ got tasks in an open forward run, and Redis answers without the stamp of the run",
    Standing.GOING_BACK: "a rollback is open",
    Standing.UNREADABLE: "the ledger could not be read: nobody knows which run is open",
    Standing.DATABASE_AWAY: "the database does not answer",
}

_PLANNED, _EMERGENCY = Action.PLANNED_ROLLBACK, Action.EMERGENCY_ROLLBACK

#: What becomes of fix, partial, planned and emergency in each standing.
LADDER: Mapping[Standing, tuple[Action, Action, Action, Action]] = {
    Standing.SETTLED: (Action.NOTHING,) * 4,
    Standing.IN_SERVICE: (Action.FIX_IN_PLACE, _PLANNED, _PLANNED, _EMERGENCY),
    Standing.BEGUN: (Action.FIX_IN_PLACE, Action.FIX_IN_PLACE, Action.UNDO, Action.UNDO),
    Standing.SHARED: (Action.FIX_IN_PLACE, Action.PARTIAL_ROLLBACK, _PLANNED, _EMERGENCY),
    Standing.MOVING: (Action.FINISH_FORWARD, Action.FINISH_FORWARD, _PLANNED, _EMERGENCY),
    Standing.IN_TARGET: (Action.FIX_IN_PLACE, Action.PARTIAL_ROLLBACK, _PLANNED, _EMERGENCY),
    Standing.EMPTIED: (Action.RECOVER, Action.RECOVER, Action.RECOVER, _EMERGENCY),
    Standing.GOING_BACK: (Action.FINISH_ROLLBACK, Action.FINISH_ROLLBACK, Action.FINISH_ROLLBACK, _EMERGENCY),
    Standing.UNREADABLE: (_PLANNED, _PLANNED, _PLANNED, _EMERGENCY),
    Standing.DATABASE_AWAY: (Action.DATABASE_FIRST,) * 4,
}

#: Why a standing turns a measure into something else.
WHY: Mapping[Standing, str] = {
    Standing.SETTLED: "no task is to be brought home, so a rollback would change nothing: look at the application",
    Standing.IN_SERVICE: "a share needs an open run, so anything short of a planned rollback is mended in place",
    Standing.BEGUN: "nothing was moved or routed: mild trouble is mended in place, else the run is taken back",
    Standing.SHARED: "both sides work, so the share can be lowered",
    Standing.MOVING: "half a transfer is no place to stay: finish it, or go back",
    Standing.IN_TARGET: "the legacy side is fenced until a rollback, or a lower share, gives it its work back",
    Standing.EMPTIED: "what Redis lost is placed again from the rows by recover.yml, so the loss alone is no emergency",
    Standing.GOING_BACK: "one rollback at a time: the same command goes on with it",
    Standing.UNREADABLE: "what cannot be read is taken for the worse; the rollback reads the ledger again itself",
    Standing.DATABASE_AWAY: "neither side works without it, and every rollback writes there",
}

_VOTES: Mapping[enum.StrEnum, Measure] = {
    Severity.LOW: Measure.FIX,
    Severity.MEDIUM: Measure.PARTIAL,
    Severity.HIGH: Measure.PLANNED,
    Severity.CRITICAL: Measure.EMERGENCY,
    Function.WORKS: Measure.FIX,
    Function.PARTIAL: Measure.PLANNED,
    Function.NONE: Measure.EMERGENCY,
    Integrity.INTACT: Measure.FIX,
    Integrity.UNKNOWN: Measure.PLANNED,
    Integrity.COMPROMISED: Measure.EMERGENCY,
    Performance.NORMAL: Measure.FIX,
    Performance.DEGRADED: Measure.PARTIAL,
    Performance.SEVERE: Measure.PLANNED,
    Stability.STABLE: Measure.FIX,
    Stability.UNSTABLE: Measure.PARTIAL,
}

_AXIS: Mapping[type[enum.StrEnum], str] = {
    Severity: "severity",
    Function: "function",
    Integrity: "integrity",
    Performance: "performance",
    Stability: "stability",
}
_BY_MEASURE = {
    Measure.FIX: Severity.LOW,
    Measure.PARTIAL: Severity.MEDIUM,
    Measure.PLANNED: Severity.HIGH,
    Measure.EMERGENCY: Severity.CRITICAL,
}


@dataclass(frozen=True, slots=True)
class State:
    """One combination of the five axes."""

    severity: Severity
    function: Function
    integrity: Integrity
    performance: Performance
    stability: Stability

    def values(self) -> tuple[enum.StrEnum, ...]:
        """The five values, in the order of the axes."""
        return (self.severity, self.function, self.integrity, self.performance, self.stability)


@dataclass(frozen=True, slots=True)
class Decision:
    """The one action, the measure it came from, and the sentences that say which axis and which standing decided."""

    action: Action
    measure: Measure
    reasons: tuple[str, ...]


def state_of(
    function: Function,
    integrity: Integrity,
    performance: Performance,
    stability: Stability,
    *,
    stated: Severity | None,
    standing: Standing,
) -> State:
    """The state with its severity: as high as the readings that count make it, or higher if an operator says so."""
    values = counted(State(Severity.LOW, function, integrity, performance, stability), standing)
    return State(raised(stated, _BY_MEASURE[measure_of(values)]), function, integrity, performance, stability)


def raised(stated: Severity | None, derived: Severity) -> Severity:
    """The severity that counts: what an operator states can raise what the readings say, never lower it."""
    return derived if stated is None or _VOTES[stated] < _VOTES[derived] else stated


def counted(state: State, standing: Standing) -> tuple[enum.StrEnum, ...]:
    """The values that are asked. That Redis lost its data *is* the standing 'emptied': it is not counted twice."""
    if standing is Standing.EMPTIED:
        return tuple(value for value in state.values() if not isinstance(value, Integrity))
    return state.values()


def measure_of(values: Iterable[enum.StrEnum]) -> Measure:
    """The furthest measure that one of the values asks for."""
    return max(_VOTES[value] for value in values)


def decide(state: State, standing: Standing, *, stated: bool = True) -> Decision:
    """The one action for a state and a standing, with its reasons.

    :param stated: whether the severity is an operator's word; one that comes from the readings is no reason of its own
    """
    values = counted(state, standing)
    measure = measure_of(values)
    asking = [value for value in values if _VOTES[value] is measure and (stated or not isinstance(value, Severity))]
    if measure is Measure.FIX:
        votes = ["no axis asks for more than a fix in place"]
    else:
        votes = [f"{_AXIS[type(value)]} is {value}: asks for {_measure_words(measure)}" for value in asking]
    return Decision(LADDER[standing][measure], measure, (*votes, WHY[standing]))


def _measure_words(measure: Measure) -> str:
    return {
        Measure.FIX: "a fix in place",
        Measure.PARTIAL: "a partial rollback",
        Measure.PLANNED: "a planned rollback",
        Measure.EMERGENCY: "an emergency rollback",
    }[measure]


def all_states() -> list[State]:
    """Every combination of the five axes, mildest first."""
    return [State(*values) for values in product(Severity, Function, Integrity, Performance, Stability)]


# -- the same as a page ------------------------------------------------------------------------------------------------

MEASURE_NAMES: Mapping[Measure, str] = {
    Measure.FIX: "fix",
    Measure.PARTIAL: "partial",
    Measure.PLANNED: "planned",
    Measure.EMERGENCY: "EMERGENCY",
}


def table_lines() -> list[str]:
    """The complete table of measures as Markdown: a row per state of the readings, a column per stated severity."""
    lines = [
        "| function | integrity | performance | stability | " + " | ".join(Severity) + " |",
        "| --- " * 8 + "|",
    ]
    for readings in product(Function, Integrity, Performance, Stability):
        measures = [MEASURE_NAMES[measure_of((severity, *readings))] for severity in Severity]
        lines.append("| " + " | ".join((*readings, *measures)) + " |")
    return lines


def ladder_lines() -> list[str]:
    """What each standing makes of a measure, as Markdown."""
    lines = ["| standing | fix | partial | planned | emergency |", "| --- | --- | --- | --- | --- |"]
    return lines + ["| " + " | ".join((f"`{standing}`", *LADDER[standing])) + " |" for standing in Standing]
