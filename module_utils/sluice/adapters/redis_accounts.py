"""ACL users of Redis, one per side: made, kept over a restart, re-read. And what an RQ producer and worker may do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from ..core.errors import StoreError
from ..core.verdicts import Check, Verdict
from ..ports.preparation import AccountChange
from .redis_connect import place, speaking

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}\Z")
_PREFIX = re.compile(r"[A-Za-z0-9_.{}:-]{1,100}\Z")
_RULE = re.compile(r"(~|%[RW]{1,2}~|&|\+@?|-@?)(\S+)\Z")

#: What enqueueing, scheduling, cancelling and looking at jobs sends, and opening a connection.
_PRODUCER = (
    "auth hello select ping echo quit info time client|setname client|getname client|id client|info "
    "multi exec discard watch unwatch evalsha eval script|load script|exists publish "
    "exists del expire persist ttl type get "
    "hset hget hmget hgetall hdel hexists hincrby "
    "rpush lpush lrem lrange llen lpos "
    "sadd srem smembers sismember scard "
    "zadd zrem zcard zcount zscore zrange zrangebyscore zremrangebyscore "
    "xrange xrevrange xlen"
)
#: What fetching, running, retrying and ending jobs, the scheduler and heartbeats send besides.
_WORKER = (
    "subscribe unsubscribe psubscribe punsubscribe set rename client|list "
    "lpop rpop blpop brpop lmove blmove rpoplpush brpoplpush hincrbyfloat hsetnx "
    "zpopmin zremrangebyrank xadd xtrim xread xdel"
)


def producer_rules(prefix: str = "rq") -> list[str]:
    """The least that a process needs which enqueues into RQ and looks at its jobs, on keys of ``prefix`` only."""
    _checked_prefix(prefix)
    return [f"~{prefix}:*", f"&{prefix}:*", "-@all", *(f"+{command}" for command in _PRODUCER.split())]


def worker_rules(prefix: str = "rq") -> list[str]:
    """The least that an RQ worker needs, its scheduler included, on keys and channels of ``prefix`` only."""
    return [*producer_rules(prefix), *(f"+{command}" for command in _WORKER.split())]


@dataclass(frozen=True, slots=True)
class _User:
    """An ACL user in comparable form. ``commands`` is every command that its rules allow."""

    on: bool
    nopass: bool
    hashes: frozenset[str]
    keys: frozenset[str]
    channels: frozenset[str]
    commands: frozenset[str]
    selectors: bool


class RedisAccounts:
    """See :class:`..ports.preparation.Accounts`; rights are ACL rules for keys, channels and commands.

    A user that is switched off stays off: it may be behind a fence, and that is not ours to lift.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._catalogue: dict[str, frozenset[str]] | None = None

    def ensure(self, account: str, password: str, rights: Sequence[str], *, check_mode: bool = False) -> AccountChange:
        """Bring the user to exactly this password and these rules, save the ACL, read it back and log in."""
        self._refuse(account, password, rights)
        digest = hashlib.sha256(password.encode()).hexdigest()
        before = self._read(account)
        wanted = self._wanted(rights, digest)
        actions = _differences(before, wanted)
        if check_mode:
            return AccountChange(account, bool(actions), actions, [self._durable()])
        if actions:
            # `on` is said for a new user only: a fence may switch this one off between our look and this command.
            words = ["resetpass", f"#{digest}", "resetkeys", "resetchannels", "nocommands", *_ordered(rights)]
            if before is None:
                words.insert(0, "on")
            elif before.selectors:
                words.insert(0, "clearselectors")
            self._call("ACL", "SETUSER", account, *words)
        saved = self._save()
        after = self._read(account)
        left = _differences(after, wanted)
        check = Check.of(
            f"redis_account_{account}",
            not left,
            "re-read: password, keys, channels and commands are as asked"
            if not left
            else f"re-read: {'; '.join(left)}",
            "look at ACL GETUSER; another tool may manage the same user",
        )
        return AccountChange(account, bool(actions), actions, [check, saved, self._login(account, password, after)])

    def _refuse(self, account: str, password: str, rights: Sequence[str]) -> None:
        where = place(self.client)
        if not _NAME.match(account):
            raise StoreError(
                f"'{account}' cannot be the name of a user.", where=where, next_step="use letters, digits, _ . -"
            )
        if account in ("default", _text(self._call("ACL", "WHOAMI"))):
            raise StoreError(
                f"'{account}' is the mover's own user or everybody's.",
                where=where,
                next_step="name a user of the side's own.",
            )
        if not password:
            raise StoreError(f"'{account}' has no password.", where=where, next_step="set one.")
        wrong = [rule for rule in rights if not _RULE.match(rule)]
        if wrong:
            raise StoreError(
                f"{', '.join(wrong)}: not a rule for keys (~), channels (&) or commands (+ -).", where=where
            )

    def _wanted(self, rights: Sequence[str], digest: str) -> _User:
        return _User(
            on=True,
            nopass=False,
            hashes=frozenset({digest}),
            keys=frozenset(_pattern(rule) for rule in rights if rule.startswith(("~", "%"))),
            channels=frozenset(rule for rule in rights if rule.startswith("&")),
            commands=self._allowed([rule for rule in rights if rule.startswith(("+", "-"))]),
            selectors=False,
        )

    def _read(self, account: str) -> _User | None:
        # Two words: the driver would take the order out of the rules.
        answer = self._call("ACL", "GETUSER", account)
        if answer is None:
            return None
        pairs = answer if isinstance(answer, Mapping) else dict(zip(answer[::2], answer[1::2], strict=True))
        fields = {_text(name): value for name, value in pairs.items()}
        flags = {_text(flag) for flag in fields["flags"]}
        return _User(
            on="on" in flags,
            nopass="nopass" in flags,
            hashes=frozenset(_text(value) for value in fields["passwords"]),
            keys=frozenset(_pattern(word) for word in _words(fields["keys"], "~")),
            channels=frozenset(_words(fields["channels"], "&")),
            commands=self._allowed(_text(fields["commands"]).split()),
            selectors=bool(fields.get("selectors")),
        )

    def _allowed(self, rules: Sequence[str]) -> frozenset[str]:
        """Every command that the rules leave allowed, so that two ways of writing the same compare equal."""
        catalogue = self._commands()
        everything = catalogue["all"]
        allowed: set[str] = set()
        for rule in rules:
            word = rule[1:].lower()
            if word.startswith("@"):
                if word[1:] not in catalogue:
                    raise StoreError(f"there is no category {word}.", where=place(self.client))
                names = catalogue[word[1:]]
            else:
                names = frozenset(name for name in everything if name == word or name.startswith(f"{word}|"))
                # Some older servers know a container only, and its subcommand when it is named.
                if not names and "|" in word:
                    names = frozenset({word})
                if not names:
                    raise StoreError(
                        f"the server knows no command '{word}'.",
                        where=place(self.client),
                        next_step="correct the rule.",
                    )
            allowed = allowed | names if rule[0] == "+" else allowed - names
        return frozenset(allowed)

    def _commands(self) -> dict[str, frozenset[str]]:
        if self._catalogue is None:
            found: dict[str, frozenset[str]] = {}
            for category in self._call("ACL", "CAT"):
                name = _text(category)
                found[name] = frozenset(_text(word).lower() for word in self._call("ACL", "CAT", name))
            names = frozenset().union(*found.values())
            # A container is allowed by its subcommands; counted itself it would make equal rules look different.
            containers = {name.split("|")[0] for name in names if "|" in name}
            self._catalogue = {name: words - containers for name, words in found.items()} | {"all": names - containers}
        return self._catalogue

    def _durable(self) -> Check:
        command, how = self._saving()
        return Check.of("redis_accounts_saved", True if command else None, how, _NOT_DURABLE)

    def _saving(self) -> tuple[tuple[str, ...], str]:
        """The command that makes the ACL survive a restart, or nothing and why not."""
        try:
            found = self._call("CONFIG", "GET", "aclfile")
        except StoreError as error:
            return (), f"how the ACL is kept could not be read: {error.what}"
        values = list(found.values()) if isinstance(found, Mapping) else list(found[1::2])
        if any(_text(value) for value in values):
            return ("ACL", "SAVE"), "kept in the ACL file"
        with speaking(self.client):
            info = dict(self.client.execute_command("INFO", "server"))
        if info.get("config_file"):
            return ("CONFIG", "REWRITE"), "kept in the configuration file"
        return (), "not durable: the server has neither an ACL file nor a configuration file"

    def _save(self) -> Check:
        # Always: an earlier call may have died between setting and saving.
        command, how = self._saving()
        if not command:
            return Check("redis_accounts_saved", Verdict.UNKNOWN, how, _NOT_DURABLE)
        try:
            self._call(*command)
        except StoreError as error:
            return Check("redis_accounts_saved", Verdict.FAILED, str(error), _NOT_DURABLE)
        return Check("redis_accounts_saved", Verdict.PASSED, how)

    def _login(self, account: str, password: str, user: _User | None) -> Check:
        name = f"redis_login_{account}"
        if user is not None and not user.on:
            return Check(name, Verdict.PASSED, "the user is switched off: its side is fenced; its password is as asked")
        pool = self.client.connection_pool
        settings = {k: v for k, v in pool.connection_kwargs.items() if k != "credential_provider"}
        settings |= {"username": account, "password": password}
        other = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **settings))
        try:
            with speaking(other):
                other.execute_command("PING")
        except StoreError as error:
            return Check(name, Verdict.FAILED, str(error), error.next_step)
        finally:
            other.close()
            other.connection_pool.disconnect()
        return Check(name, Verdict.PASSED, "logged in")

    def _call(self, *words: str) -> Any:
        with speaking(self.client):
            return self.client.execute_command(*words)


_NOT_DURABLE = "set 'aclfile' in the configuration of Redis, or attest that the provider keeps ACL users"


def _differences(found: _User | None, wanted: _User) -> list[str]:
    """What must be done, in words without a secret."""
    if found is None:
        return ["create the user", "set its password, keys, channels and commands"]
    actions = []
    if found.nopass or found.hashes != wanted.hashes:
        actions.append("set its password")
    for what, have, want in (
        ("keys", found.keys, wanted.keys),
        ("channels", found.channels, wanted.channels),
        ("commands", found.commands, wanted.commands),
    ):
        if have != want:
            more, less = sorted(want - have), sorted(have - want)
            shown = [f"+ {' '.join(more[:8])}"] if more else []
            shown += [f"- {' '.join(less[:8])}"] if less else []
            actions.append(f"set its {what} ({'; '.join(shown)})")
    if found.selectors:
        actions.append("remove its selectors")
    return actions


def _ordered(rights: Sequence[str]) -> list[str]:
    """Keys and channels first; the order of command rules counts and is kept."""
    return [rule for rule in rights if rule[0] in "~%&"] + [rule for rule in rights if rule[0] in "+-"]


def _pattern(rule: str) -> str:
    return rule[4:] if rule.startswith("%RW~") else rule.removeprefix("~")


def _words(value: Any, mark: str) -> list[str]:
    """Patterns as newer servers (one text) and older ones (a list without the mark) give them."""
    if isinstance(value, list | tuple | set):
        words = [_text(word) for word in value]
        return [word if word.startswith((mark, "%")) else f"{mark}{word}" for word in words]
    return _text(value).split()


def _checked_prefix(prefix: str) -> None:
    if not _PREFIX.match(prefix):
        raise StoreError(
            f"'{prefix}' cannot be a key prefix in an ACL rule.",
            where="Redis accounts",
            next_step="use letters, digits, _ . : -",
        )


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
