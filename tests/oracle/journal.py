"""Append-only JSON-lines files: written durably, read back tolerating what a killed writer leaves behind."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """Appends JSON lines; `append` returns only after the line is on disk.

    Lines of several threads that wait at the same moment share one fsync.
    """

    def __init__(self, path: Path) -> None:
        torn = _ends_in_mid_line(path)
        self._file = path.open("ab", buffering=0)
        if torn:  # an earlier writer was killed in mid-line: never continue its line
            self._file.write(b"\n")
        self._write_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._written = 0
        self._synced = 0

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and wait until it is durable; OSError when the disk refuses."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._write_lock:
            if self._file.write(line) != len(line):
                raise OSError(f"short write to {self._file.name}: is the disk full?")
            self._written += 1
            mine = self._written
        with self._sync_lock:
            if self._synced >= mine:
                return
            covered = self._written
            os.fsync(self._file.fileno())
            self._synced = covered

    def close(self) -> None:
        """Close the file; everything appended is already durable."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class Damage:
    """Lines of a journal that are not one whole record.

    torn: fragments explained by a killed writer (last line without its end, or a fragment glued to a later record).
    malformed: `file:line` of complete lines that are no record; nothing explains these.
    """

    torn: int
    malformed: list[str]


def read_records(path: Path, damage: Damage) -> Iterator[dict[str, Any]]:
    """Stream the records of one journal, line by line; what cannot be read is noted in `damage`.

    Raises FileNotFoundError when the file does not exist.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            whole = line.endswith(b"\n")
            record = _object(line) if whole else None
            if record is not None:
                yield record
                continue
            tail = _record_after_fragment(line) if whole else None
            if tail is not None:
                damage.torn += 1
                yield tail
            elif not whole:
                damage.torn += 1
            else:
                damage.malformed.append(f"{path.name}:{number}")


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:  # includes undecodable bytes
        return None
    return value if isinstance(value, dict) else None


def _record_after_fragment(line: bytes) -> dict[str, Any] | None:
    """The whole record behind a torn one, when another process appended after the fragment."""
    at = line.find(b"{", 1)
    while at != -1:
        record = _object(line[at:])
        if record is not None:
            return record
        at = line.find(b"{", at + 1)
    return None


def _ends_in_mid_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as existing:
        existing.seek(-1, os.SEEK_END)
        return existing.read(1) != b"\n"
