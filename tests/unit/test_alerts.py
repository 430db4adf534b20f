"""The alert rules of captions, by Prometheus' own judgement, and against the metrics that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from captions import metrics

APP = Path(__file__).resolve().parents[2] / "app"
PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed; the Debian package prometheus has it")
@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")])
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [str(PROMTOOL), *arguments], cwd=APP, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_is_tested_and_reads_metrics_that_exist(tmp_path: Path) -> None:
    rules = yaml.safe_load((APP / "alerts.yml").read_text())["groups"][0]["rules"]
    tests = yaml.safe_load((APP / "alerts.test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert {rule["alert"] for rule in rules} == fired
    source = Path(str(metrics.__file__)).read_text()
    named = {name for rule in rules for name in re.findall(r"captions_\w+", rule["expr"])}
    assert len(named) > 6
    unknown = {name for name in named if f'"{re.sub("_(total|bucket)$", "", name)}"' not in source}
    assert unknown == set()
