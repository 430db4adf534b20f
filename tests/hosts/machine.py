"""One test host: its file system, its network, its systemd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hosts.kernel import HostsError, control_groups, mounted, overlay, remove_control_group, run
from hosts.layout import HOSTS, Layout

_STOP = signal.SIGRTMIN + 3
_STOP_SECONDS = 40
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Machine:
    """A host by its name. Whether it runs is read from the machine, never from a record that could be old."""

    layout: Layout
    name: str

    @property
    def folder(self) -> Path:
        """Its layer, its mount point and what its console says."""
        return self.layout.directory / self.name

    @property
    def root(self) -> Path:
        """Its file system, mounted while it runs."""
        return self.layout.root(self.name)

    @property
    def unique(self) -> str:
        """Its name among everything on this machine."""
        return f"{self.layout.tag}-{self.name}"

    @property
    def _link(self) -> str:
        return f"{self.layout.tag}-{HOSTS.index(self.name)}"

    # --- its life ------------------------------------------------------------------------------------------------

    def mount(self, layers: Sequence[Path]) -> None:
        """Put its file system together, with an empty layer of its own on top."""
        overlay(self.root, layers, self.folder)

    def connect(self) -> None:
        """Give it a network namespace with one interface on the hosts' bridge."""
        run("ip", "netns", "add", self.unique)
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "host0", "netns", self.unique)
        run("ip", "link", "set", self._link, "master", self.layout.tag, "up")
        inside = ("ip", "-netns", self.unique)
        run(
            *inside,
            "address",
            "add",
            f"{self.layout.address(self.name)}/{self.layout.network.prefixlen}",
            "dev",
            "host0",
        )
        for interface in ("lo", "host0"):
            run(*inside, "link", "set", interface, "up")

    def boot(self) -> None:
        """Start its systemd; returns at once."""
        group = control_groups()[0] / self.unique
        group.mkdir(exist_ok=True)
        command = [
            "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe",
            f"--directory={self.root}", f"--machine={self.unique}", f"--hostname={self.name}",
            f"--network-namespace-path=/run/netns/{self.unique}", "--capability=CAP_NET_ADMIN",
            "--resolv-conf=off", "--timezone=off", "--link-journal=no",
        ]  # fmt: skip
        # The shell joins the group before it becomes the host, so that two hosts never share one tree.
        enter = 'echo $$ >"$1/cgroup.procs" || exit; shift; exec "$@"'
        with (self.folder / "console.log").open("ab") as log:
            subprocess.run(
                ["setsid", "--fork", "sh", "-c", enter, "sh", str(group), *command],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )

    def stop(self) -> None:
        """Let it shut down, by force where it does not; then its processes are gone."""
        init = self.init
        if init is not None:
            _signal(init, _STOP)
            _wait(lambda: self.container is None, _STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """As if its power went: every process of it ends at once, nothing is written any more."""
        group = control_groups()[0] / self.unique
        if group.exists():
            (group / "cgroup.kill").write_text("1")
        if not _wait(lambda: self.container is None and not _populated(group), 10):
            raise HostsError(f"{self.name} outlived SIGKILL; see {self.folder / 'console.log'}")

    def unmount(self) -> None:
        """Take its file system apart; its own layer stays."""
        deadline = time.monotonic() + 10
        while mounted(self.root):
            try:
                run("umount", str(self.root))
            except HostsError:  # a process that was killed a moment ago still has a file open
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)

    def disconnect(self) -> None:
        """Remove its network and its control groups; it must have been stopped."""
        # The link first: with the namespace it would go a moment later, by itself.
        if Path(f"/sys/class/net/{self._link}").exists():
            run("ip", "link", "delete", self._link)
        if Path(f"/run/netns/{self.unique}").exists():
            run("ip", "netns", "delete", self.unique)
        remove_control_group(self.unique)

    def remove(self) -> None:
        """Everything of it, whatever state it is in."""
        self.kill()
        self.unmount()
        self.disconnect()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    # --- its network ---------------------------------------------------------------------------------------------

    def cut_off(self) -> None:
        """Pull its cable: nothing reaches it and it reaches nothing, and nobody is told."""
        run("ip", "link", "set", self._link, "down")

    def put_back(self) -> None:
        """Plug the cable in again."""
        run("ip", "link", "set", self._link, "up")

    # --- what runs -----------------------------------------------------------------------------------------------

    @property
    def container(self) -> int | None:
        """The process that holds it, None when it does not run."""
        mark = f"--machine={self.unique}"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _command_line(entry)[:1] == ["systemd-nspawn"]:
                if mark in _command_line(entry):
                    return int(entry.name)
        return None

    @property
    def init(self) -> int | None:
        """Its process 1, as this machine numbers it; None before it is there."""
        container = self.container
        if container is None:
            return None
        try:
            children = Path(f"/proc/{container}/task/{container}/children").read_text(encoding="ascii").split()
        except OSError:
            return None
        return next((int(child) for child in children), None)


def _populated(group: Path) -> bool:
    try:
        return "populated 1" in (group / "cgroup.events").read_text(encoding="ascii")
    except FileNotFoundError:
        return False


def _command_line(entry: Path) -> list[str]:
    try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [word.decode(errors="replace") for word in words]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended meanwhile


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
