"""kill -9 of many workers at once, at a moment of which it can be said afterwards what each of them had done.

A worker writes the end of a task into the effects file right before it commits. Killed between the two it leaves a task
of which nobody can say whether it may run again; whoever lets it run again doubles its effect, and rightly so.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from oracle.patience import until

_TAIL_BYTES = 262_144


def crash(pids: Sequence[int], effects_file: Path, running: Callable[[Sequence[str]], int]) -> int:
    """Kill them all; how many there were.

    :param running: how many of these tasks are still running, by their rows
    """
    still: list[int] = []

    def between_tasks_and_commits() -> bool:
        still[:] = [pid for pid in pids if _told(pid, signal.SIGSTOP)]
        while any(_state(pid) not in "TtZ" for pid in still):
            time.sleep(0.001)
        ended = _just_ended(effects_file, still)
        if not ended or running(ended) == 0:
            return True
        for pid in still:
            _told(pid, signal.SIGCONT)
        return False

    until(between_tasks_and_commits, "a moment at which no end waits for its commit", every=0.02)
    return sum(_told(pid, signal.SIGKILL) for pid in still)


def _told(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False  # it ended by itself a moment ago
    return True


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def _just_ended(effects_file: Path, pids: Iterable[int]) -> list[str]:
    """Tasks whose end is the last thing that one of the processes wrote."""
    with effects_file.open("rb") as file:
        file.seek(max(0, effects_file.stat().st_size - _TAIL_BYTES))
        lines = [line for line in file.read().split(b"\n") if line.startswith(b"{") and line.endswith(b"}")]
    last = {record["pid"]: record for record in map(json.loads, lines)}
    return [str(last[pid]["task"]) for pid in pids if pid in last and last[pid]["event"] == "end"]
