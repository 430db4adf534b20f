"""The ledger in the application's own database, so that a release and its record share one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT, VARCHAR
from sqlalchemy.engine import Connection, Engine

from ..core.errors import GateClosed, LeaseLost, RunConflict
from ..core.phases import ENDED, Phase, ended_by_rollback, require_transition
from ..core.tasks import ENDED_MEANWHILE, Lease, Mark, Sighting, Task
from ..core.verdicts import Gate
from ..ports.ledger import Event, LeaseState, Run
from .sql_connect import again_after_deadlock, place, reading, speaking, transaction

#: The layout of these tables. A ledger of another version is refused, never guessed at.
VERSION = "1"

metadata = sa.MetaData()
_ID = VARCHAR(190, charset="utf8mb4", collation="utf8mb4_bin")
_WORD = VARCHAR(64, charset="ascii", collation="ascii_bin")
_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}

meta = sa.Table(
    "sluice_meta",
    metadata,
    sa.Column("k", _WORD, primary_key=True),
    sa.Column("v", sa.Text, nullable=False),
    **_OPTIONS,
)
lease_table = sa.Table(
    "sluice_lease",
    metadata,
    sa.Column("system", _WORD, primary_key=True),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("expires_at", DATETIME(fsp=6), nullable=False),
    sa.Column("stop", sa.Boolean, nullable=False, server_default="0"),
    **_OPTIONS,
)
run_table = sa.Table(
    "sluice_run",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=True),
    sa.Column("id", _WORD, nullable=False, unique=True),
    sa.Column("system", _WORD, nullable=False),
    # Only one open run per system: NULL once it has ended.
    sa.Column("open_system", _WORD, nullable=True, unique=True),
    sa.Column("direction", _WORD, nullable=False),
    sa.Column("operator", sa.String(200), nullable=False),
    sa.Column("phase", _WORD, nullable=False),
    sa.Column("plan_digest", _WORD, nullable=False),
    sa.Column("mapping_digest", _WORD, nullable=False),
    sa.Column("generation", _WORD, nullable=False),
    sa.Column("opened_at", DATETIME(fsp=6), nullable=False),
    sa.Column("closed_at", DATETIME(fsp=6)),
    sa.Column("point_of_no_return_at", DATETIME(fsp=6)),
    sa.Column("settings", LONGTEXT, nullable=False),
    **_OPTIONS,
)
event_table = sa.Table(
    "sluice_event",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=True),
    sa.Column("run_id", _WORD, nullable=False, index=True),
    sa.Column("at", DATETIME(fsp=6), nullable=False),
    sa.Column("kind", _WORD, nullable=False),
    sa.Column("name", sa.String(190), nullable=False),
    sa.Column("verdict", _WORD, nullable=False),
    sa.Column("detail", LONGTEXT, nullable=False),
    **_OPTIONS,
)
task_table = sa.Table(
    "sluice_task",
    metadata,
    sa.Column("system", _WORD, primary_key=True),
    sa.Column("task_id", _ID, primary_key=True),
    sa.Column("run_id", _WORD, nullable=False),
    sa.Column("mark", _WORD, nullable=False),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("batch", sa.Integer, nullable=False, server_default="0"),
    sa.Column("position", sa.Integer, nullable=False, server_default="0"),
    sa.Column("queue", sa.String(120), nullable=False, server_default=""),
    sa.Column("job_id", _ID, nullable=False, server_default=""),
    sa.Column("eta", sa.Double),
    sa.Column("digest", sa.CHAR(40), nullable=False, server_default=""),
    sa.Column("reason", sa.String(500), nullable=False, server_default=""),
    sa.Column("at", DATETIME(fsp=6), nullable=False),
    sa.Index("sluice_task_batch", "run_id", "batch"),
    **_OPTIONS,
)
baseline_table = sa.Table(
    "sluice_baseline",
    metadata,
    sa.Column("run_id", _WORD, primary_key=True),
    sa.Column("task_id", _ID, primary_key=True),
    sa.Column("place", _WORD, nullable=False),
    **_OPTIONS,
)

UTC_NOW = sa.text("UTC_TIMESTAMP(6)")


def lock_lease(connection: Connection, lease: Lease) -> int:
    """Begin a source transaction: a locking read of the lease at our own token.

    :returns: the database's now, in microseconds since the epoch (UTC)
    :raises LeaseLost: the token in the ledger is not ours; the transaction must write nothing
    """
    found = connection.execute(_LOCK_LEASE, {"system": lease.system}).first()
    if found is None or found.token != lease.token:
        holder = "nobody" if found is None else f"'{found.owner}' (token {found.token})"
        raise LeaseLost(
            f"our token {lease.token} is not the newest: {holder} holds the lease now. Nothing was written.",
            where="ledger",
            next_step="look at playbooks/status.yml; run the same command again when the other run is done.",
        )
    return int(found.now)


_LOCK_LEASE = sa.text(
    "SELECT token, owner, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) AS now "
    "FROM sluice_lease WHERE `system` = :system LOCK IN SHARE MODE"
)


class SqlLedger:
    """The ledger of one system. See :class:`..ports.ledger.Ledger`."""

    def __init__(self, engine: Engine, system: str) -> None:
        self.engine = engine
        self.system = system
        self._baseline_select: Callable[[], sa.Select[tuple[str, str]]] | None = None

    def baseline_from(self, select: Callable[[], sa.Select[tuple[str, str]]]) -> None:
        """Name what makes the select (task id, place) that a baseline is taken from; the source adapter does."""
        self._baseline_select = select

    # -- installation -------------------------------------------------------------------------------------------

    def installed(self) -> bool:
        """Whether the tables are there. Reads only.

        :raises RunConflict: they are of another version
        """
        with speaking(self.engine):
            names = set(sa.inspect(self.engine).get_table_names())
        if meta.name not in names:
            return False
        with reading(self.engine) as connection:
            version = connection.scalar(sa.select(meta.c.v).where(meta.c.k == "version"))
        if version is not None and version != VERSION:
            raise RunConflict(
                f"the ledger was written by a Sluice with table layout {version}; this one has {VERSION}.",
                where=place(self.engine),
                next_step="finish the run with the Sluice that began it.",
            )
        return version is not None and all(table in names for table in metadata.tables)

    def install(self) -> bool:
        """Create what is missing; True when something was created."""
        if self.installed():
            return False
        with speaking(self.engine):
            metadata.create_all(self.engine)
        with transaction(self.engine) as connection:
            connection.execute(sa.text("INSERT IGNORE INTO sluice_meta (k, v) VALUES ('version', :v)"), {"v": VERSION})
        return True

    # -- runs ---------------------------------------------------------------------------------------------------

    def open_run(self) -> Run | None:
        """The run that has not ended."""
        return self._one_run(run_table.c.open_system == self.system)

    def last_run(self) -> Run | None:
        """The newest run, ended or not."""
        return self._one_run(run_table.c.system == self.system)

    def _one_run(self, condition: sa.ColumnElement[bool]) -> Run | None:
        if not self.installed():
            return None
        with reading(self.engine) as connection:
            row = connection.execute(
                sa.select(run_table).where(condition).order_by(run_table.c.seq.desc()).limit(1)
            ).first()
        if row is None:
            return None
        return Run(
            id=row.id,
            system=row.system,
            direction=row.direction,
            operator=row.operator,
            phase=Phase(row.phase),
            plan_digest=row.plan_digest,
            mapping_digest=row.mapping_digest,
            generation=row.generation,
            opened_at=row.opened_at.replace(tzinfo=UTC),
            point_of_no_return_at=None
            if row.point_of_no_return_at is None
            else row.point_of_no_return_at.replace(tzinfo=UTC),
            settings=json.loads(row.settings),
        )

    def start_run(self, run: Run) -> None:
        """Record a new run; the unique key on the open system refuses a second one."""
        with transaction(self.engine) as connection:
            if connection.scalar(
                sa.select(run_table.c.id).where(run_table.c.open_system == self.system).with_for_update()
            ):
                raise RunConflict(
                    "another run of this system is open.",
                    where="ledger",
                    next_step="continue it with the same command, or look at playbooks/status.yml.",
                )
            self._insert_run(connection, run)

    def find_run(self, run_id: str) -> Run | None:
        """A run by its id."""
        return self._one_run(sa.and_(run_table.c.system == self.system, run_table.c.id == run_id))

    def take_over(self, run: Run, undoes: Run) -> None:
        """Suspend the open run and record the one that takes it back, in one transaction."""
        with transaction(self.engine) as connection:
            done = connection.execute(
                sa.update(run_table)
                .where(run_table.c.id == undoes.id, run_table.c.open_system == self.system)
                .values(open_system=None)
            )
            if done.rowcount != 1:
                raise RunConflict(
                    f"run {undoes.id} is not open any more.",
                    where="ledger",
                    next_step="look at playbooks/status.yml.",
                )
            self._insert_run(connection, run)

    def forget(self) -> None:
        """Delete everything of this system. For a system that was made to try something, never for a real one."""
        if not self.installed():
            return
        with transaction(self.engine) as connection:
            ours = sa.select(run_table.c.id).where(run_table.c.system == self.system)
            for table in (event_table, baseline_table):
                connection.execute(sa.delete(table).where(table.c.run_id.in_(ours)))
            for table in (task_table, lease_table, run_table):
                connection.execute(sa.delete(table).where(table.c.system == self.system))

    def change_settings(self, run: Run, settings: Mapping[str, object]) -> Run:
        """Keep other settings of an open run."""
        with transaction(self.engine) as connection:
            connection.execute(
                sa.update(run_table)
                .where(run_table.c.id == run.id)
                .values(settings=json.dumps(dict(settings), sort_keys=True))
            )
        return replace(run, settings=dict(settings))

    def _insert_run(self, connection: Connection, run: Run) -> None:
        connection.execute(
            sa.insert(run_table).values(
                id=run.id,
                system=self.system,
                open_system=self.system,
                direction=run.direction,
                operator=run.operator,
                phase=run.phase.value,
                plan_digest=run.plan_digest,
                mapping_digest=run.mapping_digest,
                generation=run.generation,
                opened_at=UTC_NOW,
                settings=json.dumps(dict(run.settings), sort_keys=True),
            )
        )

    # -- lease --------------------------------------------------------------------------------------------------

    def lease_state(self) -> LeaseState | None:
        """Who holds the lease."""
        if not self.installed():
            return None
        with reading(self.engine) as connection:
            row = connection.execute(
                sa.text(
                    "SELECT token, owner, TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), expires_at) / 1e6 AS remaining "
                    "FROM sluice_lease WHERE `system` = :system"
                ),
                {"system": self.system},
            ).first()
        return None if row is None else LeaseState(row.token, row.owner, max(0.0, float(row.remaining)))

    @again_after_deadlock
    def take_lease(self, run: Run, owner: str, seconds: float) -> Lease:
        """Take the lease: one transaction under a lock on its row. Every taking raises the token."""
        with transaction(self.engine) as connection:
            connection.execute(
                sa.text(
                    "INSERT IGNORE INTO sluice_lease (`system`, token, owner, expires_at) "
                    "VALUES (:system, 0, '', UTC_TIMESTAMP(6))"
                ),
                {"system": self.system},
            )
            row = connection.execute(
                sa.text(
                    "SELECT token, owner, TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), expires_at) / 1e6 AS remaining "
                    "FROM sluice_lease WHERE `system` = :system FOR UPDATE"
                ),
                {"system": self.system},
            ).one()
            remaining = float(row.remaining)
            if remaining > 0 and row.owner != owner:
                raise RunConflict(
                    f"'{row.owner}' holds the lease for another {remaining:.0f} s.",
                    where="ledger",
                    next_step="wait for that run to end, or look at playbooks/status.yml.",
                )
            token = row.token + 1
            connection.execute(
                sa.text(
                    "UPDATE sluice_lease SET token = :token, owner = :owner, "
                    "expires_at = UTC_TIMESTAMP(6) + INTERVAL :micro MICROSECOND WHERE `system` = :system"
                ),
                {"token": token, "owner": owner, "micro": int(seconds * 1_000_000), "system": self.system},
            )
        return Lease(self.system, run.id, owner, token, run.generation)

    def renew(self, lease: Lease, seconds: float) -> None:
        """Prolong the lease by compare-and-set on token and owner."""
        with transaction(self.engine) as connection:
            done = connection.execute(
                sa.text(
                    "UPDATE sluice_lease SET expires_at = UTC_TIMESTAMP(6) + INTERVAL :micro MICROSECOND "
                    "WHERE `system` = :system AND token = :token AND owner = :owner"
                ),
                {"micro": int(seconds * 1_000_000), "system": lease.system, "token": lease.token, "owner": lease.owner},
            )
            if done.rowcount != 1:
                lock_lease(connection, lease)
                raise LeaseLost(f"token {lease.token} belongs to another owner.", where="ledger")

    def give_up(self, lease: Lease) -> None:
        """End the lease now. Someone else's lease is left alone."""
        with transaction(self.engine) as connection:
            connection.execute(
                sa.text(
                    "UPDATE sluice_lease SET expires_at = UTC_TIMESTAMP(6), stop = 0 "
                    "WHERE `system` = :system AND token = :token AND owner = :owner"
                ),
                {"system": lease.system, "token": lease.token, "owner": lease.owner},
            )

    def stop_requested(self) -> bool:
        """Whether an operator set the stop flag."""
        with reading(self.engine) as connection:
            return bool(connection.scalar(sa.select(lease_table.c.stop).where(lease_table.c.system == self.system)))

    def request_stop(self, stop: bool = True) -> None:
        """Ask the run in progress to end between two batches, or take the request back."""
        with transaction(self.engine) as connection:
            connection.execute(sa.update(lease_table).where(lease_table.c.system == self.system).values(stop=stop))

    # -- phases and events --------------------------------------------------------------------------------------

    def set_phase(self, lease: Lease, wanted: Phase, gate: Gate, *, undoes: str = "") -> None:
        """Record a phase: lease, arrow, gate and event in one transaction."""
        if not gate.open:
            raise GateClosed(gate.explain(), where=f"gate before '{wanted}'")
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            current = connection.scalar(
                sa.select(run_table.c.phase).where(run_table.c.id == lease.run_id).with_for_update()
            )
            if current is None:
                raise RunConflict(f"run {lease.run_id} is not in the ledger.", where="ledger")
            require_transition(Phase(current), wanted)
            values: dict[str, object] = {"phase": wanted.value}
            if wanted in ENDED:
                values |= {"open_system": None, "closed_at": UTC_NOW}
            connection.execute(sa.update(run_table).where(run_table.c.id == lease.run_id).values(**values))
            if undoes and wanted is Phase.ABORTED:
                connection.execute(sa.update(run_table).where(run_table.c.id == undoes).values(open_system=self.system))
            if undoes and wanted is Phase.VERIFIED:
                self._end_undone(connection, undoes, gate)
            _append(connection, lease.run_id, "phase", wanted.value, gate.verdict.value, gate_detail(gate))

    def _end_undone(self, connection: Connection, run_id: str, gate: Gate) -> None:
        """The run that was taken back has ended; one that had released nothing counts as aborted."""
        query = sa.select(run_table.c.phase, run_table.c.point_of_no_return_at).where(run_table.c.id == run_id)
        found = connection.execute(query.with_for_update()).first()
        if found is None or Phase(found.phase) in ENDED:
            return
        ended = ended_by_rollback(Phase(found.phase), released=found.point_of_no_return_at is not None)
        connection.execute(
            sa.update(run_table).where(run_table.c.id == run_id).values(phase=ended.value, closed_at=UTC_NOW)
        )
        _append(connection, run_id, "phase", ended.value, gate.verdict.value, gate_detail(gate))

    def close(self, lease: Lease, outcome: str) -> None:
        """End a run that goes through no phases: one of the application's own (``services.fallback``)."""
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            connection.execute(
                sa.update(run_table)
                .where(run_table.c.id == lease.run_id)
                .values(phase=Phase.CLEANED.value, open_system=None, closed_at=UTC_NOW)
            )
            _append(connection, lease.run_id, "note", "closed", "", {"outcome": outcome})

    def record(self, lease: Lease, kind: str, name: str, verdict: str, detail: Mapping[str, object]) -> None:
        """Append one event under the lease."""
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            _append(connection, lease.run_id, kind, name, verdict, detail)

    def events(self, run_id: str, kind: str = "", name: str = "") -> Sequence[Event]:
        """The history of a run."""
        query = sa.select(event_table).where(event_table.c.run_id == run_id).order_by(event_table.c.seq)
        if kind:
            query = query.where(event_table.c.kind == kind)
        if name:
            query = query.where(event_table.c.name == name)
        with reading(self.engine) as connection:
            return [
                Event(row.at.replace(tzinfo=UTC), row.kind, row.name, row.verdict, json.loads(row.detail))
                for row in connection.execute(query)
            ]

    # -- tasks --------------------------------------------------------------------------------------------------

    def next_batch(self, lease: Lease) -> int:
        """One more than the highest batch number of this run."""
        with reading(self.engine) as connection:
            highest = connection.scalar(
                sa.select(sa.func.max(task_table.c.batch)).where(task_table.c.run_id == lease.run_id)
            )
        return int(highest or 0) + 1

    def moved_since(self, lease: Lease, batch: int) -> Iterator[tuple[int, Sequence[Task]]]:
        """Released tasks above a batch number, a batch at a time, in claim order."""
        query = (
            sa.select(
                task_table.c.task_id, task_table.c.job_id, task_table.c.queue, task_table.c.eta, task_table.c.batch
            )
            .where(
                task_table.c.run_id == lease.run_id, task_table.c.batch > batch, task_table.c.mark == Mark.MOVED.value
            )
            .order_by(task_table.c.batch, task_table.c.position)
        )
        with reading(self.engine) as connection:
            rows = connection.execution_options(stream_results=True, yield_per=2000).execute(query)
            for number, group in groupby(rows, key=lambda row: row.batch):
                yield number, [Task(r.task_id, r.job_id, r.queue, (), 0.0, r.eta, 0, 0) for r in group]

    def ended_meanwhile(self, lease: Lease) -> Sequence[str]:
        """Job ids of tasks that were settled because they ended while this run had claimed them."""
        query = sa.select(task_table.c.job_id).where(
            task_table.c.run_id == lease.run_id,
            task_table.c.mark == Mark.SETTLED.value,
            task_table.c.reason == ENDED_MEANWHILE,
        )
        with reading(self.engine) as connection:
            return [row[0] for row in connection.execute(query)]

    def marks(self) -> Iterator[Sighting]:
        """Every id with its mark."""
        query = sa.select(task_table.c.task_id, task_table.c.mark, task_table.c.job_id).where(
            task_table.c.system == self.system
        )
        yield from self._stream(query)

    def held(self) -> Sequence[Sighting]:
        """The ids that wait for an operator; none before the first run made the tables."""
        if not self.installed():
            return []
        query = (
            sa.select(task_table.c.task_id, task_table.c.mark, task_table.c.reason)
            .where(task_table.c.system == self.system, task_table.c.mark == Mark.HELD.value)
            .order_by(task_table.c.task_id)
        )
        return list(self._stream(query))

    def held_by(self, run_id: str) -> Sequence[Sighting]:
        """The ids that a run held and nobody has decided since, with the reason."""
        query = sa.select(task_table.c.task_id, task_table.c.mark, task_table.c.reason).where(
            task_table.c.run_id == run_id, task_table.c.mark == Mark.HELD.value
        )
        return list(self._stream(query))

    def moved_by_queue(self, run_id: str) -> dict[str, int]:
        """How many tasks a run moved, by queue."""
        query = (
            sa.select(task_table.c.queue, sa.func.count())
            .where(task_table.c.run_id == run_id, task_table.c.mark.in_([Mark.MOVED.value, Mark.RETURNED.value]))
            .group_by(task_table.c.queue)
        )
        with reading(self.engine) as connection:
            return {row[0]: int(row[1]) for row in connection.execute(query)}

    def save_baseline(self, lease: Lease) -> int:
        """Remember every id of the source with its place, in the server, in one statement."""
        if self._baseline_select is None:
            raise RunConflict("no source was named for the baseline.", where="ledger")
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            connection.execute(sa.delete(baseline_table).where(baseline_table.c.run_id == lease.run_id))
            select = self._baseline_select().add_columns(sa.literal(lease.run_id))
            done = connection.execute(sa.insert(baseline_table).from_select(["task_id", "place", "run_id"], select))
            return int(done.rowcount)

    def forget_baseline(self, lease: Lease) -> int:
        """Delete the remembered ids of this run (cleanup); returns how many."""
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            return int(
                connection.execute(sa.delete(baseline_table).where(baseline_table.c.run_id == lease.run_id)).rowcount
            )

    def baseline(self, run_id: str) -> Iterator[Sighting]:
        """The ids remembered at the start."""
        yield from self._stream(
            sa.select(baseline_table.c.task_id, baseline_table.c.place, sa.literal("")).where(
                baseline_table.c.run_id == run_id
            )
        )

    def _stream(self, query: sa.Select[Any]) -> Iterator[Sighting]:
        with reading(self.engine) as connection:
            for row in connection.execution_options(stream_results=True, yield_per=5000).execute(query):
                yield Sighting(row[0], row[1], row[2])


def gate_detail(gate: Gate) -> dict[str, object]:
    """A gate as the ledger keeps it."""
    return {
        "gate": gate.name,
        "checks": [
            {"name": c.name, "verdict": c.verdict.value, "reading": c.reading, "next_step": c.next_step}
            for c in gate.checks
        ],
    }


def _append(
    connection: Connection, run_id: str, kind: str, name: str, verdict: str, detail: Mapping[str, object]
) -> None:
    connection.execute(
        sa.insert(event_table).values(
            run_id=run_id,
            at=UTC_NOW,
            kind=kind,
            name=name,
            verdict=verdict,
            detail=json.dumps(dict(detail), sort_keys=True),
        )
    )


def run_id_from(now: datetime, system: str) -> str:
    """A run id that sorts by time and can be said aloud, e.g. ``captions-20261121-0200``."""
    return f"{system}-{now.astimezone(UTC):%Y%m%d-%H%M%S}"
