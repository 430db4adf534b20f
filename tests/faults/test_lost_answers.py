"""A store does what it is told, and the answer never comes; with the answer the connection is lost."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults import ROOT, TESTS
from faults.mover import REFUSED
from faults.nursery import Nursery
from faults.proxy import Proxy
from faults.scene import FULL, Scene
from lab.stores import LOOPBACK, PrivateMariaDB, PrivateRedis

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 40
BATCH = ("--batch", "8", "--lease-seconds", "5")
#: How many answers come before one is lost.
COMING = range(0, 48, 1 if FULL else 4)


@dataclass
class Line:
    """A scene whose movers speak to both stores through a line of ours."""

    scene: Scene
    nursery: Nursery
    proxies: dict[str, Proxy]
    environment: dict[str, str]
    movers: int = 0

    def move(self) -> tuple[int, str]:
        """The next command; the lease of the one before has run out. Its exit status and all that it said."""
        self.movers += 1
        self.scene.sql("UPDATE sluice_lease SET expires_at = '2000-01-01'")
        output = self.scene.directory / f"mover-{self.movers}"
        mover = self.nursery.start("mover", *BATCH, environment=self.environment, output=output)
        status = mover.wait()
        for proxy in self.proxies.values():
            proxy.mend()
        return status, mover.said("out") + mover.said("err")


@pytest.fixture
def line(scene: Scene, mariadb: PrivateMariaDB, redis_server: PrivateRedis) -> Iterator[Line]:
    """See Line."""
    user, password = f"mover{secrets.token_hex(4)}", secrets.token_hex(8)
    database = Path(scene.engine.url.database or "").name
    with mariadb.connect_as_root() as root, root.cursor() as cursor:
        cursor.execute(f"CREATE USER '{user}'@'{LOOPBACK}' IDENTIFIED BY '{password}'")
        cursor.execute(f"GRANT ALL ON `{database}`.* TO '{user}'@'{LOOPBACK}'")
    proxies = {"database": Proxy(mariadb.port), "redis": Proxy(redis_server.port)}
    environment = {
        "CAPTIONS_ENV_FILE": str(scene.env_file),
        "SLUICE_LAB_DB_URL": f"mysql+pymysql://{user}:{password}@{LOOPBACK}:{proxies['database'].port}/{database}",
        "SLUICE_LAB_REDIS_URL": redis_server.url().replace(f":{redis_server.port}/", f":{proxies['redis'].port}/"),
    }
    nursery = Nursery()
    yield Line(scene, nursery, proxies, environment)
    nursery.close()
    for proxy in proxies.values():
        proxy.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("store", ["database", "redis"])
def test_a_lost_answer_is_one_message_and_costs_nothing(line: Line, store: str) -> None:
    """The message is all that is said: no traceback from a library either, on no stream."""
    scene = line.scene
    scene.seed(TASKS)
    order = scene.claim_order()
    lost = 0
    for coming in COMING:
        line.proxies[store].answers = coming
        status, said = line.move()
        assert status in (0, REFUSED), said
        assert len(said.splitlines()) == 1, said
        if status == REFUSED:
            lost += 1
            assert '"error": "StoreError"' in said, said
            assert "Next: " in said, said
    assert lost >= 3, "answers were lost"
    status, said = line.move()
    assert status == 0, said
    assert scene.queued() == order
    assert scene.staged() == set()
    scene.work_off(1)
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS


BREAKS_OFF = """
from ansible.module_utils.sluice.adapters import sql_connect
import os, sys
from faults.proxy import Proxy
from sqlalchemy import make_url
url = make_url(os.environ["SLUICE_LAB_DB_URL"])
line = Proxy(url.port)
connection = sql_connect.connect(url.set(port=line.port).render_as_string(hide_password=False)).raw_connection()
print(connection.cursor().execute("SELECT 1"))
line.cut()
connection.close()
"""


def test_a_connection_that_is_lost_while_it_is_given_back_leaves_no_traceback(line: Line) -> None:
    """Found by a campaign: the pool's own log went to stderr when nobody listened to it."""
    environment = {**os.environ, **line.environment, "PYTHONPATH": os.pathsep.join((str(TESTS), str(ROOT / "app")))}
    code = "import faults\n" + BREAKS_OFF
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
