"""The RQ workers of a machine as one set: ``python -m captions.workers``, by Gunicorn or by the service manager.

``RQ_WORKERS`` says how many there are and of which queues, ``urgent+high:2 normal:2 low:1``; without it this program
ends at once. ``POST /admin/workers/scale`` changes that for all machines while they run. Workers are processes of
their own. One that ends is replaced; one that has grown too large is ended after its job, and replaced. SIGTERM lets
all of them finish the job in hand.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from captions import task_types
from captions.control import read_control
from captions.database import make_engine
from captions.outbox import TIMEOUT_SECONDS
from captions.rqworker import end_with_parent
from captions.settings import Settings, SettingsError, load_or_exit
from captions.stopping import stop_on_signals

_GROUP = re.compile(r"(?P<queues>[a-z0-9_]+(?:\+[a-z0-9_]+)*):(?P<count>\d{1,3})")
_INTERVAL_SECONDS = 1.0
_QUICK_END_SECONDS = 5.0
_LONGEST_BACKOFF_SECONDS = 30.0

log = logging.getLogger("captions.workers")


@dataclass(frozen=True)
class Slot:
    """The place of one worker: its queues, in the order in which it looks into them, and its number among its like."""

    queues: tuple[str, ...]
    number: int

    @property
    def name(self) -> str:
        """Start of the worker's name."""
        return f"{'+'.join(self.queues)}.{self.number}"


def slots(text: str) -> list[Slot]:
    """The workers that a text like ``urgent+high:2 normal:1`` asks for. ValueError says what is wrong with it."""
    found: dict[tuple[str, ...], int] = {}
    for word in text.split():
        match = _GROUP.fullmatch(word)
        if match is None:
            raise ValueError(f"{word!r} is not QUEUE+QUEUE:COUNT")
        queues = tuple(match["queues"].split("+"))
        unknown = [queue for queue in queues if queue not in task_types.queues()]
        if unknown:
            raise ValueError(f"there is no queue {unknown[0]!r}; known are {', '.join(task_types.queues())}")
        if queues in found:
            raise ValueError(f"{match['queues']!r} is there twice")
        found[queues] = int(match["count"])
    return [Slot(queues, number) for queues, count in found.items() for number in range(count)]


def checked(settings: Settings) -> list[Slot]:
    """The workers that the settings ask for. SettingsError names ``RQ_WORKERS`` when they cannot be had."""
    try:
        wanted = slots(settings.rq_workers)
    except ValueError as error:
        raise SettingsError(f"{settings.source}: RQ_WORKERS: {error}") from error
    if wanted and not settings.rq_usable:
        raise SettingsError(f"{settings.source}: RQ_WORKERS asks for workers but RQ_ENABLED is not true")
    return wanted


def longest_job_seconds() -> int:
    """How long a worker may need to finish the job in hand."""
    return max((TIMEOUT_SECONDS | task_types.timeouts()).values())


def resident_mb(pid: int) -> float:
    """Memory of a process in MB (10**6 bytes); 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    match = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 / 1e6 if match else 0.0


@dataclass
class WorkerSet:
    """Processes in slots. ``command`` makes the arguments of a worker's process; ``memory_mb`` is its limit."""

    command: Callable[[Slot], Sequence[str]]
    memory_mb: float
    processes: dict[Slot, subprocess.Popen[bytes]] = field(default_factory=dict)
    _begun: dict[Slot, float] = field(default_factory=dict)
    _quick_ends: dict[Slot, int] = field(default_factory=dict)
    _told: set[int] = field(default_factory=set)

    def step(self, wanted: Sequence[Slot]) -> None:
        """Bring the set nearer to what is wanted: replace what ended, end what is too many or too large."""
        for slot, process in list(self.processes.items()):
            if process.poll() is not None:
                self._ended(slot, process)
            elif slot not in wanted:
                self._tell(slot, process, "it is not wanted any more")
            elif (size := resident_mb(process.pid)) > self.memory_mb:
                self._tell(slot, process, f"it has {size:.0f} MB, more than {self.memory_mb:.0f}")
        for slot in wanted:
            backoff = min(_LONGEST_BACKOFF_SECONDS, 2.0 ** self._quick_ends.get(slot, 0) - 1)
            if slot not in self.processes and time.monotonic() >= self._begun.get(slot, 0.0) + backoff:
                self.processes[slot] = subprocess.Popen(self.command(slot), stdin=subprocess.DEVNULL)
                self._begun[slot] = time.monotonic()
                log.info("worker %s: started as process %d", slot.name, self.processes[slot].pid)

    def stop(self, bound_seconds: float) -> None:
        """End all: each after its job, those that are still there after ``bound_seconds`` by force."""
        for slot, process in self.processes.items():
            self._tell(slot, process, "the set ends")
        deadline = time.monotonic() + bound_seconds
        for slot, process in self.processes.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("worker %s: did not end within %.0f s; killed", slot.name, bound_seconds)
                process.kill()
                process.wait()
        self.processes.clear()

    def _tell(self, slot: Slot, process: subprocess.Popen[bytes], reason: str) -> None:
        # A second signal would make RQ abandon the job in hand.
        if process.pid not in self._told:
            self._told.add(process.pid)
            log.info("worker %s: told to end after its job: %s", slot.name, reason)
            process.terminate()

    def _ended(self, slot: Slot, process: subprocess.Popen[bytes]) -> None:
        quick = time.monotonic() - self._begun[slot] < _QUICK_END_SECONDS
        self._quick_ends[slot] = self._quick_ends.get(slot, 0) + 1 if quick else 0
        self._told.discard(process.pid)
        del self.processes[slot]
        log.info("worker %s: process %d ended with %s", slot.name, process.pid, process.returncode)


def _only_set_of_the_machine(settings: Settings) -> socket.socket:
    """Held while the set lives; the kernel lets go of it however the process ends."""
    place = hashlib.sha256(f"{settings.rq_worker_redis_url} {settings.rq_key_prefix}".encode()).hexdigest()[:24]
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0captions-workers-{place}")
    except OSError as error:
        raise SystemExit("captions: another set of workers for the same Redis runs on this machine") from error
    return held


def main() -> None:
    argparse.ArgumentParser(prog="captions.workers", description="Run the RQ workers of this machine.").parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = load_or_exit()
    task_types.load(settings)
    try:
        wanted = checked(settings)
    except SettingsError as error:
        raise SystemExit(f"captions: {error}") from error
    if not settings.rq_workers:
        return
    stop = stop_on_signals()
    end_with_parent(os.getppid())
    held = _only_set_of_the_machine(settings)
    engine = make_engine(settings.rq_database_url)
    workers = WorkerSet(_command, settings.rq_worker_memory_mb)
    while not stop.is_set():
        try:
            with engine.connect() as connection:
                scaled = read_control(connection).rq_workers
            wanted = checked(settings) if scaled is None else slots(scaled)
        except (SQLAlchemyError, ValueError) as error:
            log.warning("the wanted number of workers is not known (%s); it stays", type(error).__name__)
        workers.step(wanted)
        stop.wait(_INTERVAL_SECONDS)
    workers.stop(longest_job_seconds() + 30)
    engine.dispose()
    held.close()


def _command(slot: Slot) -> Sequence[str]:
    worker = [sys.executable, "-m", "captions.rqworker", "--parent", str(os.getpid())]
    return [*worker, "--name", slot.name, "--queues", ",".join(slot.queues)]


if __name__ == "__main__":
    main()
