"""ansible-lint checks the arguments of our own modules.

By itself it does not: without the settings in .ansible-lint and the import path in scripts/lint_path it exits 0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guards import tree

MODULE = '''#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
module: queue_sample
short_description: Sample
description: Sample.
options:
  limit: {description: At most so many., type: int}
"""
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sluice.sample import LIMIT


def main():
    AnsibleModule(argument_spec={"limit": LIMIT}, supports_check_mode=True).exit_json()


if __name__ == "__main__":
    main()
'''
PLAYBOOK = """---
- name: 1/1 | Sample the queue
  hosts: localhost
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - name: Sample
      queue_sample:
        limit: {limit}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with our lint settings, one module that imports from our package, and no playbook yet."""
    for name in (".ansible-lint", "ansible.cfg"):
        shutil.copy(tree.ROOT / name, tmp_path / name)
    shutil.copytree(tree.ROOT / "scripts" / "lint_path", tmp_path / "scripts" / "lint_path")
    for folder in ("library", "playbooks", "module_utils/sluice", "inventories/lab"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "inventories/lab/hosts.yml").write_text("---\nall:\n  hosts:\n    localhost:\n")
    (tmp_path / "library/queue_sample.py").write_text(MODULE)
    (tmp_path / "module_utils/sluice/__init__.py").touch()
    (tmp_path / "module_utils/sluice/sample.py").write_text('LIMIT = {"type": "int"}\n')
    return tmp_path


def _lint(project: Path, limit: str) -> subprocess.CompletedProcess[str]:
    (project / "playbooks/sample.yml").write_text(PLAYBOOK.format(limit=limit))
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-lint")),
            "--offline",
            "--nocolor",
            "--strict",
            "--project-dir",
            ".",
        ],
        cwd=project,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": "scripts/lint_path",
            "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_wrong_argument_of_our_module_fails_the_lint(project: Path) -> None:
    done = _lint(project, "many")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "args[module]" in done.stdout
    assert "Ignored exception" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_right_argument_passes_the_lint(project: Path) -> None:
    done = _lint(project, "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ignored exception" not in done.stdout + done.stderr
