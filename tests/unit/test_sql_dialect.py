"""In what MariaDB and MySQL differ: every difference by both names, and no other module knows of any."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import sql_dialect
from ansible.module_utils.sluice.adapters.sql_dialect import MARIADB, MYSQL, Dialect, dialect_named, dialect_of
from ansible.module_utils.sluice.adapters.sql_health import missing_privileges, parse_grants
from sqlalchemy.engine import Connection

ADAPTERS = Path(sql_dialect.__file__).parent
PACKAGE = ADAPTERS.parent
#: What only one of the two understands, or what tells them apart.
PARTICULAR = re.compile(
    r"is_mariadb|global_priv\b|mysql\.user\b|JSON_VALUE|(?<!\w)SKIP LOCKED\"|max_statement_time|max_execution_time"
    r"|idle_transaction_timeout|IDENTIFIED (?:BY|VIA)|SLAVES? STATUS|REPLICA STATUS|super_read_only"
    r"|SLAVE MONITOR\"|CONNECTION[ _]ADMIN\"|gtid-purged|column-statistics|mysqldump|account_locked"
)


def test_no_other_module_knows_which_server_it_speaks_to() -> None:
    assert PARTICULAR.search((ADAPTERS / "sql_dialect.py").read_text(encoding="utf-8"))
    assert {
        str(path.relative_to(PACKAGE)): found.group()
        for path in PACKAGE.rglob("*.py")
        if path.name != "sql_dialect.py" and (found := PARTICULAR.search(path.read_text(encoding="utf-8")))
    } == {}


def connected(mariadb: bool, *version: int | str) -> Connection:
    """What a dialect is told apart by."""
    facts = SimpleNamespace(is_mariadb=mariadb, server_version_info=version or None)
    return cast(Connection, SimpleNamespace(dialect=facts))


@pytest.mark.parametrize(
    ("mariadb", "version", "words"),
    [
        (True, (10, 5, 29), ""),
        (True, (10, 6), " SKIP LOCKED"),
        (True, (11, 8, 6), " SKIP LOCKED"),
        (False, (8, 0, 0), ""),
        (False, (8, 0, 1), " SKIP LOCKED"),
        (False, (8, 4, 3), " SKIP LOCKED"),
        (False, (9, 1, 0), " SKIP LOCKED"),
        (False, (), ""),  # a version that could not be read
    ],
)
def test_locked_rows_are_passed_over_where_the_server_can(mariadb: bool, version: tuple[int, ...], words: str) -> None:
    assert sql_dialect.skip_locked(connected(mariadb, *version)) == words


def test_a_version_is_its_numbers() -> None:
    assert sql_dialect.server_version(connected(True, 10, 11, 19, "MariaDB")) == (10, 11, 19)
    assert sql_dialect.server_version(connected(True)) == ()
    assert dialect_of(connected(True)) is MARIADB
    assert dialect_of(connected(False)) is MYSQL


@pytest.mark.parametrize(
    ("line", "dialect"),
    [
        ("10.11.19-MariaDB-0+deb12u1", MARIADB),
        ("5.5.5-11.8.6-MariaDB-deb13", MARIADB),
        ("8.0.36", MYSQL),
        ("8.4.3-log", MYSQL),
        ("mariadb-dump from 11.8.6-MariaDB, client 10.19 for debian-linux-gnu", MARIADB),
        ("mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)", MYSQL),
        ("mysqldump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)", MARIADB),
    ],
)
def test_servers_and_programs_are_told_apart_by_their_version_line(line: str, dialect: Dialect) -> None:
    assert dialect_named(line) is dialect


def test_only_mariadb_ends_a_silent_transaction() -> None:
    assert MARIADB.silence.format(seconds=6) == "SET SESSION idle_transaction_timeout = 6"
    assert MARIADB.silence_over.endswith("DEFAULT")
    assert (MYSQL.silence, MYSQL.silence_over) == ("", "")


@pytest.mark.parametrize(
    ("dialect", "statement"),
    [(MARIADB, "SET SESSION max_statement_time = 2.5"), (MYSQL, "SET SESSION max_execution_time = 2500")],
)
def test_a_read_is_bounded_in_the_servers_own_unit(dialect: Dialect, statement: str) -> None:
    assert dialect.statement_limit(2.5) == statement


def test_mariadb_gets_the_digest_of_a_password_and_mysql_the_password() -> None:
    digest = "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19"  # of "password", from the servers' manuals
    assert MARIADB.password_words("password") == ("IDENTIFIED VIA mysql_native_password USING %s", digest)
    assert MYSQL.password_words("password") == ("IDENTIFIED BY %s", "password")


@pytest.mark.parametrize(
    ("word", "locked"),
    [("1", True), ("true", True), (True, True), ("Y", True), ("0", False), ("false", False), ("N", False), (0, False)],
)
def test_an_account_is_locked_in_the_words_of_either(word: object, locked: bool) -> None:
    assert sql_dialect.is_locked(word) is locked


@pytest.mark.parametrize("dialect", [MARIADB, MYSQL], ids=lambda dialect: dialect.name)
def test_the_answers_have_the_same_columns(dialect: Dialect) -> None:
    for question, columns in ((dialect.accounts, ("user", "host", "locked")), (dialect.login, ("plugin", "digest"))):
        names = re.findall(r" AS (\w+)", question)
        assert tuple(names) == columns
        sa.text(question)
    assert set(re.findall(r":(\w+)", dialect.login)) == {"user", "host"}


def test_the_columns_of_the_information_schema_have_names_of_their_own() -> None:
    """MySQL 8 answers in capitals to whoever does not say ``AS``."""
    for question in (sql_dialect.SESSIONS, sql_dialect.TRANSACTIONS, sql_dialect.WRITABLE_COLUMNS):
        listed = str(question).removeprefix("SELECT ").partition(" FROM ")[0]
        assert all(" AS " in column for column in listed.split(", ")), listed


MYSQL_MOVER = """\
GRANT PROCESS, CREATE USER, REPLICATION CLIENT ON *.* TO `sluice`@`10.0.0.9`
GRANT CONNECTION_ADMIN ON *.* TO `sluice`@`10.0.0.9`
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, INDEX, TRIGGER ON `captions`.* TO `sluice`@`10.0.0.9` WITH GRANT OPTION
GRANT SELECT, INSERT, CREATE, DROP, REFERENCES, INDEX, ALTER, LOCK TABLES ON `captions\\_sluice\\_verify\\_%`.* TO `sluice`@`10.0.0.9`
GRANT SELECT ON `mysql`.* TO `sluice`@`10.0.0.9`""".splitlines()  # noqa: E501  (as the server prints them)
MARIADB_MOVER = [
    line.replace("REPLICATION CLIENT", "SLAVE MONITOR").replace("CONNECTION_ADMIN", "CONNECTION ADMIN")
    for line in MYSQL_MOVER
]


@pytest.mark.parametrize(
    ("dialect", "lines"), [(MARIADB, MARIADB_MOVER), (MYSQL, MYSQL_MOVER)], ids=["MariaDB", "MySQL"]
)
def test_each_right_of_the_mover_is_missed_in_the_servers_own_words(dialect: Dialect, lines: list[str]) -> None:
    assert missing_privileges(parse_grants(lines), "captions", dialect) == []
    for number, line in enumerate(lines):
        words, _, rest = line.removeprefix("GRANT ").partition(" ON ")
        scope = rest.partition(" TO ")[0]
        for word in words.split(", "):
            fewer = ", ".join(each for each in words.split(", ") if each != word) or "USAGE"
            lacking: list[Any] = [*lines[:number], f"GRANT {fewer} ON {rest}", *lines[number + 1 :]]
            assert missing_privileges(parse_grants(lacking), "captions", dialect) == [f"{word} ON {scope}"]


def test_a_right_of_the_other_family_does_not_count() -> None:
    for dialect, lines in ((MARIADB, MYSQL_MOVER), (MYSQL, MARIADB_MOVER)):
        assert missing_privileges(parse_grants(lines), "captions", dialect) == [
            f"{dialect.ends_sessions[0]} ON *.*",
            f"{dialect.sees_replication[0]} ON *.*",
        ]
