"""One of RQ's own workers on chosen queues: ``python -m faults.queue_worker --name NAME [--simple] QUEUE...``."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence

from redis import Redis
from rq import SimpleWorker, Worker
from rq.serializers import JSONSerializer

import captions.jobs
from captions.settings import load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Work until the queues are empty (burst) or SIGTERM."""
    parser = argparse.ArgumentParser(prog="faults.queue_worker", description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--simple", action="store_true")
    parser.add_argument("--burst", action="store_true")
    parser.add_argument("queues", nargs="+")
    options = parser.parse_args(argv)
    url = load_settings().rq_worker_redis_url
    if url is None or not hasattr(captions.jobs, "run_caption"):  # imported before the fork, as captions.rqworker does
        parser.error("captions has no Redis or no task function")
    kind = SimpleWorker if options.simple else Worker
    worker = kind(
        options.queues,
        name=f"{options.name}-{os.getpid()}-{secrets.token_hex(3)}",
        connection=Redis.from_url(url),
        serializer=JSONSerializer,
    )
    worker.work(burst=options.burst, with_scheduler=False, logging_level="WARNING")
    return 0


if __name__ == "__main__":
    sys.exit(main())
