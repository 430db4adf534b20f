"""Administration: JSON endpoints under ``/admin`` for whoever has a token. What each role may is at each endpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict

from flask import Blueprint, Response, jsonify, request, stream_with_context
from redis.exceptions import RedisError
from sqlalchemy import Engine

from captions import control, dead_letters, fields, metrics, task_types, tasks, workers
from captions.access import Answer, error, guard
from captions.database import in_transaction
from captions.outbox import RQPlacer
from captions.settings import Settings

_LARGEST_PAGE = 1000
_LONGEST_NOTICE_SECONDS = 30 * 86400
_POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"
_SHORTEST_KEPT_SECONDS = 86400  # results are kept for a day at least

log = logging.getLogger("captions.admin")


def blueprint(
    settings: Settings, engine: Engine, placer: RQPlacer | None, place: Callable[[str, str], None]
) -> Blueprint:
    """The endpoints. ``place(task_id, custody)`` makes the RQ job of a row that was queued again."""
    admin = Blueprint("admin", __name__, url_prefix="/admin", static_folder="dashboard", static_url_path="/dashboard")
    needs = guard(settings.tokens)

    # --- the page ----------------------------------------------------------------------------------------------

    @admin.get("/dashboard/")
    def dashboard() -> Response:
        """It holds no data: its script asks the endpoints, with the token that whoever looks has."""
        return admin.send_static_file("index.html")

    @admin.after_request
    def harden(response: Response) -> Response:
        """Nothing but our own script runs in the page, and nobody frames it."""
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    # --- tasks -------------------------------------------------------------------------------------------------

    @admin.get("/tasks")
    @needs("view")
    def list_tasks() -> Answer:
        """In the order of their ids, without payloads and results; the fields of the query narrow it down."""
        limit, after = _page()
        wanted = {key: value for key in tasks.FILTERS if (value := request.args.get(key)) is not None}
        found = tasks.listing(engine, wanted, limit, after)
        return jsonify(tasks=found, next=found[-1]["id"] if len(found) == limit else None), 200

    @admin.get("/tasks/<task_id>")
    @needs("view")
    def inspect_task(task_id: str) -> Answer:
        """The row, and what RQ says of its job."""
        task = tasks.read_task(engine, task_id)
        if placer is None:
            return jsonify(**task, rq_job="RQ is off"), 200
        try:
            return jsonify(**task, rq_job=placer.status(task_id)), 200
        except RedisError as unanswered:
            return jsonify(**task, rq_job=f"unknown: {type(unanswered).__name__}"), 200

    @admin.post("/tasks/<task_id>/cancel")
    @needs("operate")
    def cancel_task(task_id: str) -> Answer:
        tasks.cancel(engine, task_id)
        return jsonify(id=task_id, status="cancelled"), 200

    @admin.post("/tasks/<task_id>/requeue")
    @needs("operate")
    def requeue_task(task_id: str) -> Answer:
        custody = tasks.retry(engine, task_id, rq_usable=settings.rq_usable)
        place(task_id, custody)
        return jsonify(id=task_id, status="queued", custody=custody), 200

    @admin.get("/workers")
    @needs("view")
    def list_workers() -> Answer:
        """RQ's workers of all machines, and the polling workers of this one."""
        pollers: list[dict[str, object]] = [{"name": n, "system": "db"} for n in metrics.living_pollers(settings)]
        try:
            return jsonify(workers=pollers + (placer.workers() if placer else [])), 200
        except RedisError as unanswered:
            return jsonify(workers=pollers, redis=f"does not answer: {type(unanswered).__name__}"), 200

    @admin.post("/workers/scale")
    @needs("operate")
    def scale_workers() -> Answer:
        """For the sets of all machines; null gives them back what their settings say."""
        wanted = fields.body().get("workers")
        if wanted is not None:
            try:
                workers.slots(str(wanted))
            except ValueError as wrong:
                raise fields.BadRequest(f"workers: {wrong}") from wrong
        in_transaction(engine, lambda connection: control.scale_workers(connection, wanted))
        log.info("workers per machine: %s", "as the settings say" if wanted is None else wanted)
        return jsonify(workers=wanted), 200

    @admin.post("/workers/<name>/restart")
    @needs("operate")
    def restart_worker(name: str) -> Answer:
        """It ends after its job; whoever keeps it starts another."""
        if placer is None:
            return error(409, "RQ is off in this process")
        try:
            placer.restart_worker(name)
        except KeyError:
            return error(404, "there is no RQ worker of this name")
        except RedisError as unanswered:
            return error(503, f"Redis does not answer: {type(unanswered).__name__}", retry_after_seconds=5)
        log.info("worker %s: told to end after its job", name)
        return jsonify(name=name, told="to end after its job"), 200

    # --- dead letters ------------------------------------------------------------------------------------------

    @admin.get("/dead-letters")
    @needs("view")
    def list_dead_letters() -> Answer:
        limit, after = _page()
        letters = dead_letters.listing(engine, limit, after)
        return jsonify(dead_letters=letters, next=letters[-1]["id"] if len(letters) == limit else None), 200

    @admin.get("/dead-letters/export")
    @needs("operate")
    def export_dead_letters() -> Answer:
        lines = stream_with_context(dead_letters.export(engine))
        return Response(lines, mimetype="application/x-ndjson"), 200

    @admin.post("/dead-letters/requeue")
    @needs("operate")
    def requeue_dead_letters() -> Answer:
        """Each id has its outcome: the side it was queued on, or why it was not."""
        outcomes = {}
        for task_id in _ids():
            try:
                custody = tasks.retry(engine, task_id, rq_usable=settings.rq_usable)
            except tasks.TaskNotFound:
                outcomes[task_id] = "there is no task with this id"
            except (tasks.TaskStateConflict, tasks.ActiveTaskExists, tasks.IntakeClosed) as refusal:
                outcomes[task_id] = str(refusal)
            else:
                place(task_id, custody)
                outcomes[task_id] = custody
        return jsonify(outcomes=outcomes), 200

    # --- queues ------------------------------------------------------------------------------------------------

    def queues() -> Answer:
        with engine.connect() as connection:
            paused = control.read_control(connection).paused
        return jsonify(
            queues=[{"queue": name, "paused": name in paused} for name in task_types.queues()],
            waiting=tasks.queue_statistics(engine),
        ), 200

    @admin.get("/queues")
    @needs("view")
    def list_queues() -> Answer:
        return queues()

    @admin.post("/queues/<queue>/<action>")
    @needs("operate")
    def pause_queue(queue: str, action: str) -> Answer:
        if queue not in task_types.queues() or action not in ("pause", "resume"):
            return error(404, f"queues are {', '.join(task_types.queues())}; actions are pause and resume")
        in_transaction(engine, lambda connection: control.set_queue_paused(connection, queue, action == "pause"))
        log.info("queue %s: %sd", queue, action)
        return queues()

    # --- maintenance -------------------------------------------------------------------------------------------

    def maintenance() -> Answer:
        with engine.connect() as connection:
            planned = control.read_control(connection).planned
        return jsonify(planned=None if planned is None else asdict(planned)), 200

    @admin.get("/maintenance")
    @needs("view")
    def planned_maintenance() -> Answer:
        return maintenance()

    @admin.post("/maintenance")
    @needs("admin")
    def plan_maintenance() -> Answer:
        """Submissions will be paused then, for so long; nobody needs to be there when it begins or ends."""
        body = fields.body()
        reason = fields.reason(body)
        wait = fields.integer(body, "in_seconds", 0, _LONGEST_NOTICE_SECONDS)
        seconds = fields.integer(body, "seconds", 1, settings.intake_max_pause_seconds)
        in_transaction(engine, lambda connection: control.plan_pause(connection, reason, wait, seconds))
        log.info("maintenance in %d s for %d s: %s", wait, seconds, reason)
        return maintenance()

    @admin.delete("/maintenance")
    @needs("admin")
    def drop_maintenance() -> Answer:
        in_transaction(engine, control.drop_plan)
        log.info("maintenance: no longer planned")
        return maintenance()

    @admin.post("/maintenance/clean-up")
    @needs("admin")
    def clean_up() -> Answer:
        """Delete what ended long ago, a batch at a time; ask again while ``more`` is true."""
        age = fields.integer(fields.body(), "older_than_seconds", _SHORTEST_KEPT_SECONDS, 10 * 366 * 86400)
        deleted = tasks.clean_up(engine, age, _LARGEST_PAGE)
        log.info("clean-up: %d task(s) that ended more than %d s ago", deleted, age)
        return jsonify(deleted=deleted, more=deleted == _LARGEST_PAGE), 200

    return admin


def _page() -> tuple[int, str]:
    limit = request.args.get("limit", "100")
    if not limit.isdecimal() or not 1 <= int(limit) <= _LARGEST_PAGE:
        raise fields.BadRequest(f"limit must be a whole number from 1 to {_LARGEST_PAGE}")
    return int(limit), request.args.get("after", "")


def _ids() -> list[str]:
    ids = fields.body().get("ids")
    if not isinstance(ids, list) or not 1 <= len(ids) <= _LARGEST_PAGE or not all(isinstance(i, str) for i in ids):
        raise fields.BadRequest(f"ids must be a list of 1 to {_LARGEST_PAGE} task ids")
    return list(dict.fromkeys(ids))
