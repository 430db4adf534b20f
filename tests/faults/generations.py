"""Environments of other versions than the checkout's own: made once under .cache/, each from its pinned file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from faults import ROOT, TESTS

PINNED = TESTS / "generations"
#: The first and the last RQ 2.
RQ_GENERATIONS = ("rq-2.0", "rq-2.12")


def environment(name: str, python: str = sys.executable, *, lab: bool = False) -> Path:
    """The interpreter of the environment that ``generations/<name>.txt`` pins; made when it is not there.

    :param python: the interpreter to make it with
    :param lab: also everything of requirements-lab.txt that the file does not pin itself
    """
    pins = _pins(PINNED / f"{name}.txt")
    if lab:
        pins = {**_pins(ROOT / "requirements.txt"), **_pins(ROOT / "requirements-lab.txt"), **pins}
    requirements = [f"{package}=={version}" for package, version in sorted(pins.items())]
    home = ROOT / ".cache" / f"generation-{name}"
    home.parent.mkdir(exist_ok=True)
    # The path counts too: the programs of a virtual environment do not work from another place.
    wanted = hashlib.sha256("\n".join([str(home), python, *requirements]).encode()).hexdigest()
    stamp = home / "requirements.sha256"
    with (home.parent / f"generation-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two tests of one checkout do this one after the other
        if not stamp.exists() or stamp.read_text() != wanted:
            _make(home, requirements, python)
            stamp.write_text(wanted)
    return home / "bin" / "python"


def interpreter(*versions: str) -> str | None:
    """The first interpreter of one of these versions which starts; None when this machine has none of them.

    Names on the path may be shims of a version that is not chosen.
    """
    kept = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))) / "versions"
    for version in versions:
        for candidate in (f"python{version}", *map(str, sorted(kept.glob(f"{version}.*/bin/python{version}")))):
            with contextlib.suppress(OSError):
                if subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
                    return candidate
    return None


def _pins(requirements: Path) -> dict[str, str]:
    """Packages and versions of a file of requirements, those that it includes left out."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


def _make(home: Path, requirements: list[str], python: str) -> None:
    subprocess.run([python, "-m", "venv", "--clear", str(home)], check=True, capture_output=True, timeout=120)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*pip, *requirements], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{home.name} could not be made:\n{done.stderr}"
