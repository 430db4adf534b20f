"""Canaries: tasks of our own, submitted as users do, to prove that the way through works and how fast it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from ..core.tasks import Place, Sighting
from ..core.verdicts import Check
from ..ports.surroundings import Clock

#: Users who may try twice before nobody knows whether the constraint holds.
PAIRS = 10
_ENDED = (Place.FINISHED, Place.FAILED, Place.CANCELLED)
_WAITING = (Place.READY, Place.DELAYED, Place.CLAIMED, Place.MOVED)
#: How often the rows of canaries are looked at (seconds): no pickup is seen faster.
LOOK_SECONDS = 0.2
#: How likely canaries may by chance alone all go to one side of a share.
_CHANCE = 1e-6


#: Seconds for which the canary of the user constraint waits before it may run.
CONSTRAINT_DELAY = 3


class Answer(Protocol):
    """What an application answered to a submission."""

    @property
    def status(self) -> int:
        """HTTP's status; 0 when no answer came."""

    @property
    def task_id(self) -> str:
        """The accepted task's id, or ''."""

    @property
    def seconds(self) -> float:
        """How long the answer took."""

    @property
    def detail(self) -> str:
        """Why it was not accepted."""


class Application(Protocol):
    """Where canaries are submitted."""

    def submit(self, user: int, priority: str, *, delay: int = 0) -> Answer:
        """Submit one task, to be run in ``delay`` seconds where the application knows delays."""


class Rows(Protocol):
    """Where the outcome of a task is read."""

    def look(self, ids: Sequence[str]) -> dict[str, Sighting]:
        """The rows of these ids now."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Submission latency in milliseconds over ``samples`` accepted submissions."""

    samples: int
    p50: float
    p95: float
    p99: float


def latency_of(seconds: Sequence[float]) -> Latency | None:
    """Percentiles of what was measured (nearest rank); None when nothing was."""
    if not seconds:
        return None
    ordered = sorted(seconds)

    def rank(share: float) -> float:
        return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))] * 1000

    return Latency(len(ordered), rank(0.50), rank(0.95), rank(0.99))


def accepted_at(answers: Sequence[Answer], begun: float) -> dict[str, float]:
    """When each was accepted (epoch seconds), at the latest: they were submitted one after the other from ``begun``."""
    moments, at = {}, begun
    for answer in answers:
        at += answer.seconds
        moments[answer.task_id] = at
    return moments


def pickup(accepted: Mapping[str, float], begun: Mapping[str, float], limit: float, backlog: int) -> Check:
    """How long canaries waited for a worker. Behind a backlog that says nothing of the workers: not gated then.

    :param limit: seconds that the slowest may have waited
    :param backlog: tasks that waited before the canaries came
    """
    waits = sorted(max(0.0, begun[task_id] - at) for task_id, at in accepted.items() if task_id in begun)
    if not waits:
        return Check.of("pickup", None, "no canary was begun", "look at the workers.")
    reading = f"p50 {waits[(len(waits) - 1) // 2]:.1f} max {waits[-1]:.1f} s over {len(waits)}"
    if backlog:
        return Check.of("pickup", True, f"{reading}; behind {backlog} tasks, so reported and not gated")
    return Check.of("pickup", waits[-1] <= limit, f"{reading}; limit {limit:g} s", "start more workers.")


@dataclass(frozen=True, slots=True)
class Canaries:
    """What became of a set of canaries: places by task id, those refused, and the latency of the answers."""

    places: Mapping[str, str]
    refused: Sequence[str]
    latency: Latency | None
    seconds: float

    def unfinished(self) -> list[str]:
        """Canaries that did not come out as finished."""
        return [f"{task_id} {place}" for task_id, place in self.places.items() if place != Place.FINISHED.value]


def submit(
    application: Application, first_user: int, count: int, priorities: Sequence[str]
) -> tuple[list[Answer], list[str]]:
    """Submit ``count`` canaries, one user each, priorities in turn; returns accepted answers and refusals in words."""
    accepted, refused = [], []
    for number in range(count):
        priority = priorities[number % len(priorities)] if priorities else ""
        answer = application.submit(first_user + number, priority)
        if answer.task_id:
            accepted.append(answer)
        else:
            refused.append(f"user {first_user + number}: {answer.status or 'no answer'} {answer.detail}".strip())
    return accepted, refused


def most_for_both(share: float) -> int:
    """How many canaries must all go to one side until that is no chance, with ``share`` percent of users at the target.

    0 where one side is to get all of them.
    """
    rarer = min(share, 100 - share) / 100
    return math.ceil(math.log(_CHANCE) / math.log(1 - rarer)) if rarer > 0 else 0


def submit_to_both(
    application: Application,
    first_user: int,
    count: int,
    priorities: Sequence[str],
    share: float,
    sides: Callable[[Sequence[str]], Mapping[str, int]],
) -> tuple[list[Answer], list[str]]:
    """:func:`submit`, and more while a side of the share has none by ``sides``, as long as that may be chance.

    A refusal ends it: what is refused says nothing of the sides.
    """
    accepted, refused = submit(application, first_user, count, priorities)
    while not refused and len(accepted) < most_for_both(share):
        where = sides([answer.task_id for answer in accepted])
        if where.get("source") and where.get("target"):
            break
        more, refused = submit(application, first_user + len(accepted), count, priorities)
        accepted += more
    return accepted, refused


def follow(
    rows: Rows,
    ids: Sequence[str],
    clock: Clock,
    deadline: float,
    seconds: float,
    begun: MutableMapping[str, float] | None = None,
) -> tuple[dict[str, str], bool]:
    """Wait up to ``seconds`` for canaries to end; returns their places, and whether all ended or the deadline came.

    :param deadline: on the monotonic clock
    :param begun: is filled with the moment (epoch seconds) at which each was first seen not to wait any more
    """
    until = min(deadline, clock.monotonic() + seconds)
    while True:
        seen = rows.look(list(ids))
        places = {task_id: str(seen[task_id].place) if task_id in seen else "missing" for task_id in ids}
        if begun is not None:
            now = clock.now()
            for task_id, place in places.items():
                if place not in _WAITING and place != "missing":
                    begun.setdefault(task_id, now)
        ended = all(p in _ENDED for p in places.values())
        if ended or clock.monotonic() >= deadline:
            return places, True
        if clock.monotonic() >= until:
            return places, False
        clock.wait(LOOK_SECONDS)


def one_active_per_user(application: Application, rows: Rows, first_user: int, pairs: int = PAIRS) -> Check:
    """Two submissions of one user at once: exactly one may be accepted, as long as its task has not ended.

    Fast workers end the first task before the second is submitted; such a pair says nothing, so the next user tries.
    """
    name = "one active task per user"
    reading = ""
    for number in range(pairs):
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(application.submit, [first_user + number] * 2, [""] * 2))
        accepted = [answer.task_id for answer in answers if answer.task_id]
        refused = [answer for answer in answers if answer.status in (409, 429)]
        seen = rows.look(accepted)
        active = [task_id for task_id in accepted if task_id not in seen or seen[task_id].place not in _ENDED]
        reading = f"of two at once {len(accepted)} accepted, {len(refused)} refused"
        reading += f" ({', '.join(str(answer.status) for answer in answers)})"
        if len(accepted) == 1 and len(refused) == 1:
            return Check.of(name, True, reading)
        if len(active) > 1 or len(accepted) < 2:
            known = all(answer.status for answer in answers)
            return Check.of(name, False if known else None, reading, "the constraint does not hold on this route.")
    return Check.of(
        name,
        None,
        f"{reading}; {pairs} users tried, their first tasks may all have ended",
        "run the same command again.",
    )
