"""Who may do what: bearer tokens with roles. ``view`` reads, ``operate`` acts on tasks and queues, ``admin`` is all.

Users are known to whoever stands before the application, which may name them in a header of each request.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Protocol

from flask import Response, jsonify, request

ROLES = ("view", "operate", "admin")
_MOST_DIGITS = 10
_ROLE_OF = {"VIEW_TOKEN": "view", "OPERATE_TOKEN": "operate", "ADMIN_TOKEN": "admin"}


class Headers(Protocol):
    """The headers of a request, whatever library read them."""

    def get(self, key: str, default: str, /) -> str: ...


Answer = tuple[Response, int]
View = Callable[..., Answer]


def role_of(tokens: Mapping[str, str], header: str) -> str | None:
    """The role of an ``Authorization`` header, None when its token is nobody's. ``tokens``: by the setting's name."""
    roles = [
        _ROLE_OF[name]
        for name, token in tokens.items()
        if hmac.compare_digest(header.encode(), f"Bearer {token}".encode())
    ]
    return roles[0] if roles else None


class NoUser(Exception):
    """The request does not say whose it is, and must."""


def user_of(headers: Headers, name: str | None) -> int | None:
    """The user whom the header ``name`` holds; None when there is no such header here (``name`` is None).

    :raises NoUser: it holds none
    """
    if name is None:
        return None
    value = headers.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS):
        raise NoUser(f"the header {name} must hold the user's number")
    return int(value)


def guard(tokens: Mapping[str, str]) -> Callable[[str], Callable[[View], View]]:
    """``needs(role)`` for views: 503 when no admin token is set, 401 without a good token, 403 for a lesser role."""

    def needs(least: str) -> Callable[[View], View]:
        def decorate(view: View) -> View:
            @wraps(view)
            def guarded(*args: Any, **kwargs: Any) -> Answer:
                if "ADMIN_TOKEN" not in tokens:
                    return error(503, "ADMIN_TOKEN is not set; admin requests are off")
                role = role_of(tokens, request.headers.get("Authorization", ""))
                if role is None:
                    return error(401, "send the header 'Authorization: Bearer TOKEN'")
                if ROLES.index(role) < ROLES.index(least):
                    return error(403, f"this needs the role {least}; the token's role is {role}")
                return view(*args, **kwargs)

            return guarded

        return decorate

    return needs


def error(status: int, message: str, retry_after_seconds: int | None = None) -> Answer:
    """An error as every endpoint answers it."""
    response = jsonify(error=message)
    if retry_after_seconds is not None:
        response.headers["Retry-After"] = str(retry_after_seconds)
    return response, status
