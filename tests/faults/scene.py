"""captions over the test's two stores, seen from outside: seed it, start movers and workers, judge what came of it."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import redis_connect, sql_connect
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.ports.ledger import Run

from faults import ROOT, TESTS
from faults.nursery import Child, Nursery
from oracle import backlog
from oracle.judge import Allowances, Evidence, Verdict, look_until_settled
from oracle.patience import PATIENCE_SECONDS
from oracle.picture import image_names
from stores_fixture import load_mapping

QUEUES = ("urgent", "high", "normal", "low")
#: SLUICE_TEST_FULL=1 runs the full sizes; else what fits into a few seconds a case.
FULL = os.environ.get("SLUICE_TEST_FULL", "") not in ("", "0")
#: For what another test shows in every run as well, in a smaller form or on hosts.
only_full = pytest.mark.skipif(not FULL, reason="runs with scripts/test --all")
_TABLES = (
    "caption_tasks",
    "sluice_run",
    "sluice_event",
    "sluice_task",
    "sluice_lease",
    "sluice_baseline",
    "sluice_meta",
)


#: What a nursery starts without its imports, by its module.
_IN_NURSERY = {"faults.mover": "mover", "faults.queue_worker": "queue_worker", "captions.legacy": "legacy"}

Process = subprocess.Popen[str] | Child


@cache
def nursery() -> Nursery:
    """The one of this test run."""
    made = Nursery()
    atexit.register(made.close)
    return made


@dataclass(frozen=True)
class Ending:
    """How a mover ended: its exit status (negative: signal) and what it printed."""

    status: int
    report: dict[str, Any]
    stderr: str


@dataclass
class Scene:
    """One test's application, run and processes. Everything it started is ended by :meth:`close`."""

    directory: Path
    database_url: str
    redis_url: str
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images_dir = self.directory / "images"
        self.effects = self.directory / "effects.jsonl"
        self.seeded = self.directory / "seeded"
        self.accepted = self.directory / "accepted.jsonl"
        self.env_file = self.directory / "captions.env"
        self.images = image_names(self.images_dir)
        for path in (self.effects, self.seeded, self.accepted):
            path.touch()
        self.env_file.touch(mode=0o600)
        settings = {
            "DATABASE_URL": self.database_url,
            "RQ_ENABLED": "true",
            "RQ_REDIS_URL": self.redis_url,
            "EFFECTS_FILE": self.effects,
            "IMAGES_DIR": self.images_dir,
            "POLL_INTERVAL_MS": 20,
        }
        self.env_file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()), encoding="utf-8")
        self.engine = sql_connect.connect(self.database_url)
        self.client = redis_connect.connect(self.redis_url)
        self.mapping = load_mapping()
        self.ledger = SqlLedger(self.engine, self.mapping.system)

    # -- what an operator did before ----------------------------------------------------------------------------

    def open_run(self) -> None:
        """Ledger, run and stamp, as after the preparation; nobody holds the lease."""
        self.ledger.install()
        run = Run(
            "run-1",
            self.mapping.system,
            "forward",
            "tester",
            Phase.OPENED,
            "",
            "",
            "stamp-1",
            datetime.now(UTC),
            None,
            {},
        )
        self.ledger.start_run(run)
        lease = self.ledger.take_lease(run, "preparation", 5)
        RqQueues(self.client, self.mapping).stamp(lease)
        self.ledger.give_up(lease)

    def seed(self, count: int, *, users_from: int = 10_000_000, **more: Any) -> None:
        """A backlog of queued tasks, its ids promised to the judge."""
        backlog.seed(
            self.database_url,
            backlog.Backlog(count=count, images=self.images, users_from=users_from, seed=7, **more),
            self.seeded,
        )

    def sql(self, statement: str, **values: object) -> Sequence[Any]:
        """Run one statement and commit; its rows, if it has any."""
        with self.engine.begin() as connection:
            done = connection.execute(sa.text(statement), values)
            return done.all() if done.returns_rows else ()

    # -- processes ----------------------------------------------------------------------------------------------

    def start(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        program: Sequence[str] = (),
    ) -> Process:
        """A Python module as a process, with the application's settings; URLs go by environment.

        Movers and workers come from the nursery, unless ``program`` says what runs them.
        """
        paths = os.pathsep.join(str(path) for path in (TESTS, ROOT / "app"))
        environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "CAPTIONS_ENV_FILE": str(self.env_file),
            "SLUICE_LAB_DB_URL": self.database_url,
            "SLUICE_LAB_REDIS_URL": self.redis_url,
            **(environment or {}),
        }
        output = self.directory / f"process-{len(self.processes)}"
        module, *options = arguments
        process: Process
        if not program and module in _IN_NURSERY:
            process = nursery().start(_IN_NURSERY[module], *options, environment=environment, output=output)
        else:
            with Path(f"{output}.out").open("w") as out, Path(f"{output}.err").open("w") as err:
                process = subprocess.Popen(
                    [*(program or (sys.executable, "-m")), *arguments],
                    env=environment,
                    stdout=out,
                    stderr=err,
                    text=True,
                )
        self.processes.append(process)
        return process

    def start_mover(self, *options: str) -> Process:
        """A mover; the options are those of ``faults.mover``."""
        return self.start("faults.mover", *options)

    def ending(self, process: Process, seconds: float = PATIENCE_SECONDS) -> Ending:
        """Wait for a mover."""
        status = process.wait(seconds)
        lines = self._said(process, "out").splitlines()
        return Ending(status, json.loads(lines[-1]) if lines else {}, self.log_of(process))

    def move(self, *options: str) -> Ending:
        """Run a mover to its end."""
        return self.ending(self.start_mover(*options))

    def move_to_the_end(self, *options: str) -> dict[str, Any]:
        """Run a mover that must finish; its totals."""
        ending = self.move(*options)
        assert ending.status == 0, (ending.report, ending.stderr)
        return ending.report

    def start_worker(self, name: str, *queues: str, simple: bool = True, burst: bool = True) -> Process:
        """One of RQ's own workers on queues (default: all)."""
        flags = [flag for flag, wanted in (("--simple", simple), ("--burst", burst)) if wanted]
        return self.start("faults.queue_worker", "--name", name, *flags, *(queues or QUEUES))

    def work_off(self, workers: int = 2) -> None:
        """Real RQ workers until the queues are empty."""
        started = [self.start_worker(f"simple-{number}") for number in range(workers)]
        for process in started:
            ending = self.ending_of_worker(process)
            assert ending == 0, self.log_of(process)

    def ending_of_worker(self, process: Process, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for a worker."""
        return process.wait(seconds)

    def log_of(self, process: Process) -> str:
        """What the process wrote as errors."""
        return self._said(process, "err")

    def _said(self, process: Process, stream: str) -> str:
        return (self.directory / f"process-{self.processes.index(process)}.{stream}").read_text()

    def close(self) -> None:
        """End what is left of the processes, each by its own id."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(PATIENCE_SECONDS)
        self.client.close()
        self.engine.dispose()

    # -- what is true now ---------------------------------------------------------------------------------------

    def claim_order(self) -> dict[str, list[str]]:
        """The ids that circulate in the table, by queue, in the order in which they are to be claimed."""
        found: dict[str, list[str]] = {queue: [] for queue in QUEUES}
        for row in self.sql(
            "SELECT id, priority FROM caption_tasks WHERE custody = 'db' AND status = 'queued' ORDER BY created_at, id"
        ):
            found[row.priority].append(row.id)
        return found

    def queued(self) -> dict[str, list[str]]:
        """The ids in RQ's lists, in the order in which workers take them."""
        lists = {queue: cast("list[bytes]", self.client.lrange(f"rq:queue:{queue}", 0, -1)) for queue in QUEUES}
        return {queue: [entry.decode() for entry in entries] for queue, entries in lists.items()}

    def staged(self) -> set[str]:
        """Ids of job hashes that no worker can reach."""
        keys = list(self.client.scan_iter(match="rq:job:*", count=2000))
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.hget(key, "status")
        return {
            key.decode().rsplit(":", 1)[1]
            for key, status in zip(keys, pipe.execute(), strict=True)
            if status == b"created"
        }

    def fingerprint(self) -> dict[str, str]:
        """Checksums of the application's table, the ledger's tables and all of Redis."""
        found: dict[str, str] = {}
        for table in _TABLES:
            ((_, checksum),) = self.sql(f"CHECKSUM TABLE {table} EXTENDED")
            found[table] = str(checksum)
        digest = hashlib.sha256()
        keys = sorted(cast("list[bytes]", self.client.keys("*")))
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.dump(key)
        for key, value in zip(keys, pipe.execute(), strict=True):
            digest.update(key + b"\0" + hashlib.sha256(value or b"").digest())
        return {**found, "redis": f"{len(keys)} keys {digest.hexdigest()}"}

    def evidence(self) -> Evidence:
        """What the judge reads."""
        return Evidence(
            (self.accepted,), (self.effects,), self.database_url, seeded=(self.seeded,), redis_url=self.redis_url
        )

    def verdict(self, allowed: Allowances | None = None, seconds: float = 5.0) -> Verdict:
        """The independent judgement."""
        return look_until_settled(self.evidence(), allowed or Allowances(), seconds)


def is_frozen(process: Process) -> bool:
    """Whether the process was stopped by a signal (and not ended)."""
    assert process.poll() is None, "the mover ended before it reached the arrow"
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[0] == "T"
