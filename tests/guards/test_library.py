"""Documentation equals argument spec, examples are accepted, secrets are marked, `main()` is thin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guards import modules, tree, yaml_rules

GOOD = '''#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
module: queue_sample
short_description: Count something
description: Counts something in a queue.
options:
  queue: {description: Name of the queue., type: str, required: true, choices: [high, low]}
  limit: {description: At most so many., type: int, default: 10}
  store:
    description: Where the queue is.
    type: dict
    suboptions:
      password: {description: Its password., type: str}
attributes:
  check_mode: {description: Runs without a change., support: full}
  diff_mode: {description: Shows what would change., support: none}
  idempotent: {description: Twice is once., support: partial, details: Reads a living queue.}
"""
EXAMPLES = r"""
- name: Count
  queue_sample: {queue: high, limit: "{{ most }}", store: {password: "{{ secret }}"}}
"""
RETURN = r"""
count: {description: Tasks found., returned: always, type: int, sample: 3}
"""
from ansible.module_utils.basic import AnsibleModule

ARGUMENT_SPEC = {
    "queue": {"type": "str", "required": True, "choices": ["high", "low"]},
    "limit": {"type": "int", "default": 10},
    "store": {"type": "dict", "options": {"password": {"type": "str", "no_log": True}}},
}


def main():
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    module.exit_json(count=0)
'''


@pytest.mark.parametrize("path", tree.modules(), ids=tree.shown)
def test_a_module_keeps_what_it_documents(path: Path) -> None:
    assert modules.offences(path) == []


@pytest.fixture(scope="module")
def declared() -> dict[str, dict[str, Any]]:
    """What every module of library/ declares, by its name."""
    return {path.stem: modules.declared(path) for path in tree.modules()}


@pytest.mark.parametrize("path", tree.task_files(), ids=tree.shown)
def test_every_task_gives_our_modules_what_they_accept(path: Path, declared: dict[str, dict[str, Any]]) -> None:
    assert modules.task_offences(yaml_rules.load(path), declared) == []


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        ({"queue_sample": {"queue": "higher"}}, "value of queue must be one of"),
        ({"queue_sample": {"queue": "high", "colour": "red"}}, "colour"),
        ({"block": [{"queue_sample": {"limit": "{{ most }}"}}]}, "missing required arguments: queue"),
        ({"queue_simple": {}}, "there is no module queue_simple"),
        ({"queue_sample": "queue=high"}, "are no mapping"),
    ],
)
def test_a_wrong_use_is_seen(tmp_path: Path, use: dict[str, Any], reason: str) -> None:
    sample = {"queue_sample": modules.declared(_sample(tmp_path, GOOD))}
    assert reason in "\n".join(modules.task_offences([{"name": "Play", "tasks": [use]}], sample))
    right = {"queue_sample": {"queue": "{{ queue }}", "limit": "{{ most }}"}}
    assert modules.task_offences([{"name": "Play", "tasks": [right]}], sample) == []


def _sample(folder: Path, source: str) -> Path:
    path = folder / "queue_sample.py"
    path.write_text(source)
    return path


def test_a_good_module_has_no_offence(tmp_path: Path) -> None:
    assert modules.offences(_sample(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("was", "becomes", "reason"),
    [
        ('"default": 10', '"default": 20', "option 'limit': default is 10 in the documentation and 20 in the spec"),
        ('"limit": {"type": "int"', '"limit": {"type": "str"', "option 'limit': type"),
        ('"required": True, ', "", "option 'queue': required"),
        ('["high", "low"]}', '["high", "low", "urgent"]}', "option 'queue': choices"),
        ("  limit: {desc", "  most: {desc", "option 'most' is documented but not accepted"),
        ("  limit: {desc", "  most: {desc", "option 'limit' is accepted but not documented"),
        ("password: {desc", "passphrase: {desc", "option 'store.password' is accepted but not documented"),
        (', "no_log": True', "", "option 'store.password' holds a secret"),
        ('"limit": {', '"store_url": {}, "limit": {', "option 'store_url' may hold a secret"),
        (", supports_check_mode=True", "", "supports_check_mode is not set"),
        ("  diff_mode:", "  platform:", "attribute 'diff_mode' is not documented"),
        (", details: Reads a living queue.", "", "attribute 'idempotent' is partial without details"),
        (", sample: 3", "", "RETURN 'count' has no sample"),
        ("queue: high,", "queue: higher,", "value of queue must be one of"),
        ("queue: high, limit", "limit", "missing required arguments: queue"),
        ("queue: high,", "queue: high, colour: red,", "colour"),
        ("- name: Count\n", "- name: Count\n  whenn: true\n", "'whenn' is no keyword"),
        ("module: queue_sample", "module: queue_other", "names the module 'queue_other'"),
        ("    module.exit_json", "    x = 1\n" * 25 + "    module.exit_json", "main() has 28 lines"),
    ],
)
def test_each_offence_is_seen(tmp_path: Path, was: str, becomes: str, reason: str) -> None:
    assert GOOD.count(was) == 1, was
    assert reason in "\n".join(modules.offences(_sample(tmp_path, GOOD.replace(was, becomes))))


def test_a_module_that_builds_no_ansible_module_is_seen(tmp_path: Path) -> None:
    path = _sample(tmp_path, "def main():\n    pass\n")
    with pytest.raises(AssertionError, match="built no AnsibleModule"):
        modules.declared(path)


def test_a_fragment_counts_as_documentation(tmp_path: Path) -> None:
    fragments = tmp_path / "fragments"
    fragments.mkdir()
    (fragments / "queue_guard_sample.py").write_text(
        'class ModuleDocFragment:\n    DOCUMENTATION = r"""\noptions:\n'
        '  limit: {description: At most so many., type: int, default: 10}\n"""\n'
    )
    own = "  limit: {description: At most so many., type: int, default: 10}\n"
    source = GOOD.replace(own, "").replace(
        "attributes:", "extends_documentation_fragment: [queue_guard_sample]\nattributes:"
    )
    assert source != GOOD
    modules.documented(_sample(tmp_path, source), fragments)
    assert modules.offences(tmp_path / "queue_sample.py") == []


_WITHOUT_DRIVERS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"MySQLdb", "hiredis", "jinja2", "pymysql", "redis", "rq", "sqlalchemy", "yaml"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
sys.path.insert(0, sys.argv[2])
__import__(sys.argv[3])
"""


def modules_on_hosts() -> list[str]:
    """The modules of the roles that plays run on other hosts than 'control', without what they hand to another host."""
    names = {path.stem for path in tree.modules()}
    found: set[str] = set()
    for playbook in tree.playbooks():
        for play in yaml_rules.load(playbook):
            if play["hosts"] == "control":
                continue
            uses = (task.get("ansible.builtin.import_role") for task in yaml_rules.tasks_of(play["tasks"]))
            for role in {use["name"] for use in uses if use}:
                tasks = yaml_rules.load(tree.ROOT / "roles" / role / "tasks" / "main.yml")
                for task in yaml_rules.tasks_of(tasks):
                    if "control" not in str(task.get("delegate_to", "")):
                        found |= names.intersection(task)
    return sorted(found)


def test_the_modules_of_hosts_are_found() -> None:
    assert {"queue_assess_host", "queue_config", "queue_revision", "queue_workers"} <= set(modules_on_hosts())


def _without_drivers(module: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT_DRIVERS, str(tree.ROOT / "module_utils"), str(tree.ROOT / "library"), module],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("module", modules_on_hosts())
def test_a_host_needs_nothing_but_python(module: str) -> None:
    """Application and worker hosts have no driver of a store: only the control host has what requirements.txt pins."""
    done = _without_drivers(module)
    assert done.returncode == 0, done.stderr


def test_a_module_that_needs_a_driver_is_seen() -> None:
    assert "No module named" in _without_drivers("queue_transfer").stderr
