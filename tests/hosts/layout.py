"""Names, addresses and folders of the test hosts. Everything follows from the checkout's path and the group's name."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Network
from pathlib import Path

#: The hosts, in the order of their addresses. ``ops`` is the control host, where Sluice's modules run.
HOSTS = ("ops", "app1", "app2", "db", "redis")
_FIRST_ADDRESS = 11
_CANDIDATES = 64


@dataclass(frozen=True)
class Layout:
    """Where one group of hosts of a checkout is. ``network`` is theirs alone; its first address is this machine's."""

    checkout: Path
    group: str
    network: IPv4Network

    @cached_property
    def tag(self) -> str:
        """What all names begin with that the machine knows: short, for an interface has fifteen characters."""
        return tag_of(self.checkout, self.group)

    @property
    def directory(self) -> Path:
        """The running hosts, mode 0700; removed when they are."""
        return self.checkout / ".hosts" / self.group

    @property
    def cache(self) -> Path:
        """What is kept: the base and the layers on it."""
        return self.checkout / ".cache" / "hosts"

    @property
    def gateway(self) -> str:
        """This machine's address on their network."""
        return str(self.network[1])

    @property
    def accounts_from(self) -> str:
        """The host part of SQL accounts that all of them may use."""
        return f"{self.network.network_address.exploded.rpartition('.')[0]}.%"

    def address(self, host: str) -> str:
        """The address of one of HOSTS."""
        return str(self.network[_FIRST_ADDRESS + HOSTS.index(host)])

    def root(self, host: str) -> Path:
        """The root of a running host's file system, to look into from outside."""
        return self.directory / host / "root"

    @property
    def ssh_config(self) -> Path:
        """The client's settings by which every host is reached under its name."""
        return self.directory / "ssh_config"

    @property
    def vars_file(self) -> Path:
        """Addresses and passwords, for the inventory."""
        return self.directory / "vars.yml"


def group_wanted() -> str:
    """The group that is meant, ``SLUICE_HOSTS`` or ``1``: several groups of one checkout may run at a time.

    ValueError when it is not a short word.
    """
    group = os.environ.get("SLUICE_HOSTS") or "1"
    if not re.fullmatch(r"[a-z0-9]{1,12}", group):
        raise ValueError(f"SLUICE_HOSTS is '{group}': up to twelve small letters and digits name a group of hosts")
    return group


def tag_of(checkout: Path, group: str) -> str:
    """See :attr:`Layout.tag`."""
    return f"sl{_digest(checkout, group).hex()[:8]}"


def layout_of(checkout: Path, group: str, taken: Iterable[IPv4Network]) -> Layout:
    """The layout of a group of a checkout: the first of its candidates that overlaps no network of the machine.

    LookupError when all of them are taken.
    """
    occupied = list(taken)
    number = int.from_bytes(_digest(checkout, group)[:4])
    for step in range(_CANDIDATES):
        # 10.128.0.0/9 in networks of 256 addresses; the step is odd, so that no candidate comes twice.
        place = (number + step * 1021) % 2**15
        network = IPv4Network(((10 << 24) + (1 << 23) + (place << 8), 24))
        if not any(network.overlaps(other) for other in occupied):
            return Layout(checkout, group, network)
    raise LookupError("every network that the test hosts of this checkout could use is taken; see 'ip -4 route'")


def _digest(checkout: Path, group: str) -> bytes:
    return hashlib.sha256(f"{checkout.resolve()}\0{group}".encode()).digest()
