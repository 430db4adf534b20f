"""Redis is cut off from the control host only: a worker on a host that nobody reaches goes on talking to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.playbook_lab import ROOT, PlaybookLab, lab_in
from faults.scene import only_full
from oracle.patience import until, until_none

#: The scenario host_lost shows it on hosts in every run.
pytestmark = [pytest.mark.real, pytest.mark.slow, only_full, pytest.mark.timeout(1200)]

#: Nothing listens there: to the control host Redis is gone.
GONE = "redis://default:none@127.0.0.1:1/0"


@contextmanager
def worker_out_of_reach(settings: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One of captions' RQ workers with these settings, which no supervisor of ours knows."""
    with settings.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "captions.rqworker", "--name", "far", "--simple"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "app"), "CAPTIONS_ENV_FILE": str(settings)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def queued_in_redis(lab: PlaybookLab) -> int:
    """Jobs in RQ's lists."""
    with lab.redis as redis:
        return sum(int(redis.llen(f"rq:queue:{name}")) for name in ("urgent", "high", "normal", "low"))


def test_a_worker_that_still_reaches_redis_runs_nothing_it_no_longer_owns(tmp_path: Path) -> None:
    with lab_in(tmp_path / "lab", legacy=2, rq=1, work_ms=20) as lab:
        lab.run("migrate").done()
        far = tmp_path / "far.env"
        far.write_bytes(lab.layout.env_file.read_bytes())
        far.chmod(0o600)
        lab.lab.supervisor.stop_group("rqworkers")
        with lab.traffic(rate=5, hz=4):
            until(lambda: lab.count("custody = 'rq' AND status = 'queued'") >= 60, "tasks born in RQ")
            lab.run("emergency-rollback", queue_redis_url=GONE, queue_run_reason="cut off").done()
        assert lab.count("custody <> 'db' AND status IN ('queued', 'running')") == 0
        before = queued_in_redis(lab)
        assert before >= 60, "Redis itself still has them all"

        # Its host was never reached. It takes every job there is, and can begin none: its account is locked.
        with worker_out_of_reach(far) as worker:
            until_none(lambda: queued_in_redis(lab), "jobs that the far worker has not taken")
            assert worker.poll() is None

        again = lab.run("emergency-rollback", queue_run_reason="cut off").done()
        assert "this run's now" in again.output
        assert lab.phase == "cleaned"
        lab.clean()
