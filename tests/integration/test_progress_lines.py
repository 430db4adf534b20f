"""Lines of a long step as ansible-playbook prints them, and what is left of it when ansible-playbook alone is killed.

Ansible, its local connection and the action plugin are real; the module only waits, and writes lines with the real
reporter, so that the time it takes is known.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT
from oracle.patience import PATIENCE_SECONDS, until

pytestmark = pytest.mark.slow

MODULE = """#!/usr/bin/python
from __future__ import annotations
import os, time
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.shell import progress

def main():
    module = AnsibleModule(
        argument_spec={**progress.OPTION, "proof": {"type": "path"}, "seconds": {"type": "list", "elements": "float"}},
        supports_check_mode=True,
    )
    until, silent = module.params["seconds"]
    begun = time.monotonic()
    with open(module.params["proof"], "w") as proof:
        proof.write(str(os.getpid()))
    with progress.Reporter(module.params["progress_file"], SystemClock()) as reporter:
        reporter.stage("balance, reading", "sightings")
        while (passed := time.monotonic() - begun) < until:
            reporter(int(passed * 1000), int(until * 1000))
            time.sleep(0.1)
        over = module.params["proof"] + ".over"
        while time.monotonic() - begun < until + silent and not os.path.exists(over):
            time.sleep(0.1)
    module.exit_json(changed=False, lines=["the balance holds"])

if __name__ == "__main__":
    main()
"""

#: Stands in for ssh: Ansible's ssh connection is real, and the command at its end runs on this host.
SSH = """#!/bin/bash
printf '%s\\n' "${@: -1}" >>"$0.commands"
exec /bin/sh -c "${@: -1}"
"""


class Play:
    """One playbook of one task, run by ansible-playbook in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        working: float,
        silent: float,
        *arguments: str,
        connection: str = "local",
        module: str = MODULE,
    ) -> None:
        library = folder / "library"
        library.mkdir()
        (library / "queue_verify.py").write_text(module)
        ssh = folder / "ssh"
        ssh.write_text(SSH)
        ssh.chmod(0o700)
        self.proof = folder / "module"
        self.remote = folder / "remote"
        self.log = folder / "log"
        task = {
            "name": "Take the balance",
            "queue_verify": {"proof": str(self.proof), "seconds": [working, silent]},
        }
        play = folder / "play.yml"
        play.write_text(
            json.dumps(
                [
                    {
                        "name": "Verify",
                        "hosts": "localhost",
                        "connection": connection,
                        "gather_facts": False,
                        "tasks": [task],
                    }
                ]
            )
        )
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("ansible-playbook")),
                    *("-i", "localhost,", "-e", f"ansible_python_interpreter={sys.executable}"),
                    *("-e", f"ansible_remote_tmp={self.remote}"),
                    *("-e", f"ansible_ssh_executable={ssh} ansible_ssh_transfer_method=piped"),
                    str(play),
                    *arguments,
                ],
                env={
                    **os.environ,
                    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                    "ANSIBLE_LIBRARY": str(library),
                    "ANSIBLE_LOCAL_TEMP": str(folder / "controller"),
                    "ANSIBLE_NOCOLOR": "1",
                    "LC_ALL": "C.UTF-8",
                },
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """What was printed so far."""
        return self.log.read_text()

    @property
    def lines(self) -> list[str]:
        """Those of the step."""
        return [line for line in self.output.splitlines() if line.startswith("  ")]

    def left(self) -> list[str]:
        """Files and folders of this task on the host."""
        return sorted(str(path.relative_to(self.remote)) for path in self.remote.rglob("*"))


def children_of(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in listing.split()]


@pytest.fixture
def started() -> Iterator[list[Play]]:
    """Plays that are ended with the test, whatever happens."""
    plays: list[Play] = []
    yield plays
    for play in plays:
        for pid in [*children_of(play.process.pid), play.process.pid] if play.process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        play.process.wait()


@pytest.mark.parametrize(
    ("connection", "arguments"), [("local", ()), ("local", ("--check",)), ("ssh", ())], ids=["local", "check", "ssh"]
)
def test_a_long_step_says_how_far_it_is_and_then_that_it_is_at_work(
    tmp_path: Path, started: list[Play], connection: str, arguments: tuple[str, ...]
) -> None:
    play = Play(tmp_path, 4.0, 300.0, *arguments, connection=connection)
    started.append(play)
    until(lambda: "still at work" in play.output or play.process.poll() is not None, lambda: play.output)
    play.proof.with_name("module.over").touch()
    assert play.process.wait(PATIENCE_SECONDS) == 0, play.output
    *readings, still, last = play.lines
    # One, or more where the module was slow to begin; the last of them is of the module's last moments.
    expected = r"  balance, reading: [\d,]+ of 4,000, [\d,]+ sightings/s, \d s left"
    assert readings and all(re.fullmatch(expected, line) for line in readings), play.output
    assert "reading: 3," in readings[-1], play.output
    silent = re.fullmatch(re.escape(readings[-1]) + r", still at work after (\d+) s", still)
    assert silent and int(silent[1]) >= 14, play.output
    assert last == "  the balance holds"
    commands = tmp_path / "ssh.commands"
    assert ("tail -n 1 " in commands.read_text()) if connection == "ssh" else not commands.exists()
    assert play.left() == []


def test_ansible_killed_alone_leaves_no_file_and_no_process(tmp_path: Path, started: list[Play]) -> None:
    play = Play(tmp_path, 9.0, 0.0)
    started.append(play)
    until(lambda: bool(play.lines), lambda: play.output)
    assert any(name.endswith("/progress") for name in play.left())
    [worker] = [pid for pid in children_of(play.process.pid) if "ansible-playbook" in _command(pid)]
    module = int(play.proof.read_text())
    play.process.kill()
    play.process.wait()
    assert _alive(module), "the module goes on: only ansible-playbook was killed"
    until(lambda: not _alive(module), lambda: "the module does not end")
    until(lambda: not _alive(worker), lambda: "the worker process, with its thread, does not end")
    assert play.left() == []
    assert len(play.lines) == 1, "a line was shown to nobody"


def test_a_module_that_cannot_begin_says_what_its_host_lacks(tmp_path: Path, started: list[Play]) -> None:
    play = Play(tmp_path, 0.0, 0.0, module=MODULE.replace("import os, time", "import os, time, no_such_driver"))
    started.append(play)
    assert play.process.wait(PATIENCE_SECONDS) == 2, play.output
    [message] = [line for line in play.output.splitlines() if line.startswith("fatal:")]
    assert message.endswith("No module named 'no_such_driver'"), play.output


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
