"""The memory of a process' family, on real processes."""

from __future__ import annotations

import subprocess
import sys

from ansible.module_utils.sluice.adapters.processes import Processes

MB = 1_000_000
#: A small process whose child has filled 60 MB; both wait for their standard input to be closed.
FAMILY = """
import subprocess, sys
child = "import sys; held = bytearray(b'x') * 60_000_000; print('filled', flush=True); sys.stdin.read()"
with subprocess.Popen([sys.executable, "-c", child]) as grown:
    pass
"""


def test_the_largest_of_a_family_counts() -> None:
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        assert parent.stdout.readline() == b"filled\n"
        size = Processes().resident(parent.pid)
        alone = Processes()._resident(parent.pid)
        parent.stdin.close()
    assert size is not None and alone is not None
    assert alone < 40 * MB < 60 * MB < size < 120 * MB


def test_a_process_that_is_gone_has_no_size() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert Processes().resident(ended.pid) is None
