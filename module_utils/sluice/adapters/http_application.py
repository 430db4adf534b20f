"""Submits canary tasks to the application the way its users do."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..core.errors import SluiceError

# A token of RFC 9110, section 5.6.2.
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True, slots=True)
class CanaryForm:
    """How a submission looks: ``body`` is sent as JSON with the user and the priority filled in.

    ``first_user`` begins a range of user ids that belong to canaries alone. ``user_header`` names a header that has the
    user as well, where a front end says so whose a request is.
    """

    url: str
    user_field: str = "user_id"
    user_header: str = ""
    priority_field: str = "priority"
    id_field: str = "id"
    first_user: int = 900_000_000
    priorities: tuple[str, ...] = ()
    body: Mapping[str, object] = field(default_factory=dict)
    delay_field: str = ""  # takes seconds; a delayed task is active for sure while a second one is submitted


@dataclass(frozen=True, slots=True)
class Submission:
    """The application's answer. ``status`` is HTTP's; ``task_id`` is empty unless it was accepted; time in seconds."""

    status: int
    task_id: str
    seconds: float
    detail: str = ""


def parse_form(data: Mapping[str, object]) -> CanaryForm | None:
    """Read the setting ``queue_canary``; None when it is empty.

    :raises SluiceError: a word is unknown or the URL is missing
    """
    if not data:
        return None
    known = set(CanaryForm.__dataclass_fields__)
    extra = sorted(set(data) - known)
    if extra or not isinstance(data.get("url"), str):
        wrong = f"unknown words {extra}" if extra else "'url' is missing"
        raise SluiceError(f"{wrong}.", where="queue_canary", next_step=f"known words: {', '.join(sorted(known))}.")
    body, priorities = data.get("body", {}), data.get("priorities", ())
    header = str(data.get("user_header", ""))
    if header and not _HEADER.fullmatch(header):
        raise SluiceError(f"'user_header' is no name of a header: {header!r}.", where="queue_canary")
    if not isinstance(body, Mapping) or not isinstance(priorities, list | tuple):
        raise SluiceError("'body' is a table and 'priorities' a list.", where="queue_canary")
    return CanaryForm(
        url=str(data["url"]),
        user_field=str(data.get("user_field", "user_id")),
        user_header=header,
        priority_field=str(data.get("priority_field", "priority")),
        id_field=str(data.get("id_field", "id")),
        first_user=int(str(data.get("first_user", 900_000_000))),
        priorities=tuple(str(p) for p in priorities),
        body={str(k): v for k, v in body.items()},
        delay_field=str(data.get("delay_field", "")),
    )


class HttpApplication:
    """One application's submission endpoint."""

    def __init__(self, form: CanaryForm) -> None:
        self.form = form
        parts = urlsplit(form.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SluiceError("'url' must be http:// or https://.", where="queue_canary")
        self._parts = parts
        self._host = parts.hostname

    def submit(self, user: int, priority: str, *, delay: int = 0, timeout: float = 10.0) -> Submission:
        """Submit one task, to be run in ``delay`` seconds where the form has a word for that.

        An answer that never came has the status 0 and the reason as its detail.
        """
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._host, self._parts.port, timeout=timeout)
        body = {**self.form.body, self.form.user_field: user}
        if priority:
            body[self.form.priority_field] = priority
        if delay and self.form.delay_field:
            body[self.form.delay_field] = delay
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self.form.user_header:
            headers[self.form.user_header] = str(user)
        begun = time.monotonic()
        try:
            connection.request("POST", self._parts.path or "/", json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return Submission(0, "", time.monotonic() - begun, str(error) or type(error).__name__)
        finally:
            connection.close()
        seconds = time.monotonic() - begun
        if answer.status not in (200, 201, 202):
            return Submission(answer.status, "", seconds, text[:200].decode("utf-8", "replace"))
        try:
            task_id = str(json.loads(text)[self.form.id_field])
        except (ValueError, KeyError, TypeError):
            return Submission(answer.status, "", seconds, f"the answer has no '{self.form.id_field}'")
        return Submission(answer.status, task_id, seconds)
