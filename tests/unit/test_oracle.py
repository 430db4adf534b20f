"""The oracle itself: planted losses, doubles and lies are found by id, and a clean history passes."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from oracle.acceptance import Acceptance, next_user, read_acceptance
from oracle.backlog import Backlog, _rows
from oracle.crash import crash
from oracle.effects import Effects, read_effects
from oracle.journal import Damage, Journal, read_records
from oracle.judge import MEANINGS, Allowances, Verdict, judge, main
from oracle.load import Generator, Load
from oracle.patience import PATIENCE_SECONDS, until
from oracle.picture import image_names
from oracle.prober import Prober, turned_away
from oracle.prober import main as probe
from oracle.stores import Row, TableFacts
from oracle.submission import Submitter


class World:
    """A small history to tamper with: three tasks accepted, run once each on their side, and completed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.accepted: list[dict[str, Any]] = [
            {"task": task, "user": n, "priority": "normal", "at": 10.0 + n} for n, task in enumerate("abc", 1)
        ]
        self.effects: list[dict[str, Any]] = []
        self.rows: dict[str, Row] = {}
        for n, task in enumerate("abc", 1):
            self.start(task, 20.0 + n)
            self.end(task, 20.5 + n)
            self.rows[task] = Row(task, "completed", user=n, custody="rq", enqueued=True, available_at=10.0 + n)

    def start(self, task: str, at: float, pid: int = 1, side: str = "rq") -> None:
        self.effects.append({"event": "start", "task": task, "side": side, "worker": "w", "pid": pid, "at": at})

    def end(self, task: str, at: float, pid: int = 1, side: str = "rq") -> None:
        self.effects.append({"event": "end", "task": task, "side": side, "worker": "w", "pid": pid, "at": at})

    def drop(self, event: str, task: str) -> None:
        self.effects = [e for e in self.effects if (e["event"], e["task"]) != (event, task)]

    def promised(self) -> Acceptance:
        return read_acceptance([_write(self.directory / "accepted", self.accepted)])

    def done(self) -> Effects:
        return read_effects([_write(self.directory / "effects", self.effects)])

    def verdict(
        self, homes: dict[str, list[str]] | None = None, facts: TableFacts | None = None, **allowed: Any
    ) -> Verdict:
        return judge(self.promised(), self.done(), iter(self.rows.values()), facts, homes, Allowances(**allowed))


def _write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_clean_history_passes(world: World) -> None:
    verdict = world.verdict()
    assert verdict.violations == {}
    assert verdict.clean
    assert (verdict.figures["promised"], verdict.figures["starts"], verdict.figures["ends"]) == (3, 3, 3)
    assert "verdict: clean" in verdict.table()


def test_a_missing_row_is_lost(world: World) -> None:
    del world.rows["b"]
    world.drop("start", "b")
    world.drop("end", "b")
    assert world.verdict().violations == {"lost": ["b"]}


def test_a_missing_row_is_lost_even_when_it_ran_unless_the_table_forgets(world: World) -> None:
    del world.rows["b"]
    assert world.verdict().violations == {"lost": ["b"]}
    assert world.verdict(facts=TableFacts(forgets=True)).clean
    world.drop("end", "b")
    assert world.verdict(facts=TableFacts(forgets=True)).violations == {"lost": ["b"]}


def test_a_row_that_says_rq_without_a_job_is_lost(world: World) -> None:
    world.rows["b"] = Row("b", "queued", user=2, custody="rq", enqueued=True)
    world.drop("start", "b")
    world.drop("end", "b")
    assert world.verdict(homes={}).violations == {"unfinished": ["b"], "lost": ["b"]}
    assert world.verdict(homes={"b": ["rq:queue:normal"]}).violations == {"unfinished": ["b"]}
    assert world.verdict(homes={"b": ["rq:queue:normal"]}, in_flight=True).clean


@pytest.mark.parametrize(
    ("custody", "homes"),
    [
        ("rq", ["rq:queue:low", "rq:queue:low"]),
        ("rq", ["rq:queue:low", "rq:scheduled:low"]),
        ("db", ["rq:queue:low"]),
        ("held", ["rq:queue:low"]),
    ],
)
def test_two_homes_are_found(world: World, custody: str, homes: list[str]) -> None:
    world.rows["b"] = Row("b", "queued", user=2, custody=custody, enqueued=True)
    world.drop("start", "b")
    world.drop("end", "b")
    assert world.verdict(homes={"b": homes}, in_flight=True).violations == {"two_homes": ["b"]}


def test_a_running_job_is_in_two_keys_but_one_home(world: World) -> None:
    world.rows["b"] = Row("b", "running", user=2, custody="rq", enqueued=True)
    assert world.verdict(homes={"b": ["rq:wip:low", "rq:queue:low:intermediate"]}, in_flight=True).clean


def test_a_second_effect_is_a_double(world: World) -> None:
    world.start("b", 30, pid=2, side="db")
    world.end("b", 31, pid=2, side="db")
    assert world.verdict(kills=5).violations == {"doubled": ["b"], "started_again": ["b"]}


def test_two_overlapping_effects_are_a_double(world: World) -> None:
    world.start("b", 22.1, pid=2)
    world.end("b", 22.9, pid=2)
    assert world.verdict(kills=5).violations == {"doubled": ["b"], "started_again": ["b"]}


def test_two_ends_of_one_start_are_found(world: World) -> None:
    world.end("b", 30)
    assert world.verdict().violations == {"doubled": ["b"], "ended_without_start": ["b"]}


def test_a_second_start_needs_a_kill(world: World) -> None:
    world.start("b", 15.0, pid=9)
    assert world.verdict().violations == {"started_twice": ["b"]}
    excused = world.verdict(kills=1)
    assert excused.clean
    assert excused.figures["explained_by_kills"] == 1


def test_kills_are_a_budget_over_all_tasks(world: World) -> None:
    world.start("a", 15.0, pid=9)
    world.start("b", 15.0, pid=9)
    assert world.verdict(kills=1).violations == {"started_twice": ["a", "b"]}
    assert world.verdict(kills=2).clean


def test_a_start_after_the_effect_is_never_explained(world: World) -> None:
    world.start("b", 40.0, pid=9)
    assert world.verdict(kills=5).violations == {"started_again": ["b"]}


def test_a_start_without_an_end_is_found(world: World) -> None:
    world.drop("end", "b")
    assert world.verdict().violations == {"completed_without_effect": ["b"]}
    assert world.verdict(kills=1).clean


def test_completed_without_any_start_is_not_explained_by_kills(world: World) -> None:
    world.drop("start", "b")
    world.drop("end", "b")
    assert world.verdict(kills=9).violations == {"completed_without_effect": ["b"]}


def test_an_end_without_a_start_is_found(world: World) -> None:
    world.drop("start", "b")
    assert world.verdict().violations == {"ended_without_start": ["b"]}


def test_an_end_of_another_worker_than_started_is_found(world: World) -> None:
    world.drop("end", "b")
    world.end("b", 23.0, pid=77)
    assert world.verdict().violations == {"ended_without_start": ["b"]}


def test_an_effect_of_an_unknown_id_is_found(world: World) -> None:
    world.start("x", 30)
    world.end("x", 31)
    world.rows["x"] = Row("x", "completed", user=99)
    assert world.verdict().violations == {"unknown": ["x"]}
    assert world.verdict(canary_users=(90, 100)).clean
    assert world.verdict(in_flight=True).clean


def test_a_double_of_an_unknown_id_is_found_too(world: World) -> None:
    world.start("x", 30)
    world.end("x", 31)
    world.end("x", 32)
    assert set(world.verdict().violations) == {"unknown", "doubled", "ended_without_start"}


@pytest.mark.parametrize("status", ["queued", "running"])
def test_an_effect_whose_row_still_waits_is_found(world: World, status: str) -> None:
    world.rows["b"] = Row("b", status, user=2, custody="db")
    assert world.verdict().violations == {"unfinished": ["b"], "effect_without_completion": ["b"]}
    assert world.verdict(in_flight=True).clean


def test_a_failed_row_with_an_effect_and_a_failed_row_are_found(world: World) -> None:
    world.rows["b"] = Row("b", "failed", user=2, custody="rq")
    assert world.verdict().violations == {"effect_without_completion": ["b"], "failed": ["b"]}
    world.drop("end", "b")
    assert world.verdict().violations == {"failed": ["b"]}
    assert world.verdict(failed=True).clean
    world.start("b", 50, pid=2)
    assert world.verdict(failed=True).violations == {"started_twice": ["b"]}
    assert world.verdict(failed=True, attempts=2).clean


def test_a_held_task_is_named_unless_expected(world: World) -> None:
    world.rows["b"] = Row("b", "queued", user=2, custody="held")
    world.drop("end", "b")
    assert world.verdict().violations == {"held": ["b"]}
    assert world.verdict(held=True).clean
    assert world.verdict(held=True).figures["rows_held"] == 1


def test_a_confirmed_cancellation_must_hold(world: World) -> None:
    world.accepted.append({"cancel": "b", "status": 200, "at": 15.0})
    assert world.verdict().violations == {"cancellation_undone": ["b"], "ran_after_cancellation": ["b"]}
    world.rows["b"] = Row("b", "cancelled", user=2)
    assert world.verdict().violations == {"ran_after_cancellation": ["b"]}
    world.drop("start", "b")
    world.drop("end", "b")
    assert world.verdict().clean


def test_a_refused_cancellation_changes_nothing(world: World) -> None:
    world.accepted.append({"cancel": "b", "status": 409, "at": 15.0})
    assert world.verdict().clean
    world.rows["b"] = Row("b", "cancelled", user=2)
    assert world.verdict().violations == {"cancelled_unasked": ["b"]}


def test_an_unanswered_cancellation_may_go_either_way(world: World) -> None:
    world.accepted.append({"cancel": "b", "status": 0, "at": 15.0})
    assert world.verdict().clean
    world.rows["b"] = Row("b", "cancelled", user=2)
    world.drop("start", "b")
    world.drop("end", "b")
    assert world.verdict().clean


def test_an_ambiguous_submission_may_exist_and_then_counts(world: World) -> None:
    world.accepted.append({"ambiguous": 7, "status": 0, "at": 15.0})
    assert world.verdict().clean
    world.rows["x"] = Row("x", "queued", user=7, custody="db")
    assert world.verdict().violations == {"unfinished": ["x"]}
    world.rows["x"] = Row("x", "completed", user=7, custody="db")
    world.start("x", 30)
    world.end("x", 31)
    assert world.verdict().clean
    world.start("x", 32, pid=2)
    world.end("x", 33, pid=2)
    assert set(world.verdict().violations) == {"doubled", "started_again"}


def test_a_start_before_its_time_is_found(world: World) -> None:
    world.rows["b"] = Row("b", "completed", user=2, available_at=24.0)
    assert world.verdict().violations == {"started_early": ["b"]}
    world.rows["b"] = Row("b", "completed", user=2, available_at=22.9)
    assert world.verdict().clean


def test_one_id_for_two_submissions_is_found(world: World) -> None:
    world.accepted.append({"task": "b", "user": 44, "priority": "low", "at": 12.0})
    assert world.verdict().violations == {"id_given_twice": ["b"]}


def test_rows_of_others_are_not_judged(world: World) -> None:
    world.rows["other"] = Row("other", "queued", user=12345, custody="db")
    assert world.verdict().clean


def test_seeded_ids_count_as_promised(world: World) -> None:
    listing = world.directory / "ids"
    listing.write_text("s1\ns2\n")
    promised = read_acceptance([], [listing])
    assert judge(promised, Effects(), []).violations == {"lost": ["s1", "s2"]}


def test_the_table_names_ten_ids_and_counts_the_rest() -> None:
    verdict = Verdict()
    for number in range(25):
        verdict.add("lost", f"id-{number:02}")
    text = verdict.table()
    assert [f"id-{n:02}" for n in range(25) if f"id-{n:02}" in text] == [f"id-{n:02}" for n in range(10)]
    assert "and 15 more" in text
    assert "VIOLATED" in text
    with pytest.raises(KeyError):
        verdict.add("misspelt", "x")
    assert "lost" in MEANINGS


def test_a_torn_last_line_is_tolerated_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "effects"
    whole = '{"event":"start","task":"a","side":"db","worker":"w","pid":1,"at":1.0}\n'
    file.write_text(whole + whole[:30])
    effects = read_effects([file])
    assert (effects.starts, effects.damage.torn, effects.damage.malformed) == (1, 1, [])


def test_a_record_behind_a_torn_one_is_not_lost(tmp_path: Path) -> None:
    file = tmp_path / "effects"
    start = '{"event":"start","task":"a","side":"db","worker":"w","pid":1,"at":1.0}\n'
    end = start.replace("start", "end")
    for cut in range(1, len(start) - 1):
        file.write_text(start + start[:cut] + end)
        effects = read_effects([file])
        assert (effects.starts, effects.ends, effects.damage.torn, effects.damage.malformed) == (1, 1, 1, [])


@pytest.mark.parametrize(
    "line",
    [
        "garbage",
        "[1]",
        '{"event":"start","task":"a"}',
        '{"event":"begin","task":"a","side":"db","worker":"w","pid":1,"at":1.0}',
        '{"event":"start","task":"a","side":"db","worker":"w","pid":1,"at":"noon"}',
    ],
)
def test_a_complete_line_that_is_no_record_is_a_violation(world: World, line: str) -> None:
    file = world.directory / "more"
    file.write_text(line + "\n")
    effects = read_effects([_write(world.directory / "effects", world.effects), file])
    verdict = judge(world.promised(), effects, world.rows.values())
    assert list(verdict.violations) == ["unreadable"]
    assert verdict.violations["unreadable"][0].startswith("more")


def test_a_directory_of_effects_files_is_read(world: World, tmp_path: Path) -> None:
    directory = tmp_path / "by-worker"
    directory.mkdir()
    _write(directory / "1", world.effects[:3])
    _write(directory / "2", world.effects[3:])
    assert judge(world.promised(), read_effects([directory]), world.rows.values()).clean


def test_a_missing_effects_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_effects([tmp_path / "absent"])


def test_a_journal_never_continues_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text('{"task":"a"}\n{"ta')
    with Journal(file) as journal:
        journal.append({"task": "b"})
    assert file.read_text().splitlines()[-1] == '{"task":"b"}'


def test_a_journal_keeps_every_line_of_many_threads(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with Journal(file) as journal:

        def write(thread: int) -> None:
            for n in range(50):
                journal.append({"t": thread, "n": n})

        threads = [threading.Thread(target=write, args=(t,)) for t in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    damage = Damage(0, [])
    records = [(record["t"], record["n"]) for record in read_records(file, damage)]
    assert sorted(records) == [(t, n) for t in range(8) for n in range(50)]
    assert damage == Damage(0, [])


def _probes(path: Path, statuses: list[int]) -> Path:
    return _write(
        path,
        [
            {"at": 100 + n / 10, "seconds": 0.001 * (n + 1), "status": status, "task": None, "user": n}
            for n, status in enumerate(statuses)
        ],
    )


def test_turned_away_is_zero_when_all_were_accepted(tmp_path: Path) -> None:
    summary = turned_away(_probes(tmp_path / "log", [201] * 100))
    assert (summary.probes, summary.turned_away_probes, summary.seconds_turned_away) == (100, 0, 0.0)
    assert (summary.p50, summary.p95, summary.p99) == pytest.approx((0.050, 0.095, 0.099))
    assert summary.longest_gap == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("statuses", "seconds"),
    [
        ([201, 201, 503, 503, 201, 201], 0.3),
        ([201, 0, 201, 409, 201, 201], 0.4),
        ([503, 503, 201], 0.2),
        ([201, 503, 503], 0.2),
        ([503, 503, 503], 0.2),
    ],
)
def test_turned_away_spans_run_from_good_to_good(tmp_path: Path, statuses: list[int], seconds: float) -> None:
    summary = turned_away(_probes(tmp_path / "log", statuses))
    assert summary.seconds_turned_away == pytest.approx(seconds)
    assert summary.turned_away_probes == sum(1 for status in statuses if status != 201)


def test_turned_away_looks_only_at_the_span_asked_for(tmp_path: Path) -> None:
    log = _probes(tmp_path / "log", [503, 201, 201, 201, 503, 201])
    assert turned_away(log, since=100.05, until=100.35).turned_away_probes == 0
    assert turned_away(log, until=100.45).seconds_turned_away == pytest.approx(0.45 - 0.3 + 0.1)


def test_no_probe_is_an_error_and_no_accepted_probe_has_no_latency(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no probe"):
        turned_away(_probes(tmp_path / "log", [201]), since=500)
    (tmp_path / "bad").write_text("x\n")
    with pytest.raises(ValueError, match="no record"):
        turned_away(tmp_path / "bad")
    assert math.isnan(turned_away(_probes(tmp_path / "log", [503])).p99)


class FakeApplication(ThreadingHTTPServer):
    """Accepts submissions; what it answers is set by `behaviour`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = "accept"
        self.submissions: list[dict[str, Any]] = []
        self.cancelled: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeApplication

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/cancel"):
            self.server.cancelled.append(self.path.split("/")[-2])
            self._answer(200, {})
            return
        self.server.submissions.append(body)
        if self.server.behaviour == "hang up":
            self.close_connection = True
            return
        if self.server.behaviour == "accept":
            self._answer(201, {"id": f"t{body['user_id']}"})
        else:
            self._answer(int(self.server.behaviour), {"error": "no"})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Silent."""


@contextmanager
def _application() -> Iterator[FakeApplication]:
    server = FakeApplication()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _load(server: FakeApplication | str, accepted: Path, count: int = 20, cancel_share: float = 0.0) -> Load:
    url = server if isinstance(server, str) else f"http://127.0.0.1:{server.server_address[1]}"
    return Load(url, accepted, 0, count, None, 1000, (1, 2, 6, 1), ("i.png",), 3, cancel_share, timeout=5)


def test_the_load_logs_exactly_what_was_accepted(tmp_path: Path) -> None:
    with _application() as server:
        counts = Generator(_load(server, tmp_path / "log"), threading.Event()).run()
        assert counts == {"accepted": 20}
        promised = read_acceptance([tmp_path / "log"])
        assert promised.tasks == {f"t{user}" for user in range(1000, 1020)}
        assert {s["image"] for s in server.submissions} == {"i.png"}
        assert {s["priority"] for s in server.submissions} <= {"urgent", "high", "normal", "low"}
        server.behaviour = "503"
        assert Generator(_load(server, tmp_path / "log", 5), threading.Event()).run() == {"turned away": 5}
        assert {s["user_id"] for s in server.submissions[20:]} == set(range(1020, 1025))
        assert next_user(tmp_path / "log", 1000) == 1025
        assert read_acceptance([tmp_path / "log"]).turned_away == 5


@pytest.mark.parametrize("behaviour", ["hang up", "500"])
def test_an_unclear_answer_is_ambiguous(tmp_path: Path, behaviour: str) -> None:
    with _application() as server:
        server.behaviour = behaviour
        assert Generator(_load(server, tmp_path / "log", 4), threading.Event()).run() == {"ambiguous": 4}
    promised = read_acceptance([tmp_path / "log"])
    assert promised.ambiguous_users == {1000, 1001, 1002, 1003}
    assert (promised.tasks, promised.turned_away) == (set(), 0)


def test_nobody_listening_is_no_ambiguity(tmp_path: Path) -> None:
    with _application() as server:
        port = server.server_address[1]
    counts = Generator(_load(f"http://127.0.0.1:{port}", tmp_path / "log", 3), threading.Event()).run()
    assert counts == {"turned away": 3}


def test_cancellations_are_asked_for_and_logged(tmp_path: Path) -> None:
    with _application() as server:
        counts = Generator(_load(server, tmp_path / "log", 3, cancel_share=1.0), threading.Event()).run()
        assert counts == {"accepted": 3, "cancelled": 3}
        assert (
            set(read_acceptance([tmp_path / "log"]).cancelled) == set(server.cancelled) == {"t1000", "t1001", "t1002"}
        )


def test_a_connection_closed_by_the_server_is_not_a_lost_submission() -> None:
    with _application() as server:
        client = Submitter(f"http://127.0.0.1:{server.server_address[1]}")
        assert client.submit(1, "i", "low").status == 201
        sock = client._connection.sock
        sock.shutdown(2)  # what an idle keep-alive connection looks like after the server has left
        assert client.submit(2, "i", "low").status == 201
        client.close()


def test_the_prober_logs_what_its_summary_reads(tmp_path: Path) -> None:
    log = tmp_path / "probes"
    stop = threading.Event()
    with _application() as server:
        prober = Prober(f"http://127.0.0.1:{server.server_address[1]}", log, 200, ("i.png",), stop, threads=2)
        thread = threading.Thread(target=prober.run)
        thread.start()
        deadline = threading.Event()
        while len(server.submissions) < 10 and not deadline.wait(0.01):
            pass
        server.behaviour = "503"
        seen = len(server.submissions)
        while len(server.submissions) < seen + 10 and not deadline.wait(0.01):
            pass
        stop.set()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    summary = turned_away(log)
    assert summary.probes == len(server.submissions)
    assert summary.turned_away_probes >= 8
    assert summary.seconds_turned_away > 0
    assert len(read_acceptance([log]).tasks) == summary.probes - summary.turned_away_probes


def test_backlog_rows_have_their_own_users_and_rising_times() -> None:
    rows = list(_rows(Backlog(2500, ("i.png",), delayed_share=0.2, delay=60, seed=7)))
    assert len({row[0] for row in rows}) == len({row[1] for row in rows}) == 2500
    assert rows[0][1] == 10_000_000
    assert {row[2] for row in rows} == {"urgent", "high", "normal", "low"}
    created = [row[5] for row in rows]
    assert created == sorted(set(created))
    delayed = sum(1 for row in rows if row[4] > row[5])
    assert 300 < delayed < 700
    assert rows[:5] != list(_rows(Backlog(5, ("i.png",), seed=8)))


@pytest.mark.parametrize("name", ["a; DROP TABLE b", "", "a b"])
def test_names_that_are_no_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no table or column name"):
        TableFacts(table=name)


def test_pictures_are_made_only_where_there_are_none(tmp_path: Path) -> None:
    made = image_names(tmp_path / "images")
    assert made == ("square-0.png", "square-1.png", "square-2.png")
    data = (tmp_path / "images" / made[0]).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data.endswith(b"IEND\xaeB`\x82")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "cat.JPG").write_bytes(b"x")
    assert image_names(tmp_path / "own") == ("cat.JPG",)


def test_evidence_that_cannot_be_read_gives_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = tmp_path / "ids"
    listing.write_text("a\n")
    arguments = ["--effects", str(tmp_path / "absent"), "--db-url", "mysql+pymysql://u:geheim@127.0.0.1:1/d"]
    assert main(["--seeded", str(listing), *arguments]) == 2
    assert main(["--seeded", str(tmp_path / "absent"), *arguments]) == 2
    text = capsys.readouterr().err
    assert text.count("no verdict") == 2
    assert "geheim" not in text


def test_the_summary_is_json_also_without_an_accepted_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = _probes(tmp_path / "log", [503, 503])
    assert probe(["--summary", "--log", str(log)]) == 0
    figures = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (figures["turned_away_probes"], figures["p99"]) == (2, None)
    assert probe(["--summary", "--log", str(tmp_path / "absent")]) == 2


def test_workers_are_killed_when_no_end_waits_for_its_commit(tmp_path: Path) -> None:
    """One writes an end and commits a moment later: until then nobody may be killed, and all go on meanwhile."""
    effects, commits = tmp_path / "effects.jsonl", tmp_path / "commits"
    commits.touch()
    source = (
        "import json, os, sys, time\n"
        "for number in range(10_000):\n"
        "    with open(sys.argv[1], 'a') as file:\n"
        "        line = {'event': 'end', 'task': f'{os.getpid()}-{number}', 'pid': os.getpid()}\n"
        "        print(json.dumps(line), file=file)\n"
        "    time.sleep(0.02)\n"
        "    with open(sys.argv[2], 'a') as file:\n"
        "        print(f'{os.getpid()}-{number}', file=file)\n"
        "    time.sleep(0.01)\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", source, str(effects), str(commits)]) for _ in range(2)]
    until(lambda: effects.exists() and len(effects.read_text().splitlines()) > 10, "both work")
    asked: list[int] = []

    def running(tasks: Sequence[str]) -> int:
        asked.append(len(set(tasks) - set(commits.read_text().split())))
        return asked[-1]

    assert crash([worker.pid for worker in workers], effects, running) == 2
    assert [worker.wait(PATIENCE_SECONDS) for worker in workers] == [-signal.SIGKILL] * 2
    assert asked[-1] == 0
    ended = [json.loads(line)["task"] for line in effects.read_text().splitlines()]
    assert set(ended) == set(commits.read_text().split())
