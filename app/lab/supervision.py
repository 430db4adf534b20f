"""The lab's processes under supervisord: its configuration, and the few requests the lab makes of it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.layout import Layout
from lab.state import State
from lab.stores import LOOPBACK, PrivateMariaDB, PrivateRedis, StoreError, wait_for, write_private

_STORES = ("mariadb", "redis")
_SUCCESS = 80


@dataclass(frozen=True)
class ProcessState:
    """One supervised process, as supervisord describes it."""

    group: str
    name: str
    state: str
    pid: int
    description: str


def write_config(layout: Layout, state: State, mariadb: PrivateMariaDB, redis: PrivateRedis) -> bool:
    """Write supervisord's configuration; whether it changed. Only the stores start by themselves."""
    python = layout.python
    environment = (
        f'PYTHONPATH="{_value(layout.sources)}",CAPTIONS_ENV_FILE="{_value(layout.env_file)}",PYTHONUNBUFFERED="1"'
    )
    of_mover = (
        f'PYTHONPATH="{_value(layout.sources)}:{_value(layout.sluice)}",'
        f'CAPTIONS_ENV_FILE="{_value(layout.mover_env_file)}",PYTHONUNBUFFERED="1"'
    )
    gunicorn = [
        str(python), "-m", "gunicorn", "--config", "python:captions.gunicorn_conf",
        "--bind", f"{LOOPBACK}:{state.web_port}",
    ]  # fmt: skip
    options = state.options
    sections = [
        "; Written by scripts/lab; changes are lost.",
        "[supervisord]",
        f"logfile={_value(layout.logs / 'supervisord.log')}",
        f"pidfile={_value(layout.supervisor_pid_file)}",
        f"childlogdir={_value(layout.logs)}",
        f"directory={_value(layout.directory)}",
        "identifier=sluice-lab",
        "loglevel=info",
        "umask=077",
        *(["user=root"] if os.geteuid() == 0 else []),
        "[unix_http_server]",
        f"file={_value(layout.supervisor_socket)}",
        "chmod=0700",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "[supervisorctl]",
        f"serverurl=unix://{_value(layout.supervisor_socket)}",
        *_program(layout, "mariadb", mariadb.command(), autostart=True, priority=10, stop_seconds=60),
        *_program(layout, "redis", redis.command(), autostart=True, priority=10, stop_seconds=60),
        *_program(layout, "web", gunicorn, priority=20, stop_seconds=40, environment=environment),
        *_program(
            layout,
            "legacy",
            [str(python), "-m", "captions.legacy", "--name", "%(program_name)s_%(process_num)d"],
            priority=30,
            stop_seconds=120,
            environment=environment,
            count=options.legacy,
        ),
        *_program(
            layout,
            "rqworkers",
            [
                *[str(python), "-m", "captions.rqworker", "--name", "rq_%(process_num)d"],
                *(["--simple"] if options.rq_simple else []),
            ],
            priority=30,
            stop_seconds=120,
            environment=environment,
            count=options.rq,
            process_name="rq_%(process_num)d",
        ),
        *_program(
            layout,
            "mover",
            [str(python), "-m", "captions.mover"],
            priority=30,
            stop_seconds=30,
            environment=of_mover,
        ),
    ]
    text = "\n".join(sections) + "\n"
    if layout.supervisor_config.exists() and layout.supervisor_config.read_text(encoding="utf-8") == text:
        return False
    write_private(layout.supervisor_config, text)
    return True


class Supervisor:
    """Talks to the lab's supervisord over its unix socket."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._proxy = xmlrpc.client.ServerProxy(
            "http://lab", transport=_UnixTransport(layout.supervisor_socket), allow_none=True
        )

    def _call(self, method: str, *arguments: object) -> Any:
        return getattr(self._proxy.supervisor, method)(*arguments)

    @property
    def running(self) -> bool:
        """Whether supervisord answers."""
        try:
            return str(self._call("getState")["statename"]) in ("RUNNING", "RESTARTING")
        except (OSError, http.client.HTTPException):
            return False

    @property
    def pid(self) -> int | None:
        """Supervisord's process id, from itself; None when it does not answer."""
        try:
            return int(self._call("getPID"))
        except (OSError, http.client.HTTPException):
            return None

    def start_daemon(self) -> None:
        """Start supervisord and wait until it answers."""
        log = self._layout.logs / "supervisord.log"
        done = subprocess.run(
            [str(self._layout.python), "-m", "supervisor.supervisord", "-c", str(self._layout.supervisor_config)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip().splitlines()
            raise StoreError(f"supervisord did not start: {reason[-1] if reason else 'no reason given'}; see {log}")
        wait_for("supervisord", lambda: self.running, 15, lambda: True, log)

    def reload_config(self) -> None:
        """Take over a changed configuration: processes of changed groups end, the new ones are started by name."""
        added, changed, removed = self._call("reloadConfig")[0]
        for group in [*changed, *removed]:
            self._call("stopProcessGroup", group, True)
            self._call("removeProcessGroup", group)
        for group in [*added, *changed]:
            self._call("addProcessGroup", group)

    def processes(self) -> list[ProcessState]:
        """Every process that is defined."""
        return [
            ProcessState(entry["group"], entry["name"], entry["statename"], int(entry["pid"]), entry["description"])
            for entry in self._call("getAllProcessInfo")
        ]

    def start_group(self, group: str) -> list[str]:
        """Start what does not run in the group, wait until supervisord calls it running; the names started.

        StoreError names what did not stay up.
        """
        started = [
            process.name
            for process in self.processes()
            if process.group == group and process.state not in ("RUNNING", "STARTING")
        ]
        if started:
            results = self._call("startProcessGroup", group, True)
            failed = [
                f"{result['name']} ({result['description']})" for result in results if result["status"] != _SUCCESS
            ]
            if failed:
                raise StoreError(f"{', '.join(failed)} did not start; the log is in {self._layout.logs}")
        return started

    def alive(self, group: str) -> bool:
        """Whether no process of the group has failed to start."""
        return all(p.state not in ("FATAL", "EXITED") for p in self.processes() if p.group == group)

    def signal(self, process: str, name: str) -> None:
        """Send a signal, by its name without SIG, to a process (``group:name`` where the two differ)."""
        self._call("signalProcess", process, name)

    def stop_group(self, group: str) -> None:
        """Stop the group in order and wait for it."""
        self._call("stopProcessGroup", group, True)

    def shut_down(self) -> None:
        """End applications first, the stores last, then supervisord itself; wait until its process is gone."""
        pid = self.pid
        groups = sorted({process.group for process in self.processes()}, key=lambda group: group in _STORES)
        for group in groups:
            self.stop_group(group)
        self._call("shutdown")
        deadline = time.monotonic() + 60
        while pid is not None and _exists(pid):
            if time.monotonic() > deadline:
                raise StoreError(f"supervisord (process {pid}) did not end within 60 s; see {self._layout.logs}")
            time.sleep(0.05)


def leftovers(layout: Layout) -> list[int]:
    """Processes of this lab whose supervisord was killed: they work in the lab's directory, under our user."""
    found = []
    inside = str(layout.directory.resolve())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if entry.stat().st_uid != os.getuid():
                continue
            where = str((entry / "cwd").readlink())
            command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue  # it ended while we looked
        # A shell or an editor that somebody has open in there is not ours.
        ours = any(word in command for word in ("mariadbd", "redis-server", "captions.", "supervisor.supervisord"))
        if ours and (where == inside or where.startswith(inside + "/")):
            found.append(int(entry.name))
    return sorted(found)


def end_leftovers(layout: Layout) -> int:
    """End them in order, and by force what is still there after half a minute; how many there were."""
    pids = leftovers(layout)
    for number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        for pid in leftovers(layout):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while any(_exists(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
    remaining = [pid for pid in pids if _exists(pid)]
    if remaining:
        raise StoreError(f"processes {remaining} of an earlier lab in {layout.directory} do not end; end them by hand")
    return len(pids)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("lab", timeout=180)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        return _UnixConnection(self._path)


def _program(
    layout: Layout,
    name: str,
    command: list[str],
    *,
    priority: int,
    stop_seconds: int,
    autostart: bool = False,
    environment: str = "",
    count: int | None = None,
    process_name: str = "%(program_name)s_%(process_num)d",
) -> list[str]:
    if count == 0:
        return []
    # A "%" of ours starts an expression; one in a path does not.
    words = [word if word.startswith("%(") or "%(process_num)d" in word else _value(word) for word in command]
    lines = [
        f"[program:{name}]",
        "command=" + " ".join(f'"{word}"' if " " in word else word for word in words),
        f"autostart={'true' if autostart else 'false'}",
        "autorestart=true",
        "startsecs=1",
        "startretries=5",
        f"priority={priority}",
        "stopsignal=TERM",
        f"stopwaitsecs={stop_seconds}",
        "killasgroup=true",
        "redirect_stderr=true",
        f"stdout_logfile={_value(layout.logs / name)}{'_%(process_num)d' if count is not None else ''}.log",
        "stdout_logfile_maxbytes=20MB",
        "stdout_logfile_backups=1",
    ]
    if environment:
        lines.append(f"environment={environment}")
    if count is not None:
        lines += [f"numprocs={count}", f"process_name={process_name}"]
    return lines


def _value(value: object) -> str:
    return str(value).replace("%", "%%")


def _exists(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
