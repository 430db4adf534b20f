"""Canaries as an application receives them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from ansible.module_utils.sluice.adapters.http_application import HttpApplication, parse_form
from ansible.module_utils.sluice.core.errors import SluiceError


class Asked(HTTPServer):
    """An application that accepts everything and keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Accepts)
        self.requests: list[tuple[str, dict[str, str], dict[str, object]]] = []


class Accepts(BaseHTTPRequestHandler):
    """One request of it."""

    server: Asked

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        answer = json.dumps({"task": f"t-{len(self.server.requests)}"}).encode()
        self.send_response(201)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def asked() -> Iterator[Asked]:
    server = Asked()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_canary_says_whose_it_is_in_the_body_and_in_the_header_that_the_front_end_would_set(asked: Asked) -> None:
    form = {"url": f"http://127.0.0.1:{asked.server_port}/tasks", "id_field": "task", "body": {"image": "x.png"}}
    plain, headed = parse_form(form), parse_form({**form, "user_header": "X-User"})
    assert plain is not None and headed is not None
    assert HttpApplication(plain).submit(7, "urgent").task_id == "t-1"
    assert HttpApplication(headed).submit(8, "").task_id == "t-2"
    (path, without, first), (_, having, second) = asked.requests
    assert (path, first, second) == (
        "/tasks",
        {"image": "x.png", "user_id": 7, "priority": "urgent"},
        {"image": "x.png", "user_id": 8},
    )
    assert "X-User" not in without
    assert having["X-User"] == "8"


@pytest.mark.parametrize("name", ["X User", "X-User:", "X-User\r\nX-Other", "Über"])
def test_what_is_no_name_of_a_header_is_refused(name: str) -> None:
    with pytest.raises(SluiceError, match="user_header"):
        parse_form({"url": "http://127.0.0.1/", "user_header": name})
