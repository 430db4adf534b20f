"""captions' processes hear a request to end, whatever they are doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from captions.stopping import StopRequest
from conftest import ROOT
from oracle.patience import PATIENCE_SECONDS

#: Signals at random moments around the beginning of a wait: one that is heard only by the interpreter's next step is
#: heard after ten minutes in every fortieth cycle, and a request that takes a lock hangs within a few hundred.
CYCLES = """
import random, signal
from captions import stopping
for cycle in range(3000):
    stop = stopping.stop_on_signals()
    signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 3e-5))
    stop.wait(600)
    while not stop.is_set():
        stop.wait(0)
print("heard", cycle + 1)
"""


def test_a_signal_at_any_moment_of_a_wait_is_heard() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CYCLES],
        env={**os.environ, "PYTHONPATH": str(ROOT / "app")},
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert done.stdout == "heard 3000\n", done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_wait_ends_with_the_signal(number: signal.Signals) -> None:
    source = (
        "import sys\nfrom captions.stopping import stop_on_signals\nstop = stop_on_signals()\n"
        "print('up', flush=True)\nprint(stop.wait(600), stop.wait(600), stop.is_set())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(ROOT / "app")}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (0, "True True True\n")


def test_every_thread_that_waits_is_told() -> None:
    stop = StopRequest()
    told: list[bool] = []
    threads = [threading.Thread(target=lambda: told.append(stop.wait(60))) for _ in range(4)]
    for thread in threads:
        thread.start()
    stop.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert told == [True] * 4


def elapsed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def test_nobody_asked() -> None:
    stop = StopRequest()
    assert elapsed(lambda: stop.wait(0.05)) >= 0.05
    assert (stop.wait(0), stop.wait(-1), stop.is_set()) == (False, False, False)


def test_another_signal_neither_ends_a_wait_nor_makes_it_spin() -> None:
    source = (
        "import signal, time\nfrom captions.stopping import stop_on_signals\nstop = stop_on_signals()\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\n"
        "began, worked = time.monotonic(), time.process_time()\nasked = stop.wait(1)\n"
        "waited, worked = time.monotonic() - began, time.process_time() - worked\n"
        "print(asked, waited >= 1, worked < waited / 2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(ROOT / "app")},
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert done.stdout == "False True True\n", done.stderr
