"""The stores as an assessment reaches them: nothing waits longer than its limit, and nothing can be written."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import event
from sqlalchemy.engine import Engine

from ..core.errors import StoreError
from . import sql_connect
from .factory import Settings, System
from .redis_connect import ReadOnlyRedis
from .sql_dialect import dialect_named


class BoundedSystem(System):
    """See :class:`.factory.System`. An answer of a store takes at most ``seconds``; Redis by a client that only reads.

    A command without its answer is not sent again: a frozen server would cost its limit several times over.
    """

    def __init__(self, settings: Settings, seconds: float) -> None:
        super().__init__(settings)
        self.seconds = seconds

    @cached_property
    def engine(self) -> Engine:
        """The database. The server ends a statement that takes longer, and so does our socket if it does not."""
        engine = sql_connect.connect(self.settings.db_url)
        event.listen(engine, "do_connect", self._limit)
        event.listen(engine, "connect", self._limit_statements)
        return engine

    def _limit(self, dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
        options |= {"connect_timeout": self.seconds, "read_timeout": self.seconds, "write_timeout": self.seconds}

    def _limit_statements(self, connection: Any, record: Any) -> None:
        dialect = dialect_named(str(connection.get_server_info()))
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION READ ONLY")
            cursor.execute(dialect.statement_limit(self.seconds))

    @cached_property
    def redis(self) -> redis.Redis:
        """Redis. No connection is made before the first command.

        :raises StoreError: the URL is malformed
        """
        try:
            client: redis.Redis = ReadOnlyRedis.from_url(
                self.settings.redis_url,
                decode_responses=False,
                socket_connect_timeout=self.seconds,
                socket_timeout=self.seconds,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise StoreError(
                f"the Redis URL cannot be read: {error}.", next_step="write redis://user:password@host:port/db."
            ) from None
        return client

    def let_go(self) -> None:
        """Close the connections that are not in use; one that still waits for its store ends with its own limit."""
        if "engine" in self.__dict__:
            self.engine.dispose()
        if "redis" in self.__dict__:
            self.redis.close()
