"""The role queue_reload waits for processes that are being replaced, whatever they answer meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from conftest import ROOT

pytestmark = pytest.mark.slow

#: What a web process says one after the other: it closes the connection, is not up yet, has old settings, has the new.
ANSWERS: list[tuple[int, bytes] | None] = [
    None,
    (503, b"not yet"),
    (200, json.dumps({"rq_enabled": False}).encode()),
    (200, json.dumps({"rq_enabled": True, "status": "ok"}).encode()),
]


@pytest.fixture
def web() -> Iterator[HTTPServer]:
    """A web process that gives ANSWERS, the last one again and again."""
    left = list(ANSWERS)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = left.pop(0) if len(left) > 1 else left[0]
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer[0])
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(answer[1])

        def log_request(self, code: object = "-", size: object = "-") -> None:
            """Nobody reads it."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _play(folder: Path, port: int) -> subprocess.CompletedProcess[str]:
    """The role's own task that waits, with its defaults, in a play of its own."""
    role = ROOT / "roles" / "queue_reload"
    [turn] = yaml.safe_load((role / "tasks/turn.yml").read_text())
    [wait] = [task for task in turn["block"] if "ansible.builtin.uri" in task]
    variables = {
        **yaml.safe_load((role / "defaults/main.yml").read_text()),
        "queue_reload_health_url": f"http://127.0.0.1:{port}/health",
        "queue_reload_expect": {"rq_enabled": True},
        "ansible_python_interpreter": sys.executable,
    }
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": variables, "tasks": [wait]}
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    return subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(folder / "play.yml")],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_process_that_does_not_answer_yet_is_asked_again(tmp_path: Path, web: HTTPServer) -> None:
    done = _play(tmp_path, web.server_port)
    assert done.returncode == 0, done.stdout + done.stderr
