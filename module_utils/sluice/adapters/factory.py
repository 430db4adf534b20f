"""Builds the adapters of one system from its settings. The only place that knows which adapter a mapping asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import redis
import yaml
from sqlalchemy.engine import Engine

from ..core import mapping as mappings
from ..core.errors import MappingError, RunConflict
from ..core.mapping import TaskMapping
from . import redis_connect, sql_connect
from .ledger_sql import SqlLedger
from .redis_fence import RedisFence
from .rq import RqQueues
from .rq_source import RqSource
from .sql_fence import SqlFence
from .sql_home import SqlHome, SqlJournal
from .sql_route import SqlIntake, SqlRouter
from .sql_table import SqlTable
from .system_clock import SystemClock

#: In an emergency: seconds after which a Redis that does not answer counts as dead.
IMPATIENT_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the stores are and how they may be used. URLs hold secrets: never print them."""

    db_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    mapping: Path
    read_only: bool = False
    target_sql_accounts: Sequence[str] = ()
    target_redis_users: Sequence[str] = ()
    producer_redis_users: Sequence[str] = ()
    mover: str = ""  # user@host of the mover, when this call uses another account (a plan)


class System:
    """The two ends of one application, its ledger and what surrounds them; each made when first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        #: In an emergency a Redis that does not answer soon counts as dead.
        self.impatient = False

    @cached_property
    def mapping(self) -> TaskMapping:
        """The mapping, read from its file."""
        path = self.settings.mapping
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise MappingError(
                f"cannot be read: {error.strerror}.", where=str(path), next_step="set queue_mapping."
            ) from None
        # ValueError: also bytes that are no UTF-8, a date in a 13th month, a number of thousands of digits.
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise MappingError(f"is not YAML: {first}.", where=str(path), next_step="see docs/mapping.md.") from None
        return mappings.parse(data)

    @cached_property
    def engine(self) -> Engine:
        """The database."""
        return sql_connect.connect(self.settings.db_url)

    @cached_property
    def redis(self) -> redis.Redis:
        """Redis; a client that cannot write in a dry run."""
        seconds = IMPATIENT_SECONDS if self.impatient else redis_connect.ANSWER_SECONDS
        return redis_connect.connect(self.settings.redis_url, read_only=self.settings.read_only, answer_seconds=seconds)

    def close(self) -> None:
        """Close what was opened; for callers that live on."""
        if "engine" in self.__dict__:
            self.engine.dispose()
        if "redis" in self.__dict__:
            self.redis.close()

    @cached_property
    def source(self) -> SqlTable:
        """The table that gives tasks away."""
        return SqlTable(self.engine, self.mapping)

    @cached_property
    def target(self) -> RqQueues:
        """The queues that receive them."""
        return RqQueues(self.redis, self.mapping)

    @cached_property
    def ledger(self) -> SqlLedger:
        """The record of runs."""
        ledger = SqlLedger(self.engine, self.mapping.system)
        ledger.baseline_from(self.source.baseline_select)
        return ledger

    @cached_property
    def home(self) -> SqlHome:
        """The table as the place that tasks come back to."""
        return SqlHome(self.engine, self.mapping)

    @cached_property
    def leaving(self) -> RqSource:
        """The queues that give tasks back."""
        return RqSource(self.target, self.home, self.mapping)

    @cached_property
    def journal(self) -> SqlJournal:
        """The rows of the queues' tasks, where no job answers for them."""
        return SqlJournal(self.home)

    def source_fence(self) -> SqlFence:
        """The fence of the side that is left: its claimers' SQL accounts."""
        return SqlFence(
            self.engine,
            [claimer.account for claimer in self.mapping.source.claimers],
            producer_accounts=self.mapping.route.producer_accounts,
            mover=self.settings.mover,
        )

    def target_sql_fence(self) -> SqlFence:
        """The fence of RQ's side in the database: its workers' accounts."""
        return SqlFence(
            self.engine, self.settings.target_sql_accounts, producer_accounts=self.mapping.route.producer_accounts
        )

    def target_fences(self) -> list[SqlFence | RedisFence]:
        """The fences of RQ's side: its workers' SQL accounts and Redis users."""
        users, producers = self.settings.target_redis_users, self.settings.producer_redis_users
        return [self.target_sql_fence(), RedisFence(self.redis, users, producer_users=producers)]

    def router(self, waiting: Callable[[float], None] | None = None) -> SqlRouter:
        """The route of new submissions.

        :raises RunConflict: the mapping names none
        """
        if self.mapping.route.kind != "sql_row":
            raise RunConflict("the mapping names no route.", where="route", next_step="see docs/mapping.md, 'route'.")
        return SqlRouter(self.engine, self.mapping.route, waiting=waiting)

    def intake(self) -> SqlIntake | None:
        """Whether submissions are accepted; None when the mapping does not say where that is kept."""
        return SqlIntake(self.engine, self.mapping.intake) if self.mapping.intake else None
