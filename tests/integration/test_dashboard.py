"""The dashboard in a real browser: that it is live, what its buttons do, and that it shows text as text."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.serving import make_server

from captions import tasks
from integration.browser import Page, browser
from integration.runtime import TOKENS, Runtime
from oracle.patience import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("chromium") is None, reason="there is no chromium; scripts/bootstrap has it on Debian"
    ),
]


@pytest.fixture
def url(runtime: Runtime) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, runtime.client.application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/admin/dashboard/"
    server.shutdown()
    thread.join()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path) as opened:
        yield opened


def test_it_shows_a_move_while_it_goes_on(runtime: Runtime, url: str, page: Page, tmp_path: Path) -> None:
    ids = [runtime.submit(priority=priority) for priority in ("urgent", "low", "low", "normal")]
    page.open(f"{url}#token={TOKENS['OPERATE_TOKEN']}")
    page.shows("#switches", "4: 4 in the database, 0 being moved, 0 in RQ")
    assert page.run("location.hash") == "", "the token does not stay in the address"
    assert not page.run("document.querySelector('#enter').checkVisibility()")
    page.shows("#switches", "0 % of users to RQ")
    page.shows("#queues", "low\tdb\t2\t0\t0")

    runtime.ask("POST", "maintenance", {"reason": "the move to RQ", "in_seconds": 60, "seconds": 90})
    page.shows("#switches", "for 90.0 s: the move to RQ")
    # As a migration has it: the route first, then one task after the other.
    runtime.route(100)
    page.shows("#switches", "100 % of users to RQ")
    runtime.sql("UPDATE caption_tasks SET custody = 'held' WHERE id = :id", id=ids[0])
    page.shows("#bar", "being moved 1")
    runtime.sql("UPDATE caption_tasks SET custody = 'rq' WHERE id IN (:one, :two)", one=ids[0], two=ids[1])
    page.shows("#switches", "2 in the database, 0 being moved, 2 in RQ (2 of them without a job yet)")
    claim = tasks.claim_for_rq(runtime.engine, ids[0], "rq-1", 60)
    assert claim is not None
    tasks.report_progress(runtime.engine, claim, 40, "reading")
    page.shows("#tasks", f"{ids[0]}\trq\turgent\trunning\t1/3\t40 %\treading")
    # And back.
    runtime.sql("UPDATE caption_tasks SET custody = 'db'")
    page.shows("#switches", "4 in the database, 0 being moved, 0 in RQ")
    page.shows("#tasks", f"{ids[0]}\tdb\turgent")
    picture = tmp_path / "page.png"
    page.picture(picture)
    assert picture.stat().st_size > 10_000
    assert page.messages == []


def test_its_buttons_act_as_far_as_the_token_may(runtime: Runtime, url: str, page: Page) -> None:
    task_id = runtime.submit()
    page.open(url)
    page.shows("#news", "enter a token")
    assert not page.run("document.querySelector('main').checkVisibility()")

    def enter(token: str) -> None:
        page.run(f"document.querySelector('#token').value = '{token}'; document.querySelector('#enter button').click()")

    enter("wrong")
    page.shows("#news", "this token is nobody's")
    enter(TOKENS["VIEW_TOKEN"])
    page.shows("#queues", "urgent")
    page.run("document.querySelector('#queues button').click()")
    page.shows("#news", "pause: this needs the role operate; the token's role is view")

    page.run("sessionStorage.clear()")
    page.open(f"{url}#token={TOKENS['OPERATE_TOKEN']}")
    page.run("location.reload()")
    page.shows("#queues", "urgent")
    page.run("document.querySelector('#queues button').click()")
    page.shows("#queues", "urgent (paused)")
    page.run("document.querySelector('#queues button').click()")
    until(lambda: "(paused)" not in page.text("#queues"), "the queue is resumed")
    select = "document.querySelector('#filter [name=status]')"
    page.run(f"{select}.value = 'queued'; {select}.dispatchEvent(new Event('change', {{bubbles: true}}))")
    page.shows("#tasks", task_id)
    page.run("document.querySelector('#tasks button').click()")
    until(lambda: runtime.task(task_id)["status"] == "cancelled", "the task is cancelled")
    page.run(f"{select}.value = 'cancelled'; {select}.dispatchEvent(new Event('change', {{bubbles: true}}))")
    page.shows("#tasks", "requeue")
    page.run("document.querySelector('#tasks button').click()")
    until(lambda: runtime.task(task_id)["status"] == "queued", "the task is queued again")


def test_what_comes_from_outside_is_shown_as_text(runtime: Runtime, url: str, page: Page) -> None:
    markup = "<img src=x onerror=\"document.title='run'\">"
    task_id = runtime.submit()
    runtime.sql(
        "UPDATE caption_tasks SET status = 'running', progress_note = :markup WHERE id = :id", id=task_id, markup=markup
    )
    page.open(f"{url}#token={TOKENS['VIEW_TOKEN']}")
    page.shows("#tasks", markup)
    assert page.run("document.title") == "captions: tasks of both systems"
    answer = runtime.client.get("/admin/dashboard/")
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
