"""How a process is told to end: by SIGTERM or SIGINT, heard at any moment, answered when the work in hand is done.

Not a ``threading.Event``: its ``set`` takes a lock that a ``wait`` of the same thread may hold at the moment the
signal is handled, and the process would wait for itself for ever. ``queue.SimpleQueue.put`` may interrupt a ``get``
(https://docs.python.org/3/library/queue.html#queue.SimpleQueue.put).
"""

from __future__ import annotations

import queue
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Set once, by a signal or a call; seen by every thread that waits for it."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Ask to end."""
        self._asked.put(None)

    def is_set(self) -> bool:
        """Whether it was asked."""
        return not self._asked.empty()

    def wait(self, seconds: float) -> bool:
        """Wait at most so many seconds; returns early, and True, when it was or is asked."""
        try:
            self._asked.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return False
        self._asked.put(None)
        return True


def stop_on_signals() -> StopRequest:
    """A request that SIGTERM and SIGINT make from now on. Call it in the main thread."""
    stop = StopRequest()

    def ask(signum: int, frame: FrameType | None) -> None:
        stop.set()

    for number in SIGNALS:
        signal.signal(number, ask)
    return stop
