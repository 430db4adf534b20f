"""Simulated application hosts: ``python -m fleet.hosts DIRECTORY COUNT``; serves until SIGTERM.

Each host has a directory, a settings file, a supervisor on a unix socket that speaks supervisord's XML-RPC, and web
processes that answer at a loopback port with the settings that they read when they were last told to. What is asked of
them is appended to ``calls.jsonl``. A host with a file named ``deaf`` in its directory keeps the settings that it has.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import xmlrpc.client
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
_STATES = {"STOPPED": 0, "RUNNING": 20}
_SETTINGS = "RQ_ENABLED=false\nDATABASE_POLLING_ENABLED=true\nDATABASE_URL=mysql+pymysql://app@db/captions\n"


@dataclass
class Host:
    """One simulated host."""

    name: str
    directory: Path
    said: Callable[[str, str], None]
    port: int = 0
    states: dict[str, str] = field(default_factory=dict)
    in_force: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.env_file = self.directory / "app.env"
        self.socket = self.directory / "s"
        self.env_file.touch(mode=0o600)
        self.env_file.write_text(_SETTINGS)
        self.states = {"web": "RUNNING", "legacy": "RUNNING", "rqworkers": "STOPPED"}
        self.read_settings()

    def read_settings(self) -> None:
        """What web processes do when they are told to, and when they start."""
        lines = (line.partition("=") for line in self.env_file.read_text().splitlines())
        self.in_force = {name: value.strip("'\"") for name, _, value in lines}

    def health(self) -> dict[str, object]:
        """What a web process says of itself."""
        self.said(self.name, f"health {self.in_force['RQ_ENABLED']}")
        return {"rq_enabled": self.in_force["RQ_ENABLED"] == "true"}

    # -- supervisord's own calls, as far as they are used -------------------------------------------------------

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Answer one of supervisord's methods.

        :raises AttributeError: one that is not simulated
        """
        word = method.removeprefix("supervisor.")
        self.said(self.name, " ".join([word, *map(str, arguments)]))
        answer: Any = getattr(self, f"_{word}")(*arguments)
        return answer

    def _getPID(self) -> int:  # noqa: N802  (supervisord's name)
        return os.getpid()

    def _getAllProcessInfo(self) -> list[dict[str, Any]]:  # noqa: N802
        now = int(time.time())
        return [
            {
                "name": group,
                "group": group,
                "pid": os.getpid() if state == "RUNNING" else 0,
                "state": _STATES[state],
                "statename": state,
                "start": 1 if group != "rqworkers" or state == "RUNNING" else 0,
                "stop": 1,
                "now": now,
                "exitstatus": 0,
                "spawnerr": "",
                "description": "simulated",
            }
            for group, state in self.states.items()
        ]

    def _startProcessGroup(self, group: str, _wait: bool) -> list[dict[str, Any]]:  # noqa: N802
        self.states[group] = "RUNNING"
        return [{"name": group, "group": group, "status": 80, "description": "OK"}]

    def _stopProcessGroup(self, group: str, _wait: bool) -> list[dict[str, Any]]:  # noqa: N802
        self.states[group] = "STOPPED"
        return [{"name": group, "group": group, "status": 80, "description": "OK"}]

    def _signalProcessGroup(self, group: str, name: str) -> list[dict[str, Any]]:  # noqa: N802
        if (group, name) == ("web", "HUP") and not (self.directory / "deaf").exists():
            self.read_settings()
        return [{"name": group, "group": group, "status": 80, "description": "OK"}]


async def _serve(host: Host) -> list[asyncio.Server]:
    async def health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _request(reader)
        await _answer(writer, "application/json", json.dumps(host.health()).encode())

    async def supervisor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arguments, method = xmlrpc.client.loads(await _request(reader))
        try:
            body = xmlrpc.client.dumps((host.call(str(method), arguments),), methodresponse=True, allow_none=True)
        except AttributeError:
            body = xmlrpc.client.dumps(xmlrpc.client.Fault(1, f"UNKNOWN_METHOD {method}"))
        await _answer(writer, "text/xml", body.encode())

    web = await asyncio.start_server(health, LOOPBACK, 0)
    host.port = web.sockets[0].getsockname()[1]
    return [web, await asyncio.start_unix_server(supervisor, host.socket)]


async def _request(reader: asyncio.StreamReader) -> bytes:
    """The body of an HTTP request; empty when it has none."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
    return await reader.readexactly(int(lengths[0])) if lengths else b""


async def _answer(writer: asyncio.StreamWriter, kind: str, body: bytes) -> None:
    head = f"HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    writer.close()


async def run(directory: Path, count: int) -> None:
    """Serve ``count`` hosts; their inventory is there when all of them answer."""
    with (directory / "calls.jsonl").open("a", buffering=1) as calls:

        def said(name: str, what: str) -> None:
            calls.write(json.dumps([name, what]) + "\n")

        hosts = [Host(f"app{number:03}", directory / f"{number:03}", said) for number in range(1, count + 1)]
        servers = [server for host in hosts for server in await _serve(host)]
        shown = {
            host.name: {
                "queue_supervisor_socket": str(host.socket),
                "queue_env_file": str(host.env_file),
                "queue_archive_dir": str(host.directory / "archive"),
                "queue_health_url": f"http://{LOOPBACK}:{host.port}/health",
            }
            for host in hosts
        }
        groups = {"app": {"hosts": shown}, "workers": {"hosts": dict.fromkeys(shown, None)}}
        partial = directory / "hosts.partial"
        partial.write_text(json.dumps({"all": {"children": groups}}))
        partial.rename(directory / "hosts.yml")
        over = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, over.set)
        await over.wait()
        for server in servers:
            server.close()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2])))
