"""What steps that reach the stores are given. Ansible sends what a module imports: hosts are sent none of this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..adapters.factory import Settings, System
from ..core.tasks import Lease
from ..ports.ledger import Run
from ..services import run as runs
from . import runner
from .runner import Result


@dataclass(frozen=True)
class Given(runner.Given):
    """What a step was given, and the stores that it names."""

    @cached_property
    def system(self) -> System:
        """The stores of this call. In check mode Redis is reached by a client that cannot write."""
        return System(
            Settings(
                db_url=self.params["db_url"],
                redis_url=self.params["redis_url"],
                mapping=Path(self.params["mapping"]),
                read_only=self.check_mode,
                target_sql_accounts=tuple(self.params.get("target_sql_accounts") or ()),
                target_redis_users=tuple(self.params.get("target_redis_users") or ()),
                producer_redis_users=tuple(self.params.get("producer_redis_users") or ()),
                mover=self.params.get("mover") or "",
            )
        )

    @property
    def owner(self) -> str:
        """The lease's owner."""
        return str(self.params["owner"])

    def resume(self) -> tuple[Run, Lease]:
        """What every writing step begins with: the open run, and its lease under a new token.

        :raises RunConflict: no run is open, it is another owner's, its mapping changed, or the database was restored
        """
        system = self.system
        found = system.ledger.open_run()
        system.impatient = runs.is_emergency(found)
        usable = runs.target_usable(system.ledger, found)
        mirrored = system.target.read_stamp()[1] if usable else 0
        return runs.continue_run(system.ledger, system.mapping, self.owner, mirrored)


def run(spec: Mapping[str, Any], step: Callable[[Given], Result], returns: Mapping[str, Any]) -> None:
    """Run one step that reaches the stores as an Ansible module; see ``runner.run``."""
    runner.run_given(Given, spec, step, returns)
