"""The demo's own processes: started so that they end with it, killed with everything they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO


class Children:
    """Processes of one demo. ``end`` leaves none of them behind, whatever happened before."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = dict(environment)
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Start a program; its output goes to the terminal unless a file is given. It gets SIGTERM when we die."""
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "SIGTERM", *command],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
        )
        self._started.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes], seconds: float = 20.0) -> int:
        """Ask a process to end, and wait for it; its exit status. By force when it does not."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                kill_family(process.pid)
        return process.wait()

    def end(self) -> None:
        """End every process that still runs, the last started first, with all that it started."""
        for process in reversed(self._started):
            if process.poll() is None:
                family = descendants(process.pid)
                self.stop(process)
                _kill(pid for pid in family if _exists(pid))


def descendants(pid: int) -> list[int]:
    """Everything a process started and what that started, in sessions of their own too, parents first."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                children[int(stat.rpartition(")")[2].split()[1])].append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        mine = children[waiting.pop(0)]
        found += mine
        waiting += mine
    return found


def kill_family(pid: int) -> int:
    """``kill -9`` a process and all its descendants; how many that were. Returns when they are gone."""
    family = [pid, *descendants(pid)]
    _kill(family)
    deadline = time.monotonic() + 10
    while any(_exists(one) for one in family[1:]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(family)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _exists(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
