"""Waiting for something that is to come, without a guess at how fast the machine is."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

#: Long enough on the slowest machine: it only ends a wait for what will never come. No promise is measured by it.
PATIENCE_SECONDS = 300.0


def until(condition: Callable[[], bool], what: str | Callable[[], str] = "the condition", every: float = 0.02) -> None:
    """Poll a condition each ``every`` seconds; AssertionError, which says ``what`` was awaited, if it never holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, (
            f"{what if isinstance(what, str) else what()}: not within {PATIENCE_SECONDS:g} s"
        )
        time.sleep(every)


def until_none(left: Callable[[], int], what: str, every: float = 0.1) -> None:
    """Poll how much is ``left`` until nothing is; AssertionError when it stays the same as long as patience lasts."""
    before = left()
    while before:
        until(lambda before=before: left() < before, f"fewer than {before} {what}", every)  # type: ignore[misc]
        before = left()


def listens(path: Path) -> bool:
    """Whether somebody answers at a unix socket: it is there a moment before."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(path)) == 0
