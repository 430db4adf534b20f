"""Tasks that went to the pollers while Redis was away: moved to RQ when it is well, by a small run of Sluice's own."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.core.errors import RunConflict
from rq.job import Job
from sqlalchemy import text

from captions.database import make_engine
from captions.mover import Looked, Mover
from integration.runtime import APP, RUN, Runtime
from oracle.patience import PATIENCE_SECONDS, until

pytestmark = pytest.mark.real

ROOT = APP.parent
MAPPING = ROOT / "inventories" / "lab" / "mapping.yml"
LATER = 30.0


@pytest.fixture(autouse=True)
def _package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mover finds Sluice's package as it does without Ansible."""
    monkeypatch.syspath_prepend(str(ROOT / "module_utils"))


def mover(runtime: Runtime, mapping: Path = MAPPING) -> Mover:
    return Mover(runtime.settings, mapping, runtime.redis_url)


def look(runtime: Runtime) -> int:
    """How many tasks a mover that has just been started moves."""
    return mover(runtime).look().moved


def waiting_for_pollers(runtime: Runtime, number: int, **more: object) -> list[str]:
    """As an outage leaves them: submitted to the pollers, and all users are RQ's again."""
    runtime.route(0)
    submitted = [runtime.submit(**more) for _ in range(number)]
    runtime.route(100)
    return submitted


def owners(runtime: Runtime) -> Counter[str]:
    return Counter(row.custody for row in runtime.sql("SELECT custody FROM caption_tasks"))


def effects(runtime: Runtime) -> Counter[tuple[str, str]]:
    lines = [json.loads(line) for line in runtime.settings.effects_file.read_text().splitlines()]
    return Counter((line["task"], line["event"]) for line in lines)


def once_each(tasks: list[str]) -> dict[tuple[str, str], int]:
    return {(task, what): 1 for task in tasks for what in ("start", "end")}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 20: 45 tasks are three of them, as 450 are of those that the mover makes."""
    monkeypatch.setattr(of_package("services.fallback"), "BATCH", 20)


def of_sluice(runtime: Runtime) -> set[str]:
    return {key.decode() for key in runtime.redis.keys("sluice:*")}


def test_they_move_in_their_order_and_run_once(runtime: Runtime, ledger: SqlLedger) -> None:
    low, late = waiting_for_pollers(runtime, 1, priority="low") + waiting_for_pollers(runtime, 1, delay_seconds=3600)
    urgent, *more = waiting_for_pollers(runtime, 3, priority="urgent")
    assert owners(runtime) == {"db": 5}
    assert mover(runtime).look() == Looked(5, 1.0)
    assert owners(runtime) == {"rq": 5}
    assert [task.decode() for task in runtime.redis.lrange("rq:queue:urgent", 0, -1)] == [urgent, *more]
    assert runtime.redis.hget(Job.key_for(late), "status") == b"scheduled"
    assert runtime.poll() == 0
    assert runtime.sweeper.sweep() == 0
    runtime.work()
    assert effects(runtime) == once_each([urgent, *more, low])
    assert look(runtime) == 0


def test_an_operators_last_run_stays_the_last_and_nothing_of_the_small_one_is_left_open(
    runtime: Runtime, ledger: SqlLedger
) -> None:
    waiting_for_pollers(runtime, 45)
    assert look(runtime) == 45
    assert ledger.last_run() is None and ledger.open_run() is None
    state = ledger.lease_state()
    assert state is not None and state.remaining == 0 and state.owner.startswith("fallback mover ")
    ((run, phase, open_system),) = runtime.sql("SELECT id, phase, open_system FROM sluice_run")
    assert run.startswith("captions-fallback-") and (phase, open_system) == ("cleaned", None)
    assert runtime.sql("SELECT detail FROM sluice_event")[0].detail == '{"outcome": "45 moved, 0 refused"}'
    assert Counter(mark.place for mark in ledger.marks()) == {"moved": 45}
    assert of_sluice(runtime) == set()


def test_where_sluice_has_never_been_its_tables_are_made(runtime: Runtime) -> None:
    waiting_for_pollers(runtime, 1)
    assert look(runtime) == 1


def test_where_nothing_waits_nothing_is_made(runtime: Runtime) -> None:
    assert mover(runtime).look() == Looked(0, 1.0)
    waiting_for_pollers(runtime, 1)
    runtime.route(0)
    assert mover(runtime).look() == Looked(0, 1.0)
    assert runtime.sql("SHOW TABLES LIKE 'sluice%'") == []
    assert of_sluice(runtime) == set()


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
    before = ledger.lease_state()
    assert look(runtime) == 0
    assert owners(runtime) == {"db": 2}
    if because in (_open_run, _held_lease):
        # An open run whose lease has lapsed meanwhile is still its owner's: nobody took the lease from it.
        after = ledger.lease_state()
        assert before is not None and after is not None and (after.token, after.owner) == (before.token, before.owner)


def test_nothing_moves_where_a_poller_may_be_at_work_on_what_looks_queued(
    runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waiting_for_pollers(runtime, 2)
    mapping = yaml.safe_load(MAPPING.read_text(encoding="utf-8"))
    mapping["source"]["claimers"][0]["kind"] = "unguarded"
    (tmp_path / "mapping.yml").write_text(yaml.safe_dump(mapping), encoding="utf-8")
    assert mover(runtime, tmp_path / "mapping.yml").look() == Looked(0, LATER)
    assert owners(runtime) == {"db": 2}
    assert "'legacy' claims without a lock" in caplog.text


def of_package(name: str) -> Any:
    """A module of Sluice's package as the mover has it."""
    return import_module(f"sluice.{name}")


def hooked(monkeypatch: pytest.MonkeyPatch, name: str, hook: Callable[[], None], *, after: bool = False) -> None:
    """Have ``hook`` called at the first call of a method of Sluice's adapters, given as ``module.Class.method``."""
    module, owner, method = name.split(".")
    kind = getattr(of_package(f"adapters.{module}"), owner)
    whole = getattr(kind, method)
    calls: list[None] = []

    def call(*arguments: Any, **named: Any) -> Any:
        first = not calls
        calls.append(None)
        if first and not after:
            hook()
        answer = whole(*arguments, **named)
        if first and after:
            hook()
        return answer

    monkeypatch.setattr(kind, method, call)


def test_a_run_waits_for_the_mover_and_the_mover_for_the_run(
    runtime: Runtime, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting_for_pollers(runtime, 1)
    refused: list[str] = []

    def begin_a_run() -> None:
        ledger.start_run(RUN)
        with pytest.raises(RunConflict) as conflict:
            ledger.take_lease(RUN, "the run", 30)
        refused.append(str(conflict.value))

    hooked(monkeypatch, "rq.RqQueues.stage", begin_a_run)
    assert look(runtime) == 1
    assert "'fallback mover " in refused[0]
    assert ledger.take_lease(RUN, "the run", 30).run_id == "run-1"
    waiting_for_pollers(runtime, 1)
    assert look(runtime) == 0
    assert owners(runtime) == {"rq": 1, "db": 1}


def test_a_run_that_begins_while_the_mover_takes_the_lease_goes_first(
    runtime: Runtime, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting_for_pollers(runtime, 1)
    hooked(monkeypatch, "ledger_sql.SqlLedger.take_lease", lambda: ledger.start_run(RUN))
    assert look(runtime) == 0
    assert ledger.take_lease(RUN, "the run", 30).run_id == "run-1"
    assert owners(runtime) == {"db": 1}


def test_a_mover_whose_lease_was_taken_writes_no_more(
    runtime: Runtime, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was frozen for longer than its lease; whoever has it now answers for what it had claimed."""
    waiting_for_pollers(runtime, 3)

    def be_frozen() -> None:
        runtime.sql("UPDATE sluice_lease SET expires_at = UTC_TIMESTAMP(6)")
        ledger.take_lease(RUN, "the run", 30)

    hooked(monkeypatch, "rq.RqQueues.stage", be_frozen, after=True)
    assert look(runtime) == 0
    assert "is not the newest" in caplog.text
    assert owners(runtime) == {"held": 3}
    assert runtime.redis.llen("rq:queue:normal") == 0


def test_what_a_poller_is_claiming_is_passed_over(runtime: Runtime, ledger: SqlLedger) -> None:
    first, second = waiting_for_pollers(runtime, 2)
    other = make_engine(runtime.database_url)
    with other.connect() as poller, poller.begin():
        poller.execute(text("SELECT id FROM caption_tasks WHERE id = :id FOR UPDATE"), {"id": first})
        assert look(runtime) == 1
    other.dispose()
    assert [runtime.task(task)["owner"] for task in (first, second)] == ["db", "rq"]


def test_pollers_that_go_on_meanwhile_and_rq_share_the_tasks(runtime: Runtime, ledger: SqlLedger) -> None:
    submitted = waiting_for_pollers(runtime, 120)
    polled: list[int] = []
    polling = threading.Thread(target=lambda: polled.append(runtime.poll()))
    polling.start()
    until(lambda: bool(runtime.sql("SELECT 1 FROM caption_tasks WHERE status <> 'queued'")), "the poller has begun")
    moved = look(runtime)
    polling.join(timeout=PATIENCE_SECONDS)
    assert moved > 0
    assert polled == [120 - moved]
    runtime.work()
    assert effects(runtime) == once_each(submitted)


def test_an_emergency_that_begins_meanwhile_ends_it_between_two_batches(
    runtime: Runtime, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting_for_pollers(runtime, 45)
    hooked(monkeypatch, "rq.RqQueues.activate", lambda: _emergency(runtime, ledger))
    assert look(runtime) == 20
    assert owners(runtime) == {"rq": 20, "db": 25}


# --- broken off ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The end of the process, as far as the code in it can tell."""


def _kill() -> None:
    raise Killed


ARROWS = [
    ("ledger_sql.SqlLedger.take_lease", True),
    ("rq.RqQueues.stamp", True),
    ("sql_table.SqlTable.claim", True),
    ("rq.RqQueues.stage", True),
    ("sql_table.SqlTable.release", True),
    ("rq.RqQueues.activate", True),
    ("ledger_sql.SqlLedger.close", False),
    ("rq.RqQueues.clear_stamp", True),
]


def at(*arrows: tuple[str, bool]) -> pytest.MarkDecorator:
    ids = [f"{'after' if after else 'before'} {name.split('.')[2]}" for name, after in arrows]
    return pytest.mark.parametrize("killed", arrows, indirect=True, ids=ids)


@pytest.fixture
def killed(request: pytest.FixtureRequest, runtime: Runtime, ledger: SqlLedger) -> list[str]:
    """Tasks, and a mover that was killed among them."""
    name, after = request.param
    submitted = waiting_for_pollers(runtime, 5)
    with pytest.MonkeyPatch.context() as patched:
        hooked(patched, name, _kill, after=after)
        with pytest.raises(Killed):
            look(runtime)
    # Nobody renews its lease any more.
    runtime.sql("UPDATE sluice_lease SET expires_at = UTC_TIMESTAMP(6)")
    return submitted


@at(*ARROWS)
def test_the_next_mover_finishes_what_a_killed_one_began(runtime: Runtime, killed: list[str]) -> None:
    after = mover(runtime)
    # What had been claimed is given back by the first look, and moved by the next one.
    assert after.look().pause == after.look().pause == 1.0
    assert owners(runtime) == {"rq": 5}
    runtime.work()
    assert effects(runtime) == once_each(killed)
    assert look(runtime) == 0
    assert runtime.sql("SELECT id FROM sluice_run WHERE open_system IS NOT NULL") == []
    assert of_sluice(runtime) == set()


@at(ARROWS[2], ARROWS[4])
def test_what_a_killed_one_had_claimed_is_the_pollers_when_it_is_not_to_move_any_more(
    runtime: Runtime, killed: list[str]
) -> None:
    runtime.route(0)
    look(runtime)
    assert set(owners(runtime)) <= {"db", "rq"}
    runtime.poll()
    runtime.work()
    assert effects(runtime) == once_each(killed)


@at(ARROWS[3], ARROWS[4], ARROWS[5])
def test_redis_that_is_emptied_after_the_kill_costs_no_task(runtime: Runtime, killed: list[str]) -> None:
    runtime.redis.flushdb()
    look(runtime)
    look(runtime)
    # What had been made runnable before is for those who look after lost jobs: a sweeper takes half a minute for it.
    runtime.sql("UPDATE caption_tasks SET enqueued_at = NULL WHERE status = 'queued' AND custody = 'rq'")
    runtime.sql("UPDATE caption_tasks SET created_at = created_at - INTERVAL 1 MINUTE")
    runtime.sweeper.sweep()
    runtime.work()
    assert effects(runtime) == once_each(killed)


def test_while_redis_is_away_they_stay_with_the_pollers(
    runtime: Runtime, ledger: SqlLedger, caplog: pytest.LogCaptureFixture
) -> None:
    submitted = waiting_for_pollers(runtime, 3)
    away = Mover(runtime.settings, MAPPING, "redis://127.0.0.1:1/0")
    assert away.look() == Looked(0, LATER)
    assert "nothing is moved for 30 s: Redis database 0 at 127.0.0.1:1" in caplog.text
    assert runtime.poll() == 3
    assert effects(runtime) == once_each(submitted)


@pytest.mark.parametrize("method", ["stage", "activate"])
def test_redis_that_goes_away_in_the_middle_leaves_them_what_was_claimed(
    runtime: Runtime, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    submitted = waiting_for_pollers(runtime, 45)

    def go_away() -> None:
        raise of_package("core.errors").StoreError("Connection refused", where="Redis")

    hooked(monkeypatch, f"rq.RqQueues.{method}", go_away)
    with_us = mover(runtime)
    assert with_us.look() == Looked(0, LATER)
    # One batch may have changed hands; the others are where somebody can work on them.
    assert owners(runtime) == ({"db": 45} if method == "stage" else {"rq": 20, "db": 25})
    assert with_us.look().moved == (45 if method == "stage" else 25)
    runtime.work()
    assert effects(runtime) == once_each(submitted)


# --- refused ---------------------------------------------------------------------------------------------------------


def test_a_task_whose_last_attempt_ended_in_rq_moves(runtime: Runtime, ledger: SqlLedger) -> None:
    """It failed in RQ, and was due again while Redis was thought to be away."""
    (task,) = waiting_for_pollers(runtime, 1)
    runtime.redis.hset(Job.key_for(task), mapping={"status": "failed", "origin": "normal", "data": b"old"})
    runtime.redis.zadd("rq:failed:normal", {task: 1})
    assert look(runtime) == 1
    assert runtime.redis.zcard("rq:failed:normal") == 0
    runtime.work()
    assert effects(runtime) == once_each([task])


def test_a_task_whose_last_job_still_runs_stays_with_the_pollers(
    runtime: Runtime, ledger: SqlLedger, caplog: pytest.LogCaptureFixture
) -> None:
    task, other = waiting_for_pollers(runtime, 2)
    runtime.redis.hset(Job.key_for(task), mapping={"status": "started", "origin": "normal", "data": b"old"})
    assert mover(runtime).look() == Looked(1, LATER)
    assert f"of 1 task(s) that stay with the pollers: {task}, another job of this id" in caplog.text
    assert [runtime.task(one)["owner"] for one in (task, other)] == ["db", "rq"]
    assert list(ledger.held()) == []
    assert runtime.poll() == 1
    assert runtime.sql("SELECT status FROM caption_tasks WHERE id = :id", id=task)[0].status == "completed"


def test_a_queue_that_the_mapping_does_not_know_stays_with_the_pollers(
    runtime: Runtime, ledger: SqlLedger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waiting_for_pollers(runtime, 1, priority="low")
    mapping = yaml.safe_load(MAPPING.read_text(encoding="utf-8"))
    del mapping["target"]["queues"]["low"], mapping["target"]["timeouts"]["low"]
    (tmp_path / "mapping.yml").write_text(yaml.safe_dump(mapping), encoding="utf-8")
    assert mover(runtime, tmp_path / "mapping.yml").look() == Looked(0, LATER)
    assert "'low' is not mapped" in caplog.text
    assert owners(runtime) == {"db": 1}


# --- the process -----------------------------------------------------------------------------------------------------


def test_the_process_moves_them(runtime: Runtime, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting_for_pollers(runtime, 2)
    monkeypatch.setenv("CAPTIONS_SLUICE_MAPPING", str(MAPPING))
    said = runtime.process("captions.mover", "--once", python_path=ROOT / "module_utils")
    assert "2 task(s) that waited for pollers are RQ's now" in said
    assert owners(runtime) == {"rq": 2}


def test_a_mover_that_cannot_work_says_why(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="SLUICE_MAPPING and RQ_REDIS_URL must be there for the mover"):
        runtime.process("captions.mover", "--once")
    monkeypatch.setenv("CAPTIONS_SLUICE_MAPPING", str(MAPPING))
    monkeypatch.setenv("CAPTIONS_LEGACY_KIND", "unguarded")
    with pytest.raises(AssertionError, match="LEGACY_KIND is unguarded"):
        runtime.process("captions.mover", "--once")
