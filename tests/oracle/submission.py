"""Submits and cancels tasks over one keep-alive connection, and says plainly what is not known."""

from __future__ import annotations

import http.client
import json
import select
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What came back. status 0: no whole answer; `sent` tells whether the server may have acted nevertheless."""

    status: int
    task: str | None
    sent: bool
    seconds: float

    @property
    def ambiguous(self) -> bool:
        """Whether the submission may or may not have been accepted."""
        return (self.status == 0 and self.sent) or (self.status >= 500 and self.status != 503)


class Submitter:
    """A client of the application's task interface; not to be shared between threads.

    url: base address, http://host:port. timeout: seconds for connecting and for each read.
    """

    def __init__(self, url: str, timeout: float = 10.0, cancel_path: str = "/tasks/{id}/cancel") -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is no address of the application: it must read http://host:port")
        self._base = parts.path.rstrip("/")
        self._cancel_path = cancel_path
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)

    def submit(self, user: int, image: str, priority: str) -> Answer:
        """POST /tasks; status 201 with the new task's id when accepted."""
        status, body, sent, seconds = self._post("/tasks", {"user_id": user, "image": image, "priority": priority})
        if status != 201:
            return Answer(status, None, sent, seconds)
        task = body.get("id") if body.get("id") is not None else body.get("task_id")
        if task is None:
            raise ValueError(f"the application accepted a task of user {user} with 201 but without `id` in its answer")
        return Answer(status, str(task), sent, seconds)

    def cancel(self, task: str) -> int:
        """Ask for a cancellation; the status of the answer, 0 for none."""
        return self._post(self._cancel_path.format(id=task), {})[0]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any], bool, float]:
        began = time.monotonic()
        sent = False
        try:
            self._leave_closed_connection()
            if self._connection.sock is None:
                self._connection.connect()
            sent = True  # from here on the server may have read the request
            self._connection.request("POST", self._base + path, json.dumps(body), {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            text = response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0, {}, sent, time.monotonic() - began
        return status, _object(text), True, time.monotonic() - began

    def _leave_closed_connection(self) -> None:
        """An idle connection that the server closed is readable: leave it before a request gets lost in it."""
        sock = self._connection.sock
        if sock is not None and select.select([sock], [], [], 0)[0]:
            self._connection.close()


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
