"""The modules of the application's own hosts run where there is a Python and nothing else of ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ON_HOSTS = {"queue_assess_host", "queue_config", "queue_revision", "queue_workers"}
#: Imports a module of library/ as a host does: the package is there, nothing that it could install is.
IMPORT = """
import sys
from pathlib import Path

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pymysql", "redis", "rq", "sqlalchemy", "yaml"}:
            raise ModuleNotFoundError(f"a bare host has no {name}")

import ansible.module_utils
ansible.module_utils.__path__.append(str(Path(sys.argv[1], "module_utils")))
sys.path.insert(0, str(Path(sys.argv[1], "library")))
sys.meta_path.insert(0, Bare())
__import__(sys.argv[2])
"""


def imported(module: str) -> subprocess.CompletedProcess[str]:
    """How the import on a bare host ends."""
    return subprocess.run(
        [sys.executable, "-c", IMPORT, str(ROOT), module], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("module", sorted(ON_HOSTS))
def test_it_needs_no_driver(module: str) -> None:
    done = imported(module)
    assert done.returncode == 0, done.stderr


def test_one_that_needs_a_driver_is_seen() -> None:
    done = imported("queue_transfer")
    assert "a bare host has no" in done.stderr


def tasks_of(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Tasks, those inside blocks too."""
    for task in tasks:
        for part in ("block", "rescue", "always"):
            yield from tasks_of(task.get(part) or [])
        if "block" not in task:
            yield task


def test_no_play_on_those_hosts_has_another_module() -> None:
    used = set()
    for book in sorted((ROOT / "playbooks").glob("*.yml")):
        for play in yaml.safe_load(book.read_text(encoding="utf-8")):
            if not {"app", "workers"} & set(str(play.get("hosts", "")).replace(":", ",").split(",")):
                continue
            for task in tasks_of(play["tasks"]):
                role = (task.get("ansible.builtin.import_role") or {}).get("name")
                for path in (ROOT / "roles" / str(role) / "tasks").glob("*.yml") if role else ():
                    for step in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8"))):
                        control = "groups['control']" in str(step.get("delegate_to", ""))
                        used |= {word for word in step if word.startswith("queue_") and not control}
    assert used == ON_HOSTS
