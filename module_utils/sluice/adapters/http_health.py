"""What the application answers when it is asked how it is, from its own host, which has the standard library alone."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from ..core.errors import SluiceError
from ..ports.assessment import HealthSigns

_MOST_BYTES = 65536


def ask_health(url: str, *, seconds: float) -> HealthSigns:
    """Ask the application how it is; an answer that never came has the status 0 and the reason.

    :raises SluiceError: the URL is not one
    """
    return _ask(url, seconds)[0]


def ask_settings(url: str, *, seconds: float) -> Mapping[str, object] | None:
    """Ask the application what it was started with; None when it does not answer with that.

    :raises SluiceError: the URL is not one
    """
    signs, text = _ask(url, seconds)
    try:
        said = json.loads(text) if signs.well else None
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _ask(url: str, seconds: float) -> tuple[HealthSigns, bytes]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SluiceError("must be http:// or https://.", where="queue_health_url")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=seconds)
    begun = time.monotonic()
    try:
        wanted = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        connection.request("GET", wanted, headers={"Connection": "close"})
        answer = connection.getresponse()
        text = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        return HealthSigns(0, time.monotonic() - begun, str(error) or type(error).__name__), b""
    finally:
        connection.close()
    return HealthSigns(answer.status, time.monotonic() - begun, answer.reason), text
