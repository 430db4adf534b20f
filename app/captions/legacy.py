"""The workers that poll the table: ``python -m captions.legacy --name NAME``.

``guarded`` workers claim a row under a lock before they work on it. ``unguarded`` ones select the first row and
leave it unchanged until they are done, so only one of them may run. SIGTERM ends both after the task in hand.
"""

from __future__ import annotations

import argparse
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from captions import metrics, task_types, tasks
from captions.database import error_code, make_engine
from captions.effects import EffectsFile
from captions.retries import failure_of
from captions.settings import Settings, load_or_exit
from captions.stopping import StopRequest, stop_on_signals
from captions.work import end_badly, perform

_RECONNECT_SECONDS = 1.0

log = logging.getLogger("captions.legacy")


@contextmanager
def leased(engine: Engine, claim: tasks.Claim, lease_seconds: int) -> Iterator[None]:
    """Renew the lease of a claim three times in its length, so that it does not lapse while the work lasts."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease_seconds / 3):
            metrics.beat(claim.worker)
            try:
                tasks.renew_lease(engine, claim, lease_seconds)
            except SQLAlchemyError as error:
                log.warning("task %s: its lease was not renewed (%s)", claim.task_id, type(error).__name__)

    renewer = threading.Thread(target=renew, name=f"lease of {claim.task_id}", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()


def run_guarded_once(settings: Settings, engine: Engine, effects: EffectsFile) -> bool:
    """Claim one task and finish it; False when there was none."""
    claim = tasks.claim_for_poller(engine, effects.worker, settings.lease_seconds)
    if claim is None:
        return False
    effects.started(claim.task_id)
    metrics.started("db", claim)
    try:
        with leased(engine, claim, settings.lease_seconds):
            result = perform(settings, engine, claim)
    except SQLAlchemyError:
        raise
    except Exception as error:  # noqa: BLE001  whatever the work raises ends this attempt, and the row keeps it
        failure, outcome = end_badly(settings, engine, claim, error)
        metrics.attempt_failed("db", claim, failure.category, outcome)
        log.warning("task %s: attempt %d failed (%s), now %s", claim.task_id, claim.attempt, failure.message, outcome)
        return True
    if tasks.complete(engine, claim, result, lambda: effects.ended(claim.task_id, result)):
        metrics.completed("db", claim)
    else:
        log.warning("task %s was taken away while it ran; its result is dropped", claim.task_id)
    return True


def run_unguarded_once(settings: Settings, engine: Engine, effects: EffectsFile) -> bool:
    """Work on the first row without claiming it; False when there was none."""
    claim = tasks.head_row(engine, effects.worker)
    if claim is None:
        return False
    effects.started(claim.task_id)
    try:
        result = perform(settings, engine, claim)
    except Exception as error:  # noqa: BLE001  whatever the work raises ends this attempt, and the row keeps it
        message = failure_of(error).message
        tasks.overwrite_result(engine, claim, caption=None, error=message, about_to_commit=lambda: None)
        log.warning("task %s: attempt %d failed (%s)", claim.task_id, claim.attempt, message)
        return True
    tasks.overwrite_result(
        engine, claim, caption=result, error=None, about_to_commit=lambda: effects.ended(claim.task_id, result)
    )
    return True


def poll(settings: Settings, name: str, stop: StopRequest) -> None:
    """Work until ``stop`` is set. A database that refuses or is away is asked again; the worker stays."""
    engine = make_engine(settings.legacy_database_url, connections=2)
    effects = EffectsFile(settings.effects_file, "db", name)
    once = run_guarded_once if settings.legacy_kind == "guarded" else run_unguarded_once
    interval = settings.poll_interval_ms / 1000
    if not settings.database_polling_enabled:
        log.info("DATABASE_POLLING_ENABLED is false: claiming nothing")
    metrics.begin(settings, f"db-{name}-{os.getpid()}")
    while not stop.is_set():
        metrics.beat(name)
        try:
            pause = 0.0 if settings.database_polling_enabled and once(settings, engine, effects) else interval
        except SQLAlchemyError as error:
            log.warning("database error %s (%s); asking again", error_code(error), type(error).__name__)
            pause = max(interval, _RECONNECT_SECONDS)
        stop.wait(pause)
    engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(prog="captions.legacy", description="Poll the task table and caption images.")
    parser.add_argument("--name", required=True, help="the worker's name, as in the column worker and the effects file")
    name: str = parser.parse_args().name
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = load_or_exit()
    task_types.load(settings)
    stop = stop_on_signals()
    log.info("%s worker %s started", settings.legacy_kind, name)
    poll(settings, name, stop)
    log.info("%s ended", name)


if __name__ == "__main__":
    main()
