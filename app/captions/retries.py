"""What becomes of a failed attempt: its category, a message that may be shown, and when the next attempt is due."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Literal

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy.exc import OperationalError

from captions.payload import PayloadError

#: transient: a connection broke; resource: memory, disk or descriptors ran out, or its process was killed;
#: timeout: it took longer than allowed; payload: nobody can read what is to be done;
#: permanent: the work itself says that no attempt can succeed.
Category = Literal["transient", "resource", "timeout", "payload", "permanent", "task"]
Growth = Literal["exponential", "linear", "fixed"]
GROWTHS = ("exponential", "linear", "fixed")

_NEVER_AGAIN = ("payload", "permanent")
_EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_LENGTH = 300
# Names are shortened to what tells an operator which thing it is, credentials to nothing.
_REDACTIONS = (
    (re.compile(r"(?<=://)[^\s/@]+@"), "...@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+\S+"), r"\1 ..."),
    (re.compile(r"(?i)\b([\w-]*(?:passw(?:or)?d|passwd|secret|token|api[_-]?key))(['\"]?\s*[=:]\s*)\S+"), r"\1\2..."),
    (re.compile(r"(?<![\w:/.])(?:/[^\s/'\":,]+)+/(?=[^\s/'\":,])"), ".../"),
    (re.compile(r"\b[A-Za-z0-9+/_]{32,}={0,2}"), "..."),
)


class PermanentError(Exception):
    """Raised by a task's work when another attempt cannot succeed either."""


class WorkerDied(Exception):
    """The process that worked on an attempt was killed, or the machine under it."""

    def __init__(self) -> None:
        super().__init__("its process did not live to the end of the attempt")


@dataclass(frozen=True)
class RetryPolicy:
    """When an attempt is followed by another. Times are seconds.

    A transient failure is retried at once, ``at_once`` times; after that, and for all others, come ``retries`` waits
    that begin with ``base_seconds`` and stay (fixed), grow by it (linear) or fourfold (exponential).
    """

    growth: Growth = "exponential"
    base_seconds: float = 60
    retries: int = 3
    at_once: int = 1
    longest_seconds: float = 3600

    @property
    def attempts(self) -> int:
        """The most attempts a task can have."""
        return 1 + self.at_once + self.retries

    def delay(self, category: Category, attempt: int) -> float | None:
        """Seconds until the next attempt when the ``attempt``-th (from 1) failed; None when it was the last."""
        if category in _NEVER_AGAIN:
            return None
        quick = self.at_once if category == "transient" else 0
        step = attempt - quick
        if step <= 0:
            return 0.0
        if step > self.retries:
            return None
        growth = {"fixed": 1, "linear": step, "exponential": 1 << 2 * (step - 1)}[self.growth]
        return min(self.base_seconds * growth, self.longest_seconds)


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed, in words fit for the row, a log and whoever reads the dead letters."""

    category: Category
    message: str


def failure_of(error: BaseException) -> Failure:
    """The category and the sanitised message of what an attempt raised."""
    return Failure(_category(error), sanitised(f"{type(error).__name__}: {error}"))


def _category(error: BaseException) -> Category:
    if isinstance(error, PayloadError):
        return "payload"
    if isinstance(error, PermanentError):
        return "permanent"
    if type(error).__name__ == "JobTimeoutException":  # RQ is not imported for its name: a poller works without it
        return "timeout"
    if isinstance(error, MemoryError | WorkerDied) or (isinstance(error, OSError) and error.errno in _EXHAUSTED):
        return "resource"
    broken = (
        ConnectionError,
        TimeoutError,
        InterruptedError,
        RedisConnectionError,
        RedisTimeoutError,
        OperationalError,
    )
    return "transient" if isinstance(error, broken) else "task"


def sanitised(message: str) -> str:
    """One line of at most 300 characters without credentials, folders of the machine, or long opaque values."""
    for pattern, replacement in _REDACTIONS:
        message = pattern.sub(replacement, message)
    message = " ".join(message.split())
    return message if len(message) <= _LENGTH else message[: _LENGTH - 3] + "..."
