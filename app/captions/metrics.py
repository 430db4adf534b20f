"""What Prometheus is told: the same names for both systems, with the label ``system``, ``db`` or ``rq``.

Every process counts into a file of its own in ``METRICS_DIR`` (prometheus-client's multiprocess mode), and any web
process of the machine shows the sum, with gauges that it reads from the stores at that moment. Without the setting
only the gauges are there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy import Engine, text

from captions import task_types, tasks
from captions.control import read_control
from captions.outbox import RQPlacer
from captions.settings import Settings

_SUBMISSION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_PICKUP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60, 300, 1800)
_BEAT = "captions_poller_heartbeat_seconds"
_TASK = ["system", "queue"]
_BY_QUEUE = {
    "ready": ("captions_queue_depth", "Tasks ready and not begun."),
    "delayed": ("captions_queue_delayed", "Tasks not due yet."),
    "running": ("captions_tasks_running", "Tasks at work."),
    "oldest_ready_seconds": ("captions_oldest_ready_seconds", "Longest wait of a ready task."),
}


class Counts:
    """The counters of one process. ``process`` names it: two processes that live at once have two names."""

    def __init__(self, directory: Path, process: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
        values.ValueClass = values.MultiProcessValue(lambda: process.replace("_", "-"))
        own: Any = {"registry": CollectorRegistry()}
        self.submitted = Counter("captions_tasks_submitted", "Tasks accepted.", _TASK, **own)
        self.started = Counter("captions_tasks_started", "Attempts begun.", _TASK, **own)
        self.completed = Counter("captions_tasks_completed", "Tasks completed.", _TASK, **own)
        self.failed = Counter("captions_tasks_failed", "Tasks failed for good.", [*_TASK, "category"], **own)
        self.retried = Counter("captions_attempts_retried", "Failed attempts followed by another.", _TASK, **own)
        self.submission = Histogram(
            "captions_submission_seconds", "Time to accept a task.", ["system"], buckets=_SUBMISSION_BUCKETS, **own
        )
        self.pickup = Histogram(
            "captions_pickup_seconds", "From when a task was due to its first start.", ["system"],
            buckets=_PICKUP_BUCKETS, **own,
        )  # fmt: skip
        self.beat = Gauge(_BEAT, "When a polling worker was last at work.", ["worker"], multiprocess_mode="max", **own)


_counts: Counts | None = None


def begin(settings: Settings, process: str) -> None:
    """Count for this process from now on; a fork begins anew under the name of the process that waits for it."""
    global _counts  # noqa: PLW0603  one process, one set of counters, as the library has it
    _counts = None if settings.metrics_dir is None else Counts(settings.metrics_dir, process)


def submitted(system: str, queue: str, seconds: float) -> None:
    """A task was accepted, ``seconds`` after its request began."""
    if _counts:
        _counts.submitted.labels(system, queue).inc()
        _counts.submission.labels(system).observe(seconds)


def started(system: str, claim: tasks.Claim) -> None:
    """An attempt begins."""
    if _counts:
        _counts.started.labels(system, claim.queue).inc()
        if claim.attempt == 1:
            _counts.pickup.labels(system).observe(claim.waited_seconds)


def completed(system: str, claim: tasks.Claim) -> None:
    """A task is completed."""
    if _counts:
        _counts.completed.labels(system, claim.queue).inc()


def attempt_failed(system: str, claim: tasks.Claim, category: str, outcome: str) -> None:
    """An attempt failed; ``outcome`` is what the task is now."""
    if _counts and outcome == "failed":
        _counts.failed.labels(system, claim.queue, category).inc()
    elif _counts and outcome == "queued":
        _counts.retried.labels(system, claim.queue).inc()


def beat(worker: str) -> None:
    """A polling worker is alive."""
    if _counts:
        _counts.beat.labels(worker).set(time.time())


class Stores(Collector):
    """Gauges, read when Prometheus asks."""

    def __init__(self, settings: Settings, engine: Engine, placer: RQPlacer | None) -> None:
        self._settings = settings
        self._engine = engine
        self._placer = placer

    def collect(self) -> Iterable[Metric]:
        """Every gauge; those of an RQ that does not answer are left out, and ``captions_redis_up`` says so."""
        yield from self._queues()
        with self._engine.connect() as connection:
            control = read_control(connection)
            dead = connection.execute(text("SELECT COUNT(*) FROM caption_tasks WHERE status = 'failed'")).scalar_one()
        yield _gauge("captions_dead_letters", "Tasks that failed for good and are still there.", dead)
        yield _gauge("captions_intake_open", "1 while submissions are accepted.", not control.intake_paused)
        yield _gauge("captions_rq_share", "Percent of users whose new tasks go to RQ.", control.rq_share)
        yield _gauge("captions_queues_paused", "Queues that are paused.", len(control.paused))
        workers = GaugeMetricFamily("captions_workers", "Workers that are alive.", labels=["system"])
        if self._settings.metrics_dir:
            workers.add_metric(["db"], len(living_pollers(self._settings)))
        if self._placer is not None:
            try:
                memory = self._placer.memory_share()
                workers.add_metric(["rq"], len(self._placer.workers()))
                up = True
            except RedisError:
                up = False
            else:
                yield _gauge("captions_redis_memory_share", "Memory that Redis uses, of what it may.", memory)
            yield _gauge("captions_redis_up", "1 while Redis answers.", up)
        yield workers

    def _queues(self) -> Iterable[Metric]:
        found = {(row["queue"], row["system"]): row for row in tasks.queue_statistics(self._engine)}
        every = dict.fromkeys([*((queue, side) for queue in task_types.queues() for side in ("db", "rq")), *found])
        for name, (metric, help_text) in _BY_QUEUE.items():
            family = GaugeMetricFamily(metric, help_text, labels=_TASK)
            for queue, system in every:
                row = found.get((queue, system))
                family.add_metric([system, queue], row[name] if row else 0)
            yield family


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, value=float(value))


def living_pollers(settings: Settings) -> list[str]:
    """The polling workers of this machine that were at work lately; none without ``METRICS_DIR``."""
    if settings.metrics_dir is None:
        return []
    since = time.time() - settings.lease_seconds
    families = MultiProcessCollector(CollectorRegistry(), path=str(settings.metrics_dir)).collect()
    beats = [sample for family in families if family.name == _BEAT for sample in family.samples]
    return sorted(sample.labels["worker"] for sample in beats if sample.value > since)


def exposition(settings: Settings, engine: Engine, placer: RQPlacer | None) -> bytes:
    """The page that Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(Stores(settings, engine, placer))
    if settings.metrics_dir:
        MultiProcessCollector(registry, path=str(settings.metrics_dir))
    return generate_latest(registry)
