"""Mappings beyond captions, on real tables: what fits, what moves in which order, what stays, and what is refused."""

from __future__ import annotations

import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from ansible.module_utils.sluice.adapters import redis_connect, sql_connect, sql_table
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.sql_health import SqlServerHealth
from ansible.module_utils.sluice.adapters.sql_table import SqlTable
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core import mapping as mappings
from ansible.module_utils.sluice.core.errors import MappingError
from ansible.module_utils.sluice.core.tasks import LONGEST_ID, Home, Place, job_id_for
from ansible.module_utils.sluice.core.verdicts import Check, Gate
from ansible.module_utils.sluice.services.transfer import Moved, Pace, Transfer
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as HPhase
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import NoPermissionError
from rq import Queue, SimpleWorker
from rq.job import Job

from lab.stores import PrivateMariaDB, PrivateRedis
from stores_fixture import Ends, open_ends

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
TABLES = Path(__file__).parent / "tables"
VEDFOLNIR = ROOT / "inventories" / "example" / "mapping.yml"
LARAVEL = ROOT / "inventories" / "example" / "mappings" / "laravel.yml"
DELAYED_JOB = ROOT / "inventories" / "example" / "mappings" / "delayed_job.yml"
TABLE_OF = {VEDFOLNIR: "caption_generation_tasks", LARAVEL: "jobs", DELAYED_JOB: "delayed_jobs"}

#: What a foreign payload may contain: PHP's private properties, quotes, SQL, YAML tags, four-byte characters.
PAYLOAD = 'O:8:"App\\Jobs\\A":1:{s:7:"\x00*\x00name";}\n--- !ruby {a: "%s"}\\u0000\t🖼 ä\' ); DROP TABLE jobs; --'


# -- building -------------------------------------------------------------------------------------------------------


def words_of(path: Path) -> dict[str, Any]:
    """A mapping file as plain data, to be changed by a test."""
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


def create(engine: sa.Engine, *files: str) -> None:
    """Create the tables of files in tests/integration/tables."""
    with engine.begin() as connection:
        for file in files:
            text = "\n".join(line for line in (TABLES / file).read_text().splitlines() if not line.startswith("--"))
            for statement in filter(str.strip, text.split(";")):
                connection.exec_driver_sql(statement)


def insert(engine: sa.Engine, table: str, rows: Sequence[Mapping[str, object]], **expressions: str) -> None:
    """Insert rows; a value that begins with '=' is an SQL expression of the test's own."""
    with engine.begin() as connection:
        for row in rows:
            cells = {**expressions, **row}
            sql = [str(v)[1:] if isinstance(v, str) and v.startswith("=") else f":{k}" for k, v in cells.items()]
            values = {k: v for k, v in cells.items() if not (isinstance(v, str) and v.startswith("="))}
            connection.execute(sa.text(f"INSERT INTO {table} ({', '.join(cells)}) VALUES ({', '.join(sql)})"), values)


Open = Callable[..., Ends]


@pytest.fixture
def opened(database_url: str, redis_url: str) -> Iterator[Open]:
    """Opens the ends of a run over a mapping (a file or changed words) whose table exists."""
    made: list[Ends] = []

    def open_over(words: dict[str, Any] | Path) -> Ends:
        mapping = mappings.parse(words_of(words) if isinstance(words, Path) else words)
        made.append(open_ends(database_url, redis_url, mapping))
        return made[-1]

    yield open_over
    for ends in made:
        ends.engine.dispose()


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """The application's own view of its database."""
    made = sql_connect.connect(database_url)
    yield made
    made.dispose()


def fenced() -> Gate:
    """The fence is another test's matter: here nobody else works on the tables."""
    return Gate("fence", (Check.of("no claimer is alive", True, "none was started"),))


def transfer(ends: Ends) -> Moved:
    """Move everything that may be moved."""
    mover = Transfer(
        ends.source,
        ends.target,
        ends.ledger,
        SystemClock(),
        prove_fence=fenced,
        custody_in_row=Place.MOVED in ends.mapping.source.places,
    )
    moved = mover.slice(ends.lease, 60)
    assert moved.done
    return moved


def refusals(source: SqlTable) -> str:
    """The readings of the checks that did not pass."""
    return " | ".join(f"{check.name}: {check.reading}" for check in source.fit() if check.verdict.value != "passed")


def places(ends: Ends) -> dict[str, set[str]]:
    """Ids by place, as the census of the source sees them."""
    found: dict[str, set[str]] = {}
    for sighting in ends.source.census():
        found.setdefault(sighting.place, set()).add(sighting.id)
    return found


def queued(ends: Ends, queue: str) -> list[str]:
    """Job ids in a queue of RQ, the next one first."""
    return [item.decode() for item in ends.target.client.lrange(f"{ends.target.prefix}:queue:{queue}", 0, -1)]


def scheduled(ends: Ends, queue: str) -> dict[str, int]:
    """Job ids and times of RQ's scheduled registry."""
    found = ends.target.client.zrange(f"{ends.target.prefix}:scheduled:{queue}", 0, -1, withscores=True)
    return {item.decode(): int(score) for item, score in found}


def work(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Let RQ's own worker run what is queued; returns the arguments of every call of the mapping's function."""
    calls: list[tuple[object, ...]] = []
    module, _, name = ends.mapping.target.function.rpartition(".")
    code = types.ModuleType(module)
    setattr(code, name, lambda *args: calls.append(args))
    monkeypatch.setitem(sys.modules, module, code)
    client = ends.target.client
    queues = [Queue(q, connection=client, serializer=ends.target.serializer) for q in ends.target.queues()]
    assert SimpleWorker(queues, connection=client, serializer=ends.target.serializer).work(
        burst=True, logging_level="ERROR"
    )
    failed = [job for queue in queues for job in queue.failed_job_registry.get_job_ids(cleanup=False)]
    assert failed == []
    return calls


def snapshot(engine: sa.Engine, table: str) -> list[tuple[object, ...]]:
    """Every row as it is."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY id"))]


# -- caption_generation_tasks ---------------------------------------------------------------------------------------


def fill_vedfolnir(engine: sa.Engine) -> None:
    create(engine, "caption_generation_tasks.sql")
    insert(engine, "users", [{"id": n, "username": f"u{n}"} for n in range(1, 20)])
    insert(engine, "platform_connections", [{"id": 1, "user_id": 1, "name": "p"}])
    rows = [
        ("u-2", "QUEUED", "urgent", 2),
        ("u-1", "QUEUED", "urgent", 1),
        ("h-1", "QUEUED", "high", 1),
        ("n-3", "QUEUED", "normal", 3),
        ("n-1", "QUEUED", "normal", 1),
        ("n-2", "QUEUED", "normal", 1),
        ("l-1", "QUEUED", "low", 9),
        ("task.1", "QUEUED", "low", 10),
        ("run", "RUNNING", "normal", 0),
        ("crashed", "RUNNING", "normal", 0),
        ("done", "COMPLETED", "high", 0),
        ("bad", "FAILED", "low", 0),
        ("off", "CANCELLED", "low", 0),
        ("odd", None, "normal", 0),
    ]
    insert(
        engine,
        "caption_generation_tasks",
        [
            {
                "id": i,
                "status": s,
                "priority": p,
                "created_at": f"=UTC_TIMESTAMP() - INTERVAL 1 HOUR + INTERVAL {age} MINUTE",
                "user_id": n,
            }
            for n, (i, s, p, age) in enumerate(rows, 1)
        ],
        platform_connection_id="=1",
    )


def test_captions_generation_tasks_move_in_the_order_of_the_real_claimers_and_keep_their_words(
    opened: Open, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_vedfolnir(engine)
    before = snapshot(engine, "caption_generation_tasks")
    ends = opened(VEDFOLNIR)
    assert refusals(ends.source) == ""
    assert places(ends) == {
        "ready": {"u-1", "u-2", "h-1", "n-1", "n-2", "n-3", "l-1", "task.1"},
        "leased": {"run", "crashed"},
        "finished": {"done"},
        "failed": {"bad"},
        "cancelled": {"off"},
        "unknown": {"odd"},
    }
    assert transfer(ends).moved == 8
    [rekeyed] = [job for job in queued(ends, "vedfolnir:rq:low") if job != "l-1"]
    assert queued(ends, "vedfolnir:rq:urgent") == ["u-1", "u-2"]
    assert queued(ends, "vedfolnir:rq:normal") == ["n-1", "n-2", "n-3"]
    assert queued(ends, "vedfolnir:rq:low") == ["l-1", rekeyed]
    with engine.connect() as connection:
        order = connection.execute(
            sa.text("SELECT task_id FROM sluice_task WHERE mark = 'moved' ORDER BY batch, position")
        )
        assert [row[0] for row in order] == ["l-1", "task.1", "n-1", "n-2", "n-3", "h-1", "u-1", "u-2"]
    assert snapshot(engine, "caption_generation_tasks") == before
    assert places(ends)["moved"] == {"u-1", "u-2", "h-1", "n-1", "n-2", "n-3", "l-1", "task.1"}
    assert places(ends)["unknown"] == {"odd"}
    assert {name: Job.fetch(name, ends.target.client).timeout for name in ("u-1", "h-1", "n-1", "l-1")} == {
        "u-1": 600,
        "h-1": 300,
        "n-1": 300,
        "l-1": 900,
    }
    calls = work(ends, monkeypatch)
    assert calls == [("u-1",), ("u-2",), ("h-1",), ("n-1",), ("n-2",), ("n-3",), ("l-1",), ("task.1",)]


def test_an_id_that_rq_refuses_gets_another_and_the_old_one_is_found_in_the_job_and_in_the_ledger(
    opened: Open, engine: sa.Engine
) -> None:
    fill_vedfolnir(engine)
    ends = opened(VEDFOLNIR)
    transfer(ends)
    [job_id] = [job for job in queued(ends, "vedfolnir:rq:low") if job != "l-1"]
    job = Job.fetch(job_id, ends.target.client)
    assert job.meta == {"sluice_task_id": "task.1"}
    assert "task.1" in (job.description or "")
    assert Job.fetch("l-1", ends.target.client).meta == {}
    with engine.connect() as connection:
        assert (
            connection.scalar(sa.text("SELECT task_id FROM sluice_task WHERE job_id = :j"), {"j": job_id}) == "task.1"
        )
    # The digest in the ledger is that of what lies in Redis now, also for this one.
    with engine.connect() as connection:
        kept = {r.job_id: r.digest for r in connection.execute(sa.text("SELECT job_id, digest FROM sluice_task"))}
    assert ends.target.stored_digests([(job_id, "vedfolnir:rq:low")]) == {job_id: kept[job_id]}


def test_a_row_of_unknowable_state_can_be_held_and_is_left_out_from_then_on(opened: Open, engine: sa.Engine) -> None:
    fill_vedfolnir(engine)
    ends = opened(VEDFOLNIR)
    assert list(ends.source.ids_at(Place.UNKNOWN)) == ["odd"]
    assert ends.source.hold(ends.lease, ["odd"], "its status is NULL") == 1
    assert list(ends.source.ids_at(Place.UNKNOWN)) == []
    assert [(held.id, held.where) for held in ends.ledger.held()] == [("odd", "its status is NULL")]
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE caption_generation_tasks SET status = 'QUEUED' WHERE id = 'odd'"))
    assert transfer(ends).moved == 8


def in_hand(engine: sa.Engine, words: dict[str, Any]) -> list[str]:
    """What one process may have been at work on."""
    return list(SqlTable(engine, mappings.parse(words)).in_hand(1))


def test_what_a_killed_claimer_had_in_hand_is_told_by_the_order_of_each_unguarded_kind(
    opened: Open, engine: sa.Engine
) -> None:
    """Any of the oldest, which are of one age; or, of those who take by priority, the first and older ones."""
    fill_vedfolnir(engine)
    opened(VEDFOLNIR)
    words = words_of(VEDFOLNIR)
    assert set(in_hand(engine, words)) == {"h-1", "n-1", "n-2", "u-1", "l-1"}
    for claimer in words["source"]["claimers"][:2]:
        claimer["kind"] = "guarded"
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE caption_generation_tasks SET retry_count = 1 WHERE id IN ('h-1', 'l-1')"))
    assert in_hand(engine, words) == ["l-1", "task.1", "n-1", "n-2", "h-1", "u-1"], (
        "a retry came back nobody knows when"
    )
    words["source"]["claimers"][2]["kind"] = "guarded"
    assert in_hand(engine, words) == [], "who marks what it takes leaves nothing to ask"


def test_a_job_born_in_the_target_settles_its_row_only_where_rows_record_such_jobs(
    opened: Open, engine: sa.Engine
) -> None:
    fill_vedfolnir(engine)
    ends = opened(VEDFOLNIR)
    Queue("vedfolnir:rq:normal", connection=ends.target.client).enqueue(
        ends.mapping.target.function, "n-1", job_id="n-1"
    )
    assert transfer(ends).moved == 7
    assert ends.ledger.held() == []


def test_another_systems_job_of_the_same_number_holds_the_row_instead_of_dropping_it(
    opened: Open, engine: sa.Engine
) -> None:
    fill_laravel(engine)
    ends = opened(LARAVEL)
    Queue("elsewhere", connection=ends.target.client).enqueue("other.system.function", job_id="2")
    moved = transfer(ends)
    assert moved.moved == 5
    assert [(held.id, held.where) for held in ends.ledger.held()] == [
        ("2", "another job of this id exists at the target")
    ]


# -- jobs -----------------------------------------------------------------------------------------------------------


def fill_laravel(engine: sa.Engine) -> None:
    create(engine, "jobs.sql")
    rows: list[dict[str, object]] = [
        {"id": 1, "queue": "default"},
        {"id": 2, "queue": "high"},
        {"id": 3, "queue": "low"},
        {"id": 4, "queue": "a name nobody listed"},
        {"id": 5, "queue": "default", "available_at": "=UNIX_TIMESTAMP() + 3600"},
        {"id": 6, "queue": "high"},
        {"id": 7, "queue": "default", "reserved_at": "=UNIX_TIMESTAMP() - 60", "attempts": 1},
        {"id": 8, "queue": "default", "reserved_at": "=UNIX_TIMESTAMP() - 600", "attempts": 1},
    ]
    insert(
        engine,
        "jobs",
        rows,
        payload=PAYLOAD,
        attempts="=0",
        available_at="=UNIX_TIMESTAMP() - 10",
        created_at="=UNIX_TIMESTAMP() - 20",
    )


def test_laravel_jobs_move_with_their_payload_and_reserved_ones_stay(
    opened: Open, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_laravel(engine)
    before = snapshot(engine, "jobs")
    ends = opened(LARAVEL)
    assert refusals(ends.source) == ""
    assert places(ends) == {"ready": {"1", "2", "3", "4", "6"}, "delayed": {"5"}, "leased": {"7"}, "unknown": {"8"}}
    assert transfer(ends).moved == 6
    assert queued(ends, "laravel-high") == ["2", "6"]
    assert queued(ends, "laravel-default") == ["1", "4"]
    assert queued(ends, "laravel-low") == ["3"]
    with engine.connect() as connection:
        due = connection.scalar(sa.text("SELECT available_at FROM jobs WHERE id = 5"))
    assert scheduled(ends, "laravel-default") == {"5": due}
    assert snapshot(engine, "jobs") == before
    assert work(ends, monkeypatch) == [(2, PAYLOAD), (6, PAYLOAD), (1, PAYLOAD), (4, PAYLOAD), (3, PAYLOAD)]
    assert ends.source.hold(ends.lease, list(ends.source.ids_at(Place.UNKNOWN)), "an expired reservation") == 1


def test_a_row_that_the_target_reserves_is_running_there(opened: Open, engine: sa.Engine) -> None:
    fill_laravel(engine)
    ends = opened(LARAVEL)
    transfer(ends)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE jobs SET reserved_at = UNIX_TIMESTAMP() WHERE id = 1"))
    assert places(ends)["running"] == {"1"}
    assert places(ends)["leased"] == {"7"}
    assert [task.id for task in ends.source.reread(["1", "2"]).tasks] == ["2"]


def test_without_a_witness_nothing_is_said_to_be_unstarted(opened: Open, engine: sa.Engine) -> None:
    fill_laravel(engine)
    words = words_of(LARAVEL)
    del words["source"]["witness"]
    ends = opened(words)
    transfer(ends)
    found = ends.source.reread(["1", "2"])
    assert list(found.tasks) == []
    assert {refused.id for refused in found.refused} == {"1", "2"}


# -- delayed_jobs ---------------------------------------------------------------------------------------------------


def fill_delayed_job(engine: sa.Engine, now: str = "UTC_TIMESTAMP(6)") -> None:
    create(engine, "delayed_jobs.sql")
    rows: list[dict[str, object]] = [
        {"id": 1, "priority": 10, "run_at": f"={now} - INTERVAL 5 MINUTE"},
        {"id": 2, "priority": 0, "run_at": f"={now} - INTERVAL 1 MINUTE"},
        {"id": 3, "priority": 0, "run_at": f"={now} - INTERVAL 3 MINUTE"},
        {"id": 4, "priority": -5, "run_at": f"={now} - INTERVAL 1 MINUTE"},
        {"id": 5, "priority": 0, "run_at": f"={now} + INTERVAL 2 HOUR"},
        {"id": 6, "priority": 0, "queue": "mailers"},
        {"id": 7, "locked_at": f"={now} - INTERVAL 3 HOUR", "locked_by": "host:a pid:1"},
        {"id": 8, "locked_at": f"={now} - INTERVAL 5 HOUR", "locked_by": "host:a pid:2"},
        {"id": 9, "failed_at": f"={now} - INTERVAL 1 DAY", "last_error": "x", "attempts": 25},
        {"id": 10, "run_at": None},
    ]
    insert(
        engine,
        "delayed_jobs",
        rows,
        handler=PAYLOAD,
        run_at=f"={now} - INTERVAL 2 MINUTE",
        created_at=f"={now}",
        updated_at=f"={now}",
    )


def check_delayed_job(ends: Ends, engine: sa.Engine, now: str) -> None:
    before = snapshot(engine, "delayed_jobs")
    assert refusals(ends.source) == ""
    assert places(ends) == {
        "ready": {"1", "2", "3", "4", "6"},
        "delayed": {"5"},
        "leased": {"7"},
        "failed": {"9"},
        "unknown": {"8", "10"},
    }
    assert transfer(ends).moved == 6
    assert queued(ends, "rails-default") == ["4", "3", "2", "1"]
    assert queued(ends, "rails-mailers") == ["6"]
    with engine.connect() as connection:
        away = connection.scalar(sa.text(f"SELECT TIMESTAMPDIFF(SECOND, {now}, run_at) FROM delayed_jobs WHERE id = 5"))
        epoch = connection.scalar(sa.text("SELECT UNIX_TIMESTAMP()"))
    [(job_id, due)] = scheduled(ends, "rails-default").items()
    assert job_id == "5"
    assert abs(due - (int(epoch or 0) + int(away or 0))) <= 1
    assert snapshot(engine, "delayed_jobs") == before


def test_delayed_jobs_move_with_their_handler_and_locked_or_failed_ones_stay(
    opened: Open, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_delayed_job(engine)
    ends = opened(DELAYED_JOB)
    check_delayed_job(ends, engine, "UTC_TIMESTAMP(6)")
    # The worker takes queue after queue, in the order of the mapping.
    assert work(ends, monkeypatch) == [(6, PAYLOAD), (4, PAYLOAD), (3, PAYLOAD), (2, PAYLOAD), (1, PAYLOAD)]


@pytest.fixture
def away_from_utc(mariadb: PrivateMariaDB) -> Iterator[None]:
    """The database server keeps a local time of its own."""
    with mariadb.connect_as_root() as connection, connection.cursor() as cursor:
        cursor.execute("SET GLOBAL time_zone = '+05:30'")
        yield
        cursor.execute("SET GLOBAL time_zone = 'SYSTEM'")


@pytest.mark.usefixtures("away_from_utc")
def test_times_that_are_kept_in_local_time_keep_their_moment(opened: Open, engine: sa.Engine) -> None:
    fill_delayed_job(engine, "NOW(6)")
    words = words_of(DELAYED_JOB)
    words["source"]["clocks"] = dict.fromkeys(words["source"]["clocks"], "local")
    check_delayed_job(opened(words), engine, "NOW(6)")


@pytest.mark.usefixtures("away_from_utc")
def test_a_local_time_beyond_2038_stays_in_the_future(opened: Open, engine: sa.Engine) -> None:
    create(engine, "delayed_jobs.sql")
    far = {
        "id": 1,
        "run_at": "2199-01-01 00:00:00",
        "handler": "x",
        "created_at": "2020-01-01",
        "updated_at": "2020-01-01",
    }
    insert(engine, "delayed_jobs", [far])
    words = words_of(DELAYED_JOB)
    words["source"]["clocks"] = dict.fromkeys(words["source"]["clocks"], "local")
    ends = opened(words)
    assert transfer(ends).moved == 1
    assert scheduled(ends, "rails-default") == {"1": 7226562600}  # 2198-12-31 18:30 UTC


@pytest.mark.usefixtures("away_from_utc")
def test_a_timestamp_column_keeps_its_moment_whatever_the_zone_of_the_server(opened: Open, engine: sa.Engine) -> None:
    fill_delayed_job(engine, "NOW(6)")
    with engine.begin() as connection:
        for column in ("run_at", "locked_at"):
            connection.exec_driver_sql(f"ALTER TABLE delayed_jobs MODIFY {column} TIMESTAMP NULL")
    words = words_of(DELAYED_JOB)
    words["source"]["clocks"] = {"created_at": "local"}
    check_delayed_job(opened(words), engine, "NOW(6)")


def test_epochs_do_not_depend_on_the_hour_that_comes_twice(opened: Open, engine: sa.Engine) -> None:
    """When summer time ends, the same local time names two moments; an epoch does not."""
    fill_laravel(engine)
    ends = opened(LARAVEL)
    _ = ends.source.live
    now = str(sa.select(ends.source._compiler.instant("epoch")).compile())
    assert "NOW(" not in now.replace("UTC_NOW(", "")
    with engine.connect() as connection:
        connection.exec_driver_sql("SET timestamp = 1792892700.5, time_zone = '+01:00'")
        assert float(connection.scalar(sa.text(now)) or 0) == 1792892700.5


# -- payloads that are no text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_payload_bytes_that_are_no_text_are_carried_by_pickle_and_held_by_json(
    opened: Open, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, serializer: str
) -> None:
    create(engine, "jobs.sql")
    raw = bytes(range(256)) + b"'; --"
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs MODIFY payload LONGBLOB NOT NULL")
    insert(engine, "jobs", [{"queue": "high", "payload": raw, "attempts": 0, "available_at": 1, "created_at": 1}])
    words = words_of(LARAVEL)
    words["target"]["serializer"] = serializer
    ends = opened(words)
    moved = transfer(ends)
    if serializer == "pickle":
        assert work(ends, monkeypatch) == [(1, raw)]
    else:
        assert moved.moved == 0
        assert [(held.id, held.where) for held in ends.ledger.held()] == [
            ("1", "an argument of type bytes cannot be carried as JSON")
        ]


def test_values_with_quotes_are_values(opened: Open, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queue values, ids and conditions with quotes find their rows and change nothing else."""
    create(engine, "jobs.sql")
    hostile = "x'; DROP TABLE jobs; -- \" ` %s :n \\"
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs MODIFY id VARCHAR(150) NOT NULL")
    common = {"attempts": 0, "available_at": 1, "created_at": 1, "payload": hostile}
    insert(engine, "jobs", [{"id": hostile, "queue": hostile, **common}, {"id": "b", "queue": "other", **common}])
    words = words_of(LARAVEL)
    words["source"]["places"]["cancelled"] = {"column": "queue", "equals": "' OR '1'='1"}
    words["source"]["places"]["failed"] = {"column": "queue", "starts_with": "' OR 1=1 -- %"}
    words["source"]["order"] = [{"column": "queue", "first": [hostile, "' OR 1=1"]}]
    words["target"]["queues"] = {hostile: "hostile"}
    words["target"]["default_queue"] = "rest"
    words["source"]["claimers"][0]["kind"] = "unguarded"
    ends = opened(words)
    assert refusals(ends.source) == ""
    assert ends.source.counts() == {hostile: {"ready": 1}, "other": {"ready": 1}}
    assert ends.source.in_hand(1)[0] == hostile
    assert transfer(ends).moved == 2
    assert work(ends, monkeypatch) == [(hostile, hostile), ("b", hostile)]
    assert {sighting.id for sighting in ends.ledger.marks()} == {hostile, "b"}
    assert ends.source.hold(ends.lease, [hostile], 'by hand: it\'s "odd"') == 1
    assert len(snapshot(engine, "jobs")) == 2


# -- many rows ------------------------------------------------------------------------------------------------------


def test_a_companion_hold_moves_thousands_in_order(opened: Open, engine: sa.Engine) -> None:
    create(engine, "jobs.sql")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (queue, payload, attempts, available_at, created_at) "
            "SELECT 'high', CONCAT('p', seq), 0, 1, 1 FROM seq_1_to_5000"
        )
    ends = opened(LARAVEL)
    moved = transfer(ends)
    assert moved.moved == 5000
    assert queued(ends, "laravel-high") == [str(n) for n in range(1, 5001)]


def test_rows_that_change_after_they_were_read_ahead_are_judged_again(
    opened: Open, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small readings ahead: rows vanish, are reserved or come late, delayed ones follow, and all that is free moves."""
    monkeypatch.setattr(sql_table, "READ_AHEAD", 7)
    create(engine, "jobs.sql")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (queue, payload, attempts, available_at, created_at) "
            "SELECT 'high', 'p', 0, IF(seq > 20, UNIX_TIMESTAMP() + 900, 1), 1 FROM seq_1_to_30"
        )
    ends = opened(LARAVEL)
    assert [task.id for task in ends.source.claim(ends.lease, 2).tasks] == ["1", "2"]
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM jobs WHERE id IN (3, 21)")
        connection.exec_driver_sql("UPDATE jobs SET reserved_at = UNIX_TIMESTAMP() WHERE id IN (4, 5, 20, 30)")
        connection.exec_driver_sql("UPDATE jobs SET available_at = UNIX_TIMESTAMP() + 900 WHERE id = 6")
    seen: list[str] = []
    late = {"id": 100, "queue": "high", "payload": "p", "attempts": 0, "available_at": 1, "created_at": 1}
    while tasks := ends.source.claim(ends.lease, 2).tasks:
        seen += [task.id for task in tasks]
        if "22" in seen and late:
            insert(engine, "jobs", [late])
            late = {}
    free = list(range(7, 20))
    assert seen[:13] == [str(n) for n in free]
    assert sorted(map(int, seen)) == sorted([*free, 6, *range(22, 30), 100])
    assert ends.source.put_back(ends.lease) == len(seen) + 2
    assert len(ends.source.claim(ends.lease, 2).tasks) == 2


def test_a_hold_by_columns_without_an_index_reads_ahead_once_a_search_was_slow(
    opened: Open, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_table, "_SLOW_PICK", 0.0)
    create(engine, "jobs.sql")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE jobs ADD COLUMN side VARCHAR(9) DEFAULT 'old', ADD COLUMN token BIGINT DEFAULT 0"
        )
        connection.exec_driver_sql(
            "INSERT INTO jobs (queue, payload, attempts, available_at, created_at) "
            "SELECT 'high', 'p', 0, 1, 1 FROM seq_1_to_300"
        )
    words = words_of(LARAVEL)
    source = words["source"]
    source["hold"] = {
        "kind": "columns",
        "token_column": "token",
        "claim": {"side": "held", "token": "$token"},
        "moved": {"side": "rq"},
        "back": {"side": "old", "token": 0},
    }
    ours = {name: source["places"][name] for name in ("ready", "delayed", "leased")}
    source["places"] = {
        name: [{"column": "side", "equals": "old"}, *(c if isinstance(c, list) else [c])] for name, c in ours.items()
    } | {"claimed": {"column": "side", "equals": "held"}, "moved": {"column": "side", "equals": "rq"}}
    ends = opened(words)
    mover = Transfer(
        ends.source,
        ends.target,
        ends.ledger,
        SystemClock(),
        prove_fence=fenced,
        custody_in_row=True,
        pace=Pace(batch=70),
    )
    assert mover.slice(ends.lease, 60).moved == 300
    assert ends.source._reads_ahead
    assert queued(ends, "laravel-high") == [str(n) for n in range(1, 301)]


def test_a_claim_that_a_killed_mover_left_behind_is_taken_up_and_a_row_that_ended_meanwhile_stays(
    opened: Open, engine: sa.Engine
) -> None:
    fill_vedfolnir(engine)
    ends = opened(VEDFOLNIR)
    assert len(ends.source.claim(ends.lease, 3).tasks) == 3
    assert places(ends)["claimed"] == {"l-1", "task.1", "n-1"}
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE caption_generation_tasks SET status = 'CANCELLED' WHERE id = 'n-1'"))
    again = ends.again()
    moved = transfer(again)
    assert (moved.moved, moved.lost) == (7, 1)
    assert queued(again, "vedfolnir:rq:normal") == ["n-2", "n-3"]
    assert again.target.client.exists("rq:job:n-1") == 0
    again.engine.dispose()


# -- what does not fit ----------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], None]


def at(path: str, value: object) -> Change:
    """Set one word of a mapping."""

    def change(words: dict[str, Any]) -> None:
        *way, last = path.split("/")
        for step in way:
            words = words[int(step)] if isinstance(words, list) else words[step]
        words[int(last) if isinstance(words, list) else last] = value

    return change


def drop(path: str) -> Change:
    """Take one word out of a mapping."""

    def change(words: dict[str, Any]) -> None:
        *way, last = path.split("/")
        for step in way:
            words = words[step]
        del words[last]

    return change


MYISAM = """ALTER TABLE caption_generation_tasks DROP FOREIGN KEY task_of_user, DROP FOREIGN KEY task_of_connection;
ALTER TABLE caption_generation_tasks ENGINE=MyISAM"""
MISFITS: list[tuple[Path, str, Change, tuple[str, ...]]] = [
    (VEDFOLNIR, "", at("source/table", "images_tasks"), ("table 'images_tasks' does not exist",)),
    (VEDFOLNIR, "", at("source/columns/created", "queued_at"), ("source.columns", "'queued_at'")),
    (
        VEDFOLNIR,
        "",
        at("source/places/ready", {"column": "state", "equals": "QUEUED"}),
        ("source.places.ready", "'state'"),
    ),
    (
        VEDFOLNIR,
        "",
        at("source/places/leased", {"column": "status", "equals": "PROCESSING"}),
        ("source.places.leased", "'PROCESSING'", "RUNNING"),
    ),
    (
        VEDFOLNIR,
        "",
        at("source/places/leased", {"column": "retry_count", "below": "max_tries"}),
        ("source.places.leased", "'max_tries'"),
    ),
    (
        VEDFOLNIR,
        "",
        at("source/witness/ended", {"column": "status", "in": ["COMPLETED", "DONE"]}),
        ("source.witness.ended", "'DONE'"),
    ),
    (VEDFOLNIR, "", at("source/order/0/first", ["urgent", "HIGH"]), ("source.order", "'HIGH'")),
    (VEDFOLNIR, "", at("source/claimers/0/order", ["queued_at"]), ("source.claimers", "caption_worker", "'queued_at'")),
    (VEDFOLNIR, "", at("target/args", ["task_id"]), ("target.args", "'task_id'")),
    (VEDFOLNIR, "", drop("target/queues/low"), ("target.queues", "'low'", "'priority'")),
    (VEDFOLNIR, "", at("target/queues/asap", "vedfolnir:rq:asap"), ("target.queues", "'asap'")),
    (VEDFOLNIR, "", at("source/clocks/created_at", "epoch"), ("'created_at'", "epoch")),
    (VEDFOLNIR, "", at("source/clocks/status", "utc"), ("source.clocks", "'status'")),
    (
        VEDFOLNIR,
        "ALTER TABLE caption_generation_tasks DROP COLUMN priority",
        at("user_constraint", False),
        ("source.columns", "'priority'"),
    ),
    (VEDFOLNIR, MYISAM, at("user_constraint", False), ("is MyISAM",)),
    (
        VEDFOLNIR,
        "ALTER TABLE caption_generation_tasks DROP PRIMARY KEY, ADD COLUMN n INT AUTO_INCREMENT PRIMARY KEY",
        at("user_constraint", False),
        ("primary key", "(n)"),
    ),
    (LARAVEL, "", at("source/clocks/available_at", "utc"), ("'available_at'", "utc")),
    (
        LARAVEL,
        "",
        at("source/places/cancelled", {"column": "attempts", "equals": "cancelled"}),
        ("source.places.cancelled", "'attempts'", "'cancelled'"),
    ),
    (
        LARAVEL,
        "",
        at("source/places/cancelled", {"column": "queue", "equals": 0}),
        ("source.places.cancelled", "'queue'", "0"),
    ),
    (LARAVEL, "", drop("target/default_queue"), ("target.queues", "'a name nobody listed'", "'queue'")),
    (
        LARAVEL,
        "ALTER TABLE jobs MODIFY id BINARY(16) NOT NULL",
        at("source/order", ["id"]),
        ("source.columns.id", "'id'"),
    ),
    (DELAYED_JOB, "", at("source/clocks/locked_at", "epoch"), ("'locked_at'", "epoch")),
    (
        DELAYED_JOB,
        "ALTER TABLE delayed_jobs MODIFY run_at TIMESTAMP NULL",
        at("source/clocks/run_at", "utc"),
        ("'run_at'", "TIMESTAMP"),
    ),
    (
        DELAYED_JOB,
        "ALTER TABLE delayed_jobs MODIFY run_at VARCHAR(40) NULL",
        drop("source/clocks/run_at"),
        ("'run_at'", "text"),
    ),
]

FILL: dict[Path, Callable[[sa.Engine], None]] = {
    VEDFOLNIR: fill_vedfolnir,
    LARAVEL: fill_laravel,
    DELAYED_JOB: fill_delayed_job,
}


@pytest.mark.parametrize(
    ("file", "alteration", "change", "named"), MISFITS, ids=[" ".join(case[3]) for case in MISFITS]
)
def test_a_mapping_that_does_not_fit_is_refused_and_names_what(
    engine: sa.Engine, file: Path, alteration: str, change: Change, named: tuple[str, ...]
) -> None:
    FILL[file](engine)
    if alteration:
        with engine.begin() as connection:
            for statement in alteration.split(";"):
                connection.exec_driver_sql(statement)
    before = snapshot(engine, TABLE_OF[file])
    words = words_of(file)
    change(words)
    said = refusals(SqlTable(engine, mappings.parse(words)))
    assert [word for word in named if word not in said] == [], said
    assert snapshot(engine, TABLE_OF[file]) == before


# -- what is refused before any database is asked -------------------------------------------------------------------

HOSTILE = "id` = 1 OR 1=1; -- "
UNREADABLE: list[tuple[Path, Change, tuple[str, ...]]] = [
    *[
        (LARAVEL, at(path, value), (where, "name of a table or column"))
        for path, value, where in [
            ("source/table", "jobs; DROP TABLE jobs", "source.table"),
            ("source/table", "mysql.user", "source.table"),
            ("source/columns/id", HOSTILE, "source.columns.id"),
            ("source/columns/queue", "queue\n", "source.columns.queue"),
            ("source/places/ready", {"column": HOSTILE, "equals": 1}, "source.places.ready"),
            ("source/places/ready", {"all": [{"not": {"column": HOSTILE, "null": True}}]}, "source.places.ready"),
            ("source/places/ready", {"column": "attempts", "below": "1 OR 1=1"}, "source.places.ready"),
            ("source/order", [HOSTILE], "source.order[0]"),
            ("source/order", [{"column": "id DESC, SLEEP(9)"}], "source.order[0]"),
            ("source/clocks", {HOSTILE: "utc"}, "source.clocks"),
            ("source/witness/started", {"column": HOSTILE, "due": True}, "source.witness.started"),
            ("target/args", ["id", HOSTILE], "target.args[1]"),
            ("target/opaque", "payload, (SELECT 1)", "target.opaque"),
            (
                "source/hold",
                {"kind": "columns", "token_column": "a b", "claim": {"a": 1}, "moved": {"a": 1}, "back": {"a": 1}},
                "source.hold",
            ),
        ]
    ],
    (LARAVEL, at("target/function", "os.system('x')"), ("target.function", "dotted")),
    (LARAVEL, at("target/default_queue", "a b"), ("target.default_queue", "queue name")),
    (LARAVEL, drop("source/columns/available"), ("source.places.delayed", "source.columns.available")),
    (
        LARAVEL,
        at("source/places/leased", {"column": "reserved_at", "due": False, "plus": float("inf")}),
        ("source.places.leased", "seconds"),
    ),
    (LARAVEL, at("source/places/sleeping", {"column": "id", "null": True}), ("'sleeping' is not a place",)),
    (LARAVEL, drop("source/places/leased"), ("'leased' is missing",)),
]


@pytest.mark.parametrize(("file", "change", "named"), UNREADABLE, ids=[str(n) for n in range(len(UNREADABLE))])
def test_what_is_no_name_is_refused_when_the_mapping_is_read(
    file: Path, change: Change, named: tuple[str, ...]
) -> None:
    words = words_of(file)
    change(words)
    with pytest.raises(MappingError) as caught:
        mappings.parse(words)
    assert [word for word in named if word not in str(caught.value)] == [], str(caught.value)


def test_null_may_be_written_without_quotes() -> None:
    """YAML reads the bare word null as no value; the condition is understood all the same."""
    words = words_of(LARAVEL)
    bare = yaml.safe_load("{column: reserved_at, null: false}")
    words["source"]["witness"]["started"] = bare
    assert mappings.parse(words) == mappings.parse(words_of(LARAVEL))


def test_a_route_of_none_keeps_how_long_a_producer_may_take() -> None:
    assert mappings.parse(words_of(VEDFOLNIR)).route.producer_timeout == 60.0


# -- the page about mappings ----------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "mapping.md"


def block(language: str, first_line: str) -> str:
    """A code block of the page, by its first line."""
    found = [
        b for b in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL) if b.startswith(first_line)
    ]
    assert len(found) == 1, f"{len(found)} blocks of {language} begin with {first_line!r}"
    return found[0]


def test_the_worked_example_of_the_page_moves_its_table(
    opened: Open, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        for statement in filter(str.strip, block("sql", "CREATE TABLE mail_queue").split(";")):
            connection.exec_driver_sql(statement)
    ends = opened(yaml.safe_load(block("yaml", "system: mail")))
    assert refusals(ends.source) == ""
    assert places(ends) == {
        "ready": {"1", "2"},
        "delayed": {"3"},
        "leased": {"4"},
        "finished": {"5"},
        "failed": {"6"},
        "unknown": {"7"},
    }
    assert transfer(ends).moved == 3
    assert queued(ends, "mail-fast") == ["2"]
    assert queued(ends, "mail-slow") == ["1"]
    assert list(scheduled(ends, "mail-slow")) == ["3"]
    assert [call[0] for call in work(ends, monkeypatch)] == [2, 1]


def test_every_word_of_a_mapping_is_on_the_page() -> None:
    text = PAGE.read_text()
    words: set[str] = set()
    for path in (VEDFOLNIR, LARAVEL, DELAYED_JOB, ROOT / "inventories" / "lab" / "mapping.yml"):
        data = words_of(path)
        for table in (
            data,
            data["source"],
            data["target"],
            data["source"]["columns"],
            data["source"]["places"],
            data.get("route", {}),
            data.get("intake", {}),
            *data["source"]["claimers"],
        ):
            words |= set(table)
    assert sorted(word for word in words if f"`{word}`" not in text) == []


def test_the_rights_on_the_page_suffice_for_plan_and_transfer(
    mariadb: PrivateMariaDB, redis_server: PrivateRedis, database_url: str, redis_url: str, engine: sa.Engine
) -> None:
    fill_laravel(engine)
    mapping = mappings.parse(words_of(LARAVEL))
    database = sa.make_url(database_url).database or ""

    def filled_in(text: str) -> str:
        names = {"<database>": database, "<mover>": "127.0.0.1", "<password>": "change-me", "<system>": "laravel"}
        for name, value in names.items():
            text = text.replace(name, value)
        return re.sub(r"\bsluice@|(?<=SETUSER )sluice ", lambda m: m[0].replace("sluice", "mover_test"), text).replace(
            "sluice_read", "plan_test"
        )

    client = redis_server.client()
    with mariadb.connect_as_root() as connection, connection.cursor() as cursor:
        for statement in filter(str.strip, filled_in(block("sql", "CREATE USER sluice@")).split(";")):
            cursor.execute(statement)
    try:
        for line in filled_in(block("text", "ACL SETUSER sluice ")).splitlines():
            client.execute_command(*line.split())
        address = redis_server.url().rpartition("@")[2]
        mover_url = mariadb.url("mover_test", "change-me", database)
        ends = open_ends(mover_url, f"redis://mover_test:change-me@{address}", mapping)
        assert SqlServerHealth(ends.engine).read(["jobs"]).missing_privileges == []
        assert ends.ledger.save_baseline(ends.lease) == 8

        reader = sql_connect.connect(mariadb.url("plan_test", "change-me", database))
        source = SqlTable(reader, mapping)
        plan = RqQueues(redis_connect.connect(f"redis://plan_test:change-me@{address}", read_only=True), mapping)
        assert refusals(source) == ""
        assert sum(1 for _ in source.census()) == 8
        assert source.counts()["high"] == {"ready": 2}
        assert list(plan.census()) == []
        assert plan.depths() == {"laravel-high": 0, "laravel-default": 0, "laravel-low": 0}
        with pytest.raises(sa.exc.OperationalError, match="denied"), reader.begin() as session:
            session.exec_driver_sql("UPDATE jobs SET attempts = 1")
        with pytest.raises(NoPermissionError):
            Redis.from_url(f"redis://plan_test:change-me@{address}").set("rq:x", 1)
        reader.dispose()

        assert transfer(ends).moved == 6
        assert len([s for s in ends.target.census() if s.place == Home.QUEUED]) == 5
        assert len(ends.target.look("2")) == 2
        assert ends.target.durable()
        with pytest.raises(NoPermissionError):
            ends.target.client.flushall()
        with pytest.raises(NoPermissionError):
            ends.target.client.set("somebody:else", 1)
        ends.engine.dispose()
    finally:
        client.execute_command("ACL", "DELUSER", "mover_test", "plan_test")
        with mariadb.connect_as_root() as connection, connection.cursor() as cursor:
            cursor.execute("DROP USER IF EXISTS mover_test@'127.0.0.1', plan_test@'127.0.0.1'")


def test_a_claimers_order_is_part_of_the_mapping() -> None:
    claimers = mappings.parse(words_of(VEDFOLNIR)).source.claimers
    assert [[step.column for step in claimer.order] for claimer in claimers] == [["created_at"], ["created_at"], []]


# -- rows that nobody meant -----------------------------------------------------------------------------------------

_BYTES = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"", b"\0", b"\xff" * 3000, b"{" * 20_000, b"\x80\x04cos\nsystem\n", PAYLOAD.encode(), b"x" * 700_000]
    ),
)
_IDS = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=190).map(str.rstrip),
    st.sampled_from(["", "0", "-1", "a b", "a\nb", "é", "e\u0301", "$now", "../x", "1:2", "%s", "a" * 190, "\u202e"]),
)
_NUMBERS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 1, 2**31, 2**32, 253402300800]))
_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": _IDS,
            "queue": st.one_of(st.none(), st.sampled_from(["high", "default", "low"]), _IDS),
            "payload": st.one_of(st.none(), _BYTES),
            "attempts": _NUMBERS,
            "reserved_at": st.one_of(st.none(), _NUMBERS),
            "available_at": _NUMBERS,
            "created_at": _NUMBERS,
        }
    ),
    unique_by=lambda row: row["id"],
    min_size=15,
    max_size=25,
)


@pytest.mark.parametrize(("id_", "said"), [("a" * (LONGEST_ID + 1), "191 characters"), ("b ", "the last one a space")])
def test_an_id_that_the_ledger_cannot_keep_is_refused_before_anything_moves(
    opened: Open, engine: sa.Engine, id_: str, said: str
) -> None:
    create(engine, "jobs.sql")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs MODIFY id VARCHAR(255) NOT NULL")
    common = {"queue": "high", "payload": "x", "attempts": 0, "available_at": 1, "created_at": 1}
    insert(engine, "jobs", [{"id": "c", **common}])
    ends = opened(LARAVEL)
    assert refusals(ends.source) == ""
    insert(engine, "jobs", [{"id": id_, **common}])
    assert said in refusals(ends.source)


def test_a_number_that_is_no_moment_stops_no_other_row(opened: Open, engine: sa.Engine) -> None:
    create(engine, "jobs.sql")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs MODIFY available_at BIGINT NOT NULL, MODIFY created_at BIGINT")
    common = {"queue": "high", "payload": "x", "attempts": 0}
    times = {1: (1, 2**63 - 1), 2: (-(2**63), -(2**63)), 3: (2**63 - 1, None), 4: (253402300800, 1)}
    rows = [{"id": n, "available_at": due, "created_at": made, **common} for n, (due, made) in times.items()]
    insert(engine, "jobs", rows)
    ends = opened(LARAVEL)
    assert transfer(ends).moved == 4
    assert queued(ends, "laravel-high") == ["1", "2"]
    assert scheduled(ends, "laravel-high") == {"3": 253402300799, "4": 253402300799}


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_row_of_any_content_is_moved_whole_or_stays_and_says_why(
    opened: Open, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, redis_server: PrivateRedis, serializer: str
) -> None:
    create(engine, "jobs.sql")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE jobs MODIFY id VARCHAR(191) COLLATE utf8mb4_nopad_bin NOT NULL, MODIFY payload LONGBLOB NULL,"
            " MODIFY queue VARCHAR(255) NULL, MODIFY attempts BIGINT NULL, MODIFY reserved_at BIGINT NULL,"
            " MODIFY available_at BIGINT NULL, MODIFY created_at BIGINT NULL"
        )
    words = words_of(LARAVEL)
    words["target"]["serializer"] = serializer
    met: Counter[str] = Counter()

    @settings(
        derandomize=True,
        deadline=None,
        max_examples=10,
        phases=[HPhase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(rows=_ROWS)
    def any_rows(rows: list[dict[str, Any]]) -> None:
        columns = list(rows[0])
        with engine.begin() as connection:
            for table in [
                "jobs",
                *(name for name in sa.inspect(connection).get_table_names() if name[:7] == "sluice_"),
            ]:
                connection.exec_driver_sql(f"{'DELETE FROM' if table == 'jobs' else 'DROP TABLE'} {table}")
            connection.execute(
                sa.text(
                    f"INSERT INTO jobs ({', '.join(columns)}) VALUES ({', '.join(f':{name}' for name in columns)})"
                ),
                rows,
            )
        redis_server.client().flushall()
        ends = opened(words)
        assert refusals(ends.source) == ""
        before = snapshot(engine, "jobs")
        expected = {id_: place for place, ids in places(ends).items() for id_ in ids}
        transfer(ends)
        moved = {mark.id for mark in ends.ledger.marks() if mark.place == "moved"}
        held = {mark.id: mark.where for mark in ends.ledger.held()}
        assert snapshot(engine, "jobs") == before
        assert all(held.values())
        assert not moved & held.keys()
        for id_, place in expected.items():
            assert (id_ in moved or id_ in held) == (place in ("ready", "delayed")), (id_, place)
        for row in rows:
            if row["id"] in moved:
                job = Job.fetch(job_id_for("laravel", row["id"]), ends.target.client, serializer=ends.target.serializer)
                payload = row["payload"]
                found = job.args[1].encode() if isinstance(job.args[1], str) else job.args[1]
                assert (job.args[0], found) == (row["id"], payload)
        assert transfer(ends).moved == 0
        met.update(moved=len(moved), held=len(held))

    any_rows()
    assert met["moved"] > 20
    assert met["held"] or serializer == "pickle", "bytes that are no text are held by JSON"
