"""ansible-playbook alone is killed while its module stands at an arrow; the same command again; then the module wakes.

One lab and one run serve all arrows, so that a case takes seconds: the first carries the run to its end with
``playbooks/migrate.yml``, and the tasks that come to the source afterwards reopen its transfer. With
SLUICE_TEST_FULL=1 (scripts/test --all) every case is given with that playbook; else all but the first run its roles
that take the lease, transfer, and give the lease up.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.playbook_lab import TESTS, PlaybookLab, alive, end_family, frozen, lab_in
from faults.scene import FULL
from oracle.patience import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TASKS = 250 if FULL else 150
#: The second batch is where a module freezes: some work was done, and some is left.
BATCH = TASKS // 5
NTH = 2
WAITING = "custody = 'db' AND status = 'queued'"
TRANSFER_ALONE = ("queue_run", "queue_transfer", "queue_leave")
#: Of the module that freezes: its lease, and how long its open transaction may be silent. The next command waits these.
LEASE_SECONDS = 1.0
SILENCE_SECONDS = 2
ARROWS = [
    *[
        f"{arrow}:{side}"
        for arrow in ("claim", "stage", "confirm", "release", "activate")
        for side in ("before", "after")
    ],
    "commit:before",
]
#: The module alone is frozen and killed at all of them in every run (test_orphan, test_kill_arrows).
CHOSEN = ("claim:before", "stage:after", "release:after", "activate:after", "commit:before")
SIZE = {"queue_transfer_batch": BATCH, "queue_transfer_rate": 0}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaybookLab]:
    """A lab with its legacy workers stopped: only a transfer can move the backlogs."""
    with lab_in(tmp_path_factory.mktemp("arrows")) as made:
        made.lab.supervisor.stop_group("legacy")
        yield made


@contextmanager
def frozen_orphan(lab: PlaybookLab, playbook: str, arrow: str) -> Iterator[int]:
    """The module of a command whose ansible-playbook was killed when the module stood there; never left behind."""
    run = lab.start_with(freezing_at(arrow), playbook, **SIZE)
    until(lambda: any(frozen(pid) for pid in run.modules()) or run.process.poll() is not None, "the arrow")
    assert run.process.poll() is None, run.log.read_text()
    (module,) = run.kill_ansible_alone()
    try:
        yield module
    finally:
        end_family(module)


@pytest.mark.parametrize("arrow", ARROWS if FULL else CHOSEN)
def test_the_same_command_finishes_and_the_orphan_writes_nothing(lab: PlaybookLab, arrow: str) -> None:
    whole = FULL or lab.phase == "none"
    playbook = "migrate" if whole else transfer_alone(lab)
    moved_before = lab.moved_of_users
    lab.seed(TASKS, users_from=10_000_000 + 1_000_000 * ARROWS.index(arrow))
    waiting = lab.count(WAITING)

    with frozen_orphan(lab, playbook, arrow) as orphan:
        assert frozen(orphan)
        assert lab.phase == "fenced"
        assert lab.count(WAITING) < waiting, "it froze before any work"
        assert lab.moved_of_users - moved_before < waiting, "it froze after all work"

        again = lab.run(playbook, **SIZE).done()
        assert "resumed" in again.output
        assert lab.phase == ("validated" if whole else "fenced")
        assert lab.moved_of_users - moved_before == waiting
        lab.clean()

        assert frozen(orphan), "the orphan did not sleep through it"
        settled = lab.contents()
        os.kill(orphan, signal.SIGCONT)
        until(lambda: not alive(orphan), "the end of the orphaned module")
    assert lab.contents() == settled
    lab.clean()


def transfer_alone(lab: PlaybookLab) -> str:
    """A playbook of the roles of ``migrate.yml`` that a transfer cannot do without, for a run that is fenced."""
    tasks = [{"name": role, "ansible.builtin.import_role": {"name": role}} for role in TRANSFER_ALONE]
    play = {"name": "Transfer", "hosts": "control", "gather_facts": False, "any_errors_fatal": True, "tasks": tasks}
    path = lab.layout.directory / "transfer.yml"
    path.write_text(json.dumps([play]), encoding="utf-8")
    return str(path)


def freezing_at(arrow: str) -> dict[str, str]:
    """The environment in which a module freezes there. It is of this one command only."""
    return {
        "PYTHONPATH": os.pathsep.join(str(path) for path in (Path(__file__).parent / "arrow_path", TESTS)),
        "SLUICE_TEST_FREEZE": f"{arrow}:{NTH}",
        "SLUICE_TEST_LEASE_SECONDS": str(LEASE_SECONDS),
        "SLUICE_TEST_SILENCE_SECONDS": str(SILENCE_SECONDS),
    }
