"""``python -m captions.progress --port N``: tells browsers over WebSocket how far their tasks are.

It is a process of its own, since every open page would hold a thread of a web process. One query serves all pages.
What it tells is the row, which both systems write: a page stays open while its task is moved.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import signal
from http import HTTPStatus

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.datastructures import MultipleValuesError
from websockets.http11 import Request, Response

from captions import tasks
from captions.access import NoUser, user_of
from captions.database import make_engine
from captions.settings import Settings, load_or_exit

_PATH = re.compile(r"/tasks/([A-Za-z0-9-]{1,64})/progress")
_LOOK_SECONDS = 0.25

log = logging.getLogger("captions.progress")


class Pages:
    """The pages that are open, each with the task it watches and what it was told last."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._task_of: dict[ServerConnection, str] = {}
        self._told: dict[ServerConnection, str] = {}

    async def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse a page before it is open: 404 for a task that is not there or is somebody else's."""
        try:
            user = user_of(request.headers, self._settings.user_header)
            await asyncio.to_thread(tasks.check_owner, self._engine, _task_in(request), user)
        except (NoUser, MultipleValuesError) as error:
            return connection.respond(HTTPStatus.UNAUTHORIZED, f"{error}\n")
        except tasks.TaskNotFound:
            return connection.respond(HTTPStatus.NOT_FOUND, "there is no task with this id\n")
        except SQLAlchemyError as error:
            log.warning("a page was turned away: %s", type(error).__name__)
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the database does not answer\n")
        return None

    async def serve(self, connection: ServerConnection) -> None:
        """Keep a page until it goes, or its task has ended and it was told so."""
        self._task_of[connection] = _task_in(connection.request)
        try:
            await self._tell([connection])
            await connection.wait_closed()
        finally:
            self._task_of.pop(connection, None)
            self._told.pop(connection, None)

    async def look(self, stop: asyncio.Event) -> None:
        """Tell every page what is new, again and again."""
        while not stop.is_set():
            await asyncio.sleep(_LOOK_SECONDS)
            await self._tell(list(self._told))

    async def _tell(self, pages: list[ServerConnection]) -> None:
        ids = sorted({self._task_of[page] for page in pages if page in self._task_of})
        try:
            found = await asyncio.to_thread(tasks.read_progress, self._engine, ids)
        except SQLAlchemyError as error:
            log.warning("the database does not answer (%s); pages stay open", type(error).__name__)
            found = {}
        for page in pages:
            state = found.get(self._task_of.get(page, ""))
            text = json.dumps(state)
            if state is not None and self._told.get(page) != text:
                self._told[page] = text
                broadcast([page], text)
                if state["status"] in tasks.ENDED:
                    await page.close(reason="the task has ended")
            else:
                self._told.setdefault(page, "")


def _task_in(request: Request | None) -> str:
    """The task whose page is asked for. TaskNotFound when the path names none."""
    path = _PATH.fullmatch(request.path) if request is not None else None
    if path is None:
        raise tasks.TaskNotFound("no task is named")
    return path[1]


async def run(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    engine = make_engine(settings.database_url, connections=2)
    pages = Pages(settings, engine)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(pages.serve, host, port, process_request=pages.admit) as server:
        log.info("progress is told at port %d", server.sockets[0].getsockname()[1])
        await pages.look(stop)
    engine.dispose()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="captions.progress", description="Tell browsers how far their tasks are.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, required=True, help="0 for one that is free")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asyncio.run(run(load_or_exit(), arguments.host, arguments.port))


if __name__ == "__main__":
    main()
