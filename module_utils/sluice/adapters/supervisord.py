"""Worker processes under supervisord, by XML-RPC over its unix socket."""

from __future__ import annotations

import http.client
import os
import socket
import xmlrpc.client
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.errors import StoreError
from ..ports.surroundings import Clock, WorkerProcess
from .processes import (
    Leftover,
    Process,
    Processes,
    ancestors,
    ask,
    end,
    family_ends_in,
    left_behind,
    unproved,
)
from .system_clock import SystemClock

_STOPPED, _EXITED, _FATAL = 0, 100, 200
_ENDED = frozenset({_STOPPED, _EXITED, _FATAL})
#: Seconds in which supervisord starts what ended, if it is to: it looks once a second, and counts in whole ones.
_RESTART_SECONDS = 2
_SUCCESS = 80
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 30.0


class SupervisordWorkers:
    """See :class:`..ports.surroundings.Supervisor`. A group is one of supervisord's.

    supervisord kills what has not ended within its ``stopwaitsecs`` by itself: give the drain's deadline there too.
    What it killed shows the exit status -1. What a killed worker left running is found by the variables that
    supervisord gave the worker and that its children inherit: group, name, and the socket, which no other one has.

    :param host: the name under which the processes are reported
    :param deadline: seconds to wait for killed processes to be gone
    """

    def __init__(
        self,
        socket_path: str,
        host: str,
        *,
        clock: Clock | None = None,
        deadline: float = 10.0,
        processes: Processes | None = None,
    ) -> None:
        self.socket_path = socket_path
        self.host = host
        self.clock = clock or SystemClock()
        self.deadline = deadline
        self.processes = processes or Processes()

    def list(self, group: str) -> Sequence[WorkerProcess]:
        """The group's processes now.

        :raises StoreError: supervisord does not answer, or knows no such group
        """
        known = self._call("getAllProcessInfo")
        found = [self._process(info) for info in known if info["group"] == group]
        if not found:
            groups = ", ".join(sorted({str(info["group"]) for info in known})) or "none"
            raise StoreError(
                f"there is no process group '{group}'; known: {groups}.",
                where=self._place(),
                next_step="correct the group in the inventory.",
            )
        return found

    def start(self, group: str) -> bool:
        """Start the group and wait until its processes have stayed up for their ``startsecs``.

        :raises StoreError: a process did not start
        """
        if all(process.state in ("RUNNING", "STARTING") for process in self.list(group)):
            return False
        failed = [entry for entry in self._call("startProcessGroup", group, True) if entry["status"] != _SUCCESS]
        if failed:
            raise StoreError(
                "; ".join(f"{entry['name']} did not start: {entry['description']}" for entry in failed),
                where=self._place(),
                next_step="read the log of the process.",
            )
        return True

    def request_stop(self, group: str) -> bool:
        """Send the stop signal to what runs; returns at once."""
        if not any(process.alive and process.state != "STOPPING" for process in self.list(group)):
            return False
        self._call("stopProcessGroup", group, False)
        return True

    def reload(self, group: str) -> bool:
        """Send SIGHUP to what runs, so that it reads its configuration again; for processes that know this signal.

        :raises StoreError: nothing of the group runs, so nothing could read anything
        """
        if not any(process.state == "RUNNING" for process in self.list(group)):
            raise StoreError(f"nothing of '{group}' runs.", where=self._place(), next_step="start it.")
        self._call("signalProcessGroup", group, "HUP")
        return True

    def kill(self, group: str) -> Sequence[WorkerProcess]:
        """SIGKILL what is left, then what it left behind, until all is gone; returns what was killed, as it was.

        With a supervisord that does not answer it ends what ``/proc`` shows to be the group's, and then says so.

        :raises StoreError: a process outlived the signal, or supervisord does not answer
        """
        family: dict[int, Process] = {}
        try:
            killed = self._kill_supervised(group, family)
        except StoreError as error:
            self._end_without_supervisord(group, error)
            raise

        def find() -> Sequence[Leftover]:
            left = {one.worker.pid: one for one in self._leftovers(group) if not one.worker.unknown}
            orphans = [left_behind(group, self.host, p) for p in family.values() if self.processes.runs(p)]
            return [*left.values(), *(one for one in orphans if one.worker.pid not in left)]

        return [*killed, *self._end_leftovers(group, find)]

    def leftovers(self, group: str) -> Sequence[WorkerProcess]:
        """What dead workers of the group left running: RQ's horses and schedulers outlive a kill -9 of their worker.

        :raises StoreError: supervisord does not answer
        """
        return [one.worker for one in self._leftovers(group)]

    def ask_leftovers(self, group: str) -> bool:
        """SIGTERM to the leftovers that have a handler for it; a horse has none, and finishes its job."""
        return ask(self._leftovers(group), self.processes)

    def _kill_supervised(self, group: str, family: dict[int, Process]) -> Sequence[WorkerProcess]:
        """Also fills ``family`` with what those processes had started: a title may have overwritten their variables."""
        killed: dict[str, WorkerProcess] = {}
        until = self.clock.monotonic() + self.deadline
        while left := [process for process in self.list(group) if process.alive]:
            if self.clock.monotonic() >= until:
                raise StoreError(
                    f"{', '.join(process.name for process in left)} outlived SIGKILL for {self.deadline:.0f} s.",
                    where=self._place(),
                    next_step="look at the process on that host; it may wait for a disk.",
                )
            killed |= {process.name: process for process in left if process.pid and process.name not in killed}
            among, mains = self.processes.all(), {process.pid for process in left}
            family |= {
                pid: process for pid, process in among.items() if pid not in mains and family_ends_in(pid, mains, among)
            }
            # In each round: one that had just ended may have been started again by supervisord itself meanwhile.
            self._call("stopProcessGroup", group, False)  # so that nothing is started again for having been killed
            self._call("signalProcessGroup", group, "KILL")
            self.clock.wait(_POLL_SECONDS)
        return list(killed.values())

    def _end_leftovers(self, group: str, find: Callable[[], Sequence[Leftover]]) -> Sequence[WorkerProcess]:
        return end(find, self.processes, self.clock, self.deadline, f"{self._place()}, group '{group}'")

    def _end_without_supervisord(self, group: str, error: StoreError) -> None:
        """Nobody can say which are its own any more, so all of the group's are ended."""
        if not isinstance(error.__cause__, OSError | http.client.HTTPException):
            return
        ended = self._end_leftovers(group, lambda: self._of_group(group, self.processes.all()))
        if ended:
            names = ", ".join(process.name for process in ended)
            raise StoreError(
                f"{error.what} What /proc showed of '{group}' was killed: {names}.",
                where=self._place(),
                next_step=f"{error.next_step} Then run the same command again.",
            ) from error

    def _leftovers(self, group: str) -> Sequence[Leftover]:
        """First the processes, then supervisord: what it starts in between is not taken for a leftover."""
        among = self.processes.all()
        known = self._call("getAllProcessInfo")
        daemon = among.get(int(self._call("getPID")))
        if daemon is None:
            return [unproved(self.host, f"what '{group}' may have left: its processes cannot be seen from here")]
        kept = {int(info["pid"]) for info in known if info["pid"]}
        owners = {among[pid].user for pid in kept if pid in among}
        above = ancestors(daemon.pid, among)  # what started supervisord is nothing that its workers left
        strays = {
            pid: process for pid, process in among.items() if pid not in above and not family_ends_in(pid, kept, among)
        }
        found = list(self._of_group(group, strays))
        for process in strays.values():
            orphan = process.session not in {0, *among} and process.user in owners
            if (
                (orphan or process.session == daemon.session)
                and process.pid != os.getpid()
                and self.processes.environment(process) is None
            ):
                found.append(unproved(self.host, f"process {process.pid}", process.pid))
        # What has ended since the first look is no leftover.
        return [one for one in found if self.processes.look(one.worker.pid) is not None]

    def _of_group(self, group: str, among: Mapping[int, Process]) -> Sequence[Leftover]:
        """Those that were started for the group by the supervisord of this socket, whoever their parent is now."""
        mine = ancestors(os.getpid(), self.processes.all())
        found: list[Leftover] = []
        for pid, process in sorted(among.items()):
            variables = self.processes.environment(process) or {}
            if variables.get("SUPERVISOR_GROUP_NAME") == group and pid not in mine and self._ours(variables):
                found.append(left_behind(variables.get("SUPERVISOR_PROCESS_NAME", group), self.host, process))
        return found

    def _ours(self, variables: Mapping[str, str]) -> bool:
        scheme, _, path = variables.get("SUPERVISOR_SERVER_URL", "").partition("://")
        return scheme == "unix" and os.path.realpath(path) == os.path.realpath(self.socket_path)

    def _process(self, info: dict[str, Any]) -> WorkerProcess:
        state = int(info["state"])
        # One that has just exited may be started again by itself: supervisord does not say whether it will.
        ended = state in _ENDED and not (state == _EXITED and info["now"] - info["stop"] < _RESTART_SECONDS)
        return WorkerProcess(
            name=str(info["name"]),
            host=self.host,
            pid=int(info["pid"]),
            state=str(info["statename"]),
            exit=_exit(info) if ended else None,
            alive=not ended,
        )

    def _call(self, method: str, *arguments: object) -> Any:
        proxy = xmlrpc.client.ServerProxy("http://supervisord", transport=_UnixTransport(self.socket_path))
        try:
            with proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise StoreError(f"{method}: {fault.faultString}", where=self._place()) from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise StoreError(
                f"supervisord does not answer ({error}).",
                where=self._place(),
                next_step="check that it runs, and that this account may use its socket.",
            ) from error

    def _place(self) -> str:
        return f"supervisord of {self.host} at {self.socket_path}"


def _exit(info: dict[str, Any]) -> int | None:
    """The last exit status of an ended process; None when supervisord does not know it.

    It shows the status 0 also for a process that it never started, or that exited before ``startsecs``.
    """
    error = str(info["spawnerr"])
    if int(info["start"]) == 0 or (error and not error.startswith("Bad exit code")):
        return None
    return int(info["exitstatus"])


class _UnixTransport(xmlrpc.client.Transport):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        """A connection to the socket, whatever ``host`` says."""
        return _UnixConnection(self._path)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            raise
        self.sock = connection
