"""A real browser, driven over its own debugging protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from oracle.patience import PATIENCE_SECONDS, until


class Page:
    """The one page that is open."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.messages: list[str] = []
        for domain in ("Runtime", "Log", "Page"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=PATIENCE_SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.messages.append(json.dumps(answer["params"]))

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression in the page. AssertionError when it throws."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """What a reader sees of an element; empty when there is none."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def shows(self, selector: str, words: str) -> None:
        """Wait until a reader sees the words there."""
        until(lambda: words in self.text(selector), f"{selector} shows {words!r}", every=0.1)

    def picture(self, path: Path) -> None:
        """Keep what a reader sees."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(directory: Path) -> Iterator[Page]:
    """Chromium with an empty page and a profile of its own in ``directory``."""
    program = shutil.which("chromium")
    assert program is not None, "there is no chromium; scripts/bootstrap dev installs it"
    profile = directory / "profile"
    process = subprocess.Popen(
        [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-extensions", "--disable-component-update", "--disable-background-networking",
         "--window-size=1100,1000", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        told = profile / "DevToolsActivePort"
        until(lambda: told.exists() and told.read_text().count("\n") >= 1, "the browser listens")
        port = int(told.read_text().splitlines()[0])

        def pages() -> list[str]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                return [target["webSocketDebuggerUrl"] for target in json.load(answer) if target["type"] == "page"]

        until(lambda: bool(pages()), "the browser has a page")
        with connect(pages()[0], max_size=None, proxy=None) as connection:
            try:
                yield Page(connection)
            finally:
                # Ended by a signal it would leave a folder of its own among the machine's temporary files.
                connection.send(json.dumps({"id": 0, "method": "Browser.close"}))
                process.wait(PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()
