"""The dead letters: tasks that failed for good, of both systems. Their rows stay until somebody requeues them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine

from captions import tasks

_BATCH = 500
_FAILED = {"status": "failed"}


def listing(engine: Engine, limit: int, after: str = "") -> list[dict[str, Any]]:
    """At most ``limit`` dead letters in the order of their ids, from the one behind ``after``; without payloads."""
    return tasks.listing(engine, _FAILED, limit, after)


def export(engine: Engine) -> Iterator[str]:
    """Every dead letter as a line of JSON, with all that is needed to submit it again elsewhere."""
    after = ""
    while batch := tasks.listing(engine, _FAILED, _BATCH, after, also="image_path, payload"):
        after = batch[-1]["id"]
        yield from (json.dumps(letter) + "\n" for letter in batch)
