"""The effects file: what was really started and really finished, kept outside both stores.

One JSON object a line, appended in one write and synced before the caller goes on, so that a line survives the
death of the process that wrote it.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class EffectsFile:
    """Writes the lines of one worker. ``side`` is the system that ran the task: ``db`` or ``rq``."""

    path: Path
    side: Literal["db", "rq"]
    worker: str

    def started(self, task_id: str) -> None:
        """The claim is committed and the work begins."""
        self._append({"event": "start", "task": task_id})

    def ended(self, task_id: str, caption: str) -> None:
        """The work is done and its result is about to be committed."""
        self._append({"event": "end", "task": task_id}, caption=caption)

    def _append(self, line: dict[str, object], **more: object) -> None:
        line |= {"side": self.side, "worker": self.worker, "pid": os.getpid(), "at": time.time(), **more}
        data = (json.dumps(line) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            written = os.write(descriptor, data)
            if written != len(data):
                raise OSError(f"{self.path}: only {written} of {len(data)} bytes of an effect were written")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
