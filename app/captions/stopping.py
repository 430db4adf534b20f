"""How a process is told to end: by SIGTERM or SIGINT, heard at any moment, answered when the work in hand is done.

Not a ``threading.Event``: its ``set`` takes a lock that a ``wait`` of the same thread may hold at the moment the
signal is handled, and the process would wait for itself for ever. Nor a queue: a signal that comes when Python has
looked for signals for the last time before the wait begins is handled when the wait is over. A socket is readable
from the moment of the signal, whether the wait has begun or not
(https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd).
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Set once, by a signal or a call; seen by every thread that waits for it."""

    def __init__(self) -> None:
        self._asked = False
        #: What is written to ``waker`` ends waits; a signal's own byte is written the moment it comes.
        self._woken, self.waker = socket.socketpair()
        for end in (self._woken, self.waker):
            end.setblocking(False)

    def set(self) -> None:
        """Ask to end."""
        self._asked = True
        with contextlib.suppress(BlockingIOError):  # full: who waits is awake
            self.waker.send(b"\0")

    def is_set(self) -> bool:
        """Whether it was asked."""
        return self._asked

    def wait(self, seconds: float) -> bool:
        """Wait at most so many seconds; returns early, and True, when it was or is asked."""
        until = time.monotonic() + seconds
        while not self.is_set():
            awake, _, _ = select.select([self._woken], [], [], max(0.0, until - time.monotonic()))
            if not awake:
                break
            if not self.is_set():  # another signal's byte, or one whose handler, which sends its own, has yet to run
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(64)
                if self.is_set():  # what another thread had sent meanwhile is for all
                    self.set()
        return self.is_set()


def stop_on_signals() -> StopRequest:
    """A request that SIGTERM and SIGINT make from now on. Call it in the main thread."""
    stop = StopRequest()

    def ask(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.set_wakeup_fd(stop.waker.fileno(), warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, ask)
    return stop
