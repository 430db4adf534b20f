"""The user constraint is judged by pairs of submissions, and a task that ended in between proves nothing."""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from ansible.module_utils.sluice.core.tasks import Place, Sighting
from ansible.module_utils.sluice.core.verdicts import Verdict
from ansible.module_utils.sluice.services.canary import (
    accepted_at,
    follow,
    most_for_both,
    one_active_per_user,
    pickup,
    submit_to_both,
)


@dataclass(frozen=True)
class Answer:
    """What the application said."""

    status: int
    task_id: str = ""
    seconds: float = 0.0
    detail: str = ""


@dataclass
class Application:
    """Refuses a second active task of a user, or does not; its tasks end at once for the first ``fast`` users."""

    constraint: bool = True
    fast: int = 0
    status: int = 201
    places: dict[str, Place] = field(default_factory=dict)
    active: dict[int, int] = field(default_factory=dict)
    of: dict[int, str] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, user: int, priority: str) -> Answer:
        """One submission."""
        with self.lock:
            if self.status != 201:
                return Answer(self.status)
            if self.constraint and self.active.get(user):
                return Answer(409)
            task_id = str(next(self.numbers))
            ended = user < self.fast
            self.active[user] = 0 if ended else 1
            self.of[user] = task_id
            self.places[task_id] = Place.FINISHED if ended else Place.MOVED
            return Answer(201, task_id)

    def look(self, ids: Sequence[str]) -> dict[str, Sighting]:
        """The rows now."""
        return {task_id: Sighting(task_id, self.places[task_id]) for task_id in ids}


def test_one_accepted_and_one_refused_passes() -> None:
    application = Application()
    assert one_active_per_user(application, application, 0).verdict is Verdict.PASSED


def test_a_task_that_ended_in_between_is_no_violation_and_the_next_user_tries() -> None:
    application = Application(fast=3)
    check = one_active_per_user(application, application, 0)
    assert check.verdict is Verdict.PASSED
    assert len(application.places) == 7


def test_two_active_tasks_of_one_user_fail() -> None:
    application = Application(constraint=False)
    assert one_active_per_user(application, application, 0).verdict is Verdict.FAILED


def test_tasks_that_always_end_at_once_leave_it_unknown() -> None:
    application = Application(fast=99)
    assert one_active_per_user(application, application, 0).verdict is Verdict.UNKNOWN


def test_an_application_that_refuses_both_fails_and_one_that_does_not_answer_is_unknown() -> None:
    refusing, silent = Application(status=503), Application(status=0)
    assert one_active_per_user(refusing, refusing, 0).verdict is Verdict.FAILED
    assert one_active_per_user(silent, silent, 0).verdict is Verdict.UNKNOWN


def sides_at(share: int, application: Application) -> Callable[[Sequence[str]], dict[str, int]]:
    """Each task's side by a bucket of its user, as an application with sticky users has it."""

    def sides(ids: Sequence[str]) -> dict[str, int]:
        users = {task_id: user for user, task_id in application.of.items()}
        target = sum(zlib.crc32(str(users[task_id]).encode()) % 100 < share for task_id in ids)
        return {"target": target, "source": len(ids) - target}

    return sides


@pytest.mark.parametrize("share", [1, 5, 25, 75, 99])
def test_canaries_go_on_until_both_sides_have_some(share: int) -> None:
    """Twenty alone miss the side of 5 % every third time: a soak must not fail by chance."""
    for first in range(900_000_000, 900_000_000 + 50 * 2000, 2000):
        application = Application()
        sides = sides_at(share, application)
        accepted, refused = submit_to_both(application, first, 20, [], share, sides)
        assert min(sides([answer.task_id for answer in accepted]).values()) > 0
        assert refused == []


def test_a_side_that_gets_none_ends_it() -> None:
    application = Application()
    accepted, _ = submit_to_both(application, 0, 20, [], 50, lambda ids: {"source": len(ids), "target": 0})
    assert most_for_both(50) == 20 <= len(accepted) < 60


@pytest.mark.parametrize("share", [0, 100])
def test_one_side_alone_needs_no_more(share: int) -> None:
    accepted, _ = submit_to_both(Application(), 0, 20, [], share, lambda ids: {"target": len(ids)})
    assert len(accepted) == 20


def test_an_application_that_refuses_is_not_asked_on_and_on() -> None:
    accepted, refused = submit_to_both(Application(status=503), 0, 20, [], 1, lambda ids: {"source": len(ids)})
    assert (accepted, len(refused)) == ([], 20)


# -- pickup -----------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds pass by waiting; at each of them one more row changes its place."""

    def __init__(self, *changes: dict[str, Place]) -> None:
        self.time = 0.0
        self.places: dict[str, Place] = {}
        self.changes = list(changes)
        self.wait(0)

    def now(self) -> float:
        return 1000 + self.time

    def monotonic(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += seconds
        if self.changes:
            self.places |= self.changes.pop(0)

    def look(self, ids: Sequence[str]) -> dict[str, Sighting]:
        return {task_id: Sighting(task_id, self.places[task_id]) for task_id in ids if task_id in self.places}


def test_a_canary_has_begun_when_it_is_first_seen_not_to_wait() -> None:
    waiting = {"a": Place.MOVED, "b": Place.READY, "c": Place.DELAYED, "d": Place.CLAIMED}
    clock = Clock(waiting, {"a": Place.RUNNING}, {"a": Place.FINISHED, "b": Place.FINISHED, "c": Place.LEASED}, {})
    begun: dict[str, float] = {}
    places, over = follow(clock, [*"abcdx"], clock, deadline=9, seconds=0.5, begun=begun)
    assert not over and places["x"] == "missing"
    assert begun == {"a": 1000.2, "b": 1000.4, "c": 1000.4}


def test_canaries_are_accepted_one_after_the_other() -> None:
    answers = [Answer(201, "a", 0.5), Answer(201, "b", 0.25)]
    assert accepted_at(answers, 100.0) == {"a": 100.5, "b": 100.75}


@pytest.mark.parametrize(
    ("backlog", "limit", "verdict", "reading"),
    [
        (0, 5.0, Verdict.PASSED, "p50 1.0 max 5.0 s over 3; limit 5 s"),
        (0, 4.9, Verdict.FAILED, "p50 1.0 max 5.0 s over 3; limit 4.9 s"),
        (7, 4.9, Verdict.PASSED, "p50 1.0 max 5.0 s over 3; behind 7 tasks, so reported and not gated"),
    ],
)
def test_the_slowest_pickup_is_gated_where_nothing_waited_before(
    backlog: int, limit: float, verdict: Verdict, reading: str
) -> None:
    accepted = {"a": 10.0, "b": 11.0, "c": 12.0, "never begun": 12.0}
    check = pickup(accepted, {"a": 15.0, "b": 11.0, "c": 13.0}, limit, backlog)
    assert (check.verdict, check.reading) == (verdict, reading)


def test_a_pickup_that_nobody_saw_is_unknown() -> None:
    assert pickup({"a": 10.0}, {}, 5.0, 0).verdict is Verdict.UNKNOWN
