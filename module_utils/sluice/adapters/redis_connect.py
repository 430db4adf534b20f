"""Connections to Redis, the client that cannot write, and driver errors in an operator's words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import redis
from redis import exceptions

from ..core.errors import StoreError

#: Commands that every session needs and that change nothing in the data.
_SESSION_COMMANDS = frozenset(
    {"AUTH", "HELLO", "SELECT", "CLIENT", "PING", "INFO", "COMMAND", "TIME", "LASTSAVE", "ACL", "CONFIG"}
)
_HARMLESS_SUBCOMMANDS = {
    "CLIENT": frozenset({"SETNAME", "SETINFO", "GETNAME", "ID", "LIST", "INFO"}),
    "ACL": frozenset({"WHOAMI", "LIST", "GETUSER", "USERS", "CAT"}),
    "CONFIG": frozenset({"GET"}),
    "COMMAND": frozenset({"INFO", "COUNT", "DOCS"}),
}


_RIGHTS = "give the ACL user the keys, channels and commands listed in docs/mapping.md (Rights)."
#: Seconds for which an answer is waited for.
ANSWER_SECONDS = 60.0


def connect(url: str, *, read_only: bool = False, answer_seconds: float = ANSWER_SECONDS) -> redis.Redis:
    """Make a client for ``redis://user:password@host:port/db``; bytes in, bytes out.

    With ``read_only`` the client refuses every command without the server's ``readonly`` flag, before it is sent.

    :raises StoreError: the URL is malformed, or the server does not answer or refuses us
    """
    kind = ReadOnlyRedis if read_only else redis.Redis
    timeouts: dict[str, Any] = {"socket_connect_timeout": min(5.0, answer_seconds), "socket_timeout": answer_seconds}
    try:
        client: redis.Redis = kind.from_url(url, decode_responses=False, **timeouts)
    except ValueError as error:
        raise StoreError(
            f"the Redis URL cannot be read: {error}.", next_step="write redis://user:password@host:port/db."
        ) from None
    with speaking(client):
        client.ping()
    return client


def place(client: redis.Redis) -> str:
    """The server's address without its secrets, for messages."""
    settings = client.connection_pool.connection_kwargs
    return f"Redis database {settings.get('db', 0)} at {settings.get('host', 'localhost')}:{settings.get('port', 6379)}"


@contextlib.contextmanager
def speaking(client: redis.Redis) -> Iterator[None]:
    """Turn driver errors into a StoreError that says where it happened and what to do."""
    try:
        yield
    except exceptions.AuthenticationError as error:
        raise StoreError(
            f"login refused: {str(error).rstrip('.')}.",
            where=place(client),
            next_step="check user and password of the Redis URL.",
        ) from error
    except exceptions.NoPermissionError as error:
        raise StoreError(f"{str(error).rstrip('.')}.", where=place(client), next_step=_RIGHTS) from error
    except exceptions.ReadOnlyError as error:
        raise StoreError(
            "the server is a read-only replica.", where=place(client), next_step="point the URL at the primary."
        ) from error
    except exceptions.OutOfMemoryError as error:
        raise StoreError(
            "its memory is full (maxmemory is reached) and it refuses writes.",
            where=place(client),
            next_step="raise maxmemory there (CONFIG SET, and in its configuration file) or free memory, "
            "then run the same command again.",
        ) from error
    except exceptions.BusyLoadingError as error:
        raise StoreError(
            "the server is loading its data.", where=place(client), next_step="run the same command again in a moment."
        ) from error
    except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
        raise StoreError(
            f"no answer: {str(error).rstrip('.')}.",
            where=place(client),
            next_step="check host, port and that the server runs; its log says why it ended, if it did.",
        ) from error
    except exceptions.ResponseError as error:
        text = str(error)
        if "invalid DB index" in text or "DB index is out of range" in text:
            raise StoreError(
                "there is no database of that number.",
                where=place(client),
                next_step="correct the number at the end of the Redis URL.",
            ) from error
        if "MISCONF" in text:
            raise StoreError(
                _cannot_save(text),
                where=place(client),
                next_step="free space on its disk (CONFIG GET dir names the folder; its log says more); within seconds "
                "INFO persistence says ok for aof_last_write_status and rdb_last_bgsave_status: then run the same "
                "command again.",
            ) from error
        # A right that is missing inside a script has no error of its own; the second wording is of Redis 7.2 and later.
        if "user executing the script" in text or "ACL failure in script" in text:
            said = re.split(r",? script: ", text.removeprefix("NOPERM "))[0]
            raise StoreError(f"{said}.", where=place(client), next_step=_RIGHTS) from error
        raise StoreError(text, where=place(client)) from error


def _cannot_save(text: str) -> str:
    """The server's MISCONF in one sentence."""
    found = re.search(r"AOF file: (?P<why>[^.]*?)(?: script:|\.|$)", text)
    if found:
        return f"it cannot write its append-only file ({found['why']}) and refuses writes."
    return "its last RDB snapshot failed, so it refuses writes (stop-writes-on-bgsave-error)."


class ReadOnlyRedis(redis.Redis):
    """A client that cannot write: it asks the server which commands carry the flag ``readonly`` and refuses others."""

    _readonly: frozenset[str] | None = None

    def _check(self, arguments: tuple[Any, ...]) -> None:
        words = str(arguments[0]).upper().split()
        command = words[0]
        if command in _SESSION_COMMANDS:
            allowed = _HARMLESS_SUBCOMMANDS.get(command)
            sub = words[1] if len(words) > 1 else str(arguments[1]).upper() if len(arguments) > 1 else ""
            if allowed is None or sub in allowed:
                return
        elif command in self._readonly_commands():
            return
        raise StoreError(f"the read-only client refuses {' '.join(words)}: a dry run cannot write.", where=place(self))

    def _readonly_commands(self) -> frozenset[str]:
        if self._readonly is None:
            answer = super().execute_command("COMMAND")
            entries = answer.values() if isinstance(answer, dict) else answer
            names = set()
            for entry in entries:
                name = entry["name"] if isinstance(entry, dict) else entry[0]
                flags = entry["flags"] if isinstance(entry, dict) else entry[2]
                if any((flag.decode() if isinstance(flag, bytes) else str(flag)) == "readonly" for flag in flags):
                    names.add((name.decode() if isinstance(name, bytes) else str(name)).upper())
            self._readonly = frozenset(names)
        return self._readonly

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """Send a command, if it only reads."""
        self._check(arguments)
        return super().execute_command(*arguments, **options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        """A pipeline whose commands are checked one by one."""
        pipe = super().pipeline(transaction=False, shard_hint=shard_hint)
        queue = pipe.execute_command

        def checked(*arguments: Any, **options: Any) -> Any:
            self._check(arguments)
            return queue(*arguments, **options)

        pipe.execute_command = checked  # type: ignore[method-assign]
        return pipe
