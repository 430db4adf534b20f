"""The role ``queue_workers`` on a lab: drained, started and killed; twice is once; the other groups stay."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from faults.playbook_lab import lab_in
from oracle.patience import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
BOOK = """
- name: "1/1 | See to the legacy workers"
  hosts: app
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - name: See to the legacy workers
      ansible.builtin.import_role:
        name: queue_workers
      vars:
        queue_workers_group: legacy
        queue_workers_state: "{{ wanted }}"
    - name: Say who ended without proof
      ansible.builtin.debug:
        msg: "{{ queue_workers_unproved | default([]) | map(attribute='name') | join(' ') or 'nobody' }}"
"""


def test_drained_started_and_killed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    book = tmp_path / "workers.yml"
    book.write_text(BOOK)
    with lab_in(tmp_path_factory.mktemp("wk"), legacy=2) as lab:

        def see(wanted: str, *arguments: str) -> tuple[int, str]:
            outcome = lab.run(str(book), *arguments, wanted=wanted, queue_run_owner="nobody").done()
            return outcome.changed, outcome.output

        def pids(group: str) -> list[int]:
            return sorted(p.pid for p in lab.lab.supervisor.processes() if p.group == group and p.state == "RUNNING")

        others = [pids(group) for group in ("web", "mariadb", "redis")]
        assert see("listed")[0] == 0
        assert see("drained", "--check")[0] == 1
        assert len(pids("legacy")) == 2
        changed, output = see("drained")
        assert changed == 1 and "nobody" in output
        assert pids("legacy") == []
        assert see("drained")[0] == 0

        assert see("started")[0] == 1
        assert see("killed", "--check")[0] == 1
        before = pids("legacy")
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)  # supervisord starts it again, before the kill or in the middle of it
        until(lambda: before[0] not in pids("legacy"), "the worker is gone")
        changed, output = see("killed")
        assert changed == 1 and "killed: legacy_1" in output
        assert "legacy_0 legacy_1" in output  # neither is proved to have ended its task
        assert pids("legacy") == []
        changed, output = see("killed")
        assert changed == 0 and "legacy_0 legacy_1" in output
        assert see("killed", "--check")[0] == 0
        assert [pids(group) for group in ("web", "mariadb", "redis")] == others
