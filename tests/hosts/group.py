"""A group of test hosts together: installed once, started from what was kept, removed."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import string
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from hosts import base
from hosts.kernel import HostsError, networks_of_others, run
from hosts.layout import HOSTS, Layout, group_wanted, layout_of, tag_of
from hosts.machine import Machine
from lab.accounts import RIGHTS
from lab.images import make_images
from lab.stores import remove_run_directory, run_directory

CHECKOUT = Path(__file__).resolve().parents[2]
SITE = CHECKOUT / "molecule" / "resources" / "site.yml"
INVENTORY = CHECKOUT / "molecule" / "resources" / "inventory" / "hosts.yml"
#: What is on the hosts once they are set up, or decides it.
_SOURCES = (
    "app/captions", "app/lab/accounts.py", "app/lab/images.py", "tests/oracle", "tests/hosts/group.py",
    "tests/hosts/layout.py", "molecule/resources/inventory", "molecule/resources/roles", "molecule/resources/site.yml",
)  # fmt: skip
_BOOT_SECONDS = 90
#: Accounts of the application and the mover that are there before a migration.
_ACCOUNTS = ("captions_web", "captions_legacy", "sluice", "sluice_read")
#: Who looks from outside: the tests' own account, allowed everything.
JUDGE = "judge"
_SECRETS = (*_ACCOUNTS, JUDGE, "captions_rq", "redis", "redis_rq", "redis_web", "admin")


def say(line: str) -> None:
    """One line, at once."""
    print(f"hosts: {line}", flush=True)


class Group:
    """The hosts of one group of a checkout."""

    def __init__(self, checkout: Path = CHECKOUT) -> None:
        group = group_wanted()
        self.layout = layout_of(checkout, group, networks_of_others(tag_of(checkout, group)))
        self.machines = {name: Machine(self.layout, name) for name in HOSTS}
        self._base = self.layout.cache / f"base-{base.key(checkout)}"
        sources = [checkout / part for part in _SOURCES]
        key = base.key_of(sources, self._base.name, str(self.layout.network))
        self._site = self.layout.cache / f"site-{group}-{key}"

    # --- its life ------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Start all hosts with the application installed and nothing submitted; what ran before is removed."""
        with self._alone():
            self._remove()
            self._make()
            began = time.monotonic()
            self._start(self._site, lambda name: [self._site / "layers" / name, self._base])
            say(f"{len(HOSTS)} hosts are up in {time.monotonic() - began:.1f} s, {self.layout.network}")

    def make(self) -> None:
        """What the first start takes minutes for, in advance; no host is left."""
        with self._alone():
            if not self._site.is_dir():
                self._remove()
            self._make()

    def down(self) -> None:
        """Remove the hosts and everything that they changed; what the next start needs is kept."""
        with self._alone():
            self._remove()
        say("no host is left")

    def installed(self, host: str, path: str) -> Path:
        """A file of a host as the roles wrote it, before anything else happened."""
        return self._site / "layers" / host / path

    def power_on(self, name: str) -> None:
        """Boot a host that was killed, with what is on its disk."""
        self.machines[name].boot()
        self._wait_until_booted(self.machines[name])

    def status(self) -> int:
        """Print what runs; 0 when all of them do, 3 when not."""
        for name, machine in self.machines.items():
            print(f"{name:<8} {self.layout.address(name):<15} {'up' if machine.container is not None else 'down'}")
        return 0 if all(machine.container is not None for machine in self.machines.values()) else 3

    # --- parts ---------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        began = time.monotonic()
        if not self._base.is_dir():
            say("making the base from Debian packages, once")
            base.make(self.layout.checkout, self._base)
            say(f"made the base in {time.monotonic() - began:.0f} s")
        if not self._site.is_dir():
            self._install()
        ours = f"site-{self.layout.group}-"
        of_others = [site for site in self.layout.cache.glob("site-*-*") if not site.name.startswith(ours)]
        base.forget_others(self.layout.cache, (self._base, self._site, *of_others))

    def _install(self) -> None:
        """Have the roles set up all hosts on the bare base, and keep what they wrote."""
        began = time.monotonic()
        say("installing the application on the hosts, once")
        new = self._site.with_name(self._site.name + ".new")
        if new.is_dir():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        _make_secrets(new, self.layout)
        self._start(new, lambda _: [self._base])
        log = new / "install.log"
        with log.open("wb") as output:
            done = subprocess.run(
                [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(INVENTORY), str(SITE)],
                cwd=self.layout.checkout,
                env={**os.environ, "ANSIBLE_CONFIG": str(self.layout.checkout / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        if done.returncode != 0:
            raise HostsError(f"the roles could not set up the hosts, which are still up; the log is {log}")
        self._stop()
        for name, machine in self.machines.items():
            machine.unmount()
            (new / "layers").mkdir(exist_ok=True)
            (machine.folder / "upper").rename(new / "layers" / name)
        self._remove()
        new.rename(self._site)
        say(f"installed it in {time.monotonic() - began:.0f} s")

    def _start(self, site: Path, layers: Callable[[str], Sequence[Path]]) -> None:
        layout = self.layout
        layout.directory.parent.mkdir(mode=0o700, exist_ok=True)
        layout.directory.mkdir(mode=0o700, exist_ok=True)
        self._write_client_settings(site)
        run("ip", "link", "add", layout.tag, "type", "bridge")
        run("ip", "address", "add", f"{layout.gateway}/{layout.network.prefixlen}", "dev", layout.tag)
        run("ip", "link", "set", layout.tag, "up")
        for name, machine in self.machines.items():
            machine.mount(layers(name))
            self._dress(machine, site)
            machine.connect()
            machine.boot()
        for machine in self.machines.values():
            self._wait_until_booted(machine)

    def _stop(self) -> None:
        """The stores last: what the application still has to say reaches them."""
        for name in sorted(HOSTS, key=lambda name: name in ("db", "redis")):
            self.machines[name].stop()

    def _remove(self) -> None:
        self._close_connections()
        for machine in self.machines.values():
            machine.remove()
        if Path(f"/sys/class/net/{self.layout.tag}").exists():
            run("ip", "link", "delete", self.layout.tag)
        remove_run_directory(self.layout.directory)
        if self.layout.directory.exists():
            shutil.rmtree(self.layout.directory)
        groups = self.layout.directory.parent
        if groups.exists() and not any(groups.iterdir()):
            groups.rmdir()

    def _dress(self, machine: Machine, site: Path) -> None:
        """What a host is told about itself before it boots."""
        root, name = machine.root, machine.name
        (root / "etc/hostname").write_text(f"{name}\n")
        lines = ["127.0.0.1 localhost", *(f"{self.layout.address(one)} {one}" for one in HOSTS)]
        (root / "etc/hosts").write_text("\n".join(lines) + "\n")
        (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        _copy_private(site / "id_ed25519.pub", root / "root/.ssh/authorized_keys")
        _copy_private(site / f"host_{name}", root / "etc/ssh/ssh_host_ed25519_key")

    def _write_client_settings(self, site: Path) -> None:
        layout = self.layout
        for file in ("id_ed25519", "vars.yml", "captions.tar", "users.tar"):
            _copy_private(site / file, layout.directory / file)
        known = []
        blocks = []
        for name in HOSTS:
            kind, value, *_ = (site / f"host_{name}.pub").read_text(encoding="ascii").split()
            known.append(f"{layout.address(name)} {kind} {value}")
            blocks.append(f"Host {name}\n  HostName {layout.address(name)}\n")
        (layout.directory / "known_hosts").write_text("\n".join(known) + "\n")
        common = {
            "User": "root",
            "IdentityFile": layout.directory / "id_ed25519",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": layout.directory / "known_hosts",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "5",
            "ServerAliveInterval": "3",
            "ServerAliveCountMax": "3",
            "LogLevel": "ERROR",
            # A directory of this checkout's own: a connection is never taken for one to another checkout's host.
            "ControlMaster": "auto",
            "ControlPersist": "60s",
            "ControlPath": run_directory(layout.directory) / "%n",
        }
        blocks.append("Host *\n" + "".join(f'  {key} "{value}"\n' for key, value in common.items()))
        layout.ssh_config.write_text("".join(blocks))

    def _close_connections(self) -> None:
        if not self.layout.ssh_config.exists():
            return
        for name in HOSTS:
            command = ["ssh", "-F", str(self.layout.ssh_config), "-O", "exit", name]
            # It fails where nobody was connected, which is as good.
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=10)

    def _wait_until_booted(self, machine: Machine) -> None:
        deadline = time.monotonic() + _BOOT_SECONDS
        log = machine.folder / "console.log"
        while not _listens(self.layout.address(machine.name)):
            if time.monotonic() > deadline:
                raise HostsError(f"{machine.name} did not boot within {_BOOT_SECONDS} s; see {log}")
            time.sleep(0.05)
        ssh = ["ssh", "-F", str(self.layout.ssh_config), machine.name]
        done = subprocess.run(
            [*ssh, "systemctl is-system-running --wait || systemctl --failed --no-legend --plain"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_BOOT_SECONDS,
        )
        if done.stdout.strip() != "running":
            said = " / ".join((done.stdout + done.stderr).split("\n"))
            raise HostsError(f"{machine.name} is not well after its start: {said}; see {log}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two commands for the same hosts wait for each other."""
        self.layout.cache.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.layout.cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _make_secrets(site: Path, layout: Layout) -> None:
    """Keys and passwords of these hosts, made once, and what the roles and the inventory are told."""
    for name in ("id_ed25519", *(f"host_{host}" for host in HOSTS)):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(site / name))
    letters = string.ascii_letters + string.digits
    passwords = {name: "".join(secrets.choice(letters) for _ in range(32)) for name in _SECRETS}
    make_images(site / "images")
    app, oracle = layout.checkout / "app" / "captions", layout.checkout / "tests" / "oracle"
    for name, folders in {"captions.tar": (app, site / "images"), "users.tar": (oracle,)}.items():
        with tarfile.open(site / name, "w") as archive:
            for folder in folders:
                archive.add(folder, folder.name, filter=_sources_only)
    told: dict[str, Any] = {
        "addresses": {name: layout.address(name) for name in HOSTS},
        "accounts_from": layout.accounts_from,
        "gateway": layout.gateway,
        "passwords": passwords,
        "accounts": _account_statements(layout, passwords),
    }
    path = site / "vars.yml"
    path.touch(mode=0o600)
    path.write_text("---\n" + yaml.safe_dump({"test_hosts": told}, sort_keys=False), encoding="utf-8")


def _account_statements(layout: Layout, passwords: dict[str, str]) -> list[str]:
    """SQL that makes the accounts, each allowed what docs/mapping.md and the lab allow it, from these hosts only."""
    statements = []
    for user in _ACCOUNTS:
        account = f"'{user}'@'{layout.accounts_from}'"
        statements.append(f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '{passwords[user]}'")
        for rights in RIGHTS[user]:
            what, option, rest = rights.partition(" WITH GRANT OPTION")
            statements.append(f"GRANT {what} TO {account}{option}{rest}")
    judge = f"'{JUDGE}'@'{layout.gateway}'"
    statements.append(f"CREATE USER IF NOT EXISTS {judge} IDENTIFIED BY '{passwords[JUDGE]}'")
    statements.append(f"GRANT ALL PRIVILEGES ON *.* TO {judge} WITH GRANT OPTION")
    return statements


def _sources_only(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry


def _copy_private(source: Path, target: Path) -> None:
    target.touch(mode=0o600)
    target.write_bytes(source.read_bytes())
    target.chmod(0o600)


def _listens(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
