"""How far a step is that works long inside one call: lines in a file that the action plugin shows meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ansible.module_utils.common.warnings import warn

from ..core.figures import size
from ..ports.surroundings import Clock

#: Only the action plugin sets this: it reads the file while the module works, and shows its newest line.
OPTION: dict[str, Any] = {"progress_file": {"type": "path", "default": ""}}

#: Seconds between two lines in the file.
WRITE_SECONDS = 1.0

#: The unit of a stage that counts bytes.
BYTES = "bytes"


def pace(done: int, total: int, seconds: float, unit: str, *, left: int | None = None) -> str:
    """How far, how fast, how long still: ``12,000 of 20,000, 6,100 tasks/s, 1 s left``.

    :param total: 0 when nobody knows; it may be an estimate, and what goes past it is said without it
    :param seconds: time that ``done`` took; without any, rate and time left are not known and not said
    :param left: what is still to do, where it is less than the difference
    """

    def shown(number: int, what: str = "") -> str:
        return size(number) if unit == BYTES else f"{number:,}{what}"

    past = done > total
    text = f"{shown(done, f' {unit}')} so far" if past or not total else f"{shown(done)} of {shown(total)}"
    rate = done / seconds if seconds > 0 else 0.0
    if not rate:
        return text
    text = f"{text}, {shown(round(rate), f' {unit}')}/s"
    left = total - done if left is None and done < total else left
    return text if left is None else f"{text}, {left / rate:.0f} s left"


class Reporter:
    """Writes a line now and then while a step works, and removes the file at its end.

    It is a :class:`..ports.preparation.Progress`. Lines are appended in one write each; one without its line break is
    not complete yet. Without a path nothing is written: the module was not called by the action plugin.
    """

    def __init__(self, path: str, clock: Clock, beat: Callable[[], None] = lambda: None) -> None:
        """``beat`` is called each time progress is told: to renew a lease."""
        self._path = Path(path) if path else None
        self._clock = clock
        self._beat = beat
        self._what = ""
        self._unit = ""
        self._begun = self._next = clock.monotonic()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as failure:
                self._give_up(failure)

    def stage(self, what: str, unit: str) -> None:
        """Begin something that is counted anew. Its name is written at once, since it may begin with one long query."""
        self._what, self._unit = what, unit
        self._begun = self._next = self._clock.monotonic()
        self._write(what)

    def __call__(self, done: int, total: int) -> None:
        """See the port. ``total`` may be an estimate, or 0; one thing alone is not counted: the stage's name stands."""
        self._beat()
        now = self._clock.monotonic()
        if total != 1 and (done or total) and now >= self._next:
            self._next = now + WRITE_SECONDS
            self._write(f"{self._what}: {pace(done, total, now - self._begun, self._unit)}")

    def _write(self, line: str) -> None:
        if self._path is None:
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                os.write(descriptor, f"{line}\n".encode())
            finally:
                os.close(descriptor)
        except OSError as failure:
            self._give_up(failure)

    def _give_up(self, failure: OSError) -> None:
        """The step goes on: it loses its lines, not its work."""
        warn(f"the progress of this step cannot be shown ({failure.strerror}): {self._path}")
        self._path = None
