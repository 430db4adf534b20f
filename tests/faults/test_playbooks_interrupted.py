"""Playbooks killed in the middle of a transfer, and playbooks that walk past the gates or work beside another one."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.playbook_lab import ROOT, Outcome, PlaybookLab, Run, alive, lab_in
from oracle.patience import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TASKS = 900
TRANSFER = "queue_transfer : Move the tasks, batch by batch"
PHASES = ("prepared", "hybrid", "routed", "fenced", "transferred", "verified", "validated", "cleaned")
#: What somebody would set who wants to get past the first play.
FORGED = {
    "queue_run_owner": "me",
    "queue_owner": "me",
    "queue_run_id": "mine",
    "queue_todo": dict.fromkeys(PHASES, True),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaybookLab]:
    """A backlog, with its legacy workers stopped: only a transfer can move it."""
    with lab_in(tmp_path_factory.mktemp("int")) as made:
        made.lab.supervisor.stop_group("legacy")
        made.seed(TASKS)
        yield made


def _untouched(lab: PlaybookLab, outcome: Outcome) -> None:
    """No task moved, nobody fenced, the route where it was, and no crash."""
    assert "Traceback" not in outcome.output, outcome.output
    assert lab.count("custody = 'db' AND status = 'queued'") == TASKS, outcome.output
    assert lab.moved == 0
    assert lab.route == (0, 1)
    assert not lab.legacy_locked
    redis = lab.redis
    assert redis.keys("rq:*") == []
    redis.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--start-at-task", TRANSFER],
        ["--limit", "control"],
        ["--limit", "app"],
        ["--tags", "transfer"],
    ],
    ids=" ".join,
)
def test_part_of_the_playbook_on_an_untouched_system_moves_nothing(lab: PlaybookLab, arguments: list[str]) -> None:
    outcome = lab.run("migrate", *arguments, **FORGED if arguments[0] == "--start-at-task" else {})
    _untouched(lab, outcome)
    assert lab.phase in ("none", "aborted")
    if arguments[0] == "--start-at-task":
        outcome.refused("no run is open")
    elif arguments[0] == "--limit":
        outcome.refused("--limit" if arguments[1] == "control" else "")


def test_an_inventory_without_application_hosts_is_refused(lab: PlaybookLab, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "inventories" / "lab", tmp_path / "lab")
    hosts = tmp_path / "lab" / "hosts.yml"
    text = hosts.read_text()
    hosts.write_text(text.replace("        lab_app:\n", "        {}\n"))
    assert hosts.read_text() != text
    outcome = lab.run("migrate", "-i", str(hosts))
    outcome.refused("at least one in each of")
    _untouched(lab, outcome)
    assert lab.phase == "none"


def test_a_second_operator_is_refused_and_kills_are_resumed(lab: PlaybookLab) -> None:
    """One story: an operator at work, a second one, kill -9 of ansible-playbook, then of the module, then the end."""
    # Tags cannot leave a gate out either: this command is given with every way to skip some.
    command = ("--skip-tags", "always,gates,preflight,fence,verify")
    # The first one goes on while the second waits half a minute for its lease.
    slow = {"queue_transfer_rate": 12, "queue_transfer_batch": 15}
    first = lab.start("migrate", *command, **slow)
    until(lambda: lab.phase == "opened" or first.process.poll() is not None, "an open run")

    second = lab.run("migrate")
    second.refused("another run is at work")
    assert lab.count("1 = 1", "sluice_run") == 1

    _wait_for_moves(lab, first, 100)
    orphans = first.kill_ansible_alone()
    assert orphans, "no module lived on"
    moved_at_kill = lab.moved
    lab.run("migrate", "--start-at-task", TRANSFER, **FORGED).refused("belongs to", "not to 'me'")
    until(lambda: not any(alive(pid) for pid in orphans), "the end of the orphaned module")
    assert moved_at_kill <= lab.moved < TASKS

    third = lab.start("migrate", **slow)
    _wait_for_moves(lab, third, lab.moved + 100)
    until(lambda: bool(third.modules()) or third.process.poll() is not None, "a module at work")
    (module,) = third.modules()[-1:]
    os.kill(module, signal.SIGKILL)
    broken = third.wait(PATIENCE_SECONDS)
    broken.refused("passed its point of no return")
    assert lab.phase == "fenced"
    assert lab.moved < TASKS

    last = lab.run("migrate").done()
    assert "resumed" in last.output
    assert lab.phase == "validated"
    assert lab.moved_of_users == TASKS
    lab.clean()


def _wait_for_moves(lab: PlaybookLab, run: Run, number: int) -> None:
    until(lambda: lab.moved >= number or run.process.poll() is not None, f"{number} moved tasks")
    assert run.process.poll() is None, run.log.read_text()
    assert lab.moved < TASKS, "the transfer was over before it could be killed"
