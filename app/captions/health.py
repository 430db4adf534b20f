"""Redis' health as a web process sees it, and what it does about it: tasks go on into the database meanwhile.

A submission never needs Redis: its row is committed first. While Redis is away, or nearly full, nobody waits for it
in a request. Where pollers work beside RQ, as in a hybrid, new tasks are theirs for that time. Where none do, rows wait
in the outbox, and the sweeper places them, in order, when Redis is well again. No row is made twice: what pollers have
not begun by then is moved by its custody.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from redis.exceptions import RedisError

CHECK_SECONDS = 5.0
FAILURES = 3
#: Shares of Redis' memory: from the first on it is said, from the second on nothing more is placed.
MEMORY_HIGH = 0.8
MEMORY_FULL = 0.95

log = logging.getLogger("captions.health")


class Probe(Protocol):
    """Asks Redis."""

    def memory_share(self) -> float:
        """The share of its memory that Redis uses, 0 to 1. RedisError when it does not answer."""


class RedisHealth(threading.Thread):
    """Checks Redis every few seconds. Three failures in a row, of checks or of placements, and it is away."""

    def __init__(self, probe: Probe) -> None:
        super().__init__(name="captions-redis-health", daemon=True)
        self._probe = probe
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._failures = 0
        self._away_since: float | None = None
        self.memory: float | None = None

    @property
    def usable(self) -> bool:
        """Whether jobs should be placed now."""
        return self._away_since is None and (self.memory or 0.0) < MEMORY_FULL

    @property
    def note(self) -> str | None:
        """What an operator should know, None while all is well."""
        away, memory = self._away_since, self.memory or 0.0
        if away is not None:
            return f"Redis has not answered for {time.monotonic() - away:.0f} s: tasks wait in the database"
        if memory >= MEMORY_FULL:
            return f"Redis uses {memory:.0%} of its memory: tasks wait in the database"
        return f"Redis uses {memory:.0%} of its memory" if memory >= MEMORY_HIGH else None

    def failed(self) -> None:
        """Redis did not answer somebody."""
        with self._lock:
            self._failures += 1
            if self._failures >= FAILURES and self._away_since is None:
                self._away_since = time.monotonic()
                log.warning("Redis does not answer: tasks wait in the database")

    def check(self) -> None:
        """Ask Redis once."""
        try:
            memory = self._probe.memory_share()
        except RedisError:
            self.failed()
            return
        with self._lock:
            if self._away_since is not None:
                log.info("Redis answers again: what waited in the database is placed")
            self._failures, self._away_since = 0, None
        if memory >= MEMORY_HIGH > (self.memory or 0.0):
            log.warning("Redis uses %.0f %% of its memory", 100 * memory)
        self.memory = memory

    def end(self) -> None:
        """Stop checking."""
        self._ended.set()

    def run(self) -> None:
        while True:
            self.check()
            if self._ended.wait(CHECK_SECONDS):
                return
