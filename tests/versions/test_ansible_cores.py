"""The oldest and the newest ansible-core: every playbook is read, arguments are judged, and a change window is run.

Not among the tests of every day, since each makes an environment and a lab: scripts/test --pythons runs them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from faults import ROOT
from faults.generations import PINNED, environment, interpreter
from faults.playbook_lab import PlaybookLab, lab_in

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]
PLAYBOOKS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "playbooks").glob("*.yml"))
#: The environment's file, and the Pythons that it runs on, the first that is there.
CORES = {"oldest": ("ansible-oldest", ("3.11", "3.12")), "newest": ("ansible-newest", ("3.14", "3.13", "3.12"))}


@dataclass(frozen=True)
class Core:
    """An ansible-core in an environment of its own."""

    python: Path
    version: str

    def play(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ansible-playbook."""
        return subprocess.run(
            [str(self.python.with_name("ansible-playbook")), *arguments],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


@pytest.fixture(scope="module", params=sorted(CORES, reverse=True))
def core(request: pytest.FixtureRequest) -> Core:
    """One of them; skipped where no Python is new enough for it."""
    name, versions = CORES[str(request.param)]
    found = interpreter(*versions)
    if found is None:
        pytest.skip(f"no Python {' or '.join(versions)} on this machine")
    return Core(environment(name, found, lab=True), (PINNED / f"{name}.txt").read_text().rpartition("==")[2].strip())


def test_it_is_that_version(core: Core) -> None:
    assert f"[core {core.version}]" in core.play("--version").stdout


@pytest.mark.parametrize("inventory", ["lab", "example"])
def test_every_playbook_is_read(core: Core, inventory: str) -> None:
    done = core.play("--syntax-check", "-i", f"inventories/{inventory}/hosts.yml", *PLAYBOOKS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_role_judges_its_arguments(core: Core, tmp_path: Path) -> None:
    """Each role with one option of a wrong type or an unknown choice: refused before its first task, by name."""
    plays, wanted = [], []
    for spec in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml")):
        options = yaml.safe_load(spec.read_text(encoding="utf-8"))["argument_specs"]["main"].get("options", {})
        wrong = next((name for name, option in options.items() if option["type"] in ("int", "bool", "dict")), None)
        if wrong is None:
            continue
        role = spec.parents[1].name
        wanted.append((role, wrong))
        task = {"name": "Call it", "ansible.builtin.import_role": {"name": role}, "vars": {wrong: ["no", "such"]}}
        fail = {"name": "Fail", "ansible.builtin.fail": {"msg": f"{role} took {wrong}"}}
        said = {"name": "Say", "ansible.builtin.debug": {"msg": f"{role}: {{{{ ansible_failed_result.msg }}}}"}}
        tasks = [{"block": [task, fail], "rescue": [said], "name": "Judge"}]
        plays.append({"name": role, "hosts": "all", "gather_facts": False, "tasks": tasks})
    assert len(wanted) > 20
    book = tmp_path / "roles.yml"
    book.write_text(yaml.safe_dump(plays, sort_keys=False))
    done = core.play("-i", "somewhere,", str(book))
    assert done.returncode == 0, done.stdout + done.stderr
    for role, wrong in wanted:
        assert f"{role} took {wrong}" not in done.stdout
        said = done.stdout.partition(f"PLAY [{role}]")[2].partition("PLAY [")[0]
        assert re.search(rf"argument '?{wrong}'? is of type", said), said


@pytest.fixture
def lab(tmp_path: Path, core: Core) -> Iterator[PlaybookLab]:
    """A lab of which the playbooks are run by that Ansible, on its Python."""
    with lab_in(tmp_path) as made:
        made.python = core.python
        yield made


def test_a_change_window_is_run(core: Core, lab: PlaybookLab) -> None:
    """The plan, a dry run that changes nothing, the whole window with every task once, and nothing left to do."""
    lab.seed(20)
    assert "nothing blocks" in lab.run("plan").done().output
    before = lab.contents()
    lab.run("migrate", "--check").done()
    assert lab.contents() == before
    done = lab.run("migrate").done()
    assert lab.phase == "validated"
    assert "[DEPRECATION WARNING]" not in done.output
    assert lab.run("migrate").done().changed == 0
    lab.clean()
