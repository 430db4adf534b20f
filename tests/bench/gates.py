"""The price of the gates: the wall time of a whole migration that has nothing to move."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

from bench import ROOT
from bench.figures import Figure

AIM_SECONDS = 45.0
_KEY = "gates.migrate_seconds"
_PLAYBOOK = ROOT / "playbooks" / "migrate.yml"
_NO_WAITING = {"queue_soak_seconds": 0, "queue_soak_sample_min": 0, "queue_validate_observation_seconds": 0}


def measure(say: Callable[[str], None]) -> list[Figure]:
    """Seconds of migrate.yml on the emptied lab of this checkout, soak and observation 0.

    A lab that is up is somebody's: it is left alone and nothing is measured.
    """
    lab = str(ROOT / "scripts" / "lab")
    if subprocess.run([lab, "status"], capture_output=True, check=False).returncode == 0:
        note = "the lab is up and would be emptied: 'scripts/lab down' first"
        return [Figure(_KEY, None, "s", ("<=", AIM_SECONDS), note)]
    try:
        for command in ("reset", "up"):
            _run([lab, command])
        say("gates: migrate.yml on an empty lab")
        extra = [word for name, value in _NO_WAITING.items() for word in ("-e", f"{name}={value}")]
        begun = time.perf_counter()
        _run([str(ROOT / ".venv" / "bin" / "ansible-playbook"), str(_PLAYBOOK), *extra])
        seconds = time.perf_counter() - begun
    finally:
        _run([lab, "down"])
    return [Figure(_KEY, seconds, "s", ("<=", AIM_SECONDS), f"{os.cpu_count()} cores, soak and observation 0")]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise RuntimeError(f"{' '.join(command[:2])} ended with {done.returncode}: " + " | ".join(lines[-6:]))
