"""What a task's row says of its work: JSON with a version, less than 1 KB. Redis holds the task's id and none of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

VERSION = 1
LARGEST_BYTES = 1023


class PayloadError(Exception):
    """The payload cannot be written or read; the message says why and repeats nothing of it."""


def dump(data: Mapping[str, Any]) -> str:
    """The text to keep. PayloadError when the data are no JSON or too large."""
    try:
        text = json.dumps({"v": VERSION, "data": dict(data)}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PayloadError(f"the payload is not plain JSON data ({type(error).__name__})") from None
    size = len(text.encode())
    if size > LARGEST_BYTES:
        raise PayloadError(f"the payload takes {size} bytes as JSON; at most {LARGEST_BYTES} are kept")
    return text


def load(text: str) -> dict[str, Any]:
    """The data of a text that ``dump`` made. PayloadError when it is damaged or of another version."""
    try:
        outer = json.loads(text)
    except (ValueError, RecursionError):
        raise PayloadError("the payload is damaged: it is not JSON") from None
    if not isinstance(outer, dict) or set(outer) != {"v", "data"}:
        raise PayloadError("the payload is damaged: it has no version and data")
    if outer["v"] != VERSION or isinstance(outer["v"], bool):
        raise PayloadError(f"the payload has another version than {VERSION}, which this process reads")
    if not isinstance(outer["data"], dict):
        raise PayloadError("the payload is damaged: its data are no object")
    return outer["data"]
