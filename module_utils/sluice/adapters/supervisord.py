"""Worker processes under supervisord, by XML-RPC over its unix socket."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import Sequence
from typing import Any

from ..core.errors import StoreError
from ..ports.surroundings import Clock, WorkerProcess
from .system_clock import SystemClock

_STOPPED, _EXITED, _FATAL = 0, 100, 200
_ENDED = frozenset({_STOPPED, _EXITED, _FATAL})
_SUCCESS = 80
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 30.0


class SupervisordWorkers:
    """See :class:`..ports.surroundings.Supervisor`. A group is one of supervisord's.

    supervisord kills what has not ended within its ``stopwaitsecs`` by itself: give the drain's deadline there too.
    What it killed shows the exit status -1.

    :param host: the name under which the processes are reported
    :param deadline: seconds to wait for killed processes to be gone
    """

    def __init__(self, socket_path: str, host: str, *, clock: Clock | None = None, deadline: float = 10.0) -> None:
        self.socket_path = socket_path
        self.host = host
        self.clock = clock or SystemClock()
        self.deadline = deadline

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
        """SIGKILL what is left, and wait until it is gone; returns what had to be killed, as it was.

        :raises StoreError: a process outlived the signal
        """
        killed = [process for process in self.list(group) if process.alive]
        if not killed:
            return []
        self._call("stopProcessGroup", group, False)  # so that nothing is started again for having been killed
        self._call("signalProcessGroup", group, "KILL")
        until = self.clock.monotonic() + self.deadline
        while left := [process.name for process in self.list(group) if process.alive]:
            if self.clock.monotonic() >= until:
                raise StoreError(
                    f"{', '.join(left)} outlived SIGKILL for {self.deadline:.0f} s.",
                    where=self._place(),
                    next_step="look at the process on that host; it may wait for a disk.",
                )
            self.clock.wait(_POLL_SECONDS)
        return killed

    def _process(self, info: dict[str, Any]) -> WorkerProcess:
        state = int(info["state"])
        return WorkerProcess(
            name=str(info["name"]),
            host=self.host,
            pid=int(info["pid"]),
            state=str(info["statename"]),
            exit=_exit(info) if state in _ENDED else None,
            alive=state not in _ENDED,
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
