"""Wall time of an emergency rollback: from the command until a legacy canary has finished, and until all is home."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ansible.module_utils.sluice.adapters import redis_connect, sql_connect
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.sql_table import SqlTable

from bench.figures import Figure
from bench.stores import LEASE_SECONDS, move_all, read_mapping
from faults.playbook_lab import PlaybookLab, lab_in
from oracle import backlog

AIM_SECONDS, AIM_WITHOUT_REDIS = 120.0, 60.0


def measure(tasks: int, say: Callable[[str], None]) -> list[Figure]:
    """Seconds with ``tasks`` in RQ: with a Redis that answers, and with one that is dead."""
    figures = []
    for key, aim, dead in (
        ("emergency", AIM_SECONDS, False),
        ("emergency_without_redis", AIM_WITHOUT_REDIS, True),
    ):
        with (
            tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder,
            lab_in(Path(folder), legacy=2, rq=4, work_ms=30) as lab,
        ):
            say(f"{key}: migrate.yml, then {tasks:,} tasks into RQ, its workers ended")
            lab.run("migrate").done()
            _supervisorctl(lab, "stop", "rqworkers:*")
            _fill(lab, tasks)
            if dead:
                _supervisorctl(lab, "stop", "redis")
            begun = time.perf_counter()
            lab.run("emergency-rollback", queue_run_reason="a measurement", queue_transfer_rate=0).done()
            whole = time.perf_counter() - begun
            service = lab.sql(
                "SELECT JSON_VALUE(detail, '$.seconds') FROM sluice_event WHERE name = 'in service again'"
            )
            left = lab.count("custody <> 'db' AND status IN ('queued', 'running')")
            if not service or left:
                raise RuntimeError(f"{left} tasks are not home, in service again: {service}")
            seconds = float(service[-1][0])
        note = f"{tasks:,} tasks in RQ" + (", Redis dead" if dead else "")
        figures += [
            Figure(f"{key}.service_seconds", seconds, "s", ("<=", aim), f"command to legacy canary finished; {note}"),
            Figure(f"{key}.whole_seconds", whole, "s", note=f"until every task is home and balanced; {note}"),
        ]
    return figures


def _fill(lab: PlaybookLab, tasks: int) -> None:
    """Tasks that lie in RQ as a migration leaves them."""
    backlog.seed(
        lab.settings["db_url"],
        backlog.Backlog(count=tasks, images=lab.images, users_from=10_000_000, seed=7),
        lab.seeded,
    )
    mapping = read_mapping()
    engine = sql_connect.connect(lab.settings["db_url"])
    ledger = SqlLedger(engine, mapping.system)
    run = ledger.open_run()
    if run is None:
        raise RuntimeError("no run is open in the lab")
    lease = ledger.take_lease(run, "bench", LEASE_SECONDS)
    target = RqQueues(redis_connect.connect(lab.settings["redis_url"]), mapping)
    moved = move_all(SqlTable(engine, mapping), target, ledger, lease)
    ledger.give_up(lease)
    engine.dispose()
    if moved.moved < tasks:
        raise RuntimeError(f"{moved.moved} of {tasks} tasks are in RQ")


def _supervisorctl(lab: PlaybookLab, *words: str) -> None:
    program = str(Path(sys.executable).with_name("supervisorctl"))
    subprocess.run(
        [program, "-s", f"unix://{lab.settings['supervisor_socket']}", *words],
        check=True,
        capture_output=True,
    )
