"""Starts one of RQ's own workers: ``python -m captions.rqworker --name NAME [--simple]``.

It exists so that the Redis password is read from the ``.env`` file and never appears among the arguments.
"""

from __future__ import annotations

import argparse
import os
import secrets

from redis import Redis

from captions import task_types
from captions.settings import load_or_exit


def main() -> None:
    parser = argparse.ArgumentParser(prog="captions.rqworker", description="Run an RQ worker for captions.")
    parser.add_argument("--name", default="rq", help="start of the worker's name; a unique ending is added")
    parser.add_argument("--simple", action="store_true", help="run tasks in the worker's process, without forking")
    parser.add_argument("--burst", action="store_true", help="end when the queues are empty")
    arguments = parser.parse_args()
    settings = load_or_exit()
    if settings.rq_worker_redis_url is None:
        raise SystemExit(f"captions: {settings.source}: RQ_REDIS_URL is missing; add it to run RQ workers")
    task_types.load(settings)
    # RQ reads its prefix from the environment when it is first imported.
    os.environ["RQ_KEY_PREFIX"] = settings.rq_key_prefix
    from rq import SimpleWorker, Worker
    from rq.serializers import JSONSerializer

    from captions.jobs import park_unreadable  # with all it needs, before the fork: no work horse imports it again

    worker_class = SimpleWorker if arguments.simple else Worker
    worker = worker_class(
        list(task_types.queues()),
        # A killed worker's name stays registered for minutes; a new process needs another.
        name=f"{arguments.name}-{os.getpid()}-{secrets.token_hex(3)}",
        connection=Redis.from_url(settings.rq_worker_redis_url),
        serializer=JSONSerializer,
        exception_handlers=[park_unreadable],
    )
    worker.work(burst=arguments.burst, with_scheduler=True, logging_level="INFO")


if __name__ == "__main__":
    main()
