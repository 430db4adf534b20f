"""The fields of a request: each is read, checked, and named when it is wrong."""

from __future__ import annotations

from typing import Any

from flask import request

_REASON_LENGTH = 200


class BadRequest(Exception):
    """The request cannot be understood; the message says which field and what it should hold."""


def body() -> dict[str, Any]:
    """The JSON object of the request."""
    given = request.get_json(silent=True)
    if not isinstance(given, dict):
        raise BadRequest("send a JSON object with Content-Type application/json")
    return given


def integer(given: dict[str, Any], key: str, least: int, most: int) -> int:
    """A whole number of the body from ``least`` to ``most``."""
    value = given.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(f"{key} must be a whole number from {least} to {most}")
    return value


def flag(given: dict[str, Any], key: str, default: bool | None) -> bool:
    """True or false; without a default it must be there."""
    value = given.get(key, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{key} must be true or false")
    return value


def choice(given: dict[str, Any], key: str, choices: tuple[str, ...], default: str | None) -> str:
    """One of ``choices``; without a default it must be there."""
    value = given.get(key, default)
    if not isinstance(value, str) or value not in choices:
        raise BadRequest(f"{key} must be one of {', '.join(choices)}")
    return value


def reason(given: dict[str, Any]) -> str:
    """Why somebody does this, for the log and whoever comes later."""
    value = given.get("reason")
    if not isinstance(value, str) or not value.strip() or len(value) > _REASON_LENGTH:
        raise BadRequest(f"reason must be a text of 1 to {_REASON_LENGTH} characters")
    return value.strip()
