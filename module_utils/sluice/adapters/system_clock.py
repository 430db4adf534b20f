"""The machine's own time."""

from __future__ import annotations

import time


class SystemClock:
    """See :class:`..ports.surroundings.Clock`."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Let ``seconds`` pass; nothing or less returns at once."""
        if seconds > 0:
            time.sleep(seconds)
