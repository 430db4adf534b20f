"""A role has its four files, and what its argument spec says is what its defaults do."""

from __future__ import annotations

from pathlib import Path

import pytest

from guards import tree, yaml_rules


@pytest.mark.parametrize("role", tree.roles(), ids=tree.shown)
def test_a_role_is_laid_out_and_described(role: Path) -> None:
    assert yaml_rules.role_offences(role) == []


DEFAULTS = "queue_sample_limit: 10\n"
SPEC = """
argument_specs:
  main:
    short_description: Sample
    options:
      queue_system: {description: Name of the system., type: str, required: true}
      queue_sample_limit: {description: At most so many., type: int, default: 10}
"""


def _role(folder: Path, name: str = "queue_sample", defaults: str = DEFAULTS, spec: str = SPEC) -> Path:
    role = folder / name
    for part, text in zip(yaml_rules.ROLE_FILES, ("# Sample\n", defaults, spec, "---\n"), strict=True):
        (role / part).parent.mkdir(parents=True, exist_ok=True)
        (role / part).write_text(text)
    return role


def test_a_good_role_has_no_offence(tmp_path: Path) -> None:
    assert yaml_rules.role_offences(_role(tmp_path)) == []


@pytest.mark.parametrize("missing", yaml_rules.ROLE_FILES)
def test_a_missing_file_is_seen(tmp_path: Path, missing: str) -> None:
    role = _role(tmp_path)
    (role / missing).unlink()
    assert yaml_rules.role_offences(role) == [f"{missing} is missing"]


def test_a_wrong_name_is_seen(tmp_path: Path) -> None:
    assert "is not queue_<verb>" in yaml_rules.role_offences(_role(tmp_path, "queue-sample"))[0]


@pytest.mark.parametrize(
    ("defaults", "spec", "reason"),
    [
        ("queue_sample_limit: 20\n", SPEC, "default is 20, the spec says 10"),
        ("{}\n", SPEC, "neither required nor has a default in both files"),
        (DEFAULTS + "queue_sample_more: 1\n", SPEC, "default 'queue_sample_more' is not in the argument spec"),
        (DEFAULTS + "queue_system: lab\n", SPEC, "'queue_system' is required and has a default"),
        (DEFAULTS, SPEC.replace("type: int, ", ""), "'queue_sample_limit' has no type"),
        (DEFAULTS, SPEC.replace("description: Name of the system., ", ""), "'queue_system' has no description"),
        (DEFAULTS, SPEC.replace("queue_system", "system"), "'system' is not named queue_*"),
        ("queue_limit: 10\n", SPEC.replace("queue_sample_limit", "queue_limit"), "is not named queue_sample_*"),
        (DEFAULTS, SPEC.replace("queue_system", "queue_db_password"), "holds a secret"),
        (DEFAULTS, SPEC + "  drain: {short_description: Second}\n", "there is one, main"),
    ],
)
def test_each_offence_is_seen(tmp_path: Path, defaults: str, spec: str, reason: str) -> None:
    assert reason in "\n".join(yaml_rules.role_offences(_role(tmp_path, defaults=defaults, spec=spec)))
