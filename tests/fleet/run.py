"""A fleet at work: its hosts started and ended, a playbook run over them, and what was seen of both."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
STEPS = Path(__file__).with_name("steps.yml")
#: What every host of a fleet has in common.
VARIABLES: dict[str, Any] = {
    "ansible_connection": "local",
    "ansible_pipelining": True,
    "queue_supervisor": "supervisord",
    "queue_units": {"web": [], "legacy": [], "rqworkers": []},
    "queue_settings_off": {"RQ_ENABLED": "false"},
    "queue_settings_on": {"RQ_ENABLED": "true"},
    "queue_settings_polling_off": {"DATABASE_POLLING_ENABLED": "false"},
    "queue_health_on": {"rq_enabled": True},
    "queue_archived_files": ["{{ queue_env_file }}"],
    "queue_workers_deadline": 30,
    "queue_run_owner": "fleet",
    "queue_run_id": "fleet-1",
}
_PLAY = re.compile(r"PLAY (?:\[([^|\]]+?) \||RECAP)")
_RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """How a playbook over a fleet ended."""

    status: int
    output: str
    #: Seconds of each play, by the first word or words of its name.
    seconds: dict[str, float]

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """What Ansible counted, by host."""
        words = ("ok", "changed", "unreachable", "failed")
        return {name: dict(zip(words, map(int, rest), strict=True)) for name, *rest in _RECAP.findall(self.output)}


@dataclass
class Fleet:
    """Simulated hosts that answer."""

    directory: Path
    names: Sequence[str]

    @property
    def python(self) -> Path:
        """A Python with nothing installed into it, as application hosts have one."""
        return self.directory / "python" / "bin" / "python3"

    def calls(self) -> list[tuple[str, str]]:
        """Host and what was asked of it, in order."""
        lines = (self.directory / "calls.jsonl").read_text(encoding="utf-8").splitlines()
        return [(name, what) for name, what in map(json.loads, lines)]

    def by_host(self) -> dict[str, Counter[str]]:
        """How often each thing was asked of each host."""
        found: dict[str, Counter[str]] = {name: Counter() for name in self.names}
        for name, what in self.calls():
            found[name][what] += 1
        return found

    def of(self, name: str) -> Path:
        """The directory of a host."""
        return self.directory / f"{self.names.index(name) + 1:03}"

    def variables(self, name: str, **changed: Any) -> None:
        """Change what the inventory says of a host; one that it does not know is added."""
        inventory = self._inventory()
        hosts = inventory["children"]["app"]["hosts"]
        hosts[name] = {**hosts.get(name, {}), **changed}
        self._keep(inventory)

    def share(self) -> None:
        """Write what all hosts have in common into the inventory."""
        self._keep({**self._inventory(), "vars": {**VARIABLES, "ansible_python_interpreter": str(self.python)}})

    def _inventory(self) -> dict[str, Any]:
        whole: dict[str, dict[str, Any]] = json.loads((self.directory / "hosts.yml").read_text(encoding="utf-8"))
        return whole["all"]

    def _keep(self, inventory: dict[str, Any]) -> None:
        (self.directory / "hosts.yml").write_text(json.dumps({"all": inventory}), encoding="utf-8")

    def play(self, book: Path = STEPS, *, forks: int = 5, seconds: float = 1800.0, **variables: Any) -> Outcome:
        """Run a playbook over the hosts."""
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                *("-i", str(self.directory / "hosts.yml"), "--forks", str(forks)),
                *("-e", json.dumps(variables)),
                str(book),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        lines, marks, until = [], [], time.monotonic() + seconds
        try:
            for line in process.stdout:
                lines.append(line)
                if found := _PLAY.match(line):
                    marks.append((found[1] or "recap", time.monotonic()))
                assert time.monotonic() < until, "".join(lines)
            status = process.wait(30)
        finally:
            process.kill()
            process.wait()
        ends = [at for _, at in marks[1:]] + [time.monotonic()]
        return Outcome(
            status,
            "".join(lines),
            {name: end - at for (name, at), end in zip(marks, ends, strict=True) if name != "recap"},
        )


@contextmanager
def fleet_of(count: int) -> Iterator[Fleet]:
    """So many hosts, until the end of the context. In a short directory: a unix socket's path has 107 characters."""
    directory = Path(tempfile.mkdtemp(prefix="fl-"))
    venv.create(directory / "python", symlinks=True, with_pip=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "fleet.hosts", str(directory), str(count)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        start_new_session=True,  # as a daemon has: its session is nobody else's
    )
    try:
        until = time.monotonic() + 60
        while not (directory / "hosts.yml").exists():
            assert process.poll() is None, "the hosts ended"
            assert time.monotonic() < until, "the hosts do not answer"
            time.sleep(0.02)
        fleet = Fleet(directory, [f"app{number:03}" for number in range(1, count + 1)])
        fleet.share()
        yield fleet
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(directory)
