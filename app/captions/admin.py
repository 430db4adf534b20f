"""Administration: JSON endpoints under ``/admin`` for whoever has a token. What each role may is at each endpoint."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response, jsonify, request, stream_with_context
from sqlalchemy import Engine

from captions import dead_letters, fields, tasks
from captions.access import Answer, guard
from captions.settings import Settings

_LARGEST_PAGE = 1000


def blueprint(settings: Settings, engine: Engine, place: Callable[[str, str], None]) -> Blueprint:
    """The endpoints. ``place(task_id, custody)`` makes the RQ job of a row that was queued again."""
    admin = Blueprint("admin", __name__, url_prefix="/admin")
    needs = guard(settings.tokens)

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
            except (tasks.TaskStateConflict, tasks.ActiveTaskExists) as error:
                outcomes[task_id] = str(error)
            else:
                place(task_id, custody)
                outcomes[task_id] = custody
        return jsonify(outcomes=outcomes), 200

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
