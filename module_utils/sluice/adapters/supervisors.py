"""Which supervisor keeps a host's workers. Apart from the factory, for a host has no driver of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .supervisord import SupervisordWorkers
from .systemd import SystemdWorkers


def supervisor(
    kind: str, *, socket: str = "", units: Mapping[str, Sequence[str]], host: str
) -> SupervisordWorkers | SystemdWorkers:
    """The supervisor of a host's workers: ``supervisord`` over its unix socket, or ``systemd`` over its units."""
    if kind == "supervisord":
        return SupervisordWorkers(socket, host)
    return SystemdWorkers(units, host)
