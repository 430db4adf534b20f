"""Starts processes that have everything imported already: ``python -m faults.nursery``.

A mover or a worker spends most of its short life on imports. Here a process that has made them forks one for each
request. Requests and answers are JSON, a line each: ``{"run": MODULE, ...}`` gives the pid, ``{"poll": pid}`` the exit
status or null. The processes are the nursery's children; whoever asked ends them by their pid.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from faults import ROOT, TESTS
from oracle.patience import PATIENCE_SECONDS


class Nursery:
    """The asking side. ``clock`` is how many seconds ahead of this host its processes take themselves to be."""

    def __init__(self, before: Sequence[str] = ()) -> None:
        paths = os.pathsep.join(str(path) for path in (TESTS, ROOT / "app"))
        self._one_at_a_time = threading.Lock()
        self._process = subprocess.Popen(
            [*before, sys.executable, "-m", "faults.nursery"],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # it ends when nobody asks any more, not by a signal to whoever asks
        )

    def ask(self, request: Mapping[str, Any]) -> Any:
        """One request, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._one_at_a_time:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(self, module: str, *arguments: str, environment: Mapping[str, str], output: Path) -> Child:
        """A new process that runs a module of the nursery; ``output`` gets ``.out`` and ``.err``."""
        for stream in ("out", "err"):
            Path(f"{output}.{stream}").touch()  # the process opens them a moment later than it can be asked for
        pid = self.ask({"run": module, "arguments": arguments, "environment": environment, "output": str(output)})
        return Child(self, int(pid), output)

    def close(self) -> None:
        """End the nursery."""
        self._process.communicate()


@dataclass
class Child:
    """One process of a nursery."""

    nursery: Nursery
    pid: int
    output: Path
    _status: int | None = None

    @property
    def status(self) -> int | None:
        """Its exit status (negative: the signal that ended it), None while it lives."""
        if self._status is None:
            self._status = self.nursery.ask({"poll": self.pid})
        return self._status

    @property
    def frozen(self) -> bool:
        """Whether a signal has stopped it."""
        return self.status is None and Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

    @property
    def children(self) -> list[int]:
        """Pids of its own children."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def send(self, number: signal.Signals) -> None:
        """A signal, if it lives."""
        if self.status is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Its exit status; AssertionError when it does not end in time."""
        deadline = time.monotonic() + seconds
        while (status := self.status) is None:
            assert time.monotonic() < deadline, f"process {self.pid} did not end within {seconds:g} s"
            time.sleep(0.02)
        return status

    # The same in the words of subprocess.Popen: a scene has both.

    def poll(self) -> int | None:
        """Its exit status, None while it lives."""
        return self.status

    def send_signal(self, number: signal.Signals) -> None:
        """A signal, if it lives."""
        self.send(number)

    def terminate(self) -> None:
        """SIGTERM, if it lives."""
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, if it lives."""
        self.send(signal.SIGKILL)

    def said(self, stream: str) -> str:
        """What it wrote: ``out`` or ``err``."""
        return Path(f"{self.output}.{stream}").read_text(errors="replace")


def _programs() -> dict[str, Callable[[], object]]:
    import captions.legacy
    from faults import dying_worker, mover, queue_worker

    return {
        "mover": mover.main,
        "queue_worker": queue_worker.main,
        "dying_worker": dying_worker.main,
        "legacy": captions.legacy.main,
    }


def _run(program: Callable[[], object], request: Mapping[str, Any]) -> None:
    """In the child: ends the process."""
    code = 1
    try:
        for descriptor, ending in ((1, "out"), (2, "err")):
            file = os.open(f"{request['output']}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(file, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["environment"])
        sys.argv = [request["run"], *request["arguments"]]
        code = int(cast(int, program() or 0))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001  whatever it was, it must be seen
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> int:
    """Serve requests until there are no more; children that still live are the asking side's to end."""
    programs = _programs()
    for line in sys.stdin:
        request = json.loads(line)
        answer: int | None
        if "run" in request:
            answer = os.fork()
            if answer == 0:
                _run(programs[request["run"]], request)
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
