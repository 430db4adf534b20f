"""When a failed attempt is followed by another, and what is said of it."""

from __future__ import annotations

import errno

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.timeouts import JobTimeoutException
from sqlalchemy.exc import OperationalError

from captions.payload import PayloadError
from captions.retries import PermanentError, RetryPolicy, failure_of, sanitised

MINUTE = 60


@pytest.mark.parametrize(
    ("policy", "category", "delays"),
    [
        (RetryPolicy(), "transient", [0, 1 * MINUTE, 4 * MINUTE, 16 * MINUTE, None]),
        (RetryPolicy(), "task", [1 * MINUTE, 4 * MINUTE, 16 * MINUTE, None]),
        (RetryPolicy(), "resource", [1 * MINUTE, 4 * MINUTE, 16 * MINUTE, None]),
        (RetryPolicy(), "timeout", [1 * MINUTE, 4 * MINUTE, 16 * MINUTE, None]),
        (RetryPolicy(), "payload", [None]),
        (RetryPolicy(), "permanent", [None]),
        (RetryPolicy("linear", 10, retries=4), "task", [10, 20, 30, 40, None]),
        (RetryPolicy("fixed", 5, retries=2, at_once=2), "transient", [0, 0, 5, 5, None]),
        (RetryPolicy("exponential", 60, retries=5), "task", [60, 240, 960, 3600, 3600, None]),
        (RetryPolicy(retries=0, at_once=0), "transient", [None]),
    ],
)
def test_the_waits_of_a_policy(policy: RetryPolicy, category: str, delays: list[float | None]) -> None:
    assert [policy.delay(category, attempt) for attempt in range(1, len(delays) + 1)] == delays  # type: ignore[arg-type]
    assert policy.attempts >= len(delays)


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (ConnectionResetError("x"), "transient"),
        (TimeoutError("x"), "transient"),
        (RedisConnectionError("x"), "transient"),
        (OperationalError("SELECT 1", {}, Exception("gone")), "transient"),
        (MemoryError(), "resource"),
        (OSError(errno.ENOSPC, "full"), "resource"),
        (OSError(errno.ENOENT, "absent"), "task"),
        (JobTimeoutException("too long"), "timeout"),
        (PayloadError("x"), "payload"),
        (PermanentError("x"), "permanent"),
        (ValueError("x"), "task"),
    ],
)
def test_the_category_of_an_error(error: Exception, category: str) -> None:
    assert failure_of(error).category == category


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("no answer from redis://user:hunter2@10.0.0.1:6379/0", "no answer from redis://...@10.0.0.1:6379/0"),
        ("password=hunter2, host=h", "password=... host=h"),
        ("api_key: hunter2", "api_key: ..."),
        ("sent Authorization: Bearer hunter2", "sent Authorization: Bearer ..."),
        ("cannot open /srv/captions/secret-customer/broken.png", "cannot open .../broken.png"),
        ("digest " + "ab" * 20, "digest ..."),
        ("two\nlines\tand  gaps", "two lines and gaps"),
        (
            "task 6f1c2f5e-3c3e-4b59-9c0e-8a4a0a6f1d11 is gone",
            "task 6f1c2f5e-3c3e-4b59-9c0e-8a4a0a6f1d11 is gone",
        ),
        ("broken.png cannot be read as an image", "broken.png cannot be read as an image"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
    ],
)
def test_a_message_is_sanitised(message: str, shown: str) -> None:
    assert sanitised(message) == shown


def test_a_long_message_is_cut() -> None:
    message = sanitised("word " * 200)
    assert len(message) == 300
    assert message.endswith("...")
