"""Playbooks show the gates; nothing in them may let a failed gate pass or wait for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from guards import tree, yaml_rules

GOOD = """
- name: "1/2 | Prove the inventory"
  hosts: control
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - name: Prove it
      ansible.builtin.import_role: {name: queue_preflight}
- name: "2/2 | Move the tasks"
  hosts: control
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - name: Move or undo
      block:
        - name: Move
          ansible.builtin.import_role: {name: queue_transfer}
      rescue:
        - name: Undo
          ansible.builtin.import_role: {name: queue_undo}
        - name: Fail
          ansible.builtin.fail: {msg: "{{ ansible_failed_result.msg }}"}
"""


@pytest.mark.parametrize("path", tree.playbooks(), ids=tree.shown)
def test_a_playbook_has_the_shape_of_a_runbook(path: Path) -> None:
    assert yaml_rules.playbook_offences(yaml_rules.load(path)) == []


@pytest.mark.parametrize("path", tree.task_files(), ids=tree.shown)
def test_no_task_hides_a_failure_or_waits_for_a_person(path: Path) -> None:
    assert yaml_rules.forbidden(yaml_rules.load(path)) == []


def test_no_playbook_variables_beat_the_inventory() -> None:
    """playbooks/group_vars and host_vars win over the inventory's own, silently."""
    found = [tree.shown(path) for name in ("group_vars", "host_vars") for path in (tree.ROOT / "playbooks").rglob(name)]
    assert found == []


def test_a_good_playbook_has_no_offence() -> None:
    assert yaml_rules.playbook_offences(yaml.safe_load(GOOD)) == []


@pytest.mark.parametrize(
    ("was", "becomes", "reason"),
    [
        ("1/2 | Prove", "Prove", "is not 'n/m | Verb the object'"),
        ("1/2 | Prove", "1/2 | prove", "is not 'n/m | Verb the object'"),
        ("2/2 |", "3/3 |", "is number 2 of 2"),
        ("  any_errors_fatal: true\n  tasks:\n    - name: Prove", "  tasks:\n    - name: Prove", "any_errors_fatal"),
        (
            "  gather_facts: false\n  any_errors_fatal: true\n  tasks:\n    - name: Move or",
            "  any_errors_fatal: true\n  tasks:\n    - name: Move or",
            "gather_facts",
        ),
        ("        - name: Undo\n", "        - name: Undo\n          ignore_errors: true\n", "ignore_errors"),
        ("    - name: Prove it\n", "    - name: Prove it\n      failed_when: false\n", "always false"),
        ("    - name: Prove it\n", "    - name: Prove it\n      failed_when: ['no']\n", "always false"),
        ("ansible.builtin.import_role: {name: queue_preflight}", "ansible.builtin.pause: {}", "waits for a terminal"),
        ("import_role: {name: queue_preflight}", "include_role: {name: queue_preflight}", "use import_role"),
        ("{name: queue_transfer}", "{name: queue_transfer, tasks_from: drain.yml}", "one entry point"),
        ("ansible.builtin.fail: {", "ansible.builtin.debug: {", "does not end with ansible.builtin.fail"),
    ],
)
def test_each_offence_is_seen(was: str, becomes: str, reason: str) -> None:
    assert GOOD.count(was) == 1, was
    assert reason in "\n".join(yaml_rules.playbook_offences(yaml.safe_load(GOOD.replace(was, becomes))))


def test_a_prompt_is_seen() -> None:
    play: dict[str, Any] = {"name": "1/1 | Ask", "vars_prompt": [{"name": "sure"}]}
    assert "'1/1 | Ask': vars_prompt" in yaml_rules.playbook_offences([play])


def test_an_empty_playbook_is_seen() -> None:
    assert yaml_rules.playbook_offences(None) == ["is no list of plays"]
