"""The processes of this host as ``/proc`` shows them; signals that cannot hit a process with a reused id."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import StoreError
from ..ports.surroundings import Clock, WorkerProcess

_KERNEL_THREAD = 0x00200000
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Process:
    """One process that runs. ``started`` is in ticks since the boot: with the id it names the process for good."""

    pid: int
    parent: int
    session: int
    started: int
    user: int


class Processes:
    """What ``/proc`` shows. A zombie does not run, so it is not there; nor are the kernel's own threads."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self.root = root

    def all(self) -> Mapping[int, Process]:
        """Every process that runs, by its id.

        :raises StoreError: there is no ``/proc``
        """
        try:
            pids = [int(entry.name) for entry in self.root.iterdir() if entry.name.isdigit()]
        except OSError as error:
            raise StoreError(
                f"processes cannot be listed ({error.strerror}).", where=str(self.root), next_step="mount /proc there."
            ) from error
        return {process.pid: process for process in map(self.look, pids) if process is not None}

    def look(self, pid: int) -> Process | None:
        """One process as it is now; None when it does not run."""
        place = self.root / str(pid)
        try:
            user = place.stat().st_uid
            fields = (place / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None  # it ended meanwhile, or /proc is mounted so that others' processes are not there at all
        if not fields or fields[0] in (b"Z", b"X", b"x") or int(fields[6]) & _KERNEL_THREAD:
            return None
        return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), user)

    def environment(self, process: Process) -> Mapping[str, str] | None:
        """The variables it was started with; None when they cannot be read, or were overwritten by a title."""
        try:
            data = (self.root / str(process.pid) / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return {}
        except OSError:
            return None
        if data and b"=" not in data:
            return None
        found = (entry.partition(b"=") for entry in data.split(b"\0"))
        return {os.fsdecode(name): os.fsdecode(value) for name, _, value in found if name}

    def resident(self, pid: int) -> int | None:
        """Bytes of memory that the largest of a process and its descendants holds; None when it cannot be read."""
        running = self.all()
        family, grown = {pid}, True
        while grown:
            more = {process.pid for process in running.values() if process.parent in family} - family
            family |= more
            grown = bool(more)
        sizes = [size for member in family if (size := self._resident(member)) is not None]
        return max(sizes, default=None)

    def _resident(self, pid: int) -> int | None:
        try:
            lines = (self.root / str(pid) / "status").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), None)

    def catches(self, process: Process, number: signal.Signals) -> bool:
        """Whether it has a handler of its own for a signal, so that the signal asks it and does not end it."""
        try:
            lines = (self.root / str(process.pid) / "status").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return False
        caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
        return bool(int(caught, 16) >> (number - 1) & 1)

    def runs(self, process: Process) -> bool:
        """Whether this very process still runs."""
        now = self.look(process.pid)
        return now is not None and now.started == process.started

    def send(self, process: Process, number: signal.Signals) -> bool:
        """Signal this very process; False when it is gone, also when its id has another owner by now.

        :raises StoreError: this account may not signal it
        """
        with contextlib.ExitStack() as stack:
            handle = -1
            try:
                handle = os.pidfd_open(process.pid)
                stack.callback(os.close, handle)
            except OSError as error:
                if error.errno == errno.ESRCH:
                    return False
                if error.errno not in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a filter of a container
                    raise
            if not self.runs(process):
                return False
            try:
                if handle >= 0:
                    signal.pidfd_send_signal(handle, number)
                else:
                    os.kill(process.pid, number)
            except ProcessLookupError:
                return False
            except PermissionError as error:
                raise StoreError(
                    f"this account may not signal process {process.pid}.",
                    where=f"process {process.pid}",
                    next_step="run the step as the processes' owner, or as root.",
                ) from error
        return True


def family_ends_in(pid: int, roots: Collection[int], among: Mapping[int, Process]) -> bool:
    """Whether a process is one of ``roots``, or was started by one that still runs."""
    seen: set[int] = set()
    while pid in among and pid not in seen:
        if pid in roots:
            return True
        seen.add(pid)
        pid = among[pid].parent
    return False


def ancestors(pid: int, among: Mapping[int, Process]) -> set[int]:
    """A process and those that started it, as far as they run: nobody may end what he himself is run by."""
    found: set[int] = set()
    while pid in among and pid not in found:
        found.add(pid)
        pid = among[pid].parent
    return found


@dataclass(frozen=True, slots=True)
class Leftover:
    """A process without the worker that started it: as a worker process, and as the host's. None: not known which."""

    worker: WorkerProcess
    process: Process | None


def left_behind(name: str, host: str, process: Process) -> Leftover:
    """A leftover that is proved to be the group's. Its name carries its id, for there may be several of one worker."""
    shown = f"{name}/{process.pid}"
    return Leftover(WorkerProcess(shown, host, process.pid, "LEFTOVER", None, True, leftover=True), process)


def unproved(host: str, what: str, pid: int = 0) -> Leftover:
    """Something of which nobody can say whether it is the group's."""
    return Leftover(WorkerProcess(what, host, pid, "UNREADABLE", None, True, leftover=True, unknown=True), None)


def ask(found: Sequence[Leftover], processes: Processes) -> bool:
    """SIGTERM to those that know how to end (RQ's schedulers); it would end the others (RQ's horses) at once."""
    asked = False
    for one in found:
        if one.process is not None and processes.catches(one.process, signal.SIGTERM):
            asked |= processes.send(one.process, signal.SIGTERM)
    return asked


def end(
    find: Callable[[], Sequence[Leftover]], processes: Processes, clock: Clock, deadline: float, where: str
) -> Sequence[WorkerProcess]:
    """SIGKILL what ``find`` finds until it finds nothing: a process may have started another one meanwhile.

    :raises StoreError: one outlived the signal for ``deadline`` seconds, or may not be signalled
    """
    until = clock.monotonic() + deadline
    ended: dict[int, WorkerProcess] = {}
    while left := [(one.worker, one.process) for one in find() if one.process is not None]:
        if clock.monotonic() >= until:
            raise StoreError(
                f"{', '.join(worker.name for worker, _ in left)} outlived SIGKILL for {deadline:.0f} s.",
                where=where,
                next_step="look at the process on that host; it may wait for a disk.",
            )
        for worker, process in left:
            if processes.send(process, signal.SIGKILL):
                ended.setdefault(process.pid, worker)
        clock.wait(_POLL_SECONDS)
    return list(ended.values())
