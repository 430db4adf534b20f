"""Moves fallback tasks to RQ: ``python -m captions.mover [--once]``, one more process, with an account of its own.

Fallback tasks are those that went to the pollers, or stayed with them, though every task is to run in RQ: submitted
while Redis was away and pollers were there, or due again after one of them failed. Once Redis is well they are moved
with Sluice's own services, under the lease of its runs and with what its playbooks move by; this file only decides
when. Sluice's package must be importable as ``sluice`` (``module_utils`` on ``PYTHONPATH``).
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from captions.control import read_control
from captions.database import make_engine
from captions.settings import Settings, load_or_exit
from captions.stopping import stop_on_signals

if TYPE_CHECKING:
    from sluice.services.fallback import Fallen

_LOOK_SECONDS = 1.0
#: After a refusal or an error; what it says then comes no more often.
_LATER_SECONDS = 30.0
_MOVE_SECONDS = 5.0
_REFUSALS_NAMED = 5
_WAITING = "SELECT 1 FROM caption_tasks WHERE custody = 'db' AND status = 'queued' LIMIT 1"

log = logging.getLogger("captions.mover")


@dataclass(frozen=True)
class Looked:
    """What one look did: how many tasks it moved, and after how many seconds the next one is due."""

    moved: int
    pause: float


class Mover:
    """Looks whether fallback tasks wait, and has them moved. Any number of processes may."""

    def __init__(self, settings: Settings, mapping: Path, redis_url: str) -> None:
        self._settings = settings
        self._mapping = mapping
        self._redis_url = redis_url
        #: An earlier process may have been killed in the middle.
        self._unfinished = True

    def look(self) -> Looked:
        """Move what there is, for some seconds at most."""
        from sluice.core.errors import SluiceError  # Sluice's package takes long to read, and is seldom needed

        try:
            if not self._unfinished and not self.wanted():
                return Looked(0, _LOOK_SECONDS)
            done = self._move()
        except (SluiceError, SQLAlchemyError) as error:
            self._unfinished = True
            said = str(error) if isinstance(error, SluiceError) else type(error).__name__
            log.warning("nothing is moved for %d s: %s", _LATER_SECONDS, said)
            return Looked(0, _LATER_SECONDS)
        if done.moved:
            log.info("%d task(s) that waited for pollers are RQ's now", done.moved)
        for task_id, reason in sorted(done.refused.items())[:_REFUSALS_NAMED]:
            log.warning("of %d task(s) that stay with the pollers: %s, %s", len(done.refused), task_id, reason)
        later = self._unfinished or done.refused
        return Looked(done.moved, _LATER_SECONDS if later else _LOOK_SECONDS)

    def wanted(self) -> bool:
        """Whether every task is to run in RQ and some wait for pollers. By a connection of a moment."""
        engine = make_engine(self._settings.database_url)
        try:
            with engine.connect() as connection:
                if read_control(connection).share(rq_usable=True) < 100:
                    return False
                return connection.execute(text(_WAITING)).first() is not None
        finally:
            engine.dispose()

    def _move(self) -> Fallen:
        from sluice.adapters.factory import Settings as Stores
        from sluice.adapters.factory import System
        from sluice.adapters.ledger_sql import SqlLedger
        from sluice.adapters.rq import RqQueues
        from sluice.services.fallback import Fallback, own_system

        system = System(Stores(self._settings.database_url, self._redis_url, self._mapping))
        try:
            own = replace(system.mapping, system=own_system(system.mapping.system))
            fallback = Fallback(
                system.source,
                RqQueues(system.redis, own),
                system.ledger,
                SqlLedger(system.engine, own.system),
                system.clock,
                system.mapping,
            )
            done = fallback.move(f"{socket.gethostname()}:{os.getpid()}", self.wanted, _MOVE_SECONDS)
            self._unfinished = fallback.unfinished()
            return done
        finally:
            system.close()


def main() -> None:
    """Until SIGTERM; with ``--once`` a single look, whose exit status is 0 whatever it found."""
    parser = argparse.ArgumentParser(prog="captions.mover", description="Move fallback tasks to RQ.")
    parser.add_argument("--once", action="store_true", help="look once, then end")
    once: bool = parser.parse_args().once
    settings = load_or_exit()
    if settings.sluice_mapping is None or settings.rq_redis_url is None:
        raise SystemExit(f"captions: {settings.source}: SLUICE_MAPPING and RQ_REDIS_URL must be there for the mover")
    if settings.legacy_kind != "guarded":
        raise SystemExit(f"captions: {settings.source}: LEGACY_KIND is unguarded: any row may be in work")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    mover, stop = Mover(settings, settings.sluice_mapping, settings.rq_redis_url), stop_on_signals()
    looked = mover.look()
    while not once and not stop.wait(looked.pause):
        looked = mover.look()


if __name__ == "__main__":
    main()
