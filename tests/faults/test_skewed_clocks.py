"""Hosts whose clocks differ: a large difference is refused by name, a small one changes nothing."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.redis_health import RedisServerHealth
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.sql_health import SqlServerHealth
from ansible.module_utils.sluice.core.errors import LeaseLost, RunConflict
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.core.verdicts import Check, Verdict
from ansible.module_utils.sluice.services.preflight import CLOCK_CHECKS, LARGEST_SKEW, preflight
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

from captions.database import make_engine
from captions.schema import create_schema
from faults.mover import REFUSED
from faults.scene import FULL, QUEUES, Scene, is_frozen
from lab.stores import free_port
from oracle.patience import until
from stores_fixture import ChangedMariaDB, SkewedRedis, with_clock_off

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 400 if FULL else 120
BATCH = ("--batch", str(TASKS // 4))
OPTIONS = (*BATCH, "--lease-seconds", "1.5")
HOUR = 3600.0
#: Seconds until delayed tasks are due: longer than the transfer takes.
DELAY = 10.0
Skewed = Callable[[float, float], Scene]


@pytest.fixture
def skewed(tmp_path: Path) -> Iterator[Skewed]:
    """Makes a scene with an open run, its database and its Redis so many seconds ahead of this host."""
    with ExitStack() as open_:

        def make(database: float, redis: float) -> Scene:
            mariadb = ChangedMariaDB(tmp_path / "mariadb", free_port(), skew=database)
            queues = SkewedRedis(tmp_path / "redis", free_port(), "test-password", redis)
            for server in (mariadb, queues):
                open_.callback(server.stop)
                server.start()
            with mariadb.connect_as_root() as root:
                root.cursor().execute("CREATE DATABASE captions")
            engine = make_engine(mariadb.root_url("captions"))
            create_schema(engine)
            engine.dispose()
            scene = Scene(tmp_path, mariadb.root_url("captions"), queues.url())
            open_.callback(scene.close)
            scene.open_run()
            return scene

        yield make


def clocks(scene: Scene) -> tuple[dict[str, Check], str]:
    """The preflight's checks of the clocks, and its one message."""
    gate = preflight(
        RedisServerHealth(scene.client),
        SqlServerHealth(scene.engine),
        tables=["caption_tasks"],
        prefixes=("rq:", "sluice:"),
        backlog_bytes=1 << 20,
    )
    return {check.name: check for check in gate.checks if check.name in CLOCK_CHECKS}, gate.explain()


@pytest.mark.parametrize(
    ("database", "redis", "host", "off"),
    [
        (90.0, 0.0, "database captions at localhost:3306", "90.00 s ahead of"),
        (0.0, -30.0, "Redis database 0 at 127.0.0.1:", "30.00 s behind"),
        (HOUR, HOUR, "this host", "3600.00 s behind"),
    ],
    ids=["the database", "redis", "this host"],
)
def test_preflight_names_the_host_whose_clock_is_off(
    skewed: Skewed, database: float, redis: float, host: str, off: str
) -> None:
    scene = skewed(database, redis)
    before = scene.fingerprint()
    checks, message = clocks(scene)
    for name, difference in {"clock_redis": redis, "clock_sql": database, "clock_between": database - redis}.items():
        assert checks[name].verdict is (Verdict.FAILED if difference else Verdict.PASSED), checks[name]
    named = message.split("the clock of ", 1)[1]
    assert named.startswith(host), message
    # To the second: reading the two clocks takes a moment.
    assert _seconds(off) == pytest.approx(_seconds(named.split("is the one that is off, ")[1]), abs=0.5)
    assert off.split(" s ")[1] in named
    assert message.count("synchronise it (chrony or systemd-timesyncd), then run the same command again") == 1
    assert scene.fingerprint() == before


def _seconds(text: str) -> float:
    return float(text.split(" s ", 1)[0])


def test_a_small_difference_changes_no_time(skewed: Skewed) -> None:
    """The database ahead and Redis behind, as far as preflight bears it: every task starts once, at its own time."""
    scene = skewed(1.1, -0.7)
    checks, message = clocks(scene)
    assert {check.verdict for check in checks.values()} == {Verdict.PASSED}, message
    assert abs(1.1 + 0.7) < LARGEST_SKEW
    scene.seed(TASKS, delayed_share=0.5, delay=DELAY)
    due = {
        row[0]: int(row[1]) / 1e6
        for row in scene.sql(
            "SELECT id, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', available_at) FROM caption_tasks"
            " WHERE available_at > created_at + INTERVAL 1 SECOND"
        )
    }
    assert TASKS // 3 < len(due) < TASKS
    assert scene.move("--kill", "release:after:3", *OPTIONS).status == -signal.SIGKILL
    scene.move_to_the_end(*OPTIONS)
    scheduled = {
        member.decode(): score
        for queue in QUEUES
        for member, score in scene.client.zrange(f"rq:scheduled:{queue}", 0, -1, withscores=True)
    }
    assert scheduled == {task: math.ceil(at) for task, at in due.items()}, "whole seconds, never early"
    assert sum(map(len, scene.queued().values())) == TASKS - len(due)

    # RQ's own scheduler, on this host's clock. The oracle compares each start with the time that the user was promised.
    scheduler = RQScheduler(QUEUES, connection=scene.client, serializer=JSONSerializer)
    assert scheduler.acquire_locks() == set(QUEUES)  # type: ignore[no-untyped-call]

    def all_enqueued() -> bool:
        scheduler.enqueue_scheduled_jobs()  # type: ignore[no-untyped-call]
        scene.work_off(1)
        return not any(scene.client.zcard(f"rq:scheduled:{queue}") for queue in QUEUES)

    until(all_enqueued, what="the time of the last delayed task", every=0.2)
    scheduler.release_locks()  # type: ignore[no-untyped-call]
    scene.work_off()
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    assert verdict.figures["rows_completed"] == verdict.figures["starts"] == TASKS


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["the mover ahead", "the mover behind"])
def test_a_delayed_task_goes_by_the_stores_clocks_and_not_the_movers(skewed: Skewed, ahead: float) -> None:
    """Preflight saw another host, or the clock was set since: no task is queued before its time."""
    scene = skewed(0.0, 0.0)
    scene.seed(TASKS, delayed_share=0.5, delay=DELAY * 10)
    ((later,),) = scene.sql("SELECT COUNT(*) FROM caption_tasks WHERE available_at > UTC_TIMESTAMP(6)")
    order = scene.claim_order()
    moved = scene.start("-m", "faults.mover", *OPTIONS, program=(*with_clock_off(ahead), sys.executable))
    assert scene.ending(moved).status == 0
    assert TASKS // 3 < later < TASKS
    assert sum(scene.client.zcard(f"rq:scheduled:{queue}") for queue in QUEUES) == later
    assert RqQueues(scene.client, scene.mapping).queued() == TASKS - later, "what is due, and nothing else"
    assert sum(map(len, scene.queued().values())) == sum(map(len, order.values())) - later == TASKS - later


@pytest.mark.parametrize("database", [HOUR, -HOUR], ids=["the database ahead", "the database behind"])
def test_the_lease_goes_by_the_databases_clock_alone(skewed: Skewed, database: float) -> None:
    """Not preflight's bound protects the lease: an hour makes it neither shorter nor longer, nor lets two write."""
    scene = skewed(database, 0.0)
    scene.seed(TASKS)
    order = scene.claim_order()
    mover = scene.start_mover("--freeze", "claim:after:2", *BATCH, "--lease-seconds", "3")
    until(lambda: is_frozen(mover), what="the mover's arrow")
    frozen_at = time.monotonic()

    other = SqlLedger(scene.engine, scene.mapping.system)
    run = other.open_run()
    state = other.lease_state()
    assert run is not None
    assert state is not None
    assert 0 < state.remaining <= 3, "seconds of the lease, as seen by another host"
    with pytest.raises(RunConflict, match=r"holds the lease for another [123] s"):
        other.take_lease(run, "second", 3)

    taken: list[Lease] = []

    def takes_over() -> bool:
        try:
            taken.append(other.take_lease(run, "second", 3))
        except RunConflict:
            return False
        return True

    until(takes_over, what="the end of the first lease", every=0.1)
    # How soon it is noticed depends on the machine; an hour more or less does not.
    assert time.monotonic() - frozen_at < HOUR / 20, "the lease lasts as long as it was taken for"
    # As whoever takes over does first. Until then Redis lets the frozen one activate what it had released before.
    RqQueues(scene.client, scene.mapping).discard(taken[0], ["of-nobody"])
    before = scene.fingerprint()
    mover.send_signal(signal.SIGCONT)
    ending = scene.ending(mover)
    assert (ending.status, ending.report["error"]) == (REFUSED, "LeaseLost"), ending
    assert scene.fingerprint() == before, "who lost the lease writes nothing"
    with pytest.raises(LeaseLost):
        other.renew(Lease(run.system, run.id, "first", taken[0].token - 1, run.generation), 3)
    other.give_up(taken[0])

    scene.move_to_the_end(*OPTIONS)
    assert scene.queued() == order
    scene.work_off()
    verdict = scene.verdict()
    assert verdict.clean, verdict.table()
    ((latest,),) = scene.sql("SELECT MAX(expires_at) FROM sluice_lease")
    ((now,),) = scene.sql("SELECT UTC_TIMESTAMP(6)")
    assert abs((now - latest).total_seconds()) < HOUR / 2, "its end is written in the database's own time"


def test_the_scene_is_skewed(skewed: Skewed) -> None:
    """The tests above prove nothing unless both servers really are off."""
    scene = skewed(HOUR, -HOUR)
    ((database,),) = scene.sql("SELECT TIMESTAMPDIFF(SECOND, '1970-01-01', UTC_TIMESTAMP())")
    with scene.engine.connect() as connection:
        assert int(connection.scalar(sa.text("SELECT UNIX_TIMESTAMP()"))) == pytest.approx(int(database), abs=1)
    assert int(database) == pytest.approx(time.time() + HOUR, abs=2)
    assert scene.client.time()[0] == pytest.approx(time.time() - HOUR, abs=2)
