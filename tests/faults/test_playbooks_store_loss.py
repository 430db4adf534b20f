"""Redis that loses its data between transfer and validation, and a database that goes back to our own backup."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator

import pytest

from faults.playbook_lab import Outcome, PlaybookLab, lab_in
from faults.scene import only_full
from oracle.patience import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TASKS = 60
REASON = "the test emptied Redis"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaybookLab]:
    """A run that stands at 'verified': each moved task waits in RQ, as many were born there, no worker lives."""
    with lab_in(tmp_path_factory.mktemp("loss")) as made:
        made.lab.supervisor.stop_group("legacy")
        made.seed(TASKS, delayed_share=0.2, delay=30)
        stopped = threading.Thread(target=_stop_workers_at_the_fence, args=(made,))
        stopped.start()
        outcome = made.run("migrate", queue_validate_deadline=1)
        stopped.join()
        outcome.refused("canaries finish")
        assert made.phase == "verified"
        made.submit(TASKS)
        yield made


def _stop_workers_at_the_fence(lab: PlaybookLab) -> None:
    until(lambda: lab.phase in ("fenced", "aborted"), "the fence")
    lab.lab.supervisor.stop_group("rqworkers")


def _unfinished(lab: PlaybookLab) -> set[str]:
    rows = lab.sql("SELECT id FROM caption_tasks WHERE custody = 'rq' AND status = 'queued'")
    return {str(row[0]) for row in rows}


def _jobs(lab: PlaybookLab) -> set[str]:
    redis = lab.redis
    found = {key.decode().rpartition(":")[2] for key in redis.scan_iter(match="rq:job:*", count=1000)}
    redis.close()
    return found


def _placed(outcome: Outcome) -> int:
    match = re.search(r"([\d,]+) placed again, ([\d,]+) held", outcome.output)
    assert match, outcome.output
    assert match.group(2) == "0", outcome.output
    return int(match.group(1).replace(",", ""))


def test_an_emptied_redis_is_named_and_recovered(lab: PlaybookLab) -> None:
    lost = _unfinished(lab)
    assert len(lost) >= 2 * TASKS
    assert lost <= _jobs(lab)
    redis = lab.redis
    redis.flushall()
    redis.close()

    for playbook in ("migrate", "validate"):
        lab.run(playbook).refused("recover.yml")
        assert lab.phase != "validated", playbook
        assert _unfinished(lab) >= lost, "somebody ran a task"
    lab.lab.supervisor.stop_group("rqworkers")

    lab.run("recover").refused("no reason is given")
    recovered = lab.run("recover", queue_recover_reason=REASON)
    recovered.done()
    assert _placed(recovered) >= len(lost)
    lab.run("migrate").done()

    assert lab.phase == "validated"
    lab.clean()


def test_a_redis_that_came_back_with_its_data_loses_nothing(lab: PlaybookLab) -> None:
    lab.lab.supervisor.stop_group("rqworkers")
    lab.submit(20)
    waiting = _unfinished(lab)
    lab.lab.supervisor.stop_group("redis")
    lab.lab.supervisor.start_group("redis")
    until(lambda: lab.mariadb.answers() and _jobs(lab) >= waiting, "Redis with its data")

    lab.run("migrate").done()
    lab.lab.supervisor.start_group("rqworkers")

    assert lab.phase == "validated"
    lab.clean()


@only_full  # as one that was emptied, above
def test_a_redis_that_came_back_without_its_data_is_recovered(lab: PlaybookLab) -> None:
    lab.lab.supervisor.stop_group("rqworkers")
    lab.submit(20)
    lost = _unfinished(lab)
    lab.lab.supervisor.stop_group("redis")
    shutil.rmtree(lab.layout.redis / "appendonlydir")
    (lab.layout.redis / "dump.rdb").unlink(missing_ok=True)
    lab.lab.supervisor.start_group("redis")
    until(lambda: _jobs(lab) == set(), "an empty Redis")

    lab.run("migrate").refused("recover.yml")
    assert _placed(lab.run("recover", queue_recover_reason=REASON).done()) >= len(lost)
    lab.run("migrate").done()

    assert lab.phase == "validated"
    lab.clean()


def test_a_database_restored_from_our_backup_is_refused(lab: PlaybookLab) -> None:
    (dump,) = lab.layout.backups.glob("captions-*/tables.sql.gz")
    lab.lab.supervisor.stop_group("rqworkers")
    lab.lab.supervisor.stop_group("web")  # an operator restores a database at rest
    subprocess.run(
        ["mariadb", f"--socket={lab.mariadb.socket}", "--user=root", "captions"],
        input=gzip.decompress(dump.read_bytes()),
        env={**os.environ, "MYSQL_PWD": lab.mariadb.root_password},
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    assert lab.count("custody = 'db' AND status = 'queued'") == TASKS
    before = lab.fingerprint()

    for playbook in ("migrate", "validate", "recover", "cleanup"):
        lab.run(playbook, queue_recover_reason=REASON).refused("restored")
        assert lab.fingerprint() == before, playbook
