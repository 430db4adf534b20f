"""scripts/demo: its help, its two columns, and that it leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.__main__ import one_at_a_time
from demo.processes import Children, descendants, kill_family
from demo.story import Unfinished, beside
from oracle.patience import PATIENCE_SECONDS

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "demo"
# A program whose child is in a session of its own, as Ansible's are; both do nothing for longer than any test.
FAMILY = "import subprocess, sys, time; subprocess.Popen(['sleep', '300'], start_new_session=True); time.sleep(300)"


def _family(children: Children) -> tuple[subprocess.Popen[bytes], int]:
    process = children.start([sys.executable, "-c", FAMILY])
    deadline = time.monotonic() + 20
    while not (found := descendants(process.pid)):
        assert time.monotonic() < deadline, "the child did not start"
        time.sleep(0.02)
    return process, found[0]


def _running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def test_help_needs_no_set_up() -> None:
    done = subprocess.run([SCRIPT, "--help"], env={"PATH": os.defpath}, capture_output=True, text=True, check=True)
    for option in ("--tasks N", "--kill", "--keep", "Exit code"):
        assert option in done.stdout


def test_a_kill_reaches_children_in_sessions_of_their_own(tmp_path: Path) -> None:
    process, child = _family(Children(tmp_path, os.environ))
    assert kill_family(process.pid) == 2
    assert process.wait(PATIENCE_SECONDS) == -9
    assert not _running(child)


def test_the_end_leaves_nothing_running(tmp_path: Path) -> None:
    children = Children(tmp_path, os.environ)
    process, child = _family(children)
    children.end()
    assert process.poll() is not None
    deadline = time.monotonic() + 10
    while _running(child):
        assert time.monotonic() < deadline, "the child of a child is still there"
        time.sleep(0.02)


def test_a_second_demo_of_a_checkout_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "cache" / "demo.lock"
    with one_at_a_time(lock), pytest.raises(Unfinished, match="is running"), one_at_a_time(lock):
        pass
    with one_at_a_time(lock):
        pass


def test_two_columns_keep_every_line() -> None:
    assert beside(["a", "bbb"], ["1", "2", "3"]) == ["a      1", "bbb    2", "       3"]
