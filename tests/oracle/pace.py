"""An open-loop schedule shared by threads: the n-th event is due at start + n / rate, whoever is free takes it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType


class Pace:
    """Deals out numbered turns.

    rate: turns a second, 0 for no waiting. Ends after `count` turns, after `seconds`, or when `stop` is set.
    """

    def __init__(
        self, rate: float, stop: threading.Event, count: int | None = None, seconds: float | None = None
    ) -> None:
        self._rate = rate
        self._stop = stop
        self._count = count
        self._began = time.monotonic()
        self._until = None if seconds is None else self._began + seconds
        self._next = 0
        self._lock = threading.Lock()

    def turn(self) -> int | None:
        """Wait for the next turn and return its number; None when the schedule has ended."""
        with self._lock:
            if self._count is not None and self._next >= self._count:
                return None
            number = self._next
            self._next += 1
        due = self._began + number / self._rate if self._rate > 0 else time.monotonic()
        if self._until is not None and max(due, time.monotonic()) >= self._until:
            return None
        if self._stop.wait(max(0.0, due - time.monotonic())):
            return None
        return number


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set; the process then ends by itself, its logs whole."""
    stop = threading.Event()

    def handle(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


class Crew:
    """Threads that do the same work; the first exception stops all and is raised by `join`."""

    def __init__(self, work: Callable[[], None], threads: int, stop: threading.Event) -> None:
        self._work = work
        self._stop = stop
        self._errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._guarded, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for all threads; raises what the first failing one raised."""
        for thread in self._threads:
            while thread.is_alive():  # in short waits, so that signals are handled
                thread.join(0.2)
        if self._errors:
            raise self._errors[0]

    def _guarded(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001  handed to join(), which raises it in the main thread
            self._errors.append(error)
            self._stop.set()
