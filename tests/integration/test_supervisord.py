"""Workers under a real supervisord: how each ended is told apart."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.sluice.adapters.processes import Process, Processes
from ansible.module_utils.sluice.adapters.supervisord import SupervisordWorkers
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.errors import StoreError
from ansible.module_utils.sluice.services.drain import drain

from oracle.patience import PATIENCE_SECONDS, listens, until

WAIT = "open(sys.argv[1], 'w')\ntime.sleep(120)"
POLITE = f"import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n{WAIT}"
DEAF = f"import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{WAIT}"
RELOADING = (
    "import signal, sys, time\nsignal.signal(signal.SIGHUP, lambda *_: open(sys.argv[1] + '.again', 'w').close())\n"
    f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n{WAIT}"
)
HASTY = "import sys\nsys.exit(0)"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short directory: the path of a unix socket may have 107 characters only."""
    path = Path(tempfile.mkdtemp(prefix="sv-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def workers(directory: Path) -> Iterator[SupervisordWorkers]:
    programs = {"polite": POLITE, "deaf": DEAF, "impatient": DEAF, "idle": POLITE, "hasty": HASTY, "web": RELOADING}
    lines = [
        "[supervisord]",
        f"logfile={directory}/supervisord.log",
        f"pidfile={directory}/supervisord.pid",
        f"childlogdir={directory}",
        "[unix_http_server]",
        f"file={directory}/s.sock",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for name, source in programs.items():
        (directory / f"{name}.py").write_text(source)
        lines += [
            f"[program:{name}]",
            f"command={sys.executable} {directory}/{name}.py {directory}/{name}.up",
            "autostart=false",
            "autorestart=true",
            "startretries=0",
            "startsecs=1",
            f"stopwaitsecs={1 if name == 'impatient' else 60}",
        ]
    lines += ["[group:legacy]", "programs=polite,deaf"]
    (directory / "supervisord.conf").write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "supervisor.supervisord",
            "-n",
            "-c",
            str(directory / "supervisord.conf"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what tests beside this one run is none of its leftovers, whatever it hides
    )
    until(lambda: listens(directory / "s.sock"))
    yield SupervisordWorkers(str(directory / "s.sock"), "app1")
    if process.poll() is None:
        # Two ignore SIGTERM, and supervisord waits a minute for each of them.
        for group in ("legacy", "impatient"):
            SupervisordWorkers(str(directory / "s.sock"), "app1").kill(group)
        process.terminate()
    process.wait(PATIENCE_SECONDS)


def test_a_drain_tells_those_who_ended_from_those_it_killed(workers: SupervisordWorkers, directory: Path) -> None:
    assert workers.start("legacy") is True
    assert workers.start("legacy") is False
    until(lambda: all((directory / f"{name}.up").exists() for name in ("polite", "deaf")))
    clock = SystemClock()
    arguments = {"deadline": clock.now() + 5, "slice_seconds": 1.0}

    slices = [drain(lambda: {"high": {"leased": 0}}, [workers], "legacy", clock, **arguments)]
    while not slices[-1].done:
        slices.append(drain(lambda: {"high": {"leased": 0}}, [workers], "legacy", clock, **arguments))
    drained = slices.pop()
    assert all(("deaf", "STOPPING") in [(p.name, p.state) for p in before.running] for before in slices)
    assert [p.name for p in slices[-1].running] == ["deaf"]

    assert [process.name for process in drained.killed] == ["deaf"]
    assert [(process.name, process.exit) for process in drained.unproved] == [("deaf", -1)]
    ended = {process.name: process for process in workers.list("legacy")}
    assert ended["polite"].graceful
    assert not ended["deaf"].graceful
    assert workers.request_stop("legacy") is False
    assert workers.kill("legacy") == []


def test_what_started_supervisord_is_no_leftover_however_little_it_shows(
    workers: SupervisordWorkers, directory: Path
) -> None:
    """In a container the first process may hide its variables and be in the session of all others."""
    workers.start("idle")
    daemon = Processes().all()[int((directory / "supervisord.pid").read_text())]

    class Container(Processes):
        def environment(self, process: Process) -> Mapping[str, str] | None:
            return None if process.pid == 1 else super().environment(process)

        def look(self, pid: int) -> Process | None:
            seen = super().look(pid)
            return replace(seen, session=daemon.session) if seen and pid == 1 else seen

    assert Container().environment(Container().all()[1]) is None
    assert SupervisordWorkers(workers.socket_path, "app1", processes=Container()).leftovers("idle") == []


def test_what_supervisord_itself_killed_is_not_graceful(workers: SupervisordWorkers) -> None:
    workers.start("impatient")
    assert workers.request_stop("impatient") is True
    until(lambda: not workers.list("impatient")[0].alive)
    assert workers.list("impatient")[0].exit == -1


def test_what_never_ran_or_ended_at_once_has_no_known_exit(workers: SupervisordWorkers) -> None:
    [idle] = workers.list("idle")
    assert (idle.alive, idle.exit, idle.graceful) == (False, None, False)
    with pytest.raises(StoreError, match="hasty did not start"):
        workers.start("hasty")
    until(lambda: not workers.list("hasty")[0].alive)  # until its supervisor has given up
    [hasty] = workers.list("hasty")
    assert (hasty.alive, hasty.exit) == (False, None)


def test_a_reload_reaches_what_runs(workers: SupervisordWorkers, directory: Path) -> None:
    with pytest.raises(StoreError, match="nothing of 'web' runs"):
        workers.reload("web")
    workers.start("web")
    [before] = workers.list("web")
    assert workers.reload("web") is True
    until((directory / "web.up.again").exists)
    assert workers.list("web")[0].pid == before.pid


def test_errors_name_host_and_group(workers: SupervisordWorkers, directory: Path) -> None:
    with pytest.raises(
        StoreError, match=r"supervisord of app1.*no process group 'nobody'; known: hasty, idle, impatient"
    ):
        workers.list("nobody")
    with pytest.raises(StoreError, match="does not answer"):
        SupervisordWorkers(str(directory / "other.sock"), "app1").list("legacy")
