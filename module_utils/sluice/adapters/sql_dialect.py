"""Everything in which MariaDB and MySQL differ, in one place: words, floors and questions, as data.

No other module asks which of the two it speaks to: it takes :func:`dialect_of` a connection and uses what is here.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

#: Errors of either server that say that an account is locked.
ACCOUNT_LOCKED = frozenset({3118, 4151})
#: The client programs that dump and restore, by the name of either family, the nearest first.
DUMP_PROGRAMS = ("mariadb-dump", "mysqldump")
CLIENT_PROGRAMS = ("mariadb", "mysql")
#: The plugin whose stored digest can be compared with a password.
NATIVE_PLUGIN = "mysql_native_password"
#: Columns that a row can be written to. Not by ``extra``: MySQL says DEFAULT_GENERATED there of a plain default.
WRITABLE_COLUMNS = sa.text(
    "SELECT column_name AS name FROM information_schema.columns WHERE table_schema = DATABASE()"
    " AND table_name = :table AND COALESCE(generation_expression, '') = '' ORDER BY ordinal_position"
)
#: Other connections, and open transactions of theirs. MySQL 8 names columns in capitals unless they get a name.
SESSIONS = sa.text(
    "SELECT id AS id, user AS user, host AS host, db AS db, command AS command, time AS time, info AS info "
    "FROM information_schema.processlist WHERE id <> CONNECTION_ID()"
)
TRANSACTIONS = sa.text(
    "SELECT p.id AS id, p.user AS user, p.host AS host, t.trx_started AS started "
    "FROM information_schema.innodb_trx t JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id "
    "WHERE p.id <> CONNECTION_ID()"
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one family of servers says what we need of it."""

    name: str
    #: The oldest version that is taken, and the oldest one whose locking reads can pass over locked rows.
    oldest: tuple[int, ...]
    oldest_skipping_locked: tuple[int, ...]
    #: Rights on the whole server as a GRANT writes them, the first of each being the one to ask for.
    ends_sessions: tuple[str, ...]
    sees_replication: tuple[str, ...]
    #: Questions to which a replica answers with a row; the first that the server knows counts.
    replica_questions: tuple[str, ...]
    #: Variables that keep writes out; every one of them is to be off.
    read_only_variables: tuple[str, ...]
    #: Every account as ``user``, ``host``, ``locked``; roles are none.
    accounts: str
    #: One account's login plugin and stored digest, by ``:user`` and ``:host``.
    login: str
    #: One account's privileges on the whole server as a number, by ``:user`` and ``:host``; empty: SHOW GRANTS FOR.
    privilege_bits: str
    #: Ends a writing transaction whose client says nothing for ``{seconds}``; empty where the server cannot.
    silence: str
    silence_over: str
    #: Bounds every statement of a session that reads to ``{seconds}`` or ``{milliseconds}``.
    longest_statement: str
    #: What follows CREATE USER or ALTER USER, and whether its parameter is the digest, so that no log has the password.
    password: str
    password_as_digest: bool
    #: Options of this family's dump program that the other one does not know.
    dump_options: tuple[str, ...]

    def skip_locked(self, version: tuple[int, ...]) -> str:
        """The words that make a locking read pass over locked rows; empty where the server has none."""
        return " SKIP LOCKED" if version >= self.oldest_skipping_locked else ""

    def statement_limit(self, seconds: float) -> str:
        """The statement that bounds all later ones of a session that reads."""
        return self.longest_statement.format(seconds=f"{seconds:g}", milliseconds=int(seconds * 1000))

    def password_words(self, password: str) -> tuple[str, str]:
        """What follows ``CREATE USER %s@%s``, and the parameter that it takes."""
        return self.password, native_digest(password) if self.password_as_digest else password


MARIADB = Dialect(
    name="MariaDB",
    oldest=(10, 5),
    oldest_skipping_locked=(10, 6),
    ends_sessions=("CONNECTION ADMIN", "SUPER"),
    sees_replication=("SLAVE MONITOR", "REPLICA MONITOR", "REPLICATION SLAVE ADMIN", "SUPER"),
    replica_questions=("SHOW ALL SLAVES STATUS",),
    read_only_variables=("read_only",),
    accounts="SELECT User AS user, Host AS host, COALESCE(JSON_VALUE(Priv, '$.account_locked'), 'false') AS locked "
    "FROM mysql.global_priv WHERE COALESCE(JSON_VALUE(Priv, '$.is_role'), '0') IN ('0', 'false')",
    login="SELECT COALESCE(JSON_VALUE(Priv, '$.plugin'), 'mysql_native_password') AS plugin, "
    "COALESCE(JSON_VALUE(Priv, '$.authentication_string'), '') AS digest "
    "FROM mysql.global_priv WHERE User = :user AND Host = :host",
    # It shows the grants of others only to those who read all of the schema mysql; the number needs this table alone.
    privilege_bits="SELECT JSON_VALUE(Priv, '$.access') AS access FROM mysql.global_priv "
    "WHERE User = :user AND Host = :host",
    silence="SET SESSION idle_transaction_timeout = {seconds}",
    silence_over="SET SESSION idle_transaction_timeout = DEFAULT",
    longest_statement="SET SESSION max_statement_time = {seconds}",
    password=f"IDENTIFIED VIA {NATIVE_PLUGIN} USING %s",
    password_as_digest=True,
    dump_options=(),
)

MYSQL = Dialect(
    name="MySQL",
    oldest=(8, 0),
    oldest_skipping_locked=(8, 0, 1),
    ends_sessions=("CONNECTION_ADMIN", "SUPER"),
    sees_replication=("REPLICATION CLIENT", "SUPER"),
    # The second for servers before 8.0.22.
    replica_questions=("SHOW REPLICA STATUS", "SHOW SLAVE STATUS"),
    read_only_variables=("read_only", "super_read_only"),
    accounts="SELECT User AS user, Host AS host, account_locked AS locked FROM mysql.user",
    login="SELECT plugin AS plugin, authentication_string AS digest FROM mysql.user "
    "WHERE User = :user AND Host = :host",
    privilege_bits="",
    silence="",
    silence_over="",
    longest_statement="SET SESSION max_execution_time = {milliseconds}",
    password="IDENTIFIED BY %s",  # noqa: S106  (the words, with a place for it)
    password_as_digest=False,
    dump_options=("--set-gtid-purged=OFF", "--column-statistics=0"),
)

#: The bits of MariaDB's number of privileges that are asked for.
_BITS = {"PROCESS": 1 << 8, "SUPER": 1 << 15, "CREATE USER": 1 << 25, "CONNECTION ADMIN": 1 << 32}


def dialect_named(text: str) -> Dialect:
    """The family that a server's or a client program's own version line is of."""
    return MARIADB if re.search("mariadb", text, re.IGNORECASE) else MYSQL


def dialect_of(connection: Connection) -> Dialect:
    """The family of the server behind a connection."""
    return MARIADB if getattr(connection.dialect, "is_mariadb", False) else MYSQL


def server_version(connection: Connection) -> tuple[int, ...]:
    """The server's version as numbers, e.g. (10, 11, 19)."""
    info = connection.dialect.server_version_info
    return tuple(part for part in (info or ()) if isinstance(part, int))


def skip_locked(connection: Connection) -> str:
    """See :meth:`Dialect.skip_locked`, of the server behind a connection."""
    return dialect_of(connection).skip_locked(server_version(connection))


def privileges_of_bits(access: int) -> frozenset[str]:
    """The privileges on the whole server that MariaDB's number stands for, of those that we ask about."""
    return frozenset(word for word, bit in _BITS.items() if access & bit)


def native_digest(password: str) -> str:
    """The digest that the server keeps for mysql_native_password: SHA-1 of SHA-1, not ours to choose."""
    inner = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    return "*" + hashlib.sha1(inner, usedforsecurity=False).hexdigest().upper()


def is_locked(word: object) -> bool:
    """Whether an account is locked, by what the server says of it (1, true, Y)."""
    return str(word).lower() in ("1", "true", "y")
