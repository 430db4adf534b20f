"""RQ's workers, with a SIGTERM that is not forgotten. Imports RQ, so its prefix must be in the environment before."""

from __future__ import annotations

from rq import SimpleWorker, Worker
from rq.worker import BaseWorker


class _Ending(BaseWorker):
    """RQ ends an idle worker by an exception, and drops exceptions while it cleans registries, as at its start."""

    _told = False

    def _shutdown(self) -> None:
        self._told = True
        super()._shutdown()

    def run_maintenance_tasks(self) -> None:
        super().run_maintenance_tasks()
        if self._told:
            super()._shutdown()


class ForkingWorker(_Ending, Worker):
    """Runs each job in a process of its own."""


class InlineWorker(_Ending, SimpleWorker):
    """Runs jobs in the worker's own process."""
