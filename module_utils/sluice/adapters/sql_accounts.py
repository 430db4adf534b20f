"""SQL accounts, one per side: made with the least rights, re-read, and tried by logging in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pymysql
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ..core.errors import StoreError
from ..core.verdicts import Check, Verdict
from ..ports.preparation import AccountChange
from .sql_connect import place, reading
from .sql_dialect import ACCOUNT_LOCKED, NATIVE_PLUGIN, dialect_of, native_digest
from .sql_fence import Account
from .sql_health import Grant, check_login, database_fits, parse_grants

_RIGHT = re.compile(
    r"(?P<words>[A-Za-z]+(?: [A-Za-z]+)*(?: *, *[A-Za-z]+(?: [A-Za-z]+)*)*) +ON +"
    r"(?:(?P<database>[A-Za-z0-9_$]{1,64})\.)?(?P<table>[A-Za-z0-9_$]{1,64}|\*)\Z"
)
_ACCOUNT = re.compile(r"[A-Za-z0-9_.-]{1,80}@[A-Za-z0-9_.:%/-]{1,200}\Z")


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """One privilege on one table, or on every table of a database (``*``)."""

    privilege: str
    database: str
    table: str

    def __str__(self) -> str:
        return f"{self.privilege} ON {self.database}.{self.table}"


def parse_rights(rights: Sequence[str], database: str) -> list[Right]:
    """Read lines like ``SELECT, UPDATE ON tasks`` or ``SELECT ON captions.*``.

    :raises StoreError: a line is none, or asks for more than rights on tables
    """
    found: list[Right] = []
    for line in rights:
        match = _RIGHT.match(line.strip())
        if match is None:
            raise StoreError(
                f"'{line}' is not a right.",
                where="accounts",
                next_step="write e.g. SELECT, UPDATE ON tasks, or ON database.*",
            )
        for word in match["words"].split(","):
            found.append(Right(" ".join(word.split()).upper(), match["database"] or database, match["table"]))
    return found


class SqlAccounts:
    """See :class:`..ports.preparation.Accounts`; an account is ``user@host``, rights are lines for GRANT.

    An account that is locked stays locked: it may be behind a fence, and that is not ours to lift. Rights beyond those
    asked for are named in the reading and left alone.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def ensure(self, account: str, password: str, rights: Sequence[str], *, check_mode: bool = False) -> AccountChange:
        """Make the account, or bring it to this password and at least these rights; then read it back and log in."""
        if not _ACCOUNT.match(account):
            raise StoreError(
                f"'{account}' is not an account.", where="accounts", next_step="write user@host, e.g. app@%."
            )
        if not password:
            raise StoreError(f"{account} has no password.", where="accounts", next_step="set one.")
        who = Account.parse(account)
        wanted = parse_rights(rights, str(self.engine.url.database))
        with reading(self.engine) as connection:
            if str(connection.scalar(sa.text("SELECT CURRENT_USER()"))) == account:
                raise StoreError(f"{account} is the mover's own account.", where=place(self.engine),
                                 next_step="name an account of the side's own.")  # fmt: skip
            state = _state(connection, who)
            same = None if state is None else self._same_password(state, who, password)
            missing = wanted if state is None else _missing(_grants(connection, who), wanted)
            actions = ["create the account"] if state is None else [] if same is not False else ["set its password"]
            actions += [f"grant {right}" for right in missing]
            if check_mode:
                return AccountChange(account, bool(actions), actions, [])
            if state is None or same is False:
                self._set_password(connection, who, password, new=state is None)
            for right in missing:
                _grant(connection, who, right)
            connection.commit()
            checks = self._re_read(connection, who, wanted)
        return AccountChange(account, bool(actions), actions, [*checks, self._login(who, password)])

    def _same_password(self, state: tuple[str, str], who: Account, password: str) -> bool | None:
        """Whether the account has this password; None when it cannot be told."""
        plugin, stored = state
        if plugin == NATIVE_PLUGIN:
            return stored.upper() == native_digest(password)
        refusal = self._refusal(who, password)
        if refusal is None:
            return True
        # A locked account, or one for other hosts, says nothing about its password.
        return False if "1045" in refusal and self._from_here(who) else None

    def _set_password(self, connection: Connection, who: Account, password: str, *, new: bool) -> None:
        verb = "CREATE USER" if new else "ALTER USER"
        words, secret = dialect_of(connection).password_words(password)
        # Past SQLAlchemy, whose errors show parameters.
        raw = connection.connection.cursor()
        try:
            raw.execute(f"{verb} %s@%s {words}", (who.user, who.host, secret))
        except pymysql.MySQLError as error:
            code = error.args[0] if error.args else 0
            raise StoreError(
                f"{verb} for {who} was refused (error {code}).",
                where=place(self.engine),
                next_step="GRANT CREATE USER ON *.* to the mover; a password policy may ask for a longer password.",
            ) from None
        finally:
            raw.close()

    def _re_read(self, connection: Connection, who: Account, wanted: Sequence[Right]) -> list[Check]:
        name = f"sql_account_{who}"
        if _state(connection, who) is None:
            return [Check(name, Verdict.FAILED, "re-read: there is no such account", "look at the server's log")]
        grants = _grants(connection, who)
        missing = _missing(grants, wanted)
        more = _more(grants, wanted)
        text = (
            f"re-read: lacks {'; '.join(map(str, missing))}" if missing else f"re-read: {len(wanted)} rights as asked"
        )
        if more:
            text += f"; it also has {'; '.join(more)}, which was left alone"
        return [Check.of(name, not missing, text, "GRANT what is missing")]

    def _login(self, who: Account, password: str) -> Check:
        name = f"sql_login_{who}"
        refusal = self._refusal(who, password)
        if refusal is None:
            return Check(name, Verdict.PASSED, "logged in")
        if any(f"(error {code})" in refusal for code in ACCOUNT_LOCKED):
            return Check(name, Verdict.PASSED, "the account is locked: its side is fenced; it was left locked")
        if not self._from_here(who):
            with reading(self.engine) as connection:
                state = _state(connection, who)
            if state is not None and state[0] == NATIVE_PLUGIN and state[1].upper() == native_digest(password):
                return Check(name, Verdict.PASSED, "for other hosts than this; the stored digest is of the password")
            return Check(name, Verdict.UNKNOWN, f"for other hosts than this: {refusal}", "log in from such a host")
        return Check(name, Verdict.FAILED, refusal, "look for another account that fits the same user and host better")

    def _refusal(self, who: Account, password: str) -> str | None:
        """The server's words when the account cannot log in from here; None when it can."""
        url = self.engine.url.set(username=who.user, password=password)
        if "unix_socket" in url.query and who.host not in ("localhost", "%"):
            with reading(self.engine) as connection:
                port = int(connection.scalar(sa.text("SELECT @@global.port")) or 3306)
            url = url.difference_update_query(["unix_socket"]).set(host="127.0.0.1", port=port)
        try:
            check_login(url.render_as_string(hide_password=False))
        except StoreError as error:
            return error.what
        return None

    def _from_here(self, who: Account) -> bool:
        """Whether the server sees us at an address that the account is for."""
        if who.host == "%":
            return True
        with reading(self.engine) as connection:
            own = str(connection.scalar(sa.text("SELECT USER()"))).rpartition("@")[2]
        return who.host in (own, "localhost", "127.0.0.1", "::1") or database_fits(who.host, own)


def _state(connection: Connection, who: Account) -> tuple[str, str] | None:
    """The account's login plugin and stored digest, or None when there is no such account."""
    question = sa.text(dialect_of(connection).login)
    row = connection.execute(question, {"user": who.user, "host": who.host}).first()
    return None if row is None else (_text(row.plugin), _text(row.digest))


def _grants(connection: Connection, who: Account) -> list[Grant]:
    rows = connection.execute(sa.text("SHOW GRANTS FOR :user@:host"), {"user": who.user, "host": who.host})
    return parse_grants(str(row[0]) for row in rows)


def _missing(grants: Sequence[Grant], wanted: Sequence[Right]) -> list[Right]:
    return [right for right in wanted if not any(_gives(grant, right) for grant in grants)]


def _gives(grant: Grant, right: Right) -> bool:
    if grant.table not in ("*", right.table):
        return False
    # On a table the name is meant literally, on a whole database it is a pattern.
    fits = database_fits(grant.database, right.database) if grant.table == "*" else grant.database == right.database
    return (grant.database == "*" or fits) and bool(grant.privileges & {right.privilege, "ALL PRIVILEGES"})


def _more(grants: Sequence[Grant], wanted: Sequence[Right]) -> list[str]:
    asked = {(right.privilege, right.database, right.table) for right in wanted}
    return [
        f"{privilege} ON {grant.database}.{grant.table}"
        for grant in grants
        for privilege in sorted(grant.privileges - {"USAGE"})
        if (privilege, grant.database.replace("\\", ""), grant.table) not in asked
    ]


def _grant(connection: Connection, who: Account, right: Right) -> None:
    table = "*" if right.table == "*" else f"`{right.table}`"
    # Without the backslash `_` would stand for any letter, and the right reach into other databases.
    database = right.database.replace("_", "\\_") if right.table == "*" else right.database
    statement = f"GRANT {right.privilege} ON `{database}`.{table} TO :user@:host"  # its words were checked by _RIGHT
    connection.execute(sa.text(statement), {"user": who.user, "host": who.host})


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
