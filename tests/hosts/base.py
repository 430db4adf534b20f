"""The base: a Debian root file system with everything that any of the hosts needs, made once and kept."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from hosts.kernel import HostsError, run

PYTHON = "/opt/venv/bin/python"
_PACKAGES = (
    "ca-certificates", "dbus", "iproute2", "mariadb-client", "mariadb-server", "openssh-server", "procps", "python3",
    "redis-server", "redis-tools", "systemd", "systemd-sysv",
)  # fmt: skip
# Nothing that looks at the clock by itself, waits for a terminal, or would turn the machine's own kernel settings.
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
    "console-getty.service", "getty@.service", "systemd-firstboot.service", "systemd-sysctl.service",
    "systemd-udevd.service", "systemd-timesyncd.service", "tmp.mount",
)  # fmt: skip
# A host runs only what its roles start.
_DISABLED = ("mariadb.service", "redis-server.service")
_UNNEEDED = ("/usr/share/man", "/usr/share/locale", "/usr/share/doc", "/usr/share/info")

# Prints what the installed distributions require and is not there.
_MISSING = """
from importlib.metadata import distributions
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
there = {canonicalize_name(one.metadata["Name"]) for one in distributions()}
for one in distributions():
    for wanted in map(Requirement, one.requires or ()):
        applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if applies and canonicalize_name(wanted.name) not in there:
            print(f"{wanted.name}{wanted.specifier}")
"""


def key_of(paths: Iterable[Path], *words: str) -> str:
    """A short name that changes with the contents of files, or of all files below folders, and with ``words``."""
    digest = hashlib.sha256("\0".join(words).encode())
    for top in paths:
        files = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
        for path in files:
            if "__pycache__" not in path.parts:
                digest.update(f"\0{path.relative_to(top.parent)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def suite() -> str:
    """The release of Debian that this machine has; bookworm where that cannot be said."""
    found = platform.freedesktop_os_release()
    return found.get("VERSION_CODENAME", "bookworm") if found.get("ID") == "debian" else "bookworm"


def key(checkout: Path) -> str:
    """The key of the base that this checkout needs."""
    return key_of([Path(__file__), checkout / "requirements.txt", checkout / "requirements-lab.txt"], suite())


def make(checkout: Path, place: Path) -> None:
    """Make the base at ``place``, which is there afterwards whole or not at all.

    :raises HostsError: a package or a requirement could not be had
    """
    new = place.with_name(place.name + ".new")
    _remove(new)
    new.parent.mkdir(parents=True, exist_ok=True)
    log = new.with_suffix(".log")
    options = [
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(_PACKAGES)}",
        '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={folder}/*" for folder in _UNNEEDED),
    ]
    with log.open("wb") as output:
        done = subprocess.run(
            ["mmdebstrap", *options, suite(), str(new)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode != 0:
        raise HostsError(f"mmdebstrap ended with {done.returncode}; its log is {log}")
    _settle(new)
    _install_python(checkout, new)
    new.rename(place)
    log.unlink()


def _settle(root: Path) -> None:
    """What a host is told at its start is taken out; units that have no place here are masked."""
    for pattern in ("etc/ssh/ssh_host_*", "etc/hostname", "etc/resolv.conf"):
        for path in root.glob(pattern):
            path.unlink()
    (root / "etc/resolv.conf").touch()
    (root / "etc/machine-id").write_text("")
    run("chroot", str(root), "systemctl", "mask", *_MASKED)
    run("chroot", str(root), "systemctl", "disable", *_DISABLED)
    run("chroot", str(root), "systemctl", "enable", "ssh.service")


def _install_python(checkout: Path, root: Path) -> None:
    """A virtual environment with the lab's requirements, filled by this machine's pip: the base needs no network."""
    run("chroot", str(root), "python3", "-m", "venv", "--without-pip", str(Path(PYTHON).parents[1]))
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = run("chroot", str(root), PYTHON, "-c", asked).strip()
    target = os.path.normpath(root / PYTHON.lstrip("/") / f"../../lib/python{version}/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input", "--no-compile"]
    where = ["--target", target, "--python-version", version, "--only-binary=:all:"]
    run(*pip, *where, "-r", str(checkout / "requirements-lab.txt"), seconds=600)
    # pip asks the interpreter that runs it which requirements apply; another patch release may need more.
    while missing := run("chroot", str(root), PYTHON, "-c", _MISSING).split():
        run(*pip, *where, "--no-deps", *missing, seconds=600)
    run("chroot", str(root), PYTHON, "-m", "compileall", "-q", "/opt/venv/lib", seconds=300)


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


def forget_others(cache: Path, kept: Iterable[Path]) -> None:
    """Remove what earlier recipes left in the cache."""
    names = {path.name for path in kept}
    for path in cache.iterdir() if cache.is_dir() else ():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path)
