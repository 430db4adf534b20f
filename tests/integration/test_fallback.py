"""Tasks that went to the pollers while Redis was away: moved to RQ when it is well, by a guest of Sluice's runs."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.core.tasks import Lease
from rq.job import Job
from sqlalchemy import event, make_url, text

from captions import fallback
from captions.database import make_engine
from integration.runtime import RUN, Runtime
from oracle.patience import until

pytestmark = pytest.mark.real


def waiting_for_pollers(runtime: Runtime, number: int, **more: object) -> list[str]:
    """As an outage leaves them: submitted to the pollers, and all users are RQ's again."""
    runtime.route(0)
    submitted = [runtime.submit(**more) for _ in range(number)]
    runtime.sql("UPDATE caption_tasks SET created_at = created_at - INTERVAL 1 MINUTE WHERE custody = 'db'")
    runtime.route(100)
    return submitted


def owners(runtime: Runtime) -> Counter[str]:
    return Counter(row.custody for row in runtime.sql("SELECT custody FROM caption_tasks"))


def effects(runtime: Runtime) -> Counter[tuple[str, str]]:
    lines = [json.loads(line) for line in runtime.settings.effects_file.read_text().splitlines()]
    return Counter((line["task"], line["event"]) for line in lines)


def test_fallback_tasks_move_to_rq_in_their_order_and_run_once(runtime: Runtime, ledger: SqlLedger) -> None:
    low, late = waiting_for_pollers(runtime, 1, priority="low") + waiting_for_pollers(runtime, 1, delay_seconds=3600)
    urgent, *more = waiting_for_pollers(runtime, 3, priority="urgent")
    assert owners(runtime) == {"db": 5}
    assert runtime.sweeper.sweep() == 5
    assert owners(runtime) == {"rq": 5}
    assert [task.decode() for task in runtime.redis.lrange("rq:queue:urgent", 0, -1)] == [urgent, *more]
    assert runtime.redis.hget(Job.key_for(late), "status") == b"scheduled"
    assert runtime.poll() == 0
    runtime.work()
    ended = [urgent, *more, low]
    assert effects(runtime) == {(task, what): 1 for task in ended for what in ("start", "end")}
    assert runtime.sweeper.sweep() == 0


def _open_run(runtime: Runtime, ledger: SqlLedger) -> None:
    ledger.start_run(RUN)


def _held_lease(runtime: Runtime, ledger: SqlLedger) -> None:
    ledger.take_lease(RUN, "a run that is just beginning", 30)


def _emergency(runtime: Runtime, ledger: SqlLedger) -> None:
    runtime.sql("UPDATE captions_control SET emergency = 1")


def _hybrid(runtime: Runtime, ledger: SqlLedger) -> None:
    runtime.route(99)


@pytest.mark.parametrize("because", [_open_run, _held_lease, _emergency, _hybrid])
def test_nothing_moves(runtime: Runtime, ledger: SqlLedger, because: Callable[[Runtime, SqlLedger], None]) -> None:
    """While a run is open or begins, and while not every task is to run in RQ."""
    waiting_for_pollers(runtime, 2)
    because(runtime, ledger)
    assert runtime.sweeper.sweep() == 0
    assert owners(runtime) == {"db": 2}


@pytest.mark.parametrize("runtime", [{"LEGACY_KIND": "unguarded"}], indirect=True)
def test_nothing_moves_where_a_poller_may_be_at_work_on_what_looks_queued(runtime: Runtime) -> None:
    waiting_for_pollers(runtime, 2)
    assert runtime.sweeper.sweep() == 0
    assert owners(runtime) == {"db": 2}


def test_a_run_waits_for_a_move_and_the_next_move_for_the_run(runtime: Runtime, ledger: SqlLedger) -> None:
    """The lease is taken while tasks are just being moved: what a run counts first is then committed."""
    waiting_for_pollers(runtime, 1)
    taken: list[Lease] = []
    taking = threading.Thread(target=lambda: taken.append(ledger.take_lease(RUN, "the run", 30)))
    waits = text(
        "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT' AND trx_query LIKE :lease"
    )

    def while_it_moves(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not statement.startswith("UPDATE caption_tasks SET custody") or taking.ident:
            return
        ledger.start_run(RUN)
        taking.start()
        with ledger.engine.connect() as looking:
            until(lambda: looking.scalar(waits, {"lease": "%sluice_lease%"}) == 1, "the run waits for the lease")
        assert not taken

    event.listen(runtime.engine, "before_cursor_execute", while_it_moves)
    assert fallback.move_to_rq(runtime.engine) == 1
    taking.join(timeout=30)
    assert [lease.run_id for lease in taken] == ["run-1"]
    waiting_for_pollers(runtime, 1)
    assert fallback.move_to_rq(runtime.engine) == 0
    assert owners(runtime) == {"rq": 1, "db": 1}


def test_what_a_poller_is_claiming_is_passed_over(runtime: Runtime) -> None:
    """Also where there is no ledger: Sluice has never been here."""
    first, second = waiting_for_pollers(runtime, 2)
    other = make_engine(runtime.database_url)
    with other.connect() as poller, poller.begin():
        poller.execute(text("SELECT id FROM caption_tasks WHERE id = :id FOR UPDATE"), {"id": first})
        assert fallback.move_to_rq(runtime.engine) == 1
    other.dispose()
    assert [runtime.task(task)["owner"] for task in (first, second)] == ["db", "rq"]


def test_pollers_that_go_on_meanwhile_and_rq_share_the_tasks(runtime: Runtime, ledger: SqlLedger) -> None:
    submitted = waiting_for_pollers(runtime, 120)
    polled: list[int] = []
    polling = threading.Thread(target=lambda: polled.append(runtime.poll()))
    polling.start()
    until(lambda: bool(runtime.sql("SELECT 1 FROM caption_tasks WHERE status <> 'queued'")), "the poller has begun")
    moved = fallback.move_to_rq(runtime.engine)
    polling.join(timeout=60)
    assert moved > 0
    assert polled == [120 - moved]
    runtime.sweeper.sweep()
    runtime.work()
    assert effects(runtime) == {(task, what): 1 for task in submitted for what in ("start", "end")}


@pytest.mark.parametrize(
    ("rights", "moved"),
    [
        (("SELECT ON {0}.*", "INSERT, UPDATE, DELETE ON {0}.caption_tasks", "UPDATE ON {0}.captions_control"), 1),
        (("SELECT, INSERT, UPDATE, DELETE ON {0}.caption_tasks", "SELECT, UPDATE ON {0}.captions_control"), 0),
    ],
)
def test_an_account_that_may_not_see_the_ledger_moves_nothing_and_says_so(
    runtime: Runtime, ledger: SqlLedger, rights: tuple[str, ...], moved: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The first has what the lab gives to web processes."""
    waiting_for_pollers(runtime, 1)
    url = make_url(runtime.database_url)
    account = f"'web_{url.database}'@'%'"
    runtime.sql(f"CREATE USER {account} IDENTIFIED BY 'secret'")
    try:
        for right in rights:
            runtime.sql(f"GRANT {right.format(url.database)} TO {account}")
        engine = make_engine(
            url.set(username=f"web_{url.database}", password="secret").render_as_string(hide_password=False)
        )
        assert fallback.move_to_rq(engine) == moved
        engine.dispose()
    finally:
        runtime.sql(f"DROP USER {account}")
    assert owners(runtime) == {"rq" if moved else "db": 1}
    assert bool(caplog.records) is not bool(moved)
