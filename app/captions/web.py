"""The HTTP interface: tasks for users, switches and statistics for whoever has the admin token."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException

from captions import admin, control, fields, metrics, task_types, tasks
from captions.access import NoUser, guard, user_of
from captions.access import error as error_answer
from captions.database import error_code, in_transaction, make_engine
from captions.health import RedisHealth
from captions.outbox import RQPlacer, place_row
from captions.payload import PayloadError, dump
from captions.settings import Settings, load_settings
from captions.sweeper import Sweeper
from captions.work import policy_of

_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_LONGEST_DELAY_SECONDS = 366 * 86400
_LARGEST_USER_ID = 2**31 - 1
_CONNECTIONS = 10

log = logging.getLogger("captions.web")


def create_app(settings: Settings | None = None, sweeper: bool = True) -> Flask:
    """The application as one process serves it. ``sweeper`` starts the thread that empties the outbox."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = settings or load_settings()
    task_types.load(settings)
    metrics.begin(settings, f"web-{os.getpid()}")
    app = Flask("captions")
    engine = make_engine(settings.database_url, connections=_CONNECTIONS)
    placer: RQPlacer | None = None
    health_of_redis: RedisHealth | None = None
    if settings.rq_enabled and settings.rq_redis_url is not None:
        placer = RQPlacer(settings.rq_redis_url, settings.rq_key_prefix)
        health_of_redis = RedisHealth(placer)
        if sweeper:
            health_of_redis.start()
            Sweeper(settings, engine, placer, health_of_redis).start()

    def redis_well() -> bool:
        return health_of_redis is None or health_of_redis.usable

    def place_now(task_id: str, custody: str) -> None:
        """Make the RQ job at once; when that fails the row waits for the sweeper."""
        if custody != "rq" or placer is None or health_of_redis is None or not redis_well():
            return
        try:
            place_row(engine, placer, task_id)
        except (RedisError, SQLAlchemyError) as error:
            if isinstance(error, RedisError):
                health_of_redis.failed()
            log.warning("task %s has no RQ job yet (%s); the sweeper will place it", task_id, type(error).__name__)

    needs = guard(settings.tokens)

    def read_control() -> control.Control:
        with engine.connect() as connection:
            return control.read_control(connection)

    def own(task_id: str) -> None:
        """TaskNotFound for a task of somebody else, where requests say whose they are."""
        user = user_of(request.headers, settings.user_header)
        if user is not None:
            tasks.check_owner(engine, task_id, user)

    # --- tasks -------------------------------------------------------------------------------------------------

    @app.post("/tasks")
    def submit() -> tuple[Response, int]:
        began = time.monotonic()
        body = fields.body()
        kind = task_types.task_type(fields.choice(body, "kind", tuple(task_types.names()), "caption"))
        if kind.queue and "priority" in body:
            raise fields.BadRequest(f"tasks of the kind {kind.name} wait in a queue of their own; leave priority out")
        queue = kind.queue or fields.choice(body, "priority", tasks.PRIORITIES, "normal")
        task_id, custody = tasks.submit(
            engine,
            rq_usable=settings.rq_usable,
            redis_well=redis_well(),
            user_id=_user(body, user_of(request.headers, settings.user_header)),
            image=_image(body, settings.images_dir) if kind.name == "caption" else "",
            priority=queue,
            delay_seconds=_delay(body),
            kind=kind.name,
            payload=None if kind.name == "caption" else _payload(body, kind),
            max_attempts=policy_of(settings, kind.name).attempts,
        )
        place_now(task_id, custody)
        metrics.submitted(custody, queue, time.monotonic() - began)
        return jsonify(id=task_id, custody=custody), 201

    @app.get("/tasks/<task_id>")
    def show(task_id: str) -> tuple[Response, int]:
        own(task_id)
        return jsonify(tasks.read_task(engine, task_id)), 200

    @app.post("/tasks/<task_id>/cancel")
    def cancel(task_id: str) -> tuple[Response, int]:
        own(task_id)
        tasks.cancel(engine, task_id)
        return jsonify(id=task_id, status="cancelled"), 200

    @app.post("/tasks/<task_id>/retry")
    def retry(task_id: str) -> tuple[Response, int]:
        own(task_id)
        custody = tasks.retry(engine, task_id, rq_usable=settings.rq_usable, redis_well=redis_well())
        place_now(task_id, custody)
        return jsonify(id=task_id, status="queued", custody=custody), 200

    @app.get("/health")
    def health() -> tuple[Response, int]:
        state = {"database": "ok", "redis": "off"}
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError) as error:
            state["database"] = type(error).__name__
        if placer is not None:
            try:
                placer.ping()
                state["redis"] = "ok"
            except RedisError as error:
                state["redis"] = type(error).__name__
        # Without Redis tasks are still accepted: they wait in the outbox.
        well = state["database"] == "ok"
        return jsonify(
            status="ok" if well else "failing",
            **state,
            rq_enabled=settings.rq_enabled,
            pid=os.getpid(),
            settings_digest=settings.digest,
        ), 200 if well else 503

    @app.get("/health/live")
    def live() -> tuple[Response, int]:
        return jsonify(status="ok", pid=os.getpid()), 200

    @app.get("/health/ready")
    def ready() -> tuple[Response, int]:
        """For a load balancer: 200 while submissions can be taken. Redis is not needed for that, the database is."""
        try:
            now = read_control()
        except (SQLAlchemyError, OSError) as error:
            return jsonify(status="not ready", reason=f"the database does not answer ({type(error).__name__})"), 503
        notes = []
        if now.intake_paused:
            notes.append("intake is paused")
        elif now.planned is not None:
            notes.append(f"intake will be paused in {now.planned.starts_in_seconds:.0f} s: {now.planned.reason}")
        if not settings.rq_usable and not (now.polling and settings.database_polling_enabled):
            notes.append("neither RQ nor polling is on: nobody works on tasks")
        if health_of_redis is not None and health_of_redis.note:
            notes.append(health_of_redis.note)
        return jsonify(status="ok", pid=os.getpid(), profile=settings.profile, notes=notes), 200

    # --- switches and statistics -------------------------------------------------------------------------------

    def intake_state() -> dict[str, Any]:
        now = read_control()
        return {
            "intake": "paused" if now.intake_paused else "open",
            "reason": now.intake_reason,
            "seconds_left": math.ceil(now.pause_left_seconds),
            "longest_pause_seconds": settings.intake_max_pause_seconds,
        }

    def route_state() -> dict[str, Any]:
        now = read_control()
        effective = now.share(settings.rq_usable, redis_well())
        state: dict[str, Any] = {
            "share": now.rq_share,
            "effective_share": effective,
            "rq_enabled": settings.rq_enabled,
            "emergency": now.emergency,
        }
        if effective != now.rq_share:
            if now.emergency:
                cause = "there is an emergency"
            elif settings.rq_usable:
                cause = "Redis is not well, and pollers work on them"
            else:
                cause = "RQ is not enabled in this process"
            state["note"] = f"new tasks stay in the database because {cause}"
        return state

    def polling_state() -> dict[str, Any]:
        polling = read_control().polling
        return {
            "polling": polling,
            "enabled_in_settings": settings.database_polling_enabled,
            "effective": polling and settings.database_polling_enabled,
        }

    @app.get("/admin/intake")
    @needs("view")
    def get_intake() -> tuple[Response, int]:
        return jsonify(intake_state()), 200

    @app.post("/admin/intake")
    @needs("admin")
    def set_intake() -> tuple[Response, int]:
        body = fields.body()
        if fields.choice(body, "action", ("pause", "resume"), None) == "resume":
            in_transaction(engine, control.resume_intake)
        else:
            reason = fields.reason(body)
            seconds = fields.integer(body, "seconds", 1, settings.intake_max_pause_seconds)
            in_transaction(engine, lambda connection: control.pause_intake(connection, reason, seconds))
            log.info("intake paused for at most %d s: %s", seconds, reason)
        return jsonify(intake_state()), 200

    @app.post("/admin/emergency")
    @needs("admin")
    def set_emergency() -> tuple[Response, int]:
        body = fields.body()
        on = fields.flag(body, "on", True)
        if on:
            log.warning("emergency declared: %s", fields.reason(body))
        in_transaction(engine, lambda connection: control.set_emergency(connection, on))
        return jsonify(route_state()), 200

    @app.get("/admin/route")
    @needs("view")
    def get_route() -> tuple[Response, int]:
        return jsonify(route_state()), 200

    @app.post("/admin/route")
    @needs("admin")
    def set_route() -> tuple[Response, int]:
        share = fields.integer(fields.body(), "share", 0, 100)
        in_transaction(engine, lambda connection: control.set_route(connection, share))
        return jsonify(route_state()), 200

    @app.get("/admin/polling")
    @needs("view")
    def get_polling() -> tuple[Response, int]:
        return jsonify(polling_state()), 200

    @app.post("/admin/polling")
    @needs("admin")
    def set_polling() -> tuple[Response, int]:
        polling = fields.flag(fields.body(), "polling", None)
        in_transaction(engine, lambda connection: control.set_polling(connection, polling))
        return jsonify(polling_state()), 200

    @app.get("/admin/stats")
    @needs("view")
    def stats() -> tuple[Response, int]:
        return jsonify(
            **tasks.statistics(engine), route=route_state(), polling=polling_state(), intake=intake_state()
        ), 200

    app.register_blueprint(admin.blueprint(settings, engine, placer, place_now))

    @app.get("/metrics")
    @needs("view")
    def show_metrics() -> tuple[Response, int]:
        return Response(metrics.exposition(settings, engine, placer), content_type=CONTENT_TYPE_LATEST), 200

    # --- errors ------------------------------------------------------------------------------------------------

    @app.errorhandler(fields.BadRequest)
    def bad_request(error: fields.BadRequest) -> tuple[Response, int]:
        return error_answer(400, str(error))

    @app.errorhandler(tasks.TaskNotFound)
    def not_found(error: tasks.TaskNotFound) -> tuple[Response, int]:
        return error_answer(404, "there is no task with this id")

    @app.errorhandler(NoUser)
    def nobody(error: NoUser) -> tuple[Response, int]:
        return error_answer(401, str(error))

    @app.errorhandler(tasks.TaskStateConflict)
    @app.errorhandler(tasks.ActiveTaskExists)
    def conflict(error: Exception) -> tuple[Response, int]:
        return error_answer(409, str(error))

    @app.errorhandler(tasks.IntakeClosed)
    def closed(error: tasks.IntakeClosed) -> tuple[Response, int]:
        return error_answer(503, str(error), retry_after_seconds=error.retry_after_seconds)

    @app.errorhandler(OperationalError)
    @app.errorhandler(PoolTimeoutError)
    def database_away(error: SQLAlchemyError) -> tuple[Response, int]:
        log.error("database error %s (%s) on %s", error_code(error), type(error).__name__, request.path)
        return error_answer(503, "the database does not answer", retry_after_seconds=1)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[Response, int]:
        return error_answer(error.code or 500, error.description or error.name)

    return app


def _user(body: dict[str, Any], known: int | None) -> int:
    """Whose task it is; ``known``: whose the request is, where requests say that."""
    user = fields.integer({"user_id": known, **body}, "user_id", 1, _LARGEST_USER_ID)
    if known not in (None, user):
        raise fields.BadRequest(f"user_id is {user}, and the request is user {known}'s; leave it out")
    return user


def _payload(body: dict[str, Any], kind: task_types.TaskType) -> str:
    data = body.get("payload")
    if not isinstance(data, dict):
        raise fields.BadRequest("payload must be a JSON object")
    try:
        kind.check(data)
        return dump(data)
    except (ValueError, PayloadError) as error:
        raise fields.BadRequest(str(error)) from error


def _delay(body: dict[str, Any]) -> float:
    value = body.get("delay_seconds", 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_DELAY_SECONDS:
        raise fields.BadRequest(f"delay_seconds must be a number from 0 to {_LONGEST_DELAY_SECONDS}")
    return float(value)


def _image(body: dict[str, Any], images_dir: Path) -> str:
    """The image's name. A path is taken too, but only one that names a file of the images directory itself."""
    value = body.get("image")
    if isinstance(value, str):
        path = Path(value)
        if path.parent in (Path(), images_dir) and _IMAGE_NAME.fullmatch(path.name):
            return path.name
    raise fields.BadRequest("image must be the name of a file in the images directory")
