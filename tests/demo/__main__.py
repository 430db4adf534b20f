"""``python -m demo``: the main job, each step said in a line before it is done; or ``drill``, the way back."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pymysql

from demo.drill import Drill
from demo.drill import perform as perform_drill
from demo.story import ROOT, Clock, Demo, Unfinished, lab_command

FAILED_BEFORE_THE_VERDICT = 3


class Stopped(Exception):
    """Somebody asked the demo to end."""


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Two demos of one checkout would share its lab; Unfinished for the second one."""
    lock.parent.mkdir(exist_ok=True)
    with lock.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unfinished("a demo of this checkout is running; wait for it, or use another checkout") from None
        yield


def perform(demo: Demo, keep: bool) -> int:
    """All steps; whatever happens, what was started has ended afterwards, but for the lab of a kept success."""
    up = False
    try:
        demo.lab()
        demo.backlog()
        traffic = demo.traffic()
        demo.plan()
        began = demo.migrate(traffic)
        probes = demo.finish(traffic, began)
        verdict = demo.result(probes)
        up = keep
        return verdict
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        demo.children.end()
        if up:
            demo.how_to_look()
        else:
            subprocess.run(lab_command("down"), cwd=ROOT, env=demo.environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Migrate the lab under live traffic.")
    parser.add_argument(
        "what", nargs="?", choices=["migration", "drill"], default="migration", help="migration or drill"
    )
    parser.add_argument("--tasks", type=_tasks, default=3000, metavar="N", help="size of the backlog (3000)")
    parser.add_argument("--kill", action="store_true", help="kill -9 ansible-playbook in mid-transfer, then resume")
    parser.add_argument("--keep", action="store_true", help="leave the lab up afterwards")
    options = parser.parse_args()
    clock = Clock()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        with one_at_a_time(ROOT / ".cache" / "demo.lock"):
            if options.what == "drill":
                verdict = perform_drill(Drill(options.tasks, False, os.environ, clock), lab_command("down"))
            else:
                verdict = perform(Demo(options.tasks, options.kill, os.environ, clock), options.keep)
    except (Unfinished, Stopped, OSError, subprocess.CalledProcessError, pymysql.Error) as error:
        clock.say(f"stopped: {str(error) or type(error).__name__}")
        return FAILED_BEFORE_THE_VERDICT
    words = {0: "clean: nothing lost, nothing doubled", 1: "VIOLATED: see the oracle's list above"}
    clock.say(f"done, the oracle's verdict is {words.get(verdict, 'missing')}; logs and evidence are in .lab")
    return verdict


def _tasks(text: str) -> int:
    number = int(text)
    if not 100 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError("from 100 to 1000000")
    return number


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(f"asked to by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
