"""Private MariaDB and Redis for tests: one of each a session, a fresh database and an empty Redis for each test."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml
from ansible.module_utils.sluice.adapters import redis_connect, sql_connect
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.sql_table import SqlTable
from ansible.module_utils.sluice.core import mapping as mappings
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.ports.ledger import Run

from lab.stores import PrivateMariaDB, PrivateRedis, free_port

ROOT = Path(__file__).resolve().parents[1]
CAPTIONS_MAPPING = ROOT / "inventories" / "lab" / "mapping.yml"
SCHEMA = ROOT / "app" / "captions" / "schema.sql"
_names = itertools.count(1)


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateMariaDB]:
    """A MariaDB of this test session."""
    server = PrivateMariaDB(tmp_path_factory.mktemp("mariadb"), free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A Redis of this test session, with AOF."""
    server = PrivateRedis(tmp_path_factory.mktemp("redis"), free_port(), "test-password")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def database_url(mariadb: PrivateMariaDB) -> Iterator[str]:
    """The URL of an empty database with the tables of captions."""
    name = f"t{next(_names)}"
    root = sa.create_engine(mariadb.root_url("mysql"), pool_pre_ping=True)
    with root.begin() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine = sql_connect.connect(mariadb.root_url(name))
    with engine.begin() as connection:
        for statement in SCHEMA.read_text().split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()
    yield mariadb.root_url(name)
    with root.begin() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name}"))
    root.dispose()


@pytest.fixture
def redis_url(redis_server: PrivateRedis) -> str:
    """The URL of an empty Redis."""
    if not redis_server.running:
        redis_server.start()
    client = redis_connect.connect(redis_server.url())
    client.flushall()
    return redis_server.url()


@dataclass(frozen=True)
class Ends:
    """The two ends of a run over real stores, with an open run and its lease."""

    database_url: str
    redis_url: str
    engine: sa.Engine
    mapping: mappings.TaskMapping
    source: SqlTable
    target: RqQueues
    ledger: SqlLedger
    run: Run
    lease: Lease

    def again(self, owner: str = "second") -> Ends:
        """The same ends as another process sees them, with the lease taken anew."""
        return attach(self.database_url, self.redis_url, self.mapping, self.run, owner)


def attach(database_url: str, redis_url: str, mapping: mappings.TaskMapping, run: Run, owner: str) -> Ends:
    """Ends with the lease taken; a lease of someone else is ended first, as if it had expired."""
    engine = sql_connect.connect(database_url)
    ledger = SqlLedger(engine, mapping.system)
    source = SqlTable(engine, mapping)
    ledger.baseline_from(source.baseline_select)
    target = RqQueues(redis_connect.connect(redis_url), mapping)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE sluice_lease SET expires_at = '2000-01-01'")
    lease = ledger.take_lease(run, owner, 60)
    target.stamp(lease)
    return Ends(database_url, redis_url, engine, mapping, source, target, ledger, run, lease)


def load_mapping(path: Path = CAPTIONS_MAPPING) -> mappings.TaskMapping:
    """A mapping from a file."""
    return mappings.parse(yaml.safe_load(path.read_text()))


def open_ends(database_url: str, redis_url: str, mapping: mappings.TaskMapping) -> Ends:
    """Install the ledger, open a run and take its lease."""
    from datetime import UTC, datetime

    engine = sql_connect.connect(database_url)
    ledger = SqlLedger(engine, mapping.system)
    ledger.install()
    run = Run(
        "run-1", mapping.system, "forward", "tester", Phase.OPENED, "", "", "stamp-1", datetime.now(UTC), None, {}
    )
    ledger.start_run(run)
    engine.dispose()
    return attach(database_url, redis_url, mapping, run, "first")


@pytest.fixture
def ends(database_url: str, redis_url: str) -> Iterator[Ends]:
    """Captions' two ends, ready for a transfer."""
    made = open_ends(database_url, redis_url, load_mapping())
    yield made
    made.engine.dispose()


# -- servers and disks in a bad state ---------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallDisk:
    """A file system of a few MiB in memory, which a test fills up and gives back."""

    path: Path

    @property
    def free(self) -> int:
        """Free bytes."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all its space but ``leave`` bytes."""
        with (self.path / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free - leave)

    def give_back(self) -> None:
        """Free what :meth:`fill` took."""
        (self.path / "ballast").unlink()


@contextlib.contextmanager
def small_disk(path: Path, mib: int) -> Iterator[SmallDisk]:
    """Mount a small disk at ``path`` for as long as the context lasts; skips the test where that is not allowed.

    Whatever has files open there must have ended before the context does.
    """
    if os.geteuid() != 0:
        pytest.skip("a disk that can fill up is a tmpfs of its own, and only root may mount one")
    path.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "sluice-test", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a disk that can fill up is a tmpfs of its own, and mounting is refused: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        if subprocess.run(["umount", str(path)], capture_output=True, check=False).returncode != 0:
            # Somebody still has a file open there: it goes when they do.
            subprocess.run(["umount", "--lazy", str(path)], check=True)


class ChangedMariaDB(PrivateMariaDB):
    """A private MariaDB with more options, or with a clock that is off."""

    def __init__(self, directory: Path, port: int, *options: str, skew: float = 0.0) -> None:
        super().__init__(directory, port, buffer_pool_mb=64)
        self.options = options
        self.skew = skew

    def command(self) -> list[str]:
        return [*with_clock_off(self.skew), *super().command(), *self.options]


class SkewedRedis(PrivateRedis):
    """A private Redis whose clock is off."""

    def __init__(self, directory: Path, port: int, password: str, skew: float) -> None:
        super().__init__(directory, port, password)
        self.skew = skew

    def command(self) -> list[str]:
        return [*with_clock_off(self.skew), *super().command()]


def with_clock_off(seconds: float) -> Sequence[str]:
    """What goes before a command so that its clock is ``seconds`` ahead; skips the test without libfaketime."""
    if not seconds:
        return ()
    library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
    if library is None:
        pytest.skip("a clock that is off needs libfaketime (Debian: faketime)")
    # Waits go by the monotonic clock, which stays as it is: two hosts never share that one anyway. The C library before
    # the program's own allocator: jemalloc asks for the time before libfaketime is ready to answer.
    return ("env", f"LD_PRELOAD={library} libc.so.6", f"FAKETIME={seconds:+.3f}s", "FAKETIME_DONT_FAKE_MONOTONIC=1")
