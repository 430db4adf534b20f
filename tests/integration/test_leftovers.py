"""What RQ's workers leave running when they are killed: found under a real supervisord, waited for, ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible.module_utils.sluice.adapters import processes as host
from ansible.module_utils.sluice.adapters.processes import Process, Processes
from ansible.module_utils.sluice.adapters.supervisord import SupervisordWorkers
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.errors import StoreError
from ansible.module_utils.sluice.ports.surroundings import WorkerProcess
from ansible.module_utils.sluice.services.drain import drain
from ansible.module_utils.testing import patch_module_args
from redis import Redis
from rq import Queue

from lab.stores import PrivateRedis
from oracle.patience import listens, until

pytestmark = pytest.mark.real


@dataclass
class Daemon:
    """One supervisord with its groups, each of one RQ worker on a queue of the group's name."""

    folder: Path
    redis_url: str
    process: subprocess.Popen[bytes]

    @property
    def workers(self) -> SupervisordWorkers:
        return SupervisordWorkers(str(self.folder / "s.sock"), "app1")

    def run_job(self, queue: str, seconds: float) -> int:
        """Let the queue's worker begin a job; the pid of its horse."""
        client = Redis.from_url(self.redis_url)
        job = Queue(queue, connection=client).enqueue(time.sleep, seconds)
        until(lambda: job.get_status(refresh=True) == "started")
        client.close()
        [main] = self.workers.list(queue)
        return children(main.pid)[-1]  # the newest, after a scheduler

    def with_scheduler(self, group: str) -> tuple[WorkerProcess, int]:
        """The group's worker and the pid of its scheduler, when that is its one child.

        A worker on its way up has short-lived children as well; the lock is taken right before the scheduler starts.
        """
        [main] = self.workers.list(group)
        client = Redis.from_url(self.redis_url)
        until(lambda: client.exists(f"rq:scheduler-lock:{group}") == 1 and len(children(main.pid)) == 1)
        client.close()
        [scheduler] = children(main.pid)
        return main, scheduler

    def kill_worker(self, group: str) -> None:
        """kill -9 of the worker alone, and wait until another one, started by supervisord, waits for jobs."""
        [main] = self.workers.list(group)
        os.kill(main.pid, signal.SIGKILL)
        client = Redis.from_url(self.redis_url, decode_responses=True)

        def waiting() -> bool:
            now = str(self.workers.list(group)[0].pid)
            keys = client.keys("rq:worker:*")
            assert isinstance(keys, list)
            states = [client.hmget(key, "pid", "state") for key in keys if client.type(key) == "hash"]
            return now != str(main.pid) and [now, "idle"] in states

        until(waiting)
        client.close()


def children(pid: int) -> list[int]:
    return sorted(process.pid for process in Processes().all().values() if process.parent == pid)


def runs(pid: int) -> bool:
    return Processes().look(pid) is not None


def start(folder: Path, redis_url: str, groups: Mapping[str, str]) -> Daemon:
    lines = [
        "[supervisord]",
        f"logfile={folder}/supervisord.log",
        f"pidfile={folder}/supervisord.pid",
        f"childlogdir={folder}",
        "[unix_http_server]",
        f"file={folder}/s.sock",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for name, options in groups.items():
        lines += [
            f"[program:{name}]",
            f"command={sys.executable} -m rq.cli worker --url {redis_url} {options or name}",
            "autostart=false",
            "autorestart=true",
            "startsecs=0",
            "stopwaitsecs=60",
            f"stdout_logfile={folder}/{name}.log",
            "redirect_stderr=true",
        ]
    (folder / "supervisord.conf").write_text("\n".join(lines) + "\n")
    arguments = [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-n", "-c"]
    process = subprocess.Popen(
        [*arguments, str(folder / "supervisord.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: listens(folder / "s.sock"))
    return Daemon(folder, redis_url, process)


@pytest.fixture
def begin(redis_url: str, redis_server: PrivateRedis) -> Iterator[Callable[..., Daemon]]:
    """Start supervisords; at the end nothing that they or their workers started is left."""
    made: list[Daemon] = []

    def one(**groups: str) -> Daemon:
        # A short directory: the path of a unix socket may have 107 characters only.
        made.append(start(Path(tempfile.mkdtemp(prefix="sv-")), redis_url, groups))
        for name in groups:
            made[-1].workers.start(name)
        return made[-1]

    yield one
    for daemon in made:
        daemon.process.kill()
        daemon.process.wait()
        for process in Processes().all().values():
            variables = Processes().environment(process) or {}
            if variables.get("SUPERVISOR_SERVER_URL") == f"unix://{daemon.folder}/s.sock":
                Processes().send(process, signal.SIGKILL)
        shutil.rmtree(daemon.folder)


def test_a_horse_outlives_its_worker_and_is_found_and_ended(begin: Callable[..., Daemon]) -> None:
    """The group next to it, and one of the same name under another supervisord, are not touched."""
    mine, other = begin(high="", low=""), begin(high="urgent")
    horse, beside = mine.run_job("high", 120), mine.run_job("low", 120)
    assert mine.workers.leftovers("high") == []
    assert mine.workers.leftovers("low") == []  # a horse of a living worker is none

    mine.kill_worker("high")
    assert runs(horse)
    [left] = mine.workers.leftovers("high")
    assert (left.pid, left.name, left.state, left.alive) == (horse, f"high/{horse}", "LEFTOVER", True)
    assert mine.workers.leftovers("low") == []
    assert other.workers.leftovers("high") == []

    [theirs] = other.workers.list("high")
    killed = mine.workers.kill("high")
    assert {process.name for process in killed} == {"high", f"high/{horse}"}
    assert not runs(horse)
    assert not any(process.alive for process in mine.workers.list("high"))
    assert mine.workers.leftovers("high") == []
    assert mine.workers.kill("high") == []

    assert runs(beside)
    assert [process.alive for process in mine.workers.list("low")] == [True]
    assert other.workers.list("high")[0].pid == theirs.pid
    assert runs(theirs.pid)


def test_a_kill_ends_the_horses_of_workers_that_live(begin: Callable[..., Daemon]) -> None:
    daemon = begin(high="--with-scheduler high")
    main, _ = daemon.with_scheduler("high")
    horse = daemon.run_job("high", 120)
    family = [main.pid, *children(main.pid)]
    assert horse in family and len(family) >= 3  # worker, scheduler, horse
    killed = daemon.workers.kill("high")
    assert not any(runs(pid) for pid in family)
    assert {process.pid for process in killed} == set(family)


def test_a_scheduler_outlives_its_worker_and_ends_when_asked(begin: Callable[..., Daemon]) -> None:
    """A drain asks it, lets the horse finish, and calls neither proved."""
    daemon = begin(high="--with-scheduler high")
    client = Redis.from_url(daemon.redis_url)
    _, scheduler = daemon.with_scheduler("high")
    horse = daemon.run_job("high", 6)
    daemon.kill_worker("high")
    assert {process.pid for process in daemon.workers.leftovers("high")} == {scheduler, horse}

    clock = SystemClock()
    arguments = {"deadline": clock.now() + 60, "slice_seconds": 1.0}
    drained = drain(dict, [daemon.workers], "high", clock, **arguments)
    assert not drained.done
    assert f"high/{horse}" in [process.name for process in drained.running]
    while not drained.done:
        drained = drain(
            dict, [daemon.workers], "high", clock, **arguments, first=False, leftovers=drained.leftovers
        )  # fmt: skip
    assert list(drained.killed) == []
    assert {process.pid for process in drained.unproved} == {scheduler, horse}
    assert not runs(scheduler) and not runs(horse)
    assert client.zcard("rq:finished:high") == 1  # the horse was let finish
    client.close()


def test_a_leftover_at_the_deadline_is_killed(begin: Callable[..., Daemon]) -> None:
    daemon = begin(high="")
    horse = daemon.run_job("high", 120)
    daemon.kill_worker("high")
    clock = SystemClock()
    drained = drain(dict, [daemon.workers], "high", clock, deadline=clock.now() + 3, slice_seconds=30)
    assert drained.done
    assert [process.pid for process in drained.killed if process.leftover] == [horse]
    assert not runs(horse)


def test_a_worker_killed_at_this_moment_is_not_started_again_behind_a_kill(begin: Callable[..., Daemon]) -> None:
    """supervisord has not looked yet, or has: neither leaves a worker."""
    daemon = begin(high="")
    [main] = daemon.workers.list("high")
    os.kill(main.pid, signal.SIGKILL)
    daemon.workers.kill("high")
    time.sleep(2.5)  # longer than supervisord takes to start again what ended: nothing must come
    assert [(process.pid, process.alive) for process in daemon.workers.list("high")] == [(0, False)]


def test_workers_without_their_supervisord_are_ended_and_it_is_said(begin: Callable[..., Daemon]) -> None:
    daemon = begin(high="")
    horse = daemon.run_job("high", 120)
    [main] = daemon.workers.list("high")
    daemon.process.kill()
    daemon.process.wait()
    assert runs(main.pid)
    with pytest.raises(StoreError, match=r"does not answer.*'high' was killed: high/"):
        daemon.workers.kill("high")
    assert not runs(main.pid) and not runs(horse)


def test_what_cannot_be_read_is_reported_and_left_alone(begin: Callable[..., Daemon]) -> None:
    daemon = begin(high="")
    horse = daemon.run_job("high", 120)
    daemon.kill_worker("high")

    class Foreign(Processes):
        def environment(self, process: Process) -> Mapping[str, str] | None:
            return None if process.pid == horse else super().environment(process)

    workers = SupervisordWorkers(str(daemon.folder / "s.sock"), "app1", processes=Foreign())
    [left] = workers.leftovers("high")
    assert (left.pid, left.state, left.unknown) == (horse, "UNREADABLE", True)
    clock = SystemClock()
    drained = drain(dict, [workers], "high", clock, deadline=clock.now() + 60, slice_seconds=30)
    assert drained.done and not drained.clean  # it is not waited for
    assert [process.pid for process in drained.unproved] == [horse]
    workers.kill("high")
    assert runs(horse)


def test_a_kill_ends_horses_whose_variables_a_title_overwrote(begin: Callable[..., Daemon]) -> None:
    """As long as their worker lives it is known whose they are."""
    daemon = begin(high="")
    horse = daemon.run_job("high", 120)

    class Titled(Processes):
        def environment(self, process: Process) -> Mapping[str, str] | None:
            return None if process.pid == horse else super().environment(process)

    workers = SupervisordWorkers(str(daemon.folder / "s.sock"), "app1", processes=Titled())
    assert horse in {process.pid for process in workers.kill("high")}
    assert not runs(horse)


def test_a_reused_id_is_not_signalled() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        now = Processes().look(process.pid)
        assert now is not None
        before = Process(now.pid, now.parent, now.session, now.started - 1, now.user)
        assert Processes().send(before, signal.SIGKILL) is False
        assert runs(process.pid)
        assert Processes().send(now, signal.SIGKILL) is True
    finally:
        process.kill()
        process.wait()
    assert Processes().send(now, signal.SIGKILL) is False


def test_a_host_without_a_list_of_processes_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="processes cannot be listed"):
        Processes(tmp_path / "proc").all()
    assert host.family_ends_in(1, {1}, {}) is False


def test_the_module_kills_at_once_and_a_second_time_changes_nothing(
    begin: Callable[..., Daemon], capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    import queue_workers  # type: ignore[import-not-found]

    daemon = begin(high="")
    horse = daemon.run_job("high", 120)
    daemon.kill_worker("high")

    def call(state: str, check: bool = False) -> dict[str, object]:
        arguments: dict[str, object] = {
            "supervisor": "supervisord", "socket": str(daemon.folder / "s.sock"), "group": "high",
            "host_label": "app1", "state": state, "_ansible_check_mode": check,
        }  # fmt: skip
        with patch_module_args(arguments), pytest.raises(SystemExit):
            queue_workers.main()
        result: dict[str, object] = json.loads(capsys.readouterr().out)
        return result

    listed = call("listed")
    assert listed["changed"] is False
    assert [process["pid"] for process in listed["leftovers"]] == [horse]  # type: ignore[attr-defined]
    assert call("killed", check=True)["changed"] is True
    assert runs(horse)
    killed = call("killed")
    assert killed["changed"] is True
    assert {process["name"] for process in killed["killed"]} == {"high", f"high/{horse}"}  # type: ignore[attr-defined]
    assert killed["leftovers"] == []
    assert not runs(horse)
    again = call("killed")
    assert (again["changed"], again["killed"]) == (False, [])
    assert [process["name"] for process in again["unproved"]] == ["high"]  # type: ignore[attr-defined]
    assert call("killed", check=True)["changed"] is False
