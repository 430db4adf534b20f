"""The fence around a side's SQL accounts: locked, sessions ended, no transaction left. No restart lifts it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from ..core.errors import FenceOpen, StoreError
from ..core.tasks import Lease
from ..core.verdicts import Check, Verdict
from ..ports.surroundings import Clock
from .ledger_sql import lock_lease
from .sql_connect import place, reading, transaction
from .sql_dialect import SESSIONS, TRANSACTIONS, dialect_of, is_locked, privileges_of_bits
from .system_clock import SystemClock

POLL_SECONDS = 0.2
#: InnoDB reads its transactions anew only when nobody has looked at them for a tenth of a second; before that it says
#: what it said last (the cache of information_schema.innodb_trx; MariaDB and MySQL alike).
TRANSACTIONS_REMEMBERED = 0.11

_NO_SUCH_THREAD = 1094
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_LOCK = sa.text("ALTER USER :user@:host ACCOUNT LOCK")
_UNLOCK = sa.text("ALTER USER :user@:host ACCOUNT UNLOCK")


@dataclass(frozen=True, slots=True, order=True)
class Account:
    """An SQL account, by user and host pattern."""

    user: str
    host: str

    def __str__(self) -> str:
        return f"{self.user}@{self.host}"

    @classmethod
    def parse(cls, text: str) -> Account:
        """Read ``user@host``.

        :raises StoreError: there is no user or no host in it
        """
        user, at, host = text.rpartition("@")
        if not (user and at and host):
            raise StoreError(f"'{text}' is not an account.", where="accounts", next_step="write user@host, e.g. app@%.")
        return cls(user, host)


@dataclass(frozen=True, slots=True)
class Session:
    """One connection of a client. ``host`` is without the port; ``seconds`` in its present command."""

    id: int
    user: str
    host: str
    database: str
    command: str
    seconds: int
    statement: str  # for looking up table names only: it may hold payload and goes into no message

    def __str__(self) -> str:
        return f"{self.id} ({self.user} from {self.host})"


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A transaction that is open in InnoDB, by the connection that holds it and the second it was started."""

    id: int
    user: str
    host: str
    started: str

    def __str__(self) -> str:
        return f"{self.id} ({self.user} from {self.host}, since {self.started})"


def sessions(connection: Connection) -> list[Session]:
    """Every other connection that this account may see; all of them only with PROCESS."""
    return [
        Session(
            int(row.id),
            row.user or "",
            _without_port(row.host or ""),
            row.db or "",
            row.command or "",
            int(row.time or 0),
            row.info or "",
        )
        for row in connection.execute(SESSIONS)
    ]


def open_transactions(connection: Connection, clock: Clock) -> list[OpenTransaction]:
    """Every InnoDB transaction of another connection that is open now, not a moment ago: it waits for that.

    :raises sqlalchemy.exc.DBAPIError: without the privilege PROCESS
    """
    clock.wait(TRANSACTIONS_REMEMBERED)
    return [
        OpenTransaction(int(row.id), row.user or "", _without_port(row.host or ""), str(row.started))
        for row in connection.execute(TRANSACTIONS)
    ]


def sees_all_sessions(connection: Connection) -> bool:
    """Whether the server shows this account the sessions of others; without PROCESS it silently shows only its own."""
    return bool(global_privileges(connection) & {"PROCESS", "ALL PRIVILEGES"})


def global_privileges(connection: Connection, account: Account | None = None) -> frozenset[str]:
    """What our account, or another, may do on the whole server, in the words of SHOW GRANTS.

    :raises StoreError: there is no such account
    """
    if account is None:
        return _granted(connection.execute(sa.text("SHOW GRANTS")))
    who = {"user": account.user, "host": account.host}
    bits = dialect_of(connection).privilege_bits
    if not bits:
        return _granted(connection.execute(sa.text("SHOW GRANTS FOR :user@:host"), who))
    row = connection.execute(sa.text(bits), who).first()
    if row is None:
        raise StoreError(f"the server has no account {account}.", next_step="make it, or correct its name.")
    return privileges_of_bits(int(row.access or 0))


def _granted(rows: Iterable[Sequence[object]]) -> frozenset[str]:
    found: set[str] = set()
    for row in rows:
        match = re.match(r"GRANT (.+?) ON \*\.\* TO ", str(row[0]))
        if match:
            found.update(word.strip().upper() for word in match.group(1).split(","))
    return frozenset(found)


def account_locks(connection: Connection) -> dict[Account, bool]:
    """Every account of the server, and whether it is locked."""
    rows = connection.execute(sa.text(dialect_of(connection).accounts))
    return {Account(row.user, row.host): is_locked(row.locked) for row in rows}


def account_of(user: str, host: str, accounts: Iterable[Account]) -> Account | None:
    """The account under which a session logged in: of those of its user whose host fits, the most specific one."""
    fitting = [account for account in accounts if account.user == user and _host_fits(account.host, host)]
    return max(fitting, key=lambda account: _specificity(account.host), default=None)


class SqlFence:
    """See :class:`..ports.surroundings.Fence`; for the SQL accounts of one side.

    :param accounts: ``user@host`` of every claimer of the side
    :param producer_accounts: accounts that must go on working; one that is in both lists cannot be fenced
    :param mover: ``user@host`` that will close the fence, when it is not the account of ``engine`` (a dry run with
        an account that reads the server's accounts)
    :param deadline: seconds to wait for ended sessions to be gone
    """

    def __init__(
        self,
        engine: Engine,
        accounts: Sequence[str],
        *,
        producer_accounts: Sequence[str] = (),
        mover: str = "",
        clock: Clock | None = None,
        deadline: float = 20.0,
    ) -> None:
        self.engine = engine
        self.accounts = tuple(dict.fromkeys(Account.parse(text) for text in accounts))
        self.producers = frozenset(Account.parse(text) for text in producer_accounts)
        self.mover = Account.parse(mover) if mover else None
        self.clock = clock or SystemClock()
        self.deadline = deadline

    # -- ability ------------------------------------------------------------------------------------------------

    def ability(self) -> Sequence[Check]:
        """Whether every account can be locked and its sessions ended. Reads only."""
        if not self.accounts:
            return [_nothing_named()]
        try:
            with reading(self.engine) as connection:
                own = self.mover or _current(connection)
                checks = self._separate(own)
                checks += self._known(connection)
        except StoreError as error:
            return [
                Check("accounts readable", Verdict.UNKNOWN, str(error), "grant the mover SELECT on the schema mysql.")
            ]
        return [*checks, *self._rights()]

    def _separate(self, own: Account) -> list[Check]:
        checks = []
        for account in self.accounts:
            if account == own:
                checks.append(
                    Check(
                        f"{account} separate",
                        Verdict.FAILED,
                        "it is the mover's own account: locking it would lock us out",
                        "give the workers an account of their own.",
                    )
                )
            elif account in self.producers:
                checks.append(
                    Check(
                        f"{account} separate",
                        Verdict.FAILED,
                        "the producers use it too: locking it would turn submissions away",
                        "give the workers an account of their own, or name it for the workers only.",
                    )
                )
            else:
                checks.append(Check(f"{account} separate", Verdict.PASSED, "used by the workers only, by the mapping"))
        return checks

    def _known(self, connection: Connection) -> list[Check]:
        known = account_locks(connection)
        users = {account.user for account in self.accounts}
        checks = [
            Check.of(
                f"{account} exists",
                account in known,
                "on the server" if account in known else "the server has no such account",
                "correct the account in the mapping: user and host as in SHOW GRANTS.",
            )
            for account in self.accounts
        ]
        others = sorted(
            str(account) for account in known
            if account.user in users and account not in self.accounts and account not in self.producers
        )  # fmt: skip
        checks.append(
            Check.of(
                "no second way in",
                not others,
                f"accounts of the same user that would stay open: {', '.join(others)}" if others else "none",
                "name them as accounts of the claimers or of the producers, or drop them.",
            )
        )
        return checks

    def _rights(self) -> list[Check]:
        try:
            with reading(self.engine) as connection:
                rights = global_privileges(connection, self.mover)
                ending = dialect_of(connection).ends_sessions
        except StoreError as error:
            return [Check("rights of the mover", Verdict.UNKNOWN, str(error), "grant SELECT on the schema mysql.")]
        everything = "ALL PRIVILEGES" in rights
        wanted = {
            "may lock accounts": ({"CREATE USER"}, "CREATE USER"),
            "may end sessions": (set(ending), ending[0]),
            "sees all sessions": ({"PROCESS"}, "PROCESS"),
        }
        return [
            Check.of(
                name,
                everything or bool(rights & words),
                "granted" if everything or rights & words else f"the mover lacks {words_shown}",
                f"GRANT {words_shown} ON *.* to the mover.",
            )
            for name, (words, words_shown) in wanted.items()
        ]

    # -- closing and lifting ------------------------------------------------------------------------------------

    def close(self, lease: Lease) -> bool:
        """Lock every account, end its sessions, and wait until they and their transactions are gone.

        :raises FenceOpen: an account cannot be locked without harm, or sessions stayed to the deadline
        :raises LeaseLost: another run holds a newer token
        """
        self._refuse_harm()
        changed = False
        for account in self.accounts:
            changed |= self._set_lock(lease, account, locked=True)
        return self._end_sessions(lease) or changed

    def lift(self, lease: Lease) -> bool:
        """Unlock every account.

        :raises LeaseLost: another run holds a newer token
        """
        changed = False
        for account in self.accounts:
            changed |= self._set_lock(lease, account, locked=False)
        return changed

    def _refuse_harm(self) -> None:
        if not self.accounts:
            raise FenceOpen(
                "no account is named, so nothing can be fenced.", where=place(self.engine), next_step=_NAME_THEM
            )
        with reading(self.engine) as connection:
            harmful = [check for check in self._separate(_current(connection)) if check.verdict is not Verdict.PASSED]
        if harmful:
            raise FenceOpen(
                "; ".join(f"{check.name}: {check.reading}" for check in harmful) + ". Nothing was locked.",
                where=place(self.engine),
                next_step=harmful[0].next_step,
            )

    def _set_lock(self, lease: Lease, account: Account, *, locked: bool) -> bool:
        with transaction(self.engine) as connection:
            lock_lease(connection, lease)
            known = account_locks(connection)
            if account not in known:
                raise FenceOpen(
                    f"the server has no account {account}.",
                    where=place(self.engine),
                    next_step="correct the account in the mapping, or run playbooks/prepare.yml, which makes it.",
                )
            if known[account] == locked:
                return False
            # ALTER USER commits and so lets the lease's row go: it is read again right after.
            connection.execute(_LOCK if locked else _UNLOCK, {"user": account.user, "host": account.host})
            lock_lease(connection, lease)
        return True

    def _end_sessions(self, lease: Lease) -> bool:
        """End sessions until two looks in a row see neither a session nor a transaction."""
        until = self.clock.monotonic() + self.deadline
        changed = False
        quiet = 0
        while True:
            with transaction(self.engine) as connection:
                lock_lease(connection, lease)
                self._require_sight(connection)
                known = list(account_locks(connection))
                left = [session for session in sessions(connection) if self._is_ours(session.user, session.host, known)]
                working = [
                    trx for trx in open_transactions(connection, self.clock) if self._is_ours(trx.user, trx.host, known)
                ]
                for session in left:
                    changed |= _kill(connection, session.id)
            quiet = quiet + 1 if not left and not working else 0
            if quiet == 2:
                return changed
            if self.clock.monotonic() >= until:
                names = ", ".join(str(entry) for entry in [*left, *working][:10])
                raise FenceOpen(
                    f"after {self.deadline:.0f} s these connections are still there: {names}.",
                    where=place(self.engine),
                    next_step="a long rollback ends by itself: see SHOW PROCESSLIST and run the same command again.",
                )
            self.clock.wait(POLL_SECONDS)

    def _require_sight(self, connection: Connection) -> None:
        if not sees_all_sessions(connection):
            raise StoreError(
                "our account cannot see the sessions of others.",
                where=place(self.engine),
                next_step="GRANT PROCESS ON *.*.",
            )

    def _is_ours(self, user: str, host: str, known: Sequence[Account]) -> bool:
        """Whether a session belongs to the side; one whose account cannot be told counts when the user's name fits."""
        if not any(account.user == user for account in self.accounts):
            return False
        account = account_of(user, host, known)
        return account is None or account in self.accounts

    # -- proof --------------------------------------------------------------------------------------------------

    def prove(self) -> Sequence[Check]:
        """Read that the accounts are locked now and that nothing of theirs is connected or open."""
        if not self.accounts:
            return [_nothing_named()]
        where = place(self.engine)
        try:
            with reading(self.engine) as connection:
                locks = account_locks(connection)
        except StoreError as error:
            return [
                Check(
                    f"accounts locked in {where}",
                    Verdict.UNKNOWN,
                    str(error),
                    "grant the mover SELECT on the schema mysql.",
                )
            ]
        checks = [
            Check.of(
                f"{account} locked",
                locks.get(account, False),
                {True: "locked", False: "not locked", None: "no such account"}[locks.get(account)],
                "run playbooks/migrate.yml, which closes the fence.",
            )
            for account in self.accounts
        ]
        return [*checks, *self._prove_silence(list(locks))]

    def _prove_silence(self, known: Sequence[Account]) -> list[Check]:
        names = ", ".join(str(account) for account in self.accounts)
        next_step = "close the fence again; it ends what is connected."
        try:
            with reading(self.engine) as connection:
                self._require_sight(connection)
                left = [str(s) for s in sessions(connection) if self._is_ours(s.user, s.host, known)]
                working = [
                    str(t) for t in open_transactions(connection, self.clock) if self._is_ours(t.user, t.host, known)
                ]
        except StoreError as error:
            return [
                Check(name, Verdict.UNKNOWN, str(error), "grant the mover PROCESS.")
                for name in (f"no session of {names}", f"no transaction of {names}")
            ]
        return [
            Check.of(
                f"no session of {names}", not left, f"connected: {', '.join(left[:10])}" if left else "none", next_step
            ),
            Check.of(
                f"no transaction of {names}",
                not working,
                f"open: {', '.join(working[:10])}" if working else "none",
                next_step,
            ),
        ]


_NAME_THEM = "name the account of every claimer in the mapping."


def _nothing_named() -> Check:
    return Check("accounts named", Verdict.UNKNOWN, "no account is named, so nothing can be fenced", _NAME_THEM)


def _current(connection: Connection) -> Account:
    return Account.parse(str(connection.scalar(sa.text("SELECT CURRENT_USER()"))))


def _kill(connection: Connection, thread: int) -> bool:
    """End one connection; False when it ended by itself meanwhile."""
    try:
        connection.execute(sa.text("KILL CONNECTION :thread"), {"thread": thread})
    except exc.DBAPIError as error:
        if getattr(error.orig, "args", (0,))[0] != _NO_SUCH_THREAD:
            raise
        return False
    return True


def _without_port(host: str) -> str:
    """``10.0.0.5:41234`` as the server shows it, without the port; IPv6 keeps its colons."""
    name, colon, port = host.rpartition(":")
    return name.strip("[]") if colon and port.isdigit() and (name.count(":") == 0 or name.count(":") > 1) else host


def _host_fits(pattern: str, host: str) -> bool:
    if pattern in _LOOPBACK and host in _LOOPBACK:
        return True
    if "/" in pattern:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    expression = "".join({"%": ".*", "_": "."}.get(letter, re.escape(letter)) for letter in pattern)
    return re.fullmatch(expression, host, re.IGNORECASE) is not None


def _specificity(pattern: str) -> tuple[bool, int]:
    """As the server sorts: a host without wildcards first, then by the letters before the first wildcard."""
    head = re.split(r"[%_/]", pattern)[0]
    return (head == pattern, len(head))
