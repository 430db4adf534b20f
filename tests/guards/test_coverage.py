"""No branch of protocol, phases, verdicts and decision table is there that no unit test reaches (scripts/coverage)."""

from __future__ import annotations

import subprocess

import pytest

from guards.tree import ROOT


@pytest.mark.timeout(900)
def test_the_core_the_transfer_and_the_balance_are_covered_whole() -> None:
    done = subprocess.run([ROOT / "scripts" / "coverage", "--gate"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no uncovered line or branch" in done.stdout
