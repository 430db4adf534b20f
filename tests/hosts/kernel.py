"""What is asked of the kernel: commands, mounts, network namespaces, control groups; and whether it allows them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

PROGRAMS = ("systemd-nspawn", "mmdebstrap", "ip", "ssh", "ssh-keygen", "mount", "umount")


class HostsError(Exception):
    """Test hosts could not be made, started or ended; the message says what, and where to look."""


def run(*arguments: str, seconds: float = 60) -> str:
    """Run one command; its standard output.

    :raises HostsError: it failed, with the end of what it said
    """
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostsError(f"{' '.join(arguments[:3])}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise HostsError(f"{' '.join(arguments[:6])} ended with {done.returncode}: {' / '.join(said[-3:])}")
    return done.stdout


def why_not() -> str:
    """Why this machine cannot carry test hosts, in one line; empty when it can. Leaves nothing behind."""
    if os.geteuid() != 0:
        return "test hosts need root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: systemd-container, mmdebstrap, iproute2, openssh-client)"
    for what, attempt in (
        ("network namespaces", _try_namespace),
        ("a bridge and pairs of interfaces", _try_interfaces),
        ("overlayfs", _try_overlay),
        ("control groups of version 2", _try_control_group),
    ):
        try:
            attempt()
        except (HostsError, OSError) as error:
            return f"the kernel refuses {what} ({error})"
    return ""


def networks_of_others(ours: str) -> list[IPv4Network]:
    """The networks behind the machine's interfaces, but for the interface ``ours``."""
    links: list[dict[str, object]] = json.loads(run("ip", "-4", "-json", "route", "show"))
    return [
        IPv4Network(str(route["dst"]), strict=False)
        for route in links
        if route["dst"] != "default" and route.get("dev") != ours
    ]


def mounted(place: Path) -> bool:
    """Whether something is mounted exactly there."""
    wanted = str(place).replace(" ", "\\040")
    with Path("/proc/self/mounts").open(encoding="utf-8", errors="replace") as lines:
        return any(line.split()[1] == wanted for line in lines)


def overlay(place: Path, layers: Sequence[Path], above: Path) -> None:
    """Mount ``layers``, the uppermost first, at ``place``; changes go to ``above``/upper."""
    upper, work = above / "upper", above / "work"
    for folder in (place, upper, work):
        folder.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={':'.join(map(str, layers))},upperdir={upper},workdir={work}"
    run("mount", "-t", "overlay", "overlay", "-o", options, str(place))


def control_groups() -> list[Path]:
    """The hierarchies in which a host gets a group: version 2's first, then that of systemd's own beside it."""
    top = Path("/sys/fs/cgroup")
    unified = top / "unified" if (top / "unified").is_dir() else top
    beside = [top / "systemd"] if (top / "systemd").is_dir() else []
    return [unified, *beside]


def remove_control_group(name: str) -> None:
    """Remove a host's groups, the inner ones first; its processes are gone."""
    for hierarchy in control_groups():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            Path(folder).rmdir()


def _try_namespace() -> None:
    name = f"sl-try-{os.getpid()}"
    run("ip", "netns", "add", name)
    run("ip", "netns", "delete", name)


def _try_interfaces() -> None:
    name = f"sltry{os.getpid()}"
    run("ip", "link", "add", name, "type", "bridge")
    run("ip", "link", "delete", name)
    run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
    run("ip", "link", "delete", name)


def _try_overlay() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "place"
        (Path(folder) / "lower").mkdir()
        overlay(place, [Path(folder) / "lower"], Path(folder) / "above")
        run("umount", str(place))


def _try_control_group() -> None:
    group = control_groups()[0]
    if not (group / "cgroup.controllers").exists():
        raise HostsError(f"{group} is of version 1")
    name = f"sl-try-{os.getpid()}"
    (group / name).mkdir()
    able = (group / name / "cgroup.kill").exists()
    remove_control_group(name)
    if not able:
        raise HostsError("they cannot be killed as a whole; that is there since Linux 5.14")
