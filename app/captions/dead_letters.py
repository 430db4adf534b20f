"""The dead letters: tasks that failed for good, of both systems. Their rows stay until somebody requeues them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, text

from captions.tasks import plain

_SHOWN = "id, kind, user_id, priority, custody, attempts, error_category, error, created_at, finished_at"
_KEPT = f"{_SHOWN}, image_path, payload"
_BATCH = 500


def listing(engine: Engine, limit: int, after: str = "") -> list[dict[str, Any]]:
    """At most ``limit`` dead letters in the order of their ids, from the one behind ``after``; without payloads."""
    return _read(engine, _SHOWN, limit, after)


def export(engine: Engine) -> Iterator[str]:
    """Every dead letter as a line of JSON, with all that is needed to submit it again elsewhere."""
    after = ""
    while batch := _read(engine, _KEPT, _BATCH, after):
        after = batch[-1]["id"]
        yield from (json.dumps(letter) + "\n" for letter in batch)


def _read(engine: Engine, columns: str, limit: int, after: str) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                f"SELECT {columns} FROM caption_tasks WHERE status = 'failed' AND id > :after ORDER BY id LIMIT :limit"
            ),
            {"after": after, "limit": limit},
        ).mappings()
        return [plain(dict(row)) for row in rows]
