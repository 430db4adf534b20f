"""A dry run cannot write: checksums of every table, the accounts, Redis and the settings are the same afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from faults.playbook_lab import PlaybookLab, lab_in
from oracle.patience import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TASKS = 300


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaybookLab]:
    """A lab with a backlog that is not due while the tests run, so that nobody but a playbook changes anything."""
    with lab_in(tmp_path_factory.mktemp("dry")) as made:
        made.seed(TASKS, delayed_share=1.0, delay=7200)
        yield made


def test_a_dry_run_of_an_untouched_system_prints_the_plan_and_writes_nothing(lab: PlaybookLab) -> None:
    before = lab.fingerprint()

    plan = lab.run("plan").done().output
    check = lab.run("migrate", "--check", "--diff").done().output
    lab.run("status").done()
    lab.run("holds").done()

    assert lab.fingerprint() == before
    for priority, number in lab.sql("SELECT priority, COUNT(*) FROM caption_tasks GROUP BY 1"):
        for printed in (plan, check):
            assert re.search(rf"\b{priority}\b.*\b{number}\b", printed), (priority, number, printed)
    for words in ("MB", "undo", "lock accounts", "no unknown SQL session", "no unknown RQ worker", "nothing blocks"):
        assert words in plan, plan
        assert words in check, check
    assert re.search(r"transfer.*\bs\b", plan), plan
    # The settings file's diff shows what would change, without a value that is a secret.
    assert "RQ_ENABLED" in check
    passwords = [path.read_text().split()[0] for path in (lab.layout.directory / "passwords").iterdir()]
    assert passwords
    assert not any(password in check for password in passwords)


def test_a_dry_run_of_a_half_done_run_writes_nothing(lab: PlaybookLab) -> None:
    run = lab.start("migrate", queue_transfer_rate=20, queue_transfer_batch=10)
    until(lambda: lab.moved >= 40 or run.process.poll() is not None, "a part of the transfer")
    run.end()
    sessions = "information_schema.processlist"
    until(lambda: lab.count("user = 'sluice'", sessions) == 0, "the database has noticed the end of the mover")
    moved = lab.moved
    assert 40 <= moved < TASKS
    lab.lab.supervisor.stop_group("rqworkers")  # their heartbeats are writes
    before = lab.fingerprint()

    check = lab.run("migrate", "--check", "--diff").done().output
    plan = lab.run("plan").done().output
    lab.run("status").done()

    assert lab.fingerprint() == before
    assert lab.moved == moved
    assert "stands at 'fenced'" in check
    assert "stands at 'fenced'" in plan
    assert "not reached" in check
