"""scripts/fleet: what the steps on the hosts take, by number of hosts and by forks, on simulated hosts."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fleet.run import fleet_of


@dataclass(frozen=True)
class Measured:
    """One pass over a fleet. Times in seconds; ``cpu`` is of Ansible and its modules, which all run here."""

    hosts: int
    forks: int
    elapsed: float
    cpu: float
    by_step: dict[str, float]


def measure(hosts: int, forks: int, answers: int) -> Measured:
    """All steps once over so many hosts.

    :raises AssertionError: a step failed
    """
    with fleet_of(hosts) as fleet:
        before, began = _cpu(), time.monotonic()
        outcome = fleet.play(forks=forks, seconds=7200, queue_reload_answers=answers)
        elapsed, cpu = time.monotonic() - began, _cpu() - before
    assert outcome.status == 0, outcome.output
    return Measured(hosts, forks, elapsed, cpu, outcome.seconds)


def _cpu() -> float:
    """Processor seconds of all that this process started and that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def line(found: Measured) -> str:
    """One row of the table."""
    steps = "".join(f"{seconds:>11.1f}" for seconds in found.by_step.values())
    each = (found.cpu) / found.hosts
    return f"{found.hosts:>6}{found.forks:>7}{steps}{found.elapsed:>10.1f}{found.cpu:>9.1f}{each:>10.2f}"


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit status 0 when every pass succeeded."""
    parser = argparse.ArgumentParser(prog="scripts/fleet", description=__doc__)
    parser.add_argument("--hosts", default="20", help="how many hosts; several numbers with commas (20)")
    parser.add_argument("--forks", default="5", help="forks of Ansible; several numbers with commas (5)")
    parser.add_argument("--answers", type=int, default=1, help="answers of each host that are waited for (1)")
    options = parser.parse_args(argv)
    load = Path("/proc/loadavg").read_text(encoding="utf-8").split()[0]
    print(f"{os.cpu_count()} processors, load {load} before; seconds")
    head = "".join(f"{step:>11}" for step in ("archive", "settings", "target on", "start", "drain"))
    print(f"{'hosts':>6}{'forks':>7}{head}{'in all':>10}{'cpu':>9}{'cpu/host':>10}", flush=True)
    for hosts in map(int, options.hosts.split(",")):
        for forks in map(int, options.forks.split(",")):
            print(line(measure(hosts, forks, options.answers)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
