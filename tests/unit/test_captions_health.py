"""When captions takes Redis for away or full, and when for well again."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from captions.health import CHECK_SECONDS, FAILURES, RedisHealth


class Redis:
    """Answers with a share of its memory, or not at all."""

    def __init__(self) -> None:
        self.share: float | None = 0.1

    def memory_share(self) -> float:
        if self.share is None:
            raise RedisConnectionError("away")
        return self.share


@pytest.fixture
def redis() -> Redis:
    return Redis()


@pytest.fixture
def health(redis: Redis) -> RedisHealth:
    return RedisHealth(redis)


def test_a_failure_is_noticed_within_half_a_minute() -> None:
    longest_answer = 2.0  # the client's time-out
    assert FAILURES * (CHECK_SECONDS + longest_answer) < 30


def test_one_lost_answer_is_no_outage_three_are_and_one_good_one_ends_it(health: RedisHealth, redis: Redis) -> None:
    health.check()
    redis.share = None
    for expected in (True, True, False, False):
        health.check()
        assert health.usable is expected
    assert health.note is not None
    assert "has not answered" in health.note
    redis.share = 0.1
    health.check()
    assert health.usable
    assert health.note is None


def test_failures_of_submissions_count_too(health: RedisHealth) -> None:
    for _ in range(FAILURES):
        health.failed()
    assert not health.usable


def test_failures_with_a_good_answer_between_them_do_not_add_up(health: RedisHealth, redis: Redis) -> None:
    for _ in range(3):
        health.failed()
        health.failed()
        health.check()
    assert health.usable


@pytest.mark.parametrize(
    ("share", "usable", "says"),
    [(0.79, True, None), (0.8, True, "uses 80%"), (0.94, True, "uses 94%"), (0.95, False, "tasks wait")],
)
def test_memory_is_said_and_then_spared(
    health: RedisHealth, redis: Redis, share: float, usable: bool, says: str | None
) -> None:
    redis.share = share
    health.check()
    assert health.usable is usable
    assert (health.note is None) if says is None else (says in str(health.note))
