"""The errors in the newest log lines of an application host."""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from ..ports.assessment import LogSigns

_ERROR = re.compile(r"\b(?:ERROR|CRITICAL|FATAL)\b|^Traceback \(most recent call last\)")
_STAMP = re.compile(r"\b(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)")
#: ``password=...``, ``"token": "..."``, ``Authorization: Bearer ...``: whatever a library may have written.
_SECRET = re.compile(
    r"(?i)((?:password|passwd|secret|token|api[_-]?key|authorization)[\"']?\s*[=:]\s*)(?:bearer\s+)?[\"']?[^\s\"',;&]+"
)
_SHOWN = 3
_SHOWN_LENGTH = 160
#: Files that one pattern may name: more are no log of one application.
_MOST_FILES = 50


def read_logs(
    patterns: Sequence[str], *, kilobytes: int, minutes: float, now: float, redact: Callable[[str], str]
) -> list[LogSigns]:
    """Count the errors in the last ``kilobytes`` of each file, of the last ``minutes`` where lines carry a time.

    :param patterns: absolute paths, which may hold wildcards
    :param redact: takes known secrets out of a line that is shown
    """
    found: list[LogSigns] = []
    for pattern in patterns:
        paths = sorted(glob.glob(pattern))[:_MOST_FILES] if glob.has_magic(pattern) else [pattern]  # noqa: PTH207
        if not paths:
            found.append(LogSigns(pattern, problem="no such file"))
        found += [_read(Path(path), kilobytes * 1024, now - minutes * 60, redact) for path in paths]
    return found


def _read(path: Path, size: int, since: float, redact: Callable[[str], str]) -> LogSigns:
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - size))
            data = file.read(size)
            changed = path.stat().st_mtime
    except OSError as error:
        return LogSigns(str(path), problem=error.strerror or type(error).__name__)
    if changed < since:
        return LogSigns(str(path))
    lines = data.decode("utf-8", "replace").splitlines()
    if end > size:
        lines = lines[1:]  # begins in its middle
    errors = [line for line in _lately(lines, since) if _ERROR.search(line)]
    return LogSigns(str(path), len(errors), [_shown(line, redact) for line in errors[-_SHOWN:]])


def _lately(lines: Sequence[str], since: float) -> Iterator[str]:
    """The lines that are not older; one without a time is as old as the one before it."""
    recent = True
    for line in lines:
        stamp = _STAMP.search(line[:60])
        if stamp:
            with contextlib.suppress(ValueError):  # looks like a time and is none
                # Logs are written in the local time of their host, and this runs there.
                recent = datetime.fromisoformat(f"{stamp[1]}T{stamp[2]}").astimezone().timestamp() >= since
        if recent:
            yield line


def _shown(line: str, redact: Callable[[str], str]) -> str:
    text = "".join(c if c.isprintable() else " " for c in redact(line).strip())
    return _SECRET.sub(r"\1********", text)[:_SHOWN_LENGTH]
