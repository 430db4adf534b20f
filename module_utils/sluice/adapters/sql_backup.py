"""A consistent dump of the mapped tables, proved by restoring it into a scratch schema.

What the proof says on live traffic: two snapshots enclose the dump's own, and every row that is the same in both must
be in the restored copy, byte for byte. Rows that changed between the two snapshots are counted in the reading.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, cast

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine

from ..core.errors import StoreError
from ..core.verdicts import Check, Verdict
from ..ports.preparation import Artefact, Progress, Taken
from .sql_connect import NO_ROOM_NEXT, place, reading, says_full, speaking
from .sql_dialect import CLIENT_PROGRAMS, DUMP_PROGRAMS, dialect_named

DATA = "tables.sql.gz"
STRUCTURE = "structure.sql.gz"
_CLIENT_SETTINGS = ".client.cnf"
_PIECE = 1 << 20
_ROWS_PER_BUCKET = 50
_BUCKETS = (64, 65536)
#: Buckets looked at row by row in one scan; bounds the memory of that look.
_CLOSE_LOOK = 2000
#: How a client's own lines begin; no line of a dump does.
_REASON = re.compile(r"(ERROR \d+|mariadb|mysql|WARNING)")
_LONG_TYPES = ("TEXT", "BLOB", "JSON")

Digest = dict[int, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    columns: tuple[tuple[str, bool], ...]  # name, and whether its values may be long
    key: tuple[str, ...]
    engine: str
    buckets: int


class SqlBackup:
    """The dump of ``tables`` and of every table that their foreign keys lead to, or of the whole database."""

    name = "sql"

    def __init__(
        self, engine: Engine, tables: Sequence[str], *, whole_database: bool = False, scratch: Engine | None = None
    ) -> None:
        """``scratch`` is another server to restore on; without it the scratch schema is made beside the database."""
        self.engine = engine
        self.tables = tuple(tables)
        self.whole_database = whole_database
        self.scratch = scratch if scratch is not None else engine

    def wanted(self) -> tuple[list[str], list[str]]:
        """The tables to dump, and foreign keys that lead out of the database.

        :raises StoreError: a table does not exist, or is a view
        """
        with reading(self.engine) as connection:
            schema = self._database()
            columns = _information("TABLES", "TABLE_NAME", "TABLE_SCHEMA", "TABLE_TYPE")
            there = set(
                connection.scalars(
                    sa.select(columns.c.TABLE_NAME).where(
                        columns.c.TABLE_SCHEMA == schema, columns.c.TABLE_TYPE == "BASE TABLE"
                    )
                )
            )
            keys = _information(
                "KEY_COLUMN_USAGE", "TABLE_SCHEMA", "TABLE_NAME", "REFERENCED_TABLE_SCHEMA", "REFERENCED_TABLE_NAME"
            )
            arrows: dict[str, set[tuple[str, str]]] = {}
            for row in connection.execute(
                sa.select(keys.c.TABLE_NAME, keys.c.REFERENCED_TABLE_SCHEMA, keys.c.REFERENCED_TABLE_NAME).where(
                    keys.c.TABLE_SCHEMA == schema, keys.c.REFERENCED_TABLE_NAME.is_not(None)
                )
            ):
                arrows.setdefault(row[0], set()).add((row[1], row[2]))
        todo = sorted(there) if self.whole_database else list(self.tables)
        found: list[str] = []
        outside: set[str] = set()
        while todo:
            table = todo.pop(0)
            if table in found:
                continue
            if table not in there:
                raise StoreError(
                    f"there is no table '{table}'.", where=place(self.engine), next_step="correct the mapping."
                )
            found.append(table)
            for other_schema, other in sorted(arrows.get(table, ())):
                if other_schema == schema:
                    todo.append(other)
                else:
                    outside.add(f"{table} -> {other_schema}.{other}")
        return found, sorted(outside)

    def needed_bytes(self) -> int | None:
        """The data size that the server's statistics give for the tables; None when one of them has none."""
        wanted, _ = self.wanted()
        with reading(self.engine) as connection:
            tables = _information("TABLES", "TABLE_SCHEMA", "TABLE_NAME", "DATA_LENGTH")
            sizes = connection.scalars(
                sa.select(tables.c.DATA_LENGTH).where(
                    tables.c.TABLE_SCHEMA == self._database(), tables.c.TABLE_NAME.in_(wanted)
                )
            ).all()
        if len(sizes) != len(wanted) or any(size is None for size in sizes):
            return None
        return sum(int(size) for size in sizes)

    def take(self, folder: Path, run_id: str, progress: Progress) -> Taken:
        """Dump, restore into the scratch schema, compare, drop the scratch schema."""
        wanted, outside = self.wanted()
        tables = self._describe(wanted)
        estimate = max(self.needed_bytes() or 0, 1)
        size = 0  # of the dump; dump, restore and comparison count as much each

        def dumped(done: int) -> None:
            nonlocal size
            size = done
            progress(done, 3 * max(estimate, done))

        checks = [_engines(tables), _outside(outside)]
        settings = folder / _CLIENT_SETTINGS
        settings.unlink(missing_ok=True)  # of a run that was killed
        with self._scratch_schema(run_id) as schema:
            try:
                _client_settings(settings, self.engine.url)
                progress(0, 3 * estimate)
                with _snapshot(self.engine) as before:
                    first = [_digest(before, None, table) for table in tables]
                    data = self._dump(
                        folder,
                        settings,
                        DATA,
                        "rows",
                        ["--skip-triggers"],
                        wanted,
                        dumped,
                    )
                    options = ["--no-data", "--triggers"]
                    if self.whole_database:
                        options += ["--routines", "--events"]
                    # The whole database includes its views, which are named by no list of tables.
                    named = [] if self.whole_database else wanted
                    structure = self._dump(folder, settings, STRUCTURE, "structure", options, named, lambda _: None)
                    with _snapshot(self.engine) as after:
                        last = [_digest(after, None, table) for table in tables]
                        _client_settings(settings, self.scratch.url)
                        self._restore(
                            folder / DATA, data.sha256, settings, schema, lambda n: progress(size + n, 3 * size)
                        )
                        with reading(self.scratch) as connection:
                            for number, (table, one, two) in enumerate(zip(tables, first, last, strict=True)):
                                progress(2 * size + size * number // len(tables), 3 * size)
                                checks.append(_compare(table, one, two, (before, after, connection), schema))
            finally:
                settings.unlink(missing_ok=True)
        progress(3 * size, 3 * size)
        checks.append(
            Check(
                "backup_sql",
                Verdict.PASSED,
                f"{', '.join(wanted)} in {DATA} ({data.bytes} bytes), restored into {schema} and dropped; {STRUCTURE} "
                "has the definitions with triggers, which the trial restore leaves out",
            )
        )
        return Taken([data, structure], checks)

    def _database(self) -> str:
        return str(self.engine.url.database)  # sql_connect refuses a URL without one

    def _describe(self, wanted: Sequence[str]) -> list[_Table]:
        columns = _information(
            "COLUMNS", "TABLE_SCHEMA", "TABLE_NAME", "COLUMN_NAME", "DATA_TYPE", "COLUMN_KEY", "ORDINAL_POSITION"
        )
        tables = _information("TABLES", "TABLE_SCHEMA", "TABLE_NAME", "ENGINE", "TABLE_ROWS")
        found = []
        with reading(self.engine) as connection:
            for name in wanted:
                rows = connection.execute(
                    sa.select(columns.c.COLUMN_NAME, columns.c.DATA_TYPE, columns.c.COLUMN_KEY)
                    .where(columns.c.TABLE_SCHEMA == self._database(), columns.c.TABLE_NAME == name)
                    .order_by(columns.c.ORDINAL_POSITION)
                ).all()
                about = connection.execute(
                    sa.select(tables.c.ENGINE, tables.c.TABLE_ROWS).where(
                        tables.c.TABLE_SCHEMA == self._database(), tables.c.TABLE_NAME == name
                    )
                ).one()
                described = tuple((row[0], str(row[1]).upper().endswith(_LONG_TYPES)) for row in rows)
                key = tuple(row[0] for row in rows if row[2] == "PRI")
                buckets = min(max(int(about[1] or 0) // _ROWS_PER_BUCKET, _BUCKETS[0]), _BUCKETS[1])
                found.append(_Table(name, described, key, str(about[0] or ""), buckets))
        return found

    @contextmanager
    def _scratch_schema(self, run_id: str) -> Iterator[str]:
        """A schema of ours for the trial restore. Its name comes from the run, so a killed run's own is replaced."""
        name = f"{self._database()[:36]}_sluice_verify_{hashlib.sha256(run_id.encode()).hexdigest()[:8]}"
        try:
            self._schema(sa.schema.DropSchema(name, if_exists=True), sa.schema.CreateSchema(name))
        except StoreError as error:
            pattern = f"{self._database()[:36]}_sluice_verify_%".replace("_", "\\_")
            raise StoreError(
                f"the scratch schema for the trial restore cannot be made: {error.what}",
                where=place(self.scratch),
                next_step=f"GRANT ALL PRIVILEGES ON `{pattern}`.* to the mover, name another server for the trial, "
                "or attest a backup of your own.",
            ) from error
        try:
            yield name
        finally:
            self._schema(sa.schema.DropSchema(name, if_exists=True))

    def _schema(self, *statements: sa.schema.CreateSchema | sa.schema.DropSchema) -> None:
        with reading(self.scratch) as connection:
            for statement in statements:
                connection.execute(statement)

    def _dump(
        self,
        folder: Path,
        settings: Path,
        name: str,
        what: str,
        options: Sequence[str],
        tables: Sequence[str],
        heard: Callable[[int], None],
    ) -> Artefact:
        program = _program(*DUMP_PROGRAMS)
        command = [
            program,
            f"--defaults-file={settings}",  # this file only: the operator's own settings must not change a backup
            "--single-transaction", "--quick", "--hex-blob", "--no-tablespaces", "--default-character-set=utf8mb4",
            *_options_of(program), *options, "--", self._database(), *tables,
        ]  # fmt: skip
        partial = folder / f"{name}.partial"
        partial.unlink(missing_ok=True)
        tail = b""
        done = 0
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file, tempfile.TemporaryFile(dir=folder) as complaints:
            with (
                gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed,
                _child(command, complaints, stdout=subprocess.PIPE) as child,
            ):
                output = cast(IO[bytes], child.stdout)
                while piece := output.read(_PIECE):
                    packed.write(piece)
                    tail = (tail + piece)[-200:]
                    done += len(piece)
                    heard(done)
                _ended(child, complaints, place(self.engine))
            file.flush()
            os.fsync(file.fileno())
        if b"-- Dump completed" not in tail:
            raise StoreError(f"the dump of the {what} ends too early.", where=str(partial), next_step="prepare again.")
        final = folder / name
        partial.replace(final)
        with final.open("rb") as stored:
            checksum = hashlib.file_digest(stored, "sha256").hexdigest()
        return Artefact(name, f"{what} of {', '.join(tables) or self._database()}", final.stat().st_size, checksum)

    def _restore(self, dump: Path, checksum: str, settings: Path, schema: str, heard: Callable[[int], None]) -> None:
        program = _program(*CLIENT_PROGRAMS)
        command = [
            program,
            f"--defaults-file={settings}",
            "--default-character-set=utf8mb4",
            "--batch",
            f"--database={schema}",
        ]
        done = 0
        with (
            tempfile.TemporaryFile(dir=dump.parent) as complaints,
            gzip.open(dump, "rb") as content,
            _child(command, complaints, stdin=subprocess.PIPE) as child,
        ):
            entry = cast(IO[bytes], child.stdin)
            try:
                while piece := content.read(_PIECE):
                    entry.write(piece)
                    done += len(piece)
                    heard(done)
                entry.close()
            except BrokenPipeError:
                child.wait()  # it ended by itself; what it said is in its complaints
            _ended(child, complaints, f"trial restore into {schema}")
        with dump.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                raise StoreError("the dump changed while it was restored.", where=str(dump), next_step="prepare again.")


def _information(table: str, *columns: str) -> sa.TableClause:
    return sa.table(table, *(sa.column(column) for column in columns), schema="information_schema")


def _engines(tables: Sequence[_Table]) -> Check:
    other = [f"{table.name} is {table.engine or 'unknown'}" for table in tables if table.engine != "InnoDB"]
    return Check.of(
        "backup_sql_consistent",
        not other,
        "; ".join(other) if other else f"one snapshot of {len(tables)} InnoDB tables",
        "a snapshot covers InnoDB only: convert the tables, or attest a backup of your own",
    )


def _outside(outside: Sequence[str]) -> Check:
    reading_ = "; ".join(outside) if outside else "none leads out of the database"
    return Check.of(
        "backup_sql_foreign_keys", None if outside else True, reading_, "back those tables up and attest the backup"
    )


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection that sees the database as it is at this moment, for as long as it is open."""
    with speaking(engine), engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        yield connection
        connection.rollback()


def _row(table: _Table) -> tuple[sa.ColumnElement[str], sa.ColumnElement[int]]:
    """Expressions for the digest of a row and for its bucket, which depends on its key."""

    def bytes_of(column: str, long: bool) -> sa.ColumnElement[str]:
        raw = sa.cast(sa.column(column), sa.LargeBinary)
        # A long value is digested alone, since a concatenation has a limit and would give NULL.
        return sa.func.coalesce(sa.func.md5(raw) if long else sa.func.hex(raw), "N")

    row: sa.ColumnElement[str] = sa.func.md5(
        sa.func.concat_ws(",", *(bytes_of(name, long) for name, long in table.columns))
    )
    long_columns = dict(table.columns)
    key = sa.func.concat_ws(",", *(bytes_of(name, long_columns[name]) for name in table.key)) if table.key else row
    return row, sa.func.crc32(key) % table.buckets


def _digest(connection: Connection, schema: str | None, table: _Table) -> Digest:
    """Per bucket of rows: how many, and two sums over their digests that do not depend on the order."""
    row, bucket = _row(table)

    def half(start: int) -> sa.ColumnElement[Decimal]:
        return sa.func.sum(sa.cast(sa.func.conv(sa.func.substr(row, start, 15), 16, 10), sa.DECIMAL(20, 0)))

    query = (
        sa.select(bucket.label("bucket"), sa.func.count(), half(1), half(16))
        .select_from(sa.table(table.name, schema=schema))
        .group_by(sa.text("bucket"))
    )
    return {int(found[0]): (int(found[1]), int(found[2]), int(found[3])) for found in connection.execute(query)}


def _rows(connection: Connection, schema: str | None, table: _Table, buckets: Sequence[int]) -> Counter[str]:
    row, bucket = _row(table)
    query = sa.select(row).select_from(sa.table(table.name, schema=schema)).where(bucket.in_(buckets))
    return Counter(connection.scalars(query))


def _compare(
    table: _Table, first: Digest, last: Digest, connections: tuple[Connection, Connection, Connection], schema: str
) -> Check:
    """Whether every row that was the same before and after the dump is in the restored copy."""
    before, after, restored = connections
    copy = _digest(restored, schema, table)
    seen = first.keys() | last.keys() | copy.keys()
    doubtful = sorted(b for b in seen if not first.get(b) == last.get(b) == copy.get(b))
    proved = sum(first[b][0] for b in seen - set(doubtful))
    missing = moving = 0
    for start in range(0, len(doubtful), _CLOSE_LOOK):
        look = doubtful[start : start + _CLOSE_LOOK]
        old, new = _rows(before, None, table, look), _rows(after, None, table, look)
        still = old & new
        missing += (still - _rows(restored, schema, table, look)).total()
        proved += still.total()
        moving += ((old | new) - still).total()
    rows = sum(count for count, _, _ in copy.values())
    text = f"{rows} rows restored; {proved} rows unchanged during the dump compared by digest"
    if moving:
        text += f"; {moving} versions of rows changed during the dump and were not compared one by one"
    if missing:
        text = f"{missing} of {proved} rows unchanged during the dump are missing or different in the restored copy"
    return Check.of(
        f"backup_sql_restored_{table.name}", not missing, text, "prepare again; if it repeats, attest another backup"
    )


def _program(*names: str) -> str:
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise StoreError(
        f"none of {', '.join(names)} is installed.",
        where="this host",
        next_step="install the database's client (Debian: mariadb-client), or attest a backup of your own.",
    )


def _options_of(program: str) -> list[str]:
    """Options that only this program's family understands."""
    version = subprocess.run([program, "--version"], capture_output=True, check=True, env=_environment()).stdout
    return list(dialect_named(version.decode(errors="replace")).dump_options)


def _environment() -> dict[str, str]:
    """What a client program sees: neither our secrets nor the operator's."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}


def _client_settings(path: Path, url: URL) -> None:
    """A settings file for the client programs, so that the password is in no argument and no environment."""
    values = {"host": url.host or "localhost", "port": str(url.port or 3306), "user": url.username or ""}
    if url.password is not None:
        values["password"] = str(url.password)
    for word, option in (
        ("unix_socket", "socket"), ("ssl_ca", "ssl-ca"), ("ssl_cert", "ssl-cert"), ("ssl_key", "ssl-key"),
    ):  # fmt: skip
        found = url.query.get(word)
        if isinstance(found, str):
            values[option] = found
    if "socket" not in values:
        values["protocol"] = "tcp"
    lines = ["[client]", *(f"{name}={_quoted(value)}" for name, value in values.items()), ""]
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))


def _quoted(value: str) -> str:
    if "\n" in value:
        raise StoreError(
            "a login value has a line break in it.", where="database URL", next_step="choose another password."
        )
    return '"' + value.replace("\\", "\\\\") + '"'


@contextmanager
def _child(
    command: Sequence[str], complaints: IO[bytes], *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A client program that does not outlive this block."""
    child = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=complaints, env=_environment())
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None and not stream.closed:
                _close(stream)


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        return  # the program is gone; nothing is left to say to it


def _ended(child: subprocess.Popen[bytes], complaints: IO[bytes], where: str) -> None:
    status = child.wait()
    if status != 0:
        complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 4000))
        lines = complaints.read().decode("utf-8", "replace").splitlines()
        # The client repeats the statement that failed, rows and all, before the line that says why: payloads stay out.
        text = "; ".join(line[:400] for line in lines if _REASON.match(line)) or "it gave no reason"
        program = Path(str(child.args[0] if isinstance(child.args, list) else child.args)).name
        raise StoreError(
            f"{program} ended with {status}: {text}",
            where=where,
            next_step=NO_ROOM_NEXT
            if says_full(text)
            else "see its message, and the log and disk of the database host; the rights that the mover needs are in "
            "docs/mapping.md.",
        )
