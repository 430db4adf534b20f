"""What preparation asks of the outside: things to back up, readings of both stores, accounts per side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..core.verdicts import Check


class Progress(Protocol):
    """Told how far a long step is, in a unit of the step's own (bytes, rows)."""

    def __call__(self, done: int, total: int) -> None:
        """Take note; must return quickly."""


def unheard(done: int, total: int) -> None:
    """A progress that nobody listens to."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """One file of a backup. ``name`` is inside the backup's folder; ``sha256`` is of its bytes as stored."""

    name: str
    what: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What a part left in the folder, and the checks made on it by reading it back."""

    artefacts: Sequence[Artefact]
    checks: Sequence[Check]


class BackupPart(Protocol):
    """One thing that is backed up."""

    @property
    def name(self) -> str:
        """A word for messages and the manifest: sql, redis, configuration."""

    def needed_bytes(self) -> int | None:
        """The estimated size in bytes before compression; None when it cannot be read.

        :raises StoreError: the store cannot be reached
        """

    def take(self, folder: Path, run_id: str, progress: Progress) -> Taken:
        """Make the backup in ``folder`` and verify it by reading it back.

        :raises SluiceError: it could not be made; nothing half-made keeps its final name
        """


@dataclass(frozen=True, slots=True)
class Attested:
    """An operator's word for a backup made elsewhere: where it is and how old it is, in hours."""

    reference: str
    age_hours: float


@dataclass(frozen=True, slots=True)
class RedisReadings:
    """One look at a Redis server. None means that it could not be read."""

    address: str
    user: str
    database: int
    version: tuple[int, ...] | None = None
    password_needed: bool | None = None
    role: str | None = None
    cluster: bool | None = None
    policy: str | None = None
    aof_enabled: bool | None = None
    aof_write_status: str | None = None
    aof_rewrite_status: str | None = None
    max_memory: int | None = None  # bytes, 0: no limit
    used_memory: int | None = None  # bytes
    host_memory: int | None = None  # bytes
    free_memory: int | None = None  # bytes, read only when Redis runs on this host
    overcommit: int | None = None  # vm.overcommit_memory, read only when Redis runs on this host
    keys: int | None = None
    keys_seen: int = 0
    foreign_seen: int = 0
    foreign_examples: tuple[str, ...] = ()
    bind: str | None = None
    protected: str | None = None
    config_refused: str = ""  # the server's words when it refuses CONFIG
    clock_offset: float | None = None  # seconds ahead of this host
    clock_error: float = 0.0  # seconds of uncertainty


class RedisHealth(Protocol):
    """Reads what the safety checks of Redis need. Never writes."""

    def read(self, prefixes: Sequence[str]) -> RedisReadings:
        """Look once; keys that begin with one of ``prefixes`` are not foreign.

        :raises StoreError: unreachable, wrong password, or a database number that does not exist
        """


@dataclass(frozen=True, slots=True)
class SqlReadings:
    """One look at a database server. None means that it could not be read."""

    address: str
    account: str
    oldest: tuple[int, ...]  # the oldest version of its family that is taken
    version: tuple[int, ...] | None = None
    engines: Mapping[str, str] | None = None  # table -> engine, for the tables asked for; "" when there is none
    flush_at_commit: int | None = None
    read_only: bool | None = None
    replica: bool | None = None
    missing_privileges: Sequence[str] | None = None
    clock_offset: float | None = None  # seconds ahead of this host
    clock_error: float = 0.0  # seconds of uncertainty
    disk_free: int | None = None  # bytes where the data lies
    data_bytes: int | None = None  # bytes of the tables asked for


class SqlHealth(Protocol):
    """Reads what the safety checks of the database need. Never writes."""

    def read(self, tables: Sequence[str]) -> SqlReadings:
        """Look once.

        :raises StoreError: unreachable, wrong password or database
        """


@dataclass(frozen=True, slots=True)
class AccountChange:
    """What was done to an account, or would be done in check mode. ``actions`` carry no secret."""

    account: str
    changed: bool
    actions: Sequence[str]
    checks: Sequence[Check]


class Accounts(Protocol):
    """The accounts of one store."""

    def ensure(self, account: str, password: str, rights: Sequence[str], *, check_mode: bool = False) -> AccountChange:
        """Make an account, or bring an existing one to this password and these rights. Never unlocks one.

        :raises StoreError: the store refuses
        """
