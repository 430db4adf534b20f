"""The user constraint is judged by pairs of submissions, and a task that ended in between proves nothing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from ansible.module_utils.sluice.core.tasks import Place, Sighting
from ansible.module_utils.sluice.core.verdicts import Verdict
from ansible.module_utils.sluice.services.canary import one_active_per_user


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
