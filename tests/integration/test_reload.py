"""A reload waits for processes that are being replaced, whatever they answer meanwhile, and asks over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from ansible.module_utils.sluice.core.errors import SluiceError
from ansible.module_utils.sluice.shell.runner import Given
from ansible.module_utils.sluice.shell.steps import processes

NEW = (200, json.dumps({"rq_enabled": True, "status": "ok"}).encode())
OLD = (200, json.dumps({"rq_enabled": False, "status": "ok"}).encode())
NOT_YET = (503, b"not yet")
NO_OBJECT = (200, b"[1, 2]")
CLOSED = None


class Web:
    """A web process that gives these answers one after the other, the last one again and again."""

    def __init__(self, answers: Sequence[tuple[int, bytes] | None]) -> None:
        self.left = list(answers)
        self.asked: list[str] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                answer = web.left.pop(0) if len(web.left) > 1 else web.left[0]
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer[0])
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(answer[1])

            def log_request(self, code: object = "-", size: object = "-") -> None:
                """Nobody reads it."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/health?by=reload"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Keeper:
    """A supervisor without processes, which counts what it was told."""

    def __init__(self) -> None:
        self.reloads = 0

    def reload(self, group: str) -> bool:
        """Told once more."""
        self.reloads += 1
        return True

    def list(self, group: str) -> Sequence[Any]:
        """None."""
        return []

    def leftovers(self, group: str) -> Sequence[Any]:
        """None either."""
        return []


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    """Makes web processes."""
    made: list[Web] = []

    def make(*answers: tuple[int, bytes] | None) -> Web:
        made.append(Web(answers))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """What keeps the processes of this host; without the pauses between two questions."""
    made = Keeper()
    monkeypatch.setattr(processes, "supervisor", lambda *_, **__: made)
    monkeypatch.setattr(processes, "_PAUSE_SECONDS", 0.0)
    return made


def reload(url: str, **more: Any) -> dict[str, Any]:
    """The step as the module runs it, with its defaults."""
    params: dict[str, Any] = {
        "supervisor": "supervisord", "socket": "", "units": [], "group": "web", "host_label": "app1",
        "state": "reloaded", "cursor": {}, "health_url": url, "expect": {"rq_enabled": True}, "answers": 3,
        "patience": 60, **more,
    }  # fmt: skip
    return processes.workers(Given(params, False))


def test_a_process_that_does_not_answer_yet_is_asked_again(web: Callable[..., Web], keeper: Keeper) -> None:
    asked = web(CLOSED, NOT_YET, NO_OBJECT, OLD, NEW)
    done = reload(asked.url)
    assert (done["changed"], done.get("cursor"), keeper.reloads) == (True, None, 1)
    assert asked.asked == ["/health?by=reload"] * 7, "four others, then three in a row"


def test_the_right_answers_come_in_a_row(web: Callable[..., Web], keeper: Keeper) -> None:
    """One process of several has the old settings still."""
    asked = web(NEW, NEW, OLD, NEW)
    reload(asked.url)
    assert len(asked.asked) == 6


def test_what_still_has_the_old_settings_is_named(web: Callable[..., Web], keeper: Keeper) -> None:
    with pytest.raises(SluiceError) as refused:
        reload(web(OLD).url, patience=0)
    said = str(refused.value)
    assert "app1: was told to read its settings and 0 s later still answers http://127.0.0.1:" in said
    assert "with {'rq_enabled': False} instead of {'rq_enabled': True}. Hosts of later batches were not touched" in said
    assert "Next: read the log of 'web' there." in said
    with pytest.raises(SluiceError, match=r"with nothing instead of"):
        reload(web(CLOSED).url, patience=0)
    with pytest.raises(SluiceError, match=r"with them, and not often enough instead of"):
        reload(web(NEW).url, patience=0)


def test_it_is_told_once_and_asked_in_slices(
    web: Callable[..., Web], keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SLICE_SECONDS", 0.0)
    asked = web(OLD, NEW)
    cursor: dict[str, Any] = {}
    seen = []
    for _ in range(4):
        result = reload(asked.url, cursor=cursor)
        cursor = result.get("cursor", {})
        seen.append(cursor.get("right"))
    assert seen == [0, 1, 2, None]
    assert keeper.reloads == 1
    assert result["changed"]


def test_nobody_is_asked_without_a_url(keeper: Keeper) -> None:
    assert reload("")["changed"]
    with pytest.raises(SluiceError, match="must be http"):
        reload("ftp://app1/health")
