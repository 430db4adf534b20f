"""Gates of playbooks/migrate.yml before the point of no return, made to fail or made unreadable on the hosts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from hosts.site import APPLICATION, LEGACY, RQ, Site

pytestmark = pytest.mark.timeout(1200)

RUN_DIR = f"/run/systemd/system/{RQ}.d"


@pytest.fixture(scope="module")
def site() -> Site:
    """The hosts with a backlog in the table, under traffic."""
    return Site()


@dataclass(frozen=True)
class Fault:
    """What is done to a host, how it is undone, and what the command must say."""

    host: str
    breaks: str
    mends: str
    words: tuple[str, ...]
    variables: dict[str, Any] = field(default_factory=dict)


def _redis(command: str) -> str:
    return f'redis-cli -u "redis://sluice:$(cat /run/password)@redis" --no-auth-warning {command}'


FAULTS = {
    "preflight failed": Fault("ops", _redis("config set maxmemory-policy allkeys-lru"),
                              _redis("config set maxmemory-policy noeviction"), ("allkeys-lru",)),
    "preflight unreadable": Fault("ops", "true", "true", ("sql_disk", "unknown"), {"queue_preflight_attest": {}}),
    "backup failed": Fault("ops", "mount -t tmpfs -o size=4k tmpfs /var/backups/sluice", "umount /var/backups/sluice",
                           ("backup",)),
    "revision unreadable": Fault("app2", "mv /srv/captions/.env /srv/captions/gone",
                                 "mv /srv/captions/gone /srv/captions/.env", ("/srv/captions/.env",)),
    "workers failed": Fault(
        "app2", f"mkdir -p '{RUN_DIR}' && printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' >'{RUN_DIR}/x.conf'"
                " && systemctl daemon-reload",
        f"rm -r '{RUN_DIR}' && systemctl daemon-reload", ("every host has a worker", "none is heard of from app2"),
        {"queue_prove_deadline": 20},
    ),
    "drain unreadable": Fault("app2", "chmod a-x /bin/systemctl && true", "chmod a+x /bin/systemctl", ("systemctl",)),
}  # fmt: skip


def _undone(site: Site) -> None:
    assert site.phase in ("none", "aborted")
    assert site.route == (0, 1)
    assert site.moved_of_users == 0
    assert not site.legacy_locked
    for name in APPLICATION:
        assert site.is_active(name, LEGACY)
        assert "\nRQ_ENABLED=true" not in site.host(name).file("/srv/captions/.env").content_string


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_closed_gate_takes_the_run_back(site: Site, fault: Fault) -> None:
    site.ssh("ops", f"umask 077; echo {site.password('redis')} >/run/password")
    site.ssh(fault.host, fault.breaks)
    try:
        outcome = site.run("migrate", **fault.variables)
    finally:
        site.ssh(fault.host, fault.mends)
    outcome.refused(*fault.words)
    _undone(site)


def test_then_it_goes_all_the_way(site: Site) -> None:
    site.run("migrate").done()
    assert site.phase == "validated"
    site.stop_users()
    site.clean()
