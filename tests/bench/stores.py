"""Private stores with the lab's settings, backlogs in them, and the ends of a run over them."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pymysql
import sqlalchemy as sa
import yaml
from ansible.module_utils.sluice.adapters import redis_connect, sql_connect
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.sql_table import SqlTable
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core import mapping as mappings
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.core.verdicts import Check, Gate
from ansible.module_utils.sluice.ports.ledger import Run
from ansible.module_utils.sluice.ports.stores import SourceEnd, TargetEnd
from ansible.module_utils.sluice.services.transfer import Moved, Pace, Transfer

from bench import ROOT
from lab.stores import PrivateMariaDB, PrivateRedis, free_port, remove_run_directory

LEASE_SECONDS = 60.0
SLICE_SECONDS = 8.0
_SCHEMA = ROOT / "app" / "captions" / "schema.sql"
_MAPPING = ROOT / "inventories" / "lab" / "mapping.yml"
#: Ids as random as the application's own, priorities 1:2:6:1, one millisecond between two submissions.
_SEED = (
    "INSERT INTO caption_tasks (id, user_id, priority, image_path, available_at, created_at, custody) SELECT "
    "CONCAT(SUBSTR(h, 1, 8), '-', SUBSTR(h, 9, 4), '-4', SUBSTR(h, 14, 3), '-a', SUBSTR(h, 18, 3), '-', "
    "SUBSTR(h, 21)), 10000000 + seq, ELT(1 + seq * 7 %% 10, 'urgent', 'high', 'high', 'normal', 'normal', 'normal', "
    "'normal', 'normal', 'normal', 'low'), 'image-01.png', t, t, 'db' FROM (SELECT seq, MD5(seq) h, "
    "UTC_TIMESTAMP(6) - INTERVAL (%s - seq) * 1000 MICROSECOND t FROM seq_%s_to_%s) made"
)
_SEED_ROWS = 20_000
_names = itertools.count(1)


@dataclass(frozen=True)
class Addresses:
    """Where one backlog lies. The URLs carry passwords: they go to children by environment only."""

    database_url: str
    redis_url: str

    def environment(self) -> dict[str, str]:
        """For a child process, see :meth:`from_environment`."""
        return {**os.environ, "BENCH_DB_URL": self.database_url, "BENCH_REDIS_URL": self.redis_url}

    @classmethod
    def from_environment(cls) -> Addresses:
        """What :meth:`environment` gave."""
        return cls(os.environ["BENCH_DB_URL"], os.environ["BENCH_REDIS_URL"])


@dataclass(frozen=True)
class Stores:
    """One MariaDB and one Redis of this benchmark, durable as the lab's are."""

    directory: Path
    mariadb: PrivateMariaDB
    redis: PrivateRedis

    def cpu_seconds(self) -> dict[str, float]:
        """CPU used so far by this process and both servers."""
        return {
            "python": _cpu_seconds(os.getpid()),
            "mariadb": _cpu_seconds(self.mariadb.pid or 0),
            "redis": _cpu_seconds(self.redis.pid or 0),
        }

    @contextmanager
    def backlog(self, count: int) -> Iterator[Addresses]:
        """An empty Redis, and a new database with the tables of captions and ``count`` ready tasks."""
        name = f"bench{next(_names)}"
        with self.redis.client() as client:
            client.flushall()
        root = self.mariadb.connect_as_root()
        try:
            with root.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {name}")
                cursor.execute(f"USE {name}")
                for statement in _SCHEMA.read_text(encoding="utf-8").split(";"):
                    if statement.strip():
                        cursor.execute(statement)
                for first in range(1, count + 1, _SEED_ROWS):
                    cursor.execute(_SEED, (count, first, min(count, first + _SEED_ROWS - 1)))
                cursor.execute("ANALYZE TABLE caption_tasks")
            yield Addresses(self.mariadb.root_url(name), self.redis.url())
        finally:
            with root.cursor() as cursor:
                cursor.execute(f"DROP DATABASE {name}")
            root.close()

    def connect(self, where: Addresses) -> pymysql.connections.Connection[pymysql.cursors.Cursor]:
        """A plain connection to the backlog's database, for the rivals; READ COMMITTED and no autocommit, as ours."""
        connection = self.mariadb.connect_as_root(database_of(where))
        connection.autocommit(False)
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        return connection


def database_of(where: Addresses) -> str:
    """The database's name in the URL."""
    return str(sa.make_url(where.database_url).database)


@contextmanager
def private_stores(buffer_pool_mb: int = 256) -> Iterator[Stores]:
    """Start both servers in a temporary directory; end them and remove it."""
    directory = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    mariadb = PrivateMariaDB(directory / "mariadb", free_port(), buffer_pool_mb)
    redis = PrivateRedis(directory / "redis", free_port(), secrets.token_hex(16))
    try:
        mariadb.start()
        redis.start()
        yield Stores(directory, mariadb, redis)
    finally:
        mariadb.stop()
        redis.stop()
        remove_run_directory(mariadb.directory)
        shutil.rmtree(directory)


@dataclass(frozen=True)
class Ends:
    """A run that stands before its transfer, with its lease."""

    mapping: mappings.TaskMapping
    source: SqlTable
    target: RqQueues
    ledger: SqlLedger
    run: Run
    lease: Lease

    def transfer_all(self, pace: Pace | None = None, *, seconds: float = float("inf")) -> Moved:
        """Move everything, or for about ``seconds``, in slices. RuntimeError when a slice ends without progress."""
        return move_all(self.source, self.target, self.ledger, self.lease, pace, seconds=seconds)


def move_all(
    source: SourceEnd,
    target: TargetEnd,
    ledger: SqlLedger,
    lease: Lease,
    pace: Pace | None = None,
    *,
    seconds: float = float("inf"),
) -> Moved:
    """Move everything between two ends, or for about ``seconds``, in slices.

    :raises RuntimeError: a slice ended without progress
    """
    transfer = Transfer(source, target, ledger, SystemClock(), prove_fence=_fenced, custody_in_row=True, pace=pace)
    total = Moved()
    while not total.done and total.seconds < seconds:
        moved = transfer.slice(lease, SLICE_SECONDS)
        if not moved.done and not moved.moved:
            raise RuntimeError("a slice moved nothing and is not done: the benchmark cannot go on")
        total = Moved(
            moved=total.moved + moved.moved,
            held=total.held + moved.held,
            lost=total.lost + moved.lost,
            batches=total.batches + moved.batches,
            done=moved.done,
            seconds=total.seconds + moved.seconds,
        )
    return total


def open_ends(where: Addresses) -> Ends:
    """Install the ledger, open a run, take its lease, stamp Redis."""
    mapping = read_mapping()
    engine = sql_connect.connect(where.database_url)
    ledger = SqlLedger(engine, mapping.system)
    ledger.install()
    run = Run("bench", mapping.system, "forward", "bench", Phase.OPENED, "", "", "stamp", datetime.now(UTC), None, {})
    ledger.start_run(run)
    engine.dispose()
    return attach_ends(where)


def attach_ends(where: Addresses) -> Ends:
    """The ends of the run that :func:`open_ends` opened, with the lease taken anew."""
    mapping = read_mapping()
    engine = sql_connect.connect(where.database_url)
    ledger = SqlLedger(engine, mapping.system)
    run = ledger.open_run()
    if run is None:
        raise RuntimeError("no run is open in the benchmark's ledger")
    lease = ledger.take_lease(run, "bench", LEASE_SECONDS)
    source = SqlTable(engine, mapping)
    ledger.baseline_from(source.baseline_select)
    target = RqQueues(redis_connect.connect(where.redis_url), mapping)
    target.stamp(lease)
    return Ends(mapping, source, target, ledger, run, lease)


def read_mapping() -> mappings.TaskMapping:
    """The lab's mapping."""
    return mappings.parse(yaml.safe_load(_MAPPING.read_text(encoding="utf-8")))


def _fenced() -> Gate:
    """Nobody else works on a private backlog."""
    return Gate("fence", (Check.of("claimers", True, "the benchmark's stores have none"),))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
