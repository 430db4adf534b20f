"""Questions with a limit, and what is read out of logs and answers."""

from __future__ import annotations

import threading
import time

import pytest
from ansible.module_utils.sluice.adapters.http_health import ask_health
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.errors import SluiceError, StoreError
from ansible.module_utils.sluice.services import assess
from ansible.module_utils.sluice.services.assess import Answer, Asking


def test_an_answer_is_given_as_it_is() -> None:
    assert Asking(lambda: 42, 5.0, SystemClock()).wait() == Answer(42)


def test_a_question_that_hangs_keeps_nobody_waiting() -> None:
    over = threading.Event()
    begun = time.monotonic()
    asked = [Asking(over.wait, 0.2, SystemClock()) for _ in range(5)]
    answers = [one.wait() for one in asked]
    assert time.monotonic() - begun < 2.0
    assert answers == [Answer(None, "no answer within 0.2 s")] * 5
    over.set()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreError("no answer.", where="Redis", next_step="start it."), "Redis: no answer. Next: start it."),
        (ValueError("a\nb"), "this is a defect of Sluice: ValueError: a b"),
    ],
)
def test_a_question_that_fails_is_unknown_with_its_reason(error: Exception, said: str) -> None:
    def fails() -> int:
        raise error

    assert Asking(fails, 5.0, SystemClock()).wait() == Answer(None, said)


def test_the_limits_add_up_to_less_than_the_promise() -> None:
    limits = [value for name, value in vars(assess).items() if name.endswith("_SECONDS") and "SLOW" not in name]
    assert len(limits) == 6
    assert sum(limits) < 25


def test_a_health_address_that_is_none_is_refused() -> None:
    with pytest.raises(SluiceError, match="must be http"):
        ask_health("ftp://host/health", seconds=1.0)
