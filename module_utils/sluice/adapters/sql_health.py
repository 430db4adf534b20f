"""What the safety checks need to know of a database server. Reads only."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from ..ports.preparation import SqlReadings
from .sql_connect import place, reading
from .sql_dialect import Dialect, dialect_of, server_version

_LOOPBACK = frozenset({"", "localhost", "127.0.0.1", "::1"})
_GRANT = re.compile(r"GRANT (?P<what>.+?) ON (?P<scope>\S+|`.+`\.\S+) TO (?P<rest>.*)", re.DOTALL)

#: What the mover does in the application's database: ledger, holds, dump with triggers, accounts for the other side.
DATABASE_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "INDEX", "TRIGGER", "GRANT OPTION")
#: What a trial restore needs in its own schema.
SCRATCH_PRIVILEGES = ("SELECT", "INSERT", "CREATE", "DROP", "ALTER", "INDEX", "REFERENCES", "LOCK TABLES")


@dataclass(frozen=True, slots=True)
class Grant:
    """One line of SHOW GRANTS: privileges on a scope. ``database`` is a pattern, ``table`` a name or ``*``."""

    privileges: frozenset[str]
    database: str
    table: str

    def covers(self, privilege: str, database: str) -> bool:
        """Whether the privilege holds for every table of ``database`` (``*``: for the whole server)."""
        if self.table != "*" or (database == "*" and self.database != "*"):
            return False
        if self.database != "*" and not database_fits(self.database, database):
            return False
        if privilege == "GRANT OPTION":
            return privilege in self.privileges
        return privilege in self.privileges or "ALL PRIVILEGES" in self.privileges


def parse_grants(lines: Iterable[str]) -> list[Grant]:
    """Read the lines of SHOW GRANTS. Grants of roles are left out: an active role's own lines are listed as well."""
    found = []
    for line in lines:
        match = _GRANT.match(line)
        if match is None:
            continue
        database, dot, table = match["scope"].rpartition(".")
        if not dot:
            continue
        words = {re.sub(r"\s*\(.*", "", word).strip().upper() for word in re.split(r",(?![^()]*\))", match["what"])}
        if "WITH GRANT OPTION" in match["rest"]:
            words.add("GRANT OPTION")
        found.append(Grant(frozenset(words), _bare(database), _bare(table)))
    return found


def missing_privileges(grants: Sequence[Grant], database: str, dialect: Dialect) -> list[str]:
    """What the mover lacks, each as it is written in a GRANT."""
    scratch = f"{database[:36]}_sluice_verify_x"
    server: list[tuple[str, tuple[str, ...]]] = [
        ("PROCESS", ("PROCESS",)),
        ("CREATE USER", ("CREATE USER",)),
        (dialect.ends_sessions[0], dialect.ends_sessions),
        (dialect.sees_replication[0], dialect.sees_replication),
    ]
    missing = [
        f"{shown} ON *.*"
        for shown, words in server
        if not any(grant.covers(word, "*") for grant in grants for word in words)
    ]
    pattern = f"{database[:36]}_sluice_verify_%".replace("_", "\\_")
    for privileges, target, shown in (
        (DATABASE_PRIVILEGES, database, f"`{database}`.*"),
        (("SELECT",), "mysql", "`mysql`.*"),
        (SCRATCH_PRIVILEGES, scratch, f"`{pattern}`.*"),
    ):
        missing += [
            f"{privilege} ON {shown}"
            for privilege in privileges
            if not any(grant.covers(privilege, target) for grant in grants)
        ]
    return missing


class SqlServerHealth:
    """See :class:`..ports.preparation.SqlHealth`."""

    def __init__(self, engine: Engine, mover: str = "") -> None:
        """``mover`` is the account, user@host, whose rights are judged when it is not that of ``engine`` (a plan)."""
        self.engine = engine
        self.mover = mover

    def read(self, tables: Sequence[str]) -> SqlReadings:
        """Look once.

        :raises StoreError: unreachable, wrong password or database
        """
        database = str(self.engine.url.database)
        with reading(self.engine) as connection:
            dialect = dialect_of(connection)
            offset, error = _clock(connection)
            engines, size = _tables(connection, database, tables)
            grants = self._grants(connection)
            flush = _asked(connection, "SELECT @@global.innodb_flush_log_at_trx_commit")
            datadir = _asked(connection, "SELECT @@global.datadir")
            return SqlReadings(
                address=place(self.engine),
                account=self.mover or str(connection.scalar(sa.text("SELECT CURRENT_USER()"))),
                oldest=dialect.oldest,
                version=server_version(connection) or None,
                engines=engines,
                flush_at_commit=None if flush is None else int(str(flush)),
                read_only=_read_only(connection, dialect),
                replica=_replica(connection, dialect),
                missing_privileges=None if grants is None else missing_privileges(grants, database, dialect),
                clock_offset=offset,
                clock_error=error,
                disk_free=self._disk_free(None if datadir is None else str(datadir)),
                data_bytes=size,
            )

    def _grants(self, connection: Connection) -> list[Grant] | None:
        """The rights of the mover; None when this account may not read those of another."""
        if not self.mover:
            rows = connection.execute(sa.text("SHOW GRANTS")).all()
        else:
            user, _, host = self.mover.rpartition("@")
            try:
                rows = connection.execute(sa.text("SHOW GRANTS FOR :user@:host"), {"user": user, "host": host}).all()
            except exc.DBAPIError as error:
                if error.connection_invalidated:
                    raise
                return None
        return parse_grants(str(row[0]) for row in rows)

    def _disk_free(self, datadir: str | None) -> int | None:
        local = "unix_socket" in self.engine.url.query or (self.engine.url.host or "") in _LOOPBACK
        if not local or not datadir:
            return None
        try:
            state = os.statvfs(datadir)
        except OSError:
            return None  # e.g. a server in a container; the check says that it could not be read
        return state.f_bavail * state.f_frsize


def check_login(url: str) -> None:
    """Log in once with ``mysql+pymysql://...`` and leave.

    :raises StoreError: refused, locked, or no such database
    """
    from .sql_connect import connect

    engine = connect(url, pool_size=1)
    try:
        with reading(engine) as connection:
            connection.execute(sa.text("SELECT 1"))
    finally:
        engine.dispose()


def _bare(name: str) -> str:
    return name[1:-1].replace("``", "`") if name.startswith("`") and name.endswith("`") and len(name) > 1 else name


def database_fits(pattern: str, database: str) -> bool:
    """Whether a database pattern of a grant (``%``, ``_``, escaped by a backslash) covers the name."""
    expression = ""
    letters = iter(pattern)
    for letter in letters:
        if letter == "\\":
            expression += re.escape(next(letters, ""))
        else:
            expression += {"%": ".*", "_": "."}.get(letter, re.escape(letter))
    return re.fullmatch(expression, database) is not None


def _asked(connection: Connection, question: str) -> object | None:
    """One value, or None when the server does not know the question or refuses it."""
    try:
        value: object | None = connection.scalar(sa.text(question))
        return value
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        return None


def _read_only(connection: Connection, dialect: Dialect) -> bool | None:
    values = [_asked(connection, f"SELECT @@global.{name}") for name in dialect.read_only_variables]
    if any(value is None for value in values):
        return None
    return any(str(value).upper() not in ("0", "OFF") for value in values)


def _replica(connection: Connection, dialect: Dialect) -> bool | None:
    for question in dialect.replica_questions:
        try:
            return connection.execute(sa.text(question)).first() is not None
        except exc.DBAPIError as error:
            if error.connection_invalidated:
                raise
    return None


def _tables(connection: Connection, database: str, names: Sequence[str]) -> tuple[dict[str, str], int | None]:
    tables = sa.table(
        "TABLES",
        *(sa.column(name) for name in ("TABLE_SCHEMA", "TABLE_NAME", "ENGINE", "DATA_LENGTH")),
        schema="information_schema",
    )
    rows = connection.execute(
        sa.select(tables.c.TABLE_NAME, tables.c.ENGINE, tables.c.DATA_LENGTH).where(
            tables.c.TABLE_SCHEMA == database, tables.c.TABLE_NAME.in_(names)
        )
    ).all()
    engines = dict.fromkeys(names, "") | {str(row[0]): str(row[1] or "") for row in rows}
    known = [row[2] for row in rows if row[2] is not None]
    return engines, sum(int(size) for size in known) if len(known) == len(set(names)) else None


def _clock(connection: Connection) -> tuple[float | None, float]:
    connection.execute(sa.text("SELECT 1"))  # the connection is warm now, so the reading is of the clock alone
    began = time.time()
    # Not by way of local time, which has one hour twice in autumn.
    value = _asked(connection, "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))")
    ended = time.time()
    if value is None:
        return None, 0.0
    return int(str(value)) / 1e6 - (began + ended) / 2, (ended - began) / 2
