"""Waiting for something that is to come, without a guess at how fast the machine is."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

#: Long enough on the slowest machine: it only ends a wait for what will never come. No promise is measured by it.
PATIENCE_SECONDS = 300.0
#: Pauses between two looks, and the share of the wait so far that such a pause may be.
_OFTEN_SECONDS = 0.02
_SELDOM_SECONDS = 0.1
_SHARE = 0.05


def until(
    condition: Callable[[], bool], what: str | Callable[[], str] = "the condition", every: float | None = None
) -> None:
    """Poll a condition; AssertionError, which says ``what`` was awaited, if it never holds.

    Each ``every`` seconds. Without that at once again at first, and ten times a second where it takes long: what is
    awaited needs the processor too.
    """
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        assert waited < PATIENCE_SECONDS, (
            f"{what if isinstance(what, str) else what()}: not within {PATIENCE_SECONDS:g} s"
        )
        time.sleep(every if every is not None else min(_SELDOM_SECONDS, max(_OFTEN_SECONDS, waited * _SHARE)))


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
