"""Environments of other versions than the checkout's own: made once under .cache/, each from its pinned file."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from faults import ROOT, TESTS

PINNED = TESTS / "generations"
#: The first and the last RQ 2.
RQ_GENERATIONS = ("rq-2.0", "rq-2.12")


def environment(name: str, python: str = sys.executable) -> Path:
    """The interpreter of the environment that ``generations/<name>.txt`` pins; made when it is not there.

    :param python: the interpreter to make it with
    """
    requirements = PINNED / f"{name}.txt"
    home = ROOT / ".cache" / f"generation-{name}"
    home.parent.mkdir(exist_ok=True)
    # The path counts too: the programs of a virtual environment do not work from another place.
    wanted = hashlib.sha256(f"{home}\n{requirements.read_text(encoding='utf-8')}".encode()).hexdigest()
    stamp = home / "requirements.sha256"
    with (home.parent / f"generation-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two tests of one checkout do this one after the other
        if not stamp.exists() or stamp.read_text() != wanted:
            _make(home, requirements, python)
            stamp.write_text(wanted)
    return home / "bin" / "python"


def _make(home: Path, requirements: Path, python: str) -> None:
    if python == sys.executable:
        venv.create(home, clear=True, with_pip=True, symlinks=True)
    else:
        subprocess.run([python, "-m", "venv", "--clear", str(home)], check=True, capture_output=True, timeout=120)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*pip, "-r", str(requirements)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{requirements.name} could not be installed into {home}:\n{done.stderr}"
