"""Peak memory of a transfer and of the balance, each in a process of its own, at two sizes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.services.verify import Verification

from bench.figures import Figure
from bench.stores import Addresses, Stores, attach_ends, open_ends

AIM_GROWTH_MIB = 20.0
_STEPS = ("transfer", "verify")


def measure(stores: Stores, small: int, large: int, say: Callable[[str], None]) -> list[Figure]:
    """Peak resident memory (VmHWM) in MiB at both sizes, and how much it grows from one to the other."""
    peaks: dict[tuple[str, int], float] = {}
    for count in (small, large):
        with stores.backlog(count) as where:
            for step in _STEPS:
                peaks[step, count] = _peak_of_child(step, where)
                say(f"memory: {step} of {count:,} tasks: {peaks[step, count]:.1f} MiB")
    figures = []
    for step in _STEPS:
        growth = peaks[step, large] - peaks[step, small]
        note = f"from {small:,} to {large:,} tasks: {peaks[step, small]:.1f} to {peaks[step, large]:.1f} MiB"
        figures.append(Figure(f"memory.{step}_growth_mib", growth, "MiB", ("<=", AIM_GROWTH_MIB), note))
        figures.append(Figure(f"memory.{step}_peak_mib", peaks[step, large], "MiB"))
    return figures


def _peak_of_child(step: str, where: Addresses) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", step],
        env=where.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the {step} of the memory benchmark failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout)


def main(step: str) -> None:
    """In the child: do the step, print this process' peak in MiB."""
    where = Addresses.from_environment()
    if step == "transfer":
        ends = open_ends(where)
        ends.ledger.save_baseline(ends.lease)
        ends.transfer_all()
    else:
        ends = attach_ends(where)
        verification = Verification(ends.source, ends.target, ends.ledger, SystemClock(), ends.mapping, ends.run.id)
        balance = verification.balance().balance
        if not balance.holds:
            raise RuntimeError(f"{balance.fault_count} ids break the balance: its memory means nothing")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024)


if __name__ == "__main__":
    main(sys.argv[1])
