"""One of RQ's own workers that ends in the middle: ``python -m faults.dying_worker --name NAME [--at POINT] QUEUE...``.

Only the moment is chosen here; what is left behind is RQ's own doing.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from typing import Any

from redis import Redis
from rq import Worker
from rq.serializers import JSONSerializer

import captions.jobs
from captions.settings import load_settings

#: `popped`: killed when it has taken a job; `asked`: told to end (SIGTERM) at that moment, before it says that it is
#: busy; `forking`: killed when the job is registered and no horse runs; `never`: ended from outside.
POINTS = ("popped", "asked", "forking", "never")


class DyingWorker(Worker):
    """Ends at a point of its first job."""

    point = "never"

    def reorder_queues(self, reference_queue: Any) -> None:
        """Right after a job was taken."""
        super().reorder_queues(reference_queue)
        if self.point == "popped":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.point == "asked":
            os.kill(os.getpid(), signal.SIGTERM)

    def fork_work_horse(self, job: Any, queue: Any) -> None:
        """When the job is registered."""
        if self.point == "forking":
            os.kill(os.getpid(), signal.SIGKILL)
        super().fork_work_horse(job, queue)


def main(argv: Sequence[str] | None = None) -> int:
    """Work until something ends it."""
    parser = argparse.ArgumentParser(prog="faults.dying_worker", description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--at", choices=POINTS, default="never")
    parser.add_argument("--with-scheduler", action="store_true")
    parser.add_argument("queues", nargs="+")
    options = parser.parse_args(argv)
    url = load_settings().rq_worker_redis_url
    if url is None or not hasattr(captions.jobs, "run_caption"):  # imported before the fork, as captions.rqworker does
        parser.error("captions has no Redis or no task function")
    DyingWorker.point = options.at
    name = f"{options.name}-{os.getpid()}-{secrets.token_hex(3)}"
    worker = DyingWorker(options.queues, name=name, connection=Redis.from_url(url), serializer=JSONSerializer)
    worker.work(with_scheduler=options.with_scheduler, logging_level="WARNING")
    return 0


if __name__ == "__main__":
    sys.exit(main())
