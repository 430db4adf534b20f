"""What the safety checks need to know of a Redis server. Reads only; fit for the client that cannot write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis
from redis import exceptions

from ..core.errors import StoreError
from ..ports.preparation import RedisReadings
from .redis_connect import place, speaking

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SCAN_COUNT = 2000
_EXAMPLES = 3


def is_local(client: redis.Redis) -> bool:
    """Whether the server is addressed on this very host, so that its files and memory can be looked at."""
    settings = client.connection_pool.connection_kwargs
    return bool(settings.get("path")) or str(settings.get("host", "localhost")) in _LOOPBACK


class RedisServerHealth:
    """See :class:`..ports.preparation.RedisHealth`.

    :param scan_seconds: the longest that looking for other applications' keys may take
    """

    def __init__(self, client: redis.Redis, *, scan_seconds: float = 10.0) -> None:
        self.client = client
        self.scan_seconds = scan_seconds

    def read(self, prefixes: Sequence[str]) -> RedisReadings:
        """Look once.

        :raises StoreError: unreachable, wrong password, or a database number that does not exist
        """
        with speaking(self.client):
            self.client.execute_command("PING")
            info = {str(name): value for name, value in dict(self.client.execute_command("INFO")).items()}
        config, refused = self._config("bind", "protected-mode")
        seen, foreign, examples = self._foreign(tuple(prefix.encode() for prefix in prefixes))
        offset, error = self._clock()
        local = is_local(self.client)
        settings = self.client.connection_pool.connection_kwargs
        return RedisReadings(
            address=place(self.client),
            user=str(settings.get("username") or "default"),
            database=int(settings.get("db") or 0),
            version=_version(info.get("redis_version")),
            password_needed=self._password_needed(),
            role=_word(info, "role"),
            cluster=None if "cluster_enabled" not in info else bool(int(info["cluster_enabled"])),
            policy=_word(info, "maxmemory_policy"),
            aof_enabled=None if "aof_enabled" not in info else bool(int(info["aof_enabled"])),
            aof_write_status=_word(info, "aof_last_write_status"),
            aof_rewrite_status=_word(info, "aof_last_bgrewrite_status"),
            max_memory=_number(info, "maxmemory"),
            used_memory=_number(info, "used_memory"),
            host_memory=_number(info, "total_system_memory"),
            free_memory=_free_memory() if local else None,
            overcommit=_overcommit() if local else None,
            keys=self._asked_number("DBSIZE"),
            keys_seen=seen,
            foreign_seen=foreign,
            foreign_examples=examples,
            bind=config.get("bind"),
            protected=config.get("protected-mode"),
            config_refused=refused,
            clock_offset=offset,
            clock_error=error,
        )

    def _config(self, *names: str) -> tuple[dict[str, str], str]:
        found: dict[str, str] = {}
        for name in names:
            try:
                with speaking(self.client):
                    answer = dict(self.client.execute_command("CONFIG", "GET", name))
            except StoreError as error:
                return {}, error.what
            found |= {_text(key): _text(value) for key, value in answer.items()}
        return found, ""

    def _asked_number(self, command: str) -> int | None:
        try:
            with speaking(self.client):
                return int(self.client.execute_command(command))
        except StoreError:
            return None  # the check says that it could not be read

    def _foreign(self, prefixes: tuple[bytes, ...]) -> tuple[int, int, tuple[str, ...]]:
        """Keys looked at, how many of them are not ours, and the first few of those."""
        until = time.monotonic() + self.scan_seconds
        cursor: int | bytes = 0
        seen = foreign = 0
        examples: list[str] = []
        while True:
            with speaking(self.client):
                answer = self.client.execute_command("SCAN", cursor, "COUNT", _SCAN_COUNT)
            cursor = int(answer[0])
            for key in answer[1]:
                seen += 1
                if not bytes(key).startswith(prefixes):
                    foreign += 1
                    if len(examples) < _EXAMPLES:
                        examples.append(repr(_text(key)[:60]))
            if cursor == 0 or time.monotonic() >= until:
                return seen, foreign, tuple(examples)

    def _password_needed(self) -> bool | None:
        """Whether a client without a login is turned away."""
        pool = self.client.connection_pool
        settings = {
            name: value for name, value in pool.connection_kwargs.items()
            if name not in ("username", "password", "credential_provider")
        }  # fmt: skip
        stranger = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **settings))
        try:
            stranger.execute_command("PING")
        except (exceptions.AuthenticationError, exceptions.NoPermissionError):
            return True
        except exceptions.RedisError:
            return None
        finally:
            stranger.close()
            stranger.connection_pool.disconnect()
        return False

    def _clock(self) -> tuple[float | None, float]:
        try:
            with speaking(self.client):
                began = time.time()
                answer = self.client.execute_command("TIME")
                ended = time.time()
        except StoreError:
            return None, 0.0  # the check says that it could not be read
        return int(answer[0]) + int(answer[1]) / 1e6 - (began + ended) / 2, (ended - began) / 2


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _word(info: dict[str, Any], name: str) -> str | None:
    value = info.get(name)
    # Managed servers may leave a field empty: that is no reading.
    return None if value is None or value == "" else str(value)


def _number(info: dict[str, Any], name: str) -> int | None:
    value = info.get(name)
    return None if value is None or value == "" else int(value)


def _version(value: object) -> tuple[int, ...] | None:
    parts = str(value or "").split(".")
    return tuple(int(part) for part in parts if part.isdecimal()) or None


def _free_memory() -> int | None:
    for line in _system("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _overcommit() -> int | None:
    text = _system("/proc/sys/vm/overcommit_memory").strip()
    return int(text) if text.isdecimal() else None


def _system(path: str) -> str:
    file = Path(path)
    return file.read_text(encoding="ascii") if file.exists() else ""
