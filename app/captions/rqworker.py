"""Starts one of RQ's own workers: ``python -m captions.rqworker --name NAME [--simple]``.

It exists so that the Redis password is read from the ``.env`` file and never appears among the arguments.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import secrets
import signal

from redis import Redis

from captions import task_types
from captions.settings import load_or_exit

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
# How often a worker looks for jobs whose worker died. RQ's own ten minutes are long for whoever waits for a task.
_MAINTENANCE_SECONDS = 60
# An idle worker looks when its wait for a job ends, 15 s before its life sign would lapse.
_LIFE_SIGN_SECONDS = _MAINTENANCE_SECONDS + 15


def end_with_parent(parent: int) -> None:
    """Ask Linux for SIGTERM when the process ``parent``, which started this one, ends."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(f"captions: process {parent}, which started this one, is gone")


def main() -> None:
    parser = argparse.ArgumentParser(prog="captions.rqworker", description="Run an RQ worker for captions.")
    parser.add_argument("--name", default="rq", help="start of the worker's name; a unique ending is added")
    parser.add_argument("--queues", help="with commas between, in the order to look into them; all when left out")
    parser.add_argument("--parent", type=int, help="process id of whoever starts this worker; it ends with that")
    parser.add_argument("--simple", action="store_true", help="run tasks in the worker's process, without forking")
    parser.add_argument("--burst", action="store_true", help="end when the queues are empty")
    arguments = parser.parse_args()
    if arguments.parent:
        end_with_parent(arguments.parent)
    settings = load_or_exit()
    if settings.rq_worker_redis_url is None:
        raise SystemExit(f"captions: {settings.source}: RQ_REDIS_URL is missing; add it to run RQ workers")
    task_types.load(settings)
    # RQ reads its prefix from the environment when it is first imported.
    os.environ["RQ_KEY_PREFIX"] = settings.rq_key_prefix
    from rq.serializers import JSONSerializer

    from captions.jobs import (  # with all it needs, before the fork: no work horse imports it again
        end_lease_of_killed,
        park_unreadable,
        prepare,
    )
    from captions.rq_workers import ForkingWorker, InlineWorker

    # A killed worker's name stays registered for minutes; a new process needs another.
    name = f"{arguments.name}-{os.getpid()}-{secrets.token_hex(3)}"
    worker_class = InlineWorker if arguments.simple else ForkingWorker
    worker = worker_class(
        arguments.queues.split(",") if arguments.queues else list(task_types.queues()),
        name=name,
        connection=Redis.from_url(settings.rq_worker_redis_url),
        serializer=JSONSerializer,
        exception_handlers=[park_unreadable],
        work_horse_killed_handler=lambda job, *_: end_lease_of_killed(name, job),
        maintenance_interval=_MAINTENANCE_SECONDS,
        worker_ttl=_LIFE_SIGN_SECONDS,
    )
    prepare()
    worker.work(burst=arguments.burst, with_scheduler=True, logging_level="INFO")


if __name__ == "__main__":
    main()
