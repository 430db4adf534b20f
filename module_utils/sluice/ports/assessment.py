"""What an assessment reads of the stores and the hosts. Plain data; None means that it could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreSigns:
    """One store: how long a short question took (seconds), and why it cannot be written to ('' when it can).

    ``evicted`` is how many keys it has thrown away for want of memory.
    """

    latency: float
    unusable: str = ""
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class QueueSigns:
    """One queue of the target. ``oldest`` is seconds that its next job has waited; None without one."""

    name: str
    queued: int
    scheduled: int
    deferred: int
    oldest: float | None
    failed: int
    failed_lately: int


@dataclass(frozen=True, slots=True)
class WorkSigns:
    """Who works at the target. ``live`` and ``silent`` are workers by their heartbeats.

    ``unserved`` are queues that no live worker listens on. ``started`` are executions; ``stale`` those of them that no
    live worker keeps alive.
    """

    live: int
    silent: int
    unserved: Sequence[str]
    started: int
    stale: int


@dataclass(frozen=True, slots=True)
class LogSigns:
    """The errors in the newest part of one log file; ``problem`` says why it could not be read."""

    path: str
    errors: int = 0
    last: Sequence[str] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class HealthSigns:
    """The application's own answer: HTTP status (0: none) and how long it took (seconds)."""

    status: int
    latency: float
    detail: str = ""

    @property
    def well(self) -> bool:
        """Whether the application says that it can work."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class HostSigns:
    """What one host said of itself. ``health`` is None when it was not asked, ``problem`` why nothing is known.

    ``workers`` are the target's worker processes that its supervisor keeps alive; None when it was not asked, or could
    not say (``workers_problem``).
    """

    name: str
    application: bool = False  # it serves the application
    workers: int | None = None
    workers_problem: str = ""
    health: HealthSigns | None = None
    logs: Sequence[LogSigns] = ()
    problem: str = ""
