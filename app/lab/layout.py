"""Where the lab of a checkout keeps things. Everything follows from the checkout's path, so two labs never meet."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from lab.stores import run_directory

_FIRST_PORT = 21000
_PORT_BLOCKS = 900
_PORTS_PER_BLOCK = 10


@dataclass(frozen=True)
class Layout:
    """The files of one lab. ``checkout`` is the root of the git checkout."""

    checkout: Path

    @property
    def directory(self) -> Path:
        """All state of the lab, mode 0700."""
        return self.checkout / ".lab"

    @property
    def state_file(self) -> Path:
        """Ports, passwords and options: what must be the same the next time."""
        return self.directory / "lab.json"

    @property
    def mariadb(self) -> Path:
        return self.directory / "mariadb"

    @property
    def redis(self) -> Path:
        return self.directory / "redis"

    @property
    def env_file(self) -> Path:
        """The application's managed settings."""
        return self.directory / "captions.env"

    @property
    def mover_env_file(self) -> Path:
        """The settings of its mover, with an account that no other process of it has."""
        return self.directory / "mover.env"

    @property
    def mapping(self) -> Path:
        """How the application keeps its tasks."""
        return self.sources.parent / "inventories" / "lab" / "mapping.yml"

    @property
    def vars_file(self) -> Path:
        """The same as ``scripts/lab env`` prints, as YAML for inventories."""
        return self.directory / "vars.yml"

    @property
    def images(self) -> Path:
        return self.directory / "images"

    @property
    def metrics(self) -> Path:
        """Where the application's processes count for Prometheus."""
        return self.directory / "metrics"

    @property
    def logs(self) -> Path:
        return self.directory / "log"

    @property
    def backups(self) -> Path:
        return self.directory / "backups"

    @property
    def effects_file(self) -> Path:
        return self.directory / "evidence" / "effects.jsonl"

    @property
    def accepted_file(self) -> Path:
        return self.directory / "evidence" / "accepted.jsonl"

    @property
    def prober_file(self) -> Path:
        return self.directory / "evidence" / "prober.jsonl"

    @property
    def supervisor_config(self) -> Path:
        return self.directory / "supervisord.conf"

    @property
    def supervisor_pid_file(self) -> Path:
        return self.directory / "supervisord.pid"

    @property
    def supervisor_socket(self) -> Path:
        return run_directory(self.directory) / "supervisor.sock"

    @property
    def python(self) -> Path:
        """The interpreter of every process: the one that runs the lab, of the checkout's virtual environment."""
        return Path(sys.executable)

    @property
    def sources(self) -> Path:
        """What the processes import from."""
        return Path(__file__).resolve().parents[1]

    @property
    def sluice(self) -> Path:
        """Where the mover finds Sluice's package."""
        return self.sources.parent / "module_utils"

    @property
    def first_port(self) -> int:
        """Where this checkout begins to look for free ports: below the range the kernel hands out itself."""
        digest = hashlib.sha256(str(self.checkout).encode()).digest()
        return _FIRST_PORT + int.from_bytes(digest[:4]) % _PORT_BLOCKS * _PORTS_PER_BLOCK
