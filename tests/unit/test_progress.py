"""Lines of steps that work long inside one call: what they say, how often, and what becomes of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from ansible.module_utils.sluice.adapters.memory import MemoryClock
from ansible.module_utils.sluice.core import mapping as mappings
from ansible.module_utils.sluice.core.tasks import Home, Mark, Place, Sighting
from ansible.module_utils.sluice.ports.ledger import Ledger
from ansible.module_utils.sluice.services.verify import Expected, Verification
from ansible.module_utils.sluice.shell import progress
from ansible.module_utils.sluice.shell.progress import BYTES, Reporter, pace

from conftest import ROOT


@pytest.mark.parametrize(
    ("done", "total", "seconds", "unit", "left", "line"),
    [
        (12_000, 20_000, 2.0, "tasks", None, "12,000 of 20,000, 6,000 tasks/s, 1 s left"),
        (12_000, 20_000, 2.0, "tasks", 2_000, "12,000 of 20,000, 6,000 tasks/s, 0 s left"),
        (25_000, 25_000, 5.0, "tasks", 0, "25,000 of 25,000, 5,000 tasks/s, 0 s left"),
        (25_000, 25_000, 5.0, "tasks", None, "25,000 of 25,000, 5,000 tasks/s"),
        (25_000, 20_000, 5.0, "sightings", None, "25,000 sightings so far, 5,000 sightings/s"),
        (25_000, 0, 5.0, "sightings", None, "25,000 sightings so far, 5,000 sightings/s"),
        (9_000_000, 8_000_000, 3.0, BYTES, None, "9.0 MB so far, 3.0 MB/s"),
        (120_000_000, 300_000_000, 10.0, BYTES, None, "120.0 MB of 300.0 MB, 12.0 MB/s, 15 s left"),
        # Without a rate nobody knows the time left, so nothing is said of it.
        (0, 20_000, 3.0, "tasks", None, "0 of 20,000"),
        (5, 20_000, 0.0, "tasks", None, "5 of 20,000"),
    ],
)
def test_how_far_how_fast_how_long(
    done: int, total: int, seconds: float, unit: str, left: int | None, line: str
) -> None:
    assert pace(done, total, seconds, unit, left=left) == line


def test_the_file_has_a_whole_line_for_each_second_at_most_and_is_gone_at_the_end(tmp_path: Path) -> None:
    clock, path, beats = MemoryClock(), tmp_path / "progress", []
    with Reporter(str(path), clock, lambda: beats.append(clock.monotonic())) as reporter:
        reporter.stage("backup, sql", BYTES)
        assert path.read_text() == "backup, sql\n"
        assert path.stat().st_mode & 0o777 == 0o600
        reporter(0, 4_000_000)
        for step in range(1, 25):
            clock.wait(0.125)
            reporter(step * 125_000, 4_000_000)
        assert path.read_text().splitlines() == [
            "backup, sql",
            "backup, sql: 0 bytes of 4.0 MB",
            "backup, sql: 1.0 MB of 4.0 MB, 1.0 MB/s, 3 s left",
            "backup, sql: 2.0 MB of 4.0 MB, 1.0 MB/s, 2 s left",
            "backup, sql: 3.0 MB of 4.0 MB, 1.0 MB/s, 1 s left",
        ]
        reporter.stage("backup, redis", BYTES)
        reporter(0, 1)  # nothing to count
        assert path.read_text().splitlines()[-1] == "backup, redis"
    assert not path.exists()
    assert len(beats) == 26, "the lease is renewed whether or not a line is due"


def test_the_file_is_gone_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "progress"

    def step() -> None:
        with Reporter(str(path), MemoryClock()) as reporter:
            reporter.stage("balance, reading", "sightings")
            assert path.exists()
            raise RuntimeError("the step failed")

    with pytest.raises(RuntimeError, match="the step failed"):
        step()
    assert not path.exists()


def test_nothing_is_written_without_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    beats: list[int] = []
    with Reporter("", MemoryClock(), lambda: beats.append(1)) as reporter:
        reporter.stage("balance, reading", "sightings")
        reporter(5, 10)
    assert beats == [1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["missing/progress", "link"])
def test_a_file_that_cannot_be_written_is_said_once_and_costs_no_work(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    said: list[str] = []
    monkeypatch.setattr(progress, "warn", said.append)
    clock = MemoryClock()
    with Reporter(str(tmp_path / place), clock) as reporter:
        reporter.stage("balance, reading", "sightings")
        for done in range(3):
            clock.wait(2)
            reporter(done, 10)
    assert len(said) == 1
    assert "cannot be shown" in said[0]
    assert str(tmp_path / place) in said[0]
    assert not (tmp_path / "elsewhere").exists()


class SlowStore:
    """Source, target and ledger of jobs that were all moved and finished; each read of one takes time."""

    def __init__(self, clock: MemoryClock, number: int, seconds: float) -> None:
        self.clock, self.number, self.seconds = clock, number, seconds

    def _each(self, place: str, where: str = "") -> Iterator[Sighting]:
        for number in range(self.number):
            self.clock.wait(self.seconds)
            yield Sighting(f"{number:08}", place, where)


class SlowSource(SlowStore):
    """Rows that say where their tasks went."""

    def census(self) -> Iterator[Sighting]:
        return self._each(Place.MOVED)

    def look(self, ids: Sequence[str]) -> dict[str, Sighting]:
        return {}


class SlowTarget(SlowStore):
    """Each job once in its queue and once as a hash."""

    def census(self) -> Iterator[Sighting]:
        yield from self._each(Home.QUEUED, "normal")
        yield from self._each("hash", "queued")

    def look(self, job_id: str) -> list[Sighting]:
        return []

    def marked(self, job_ids: Sequence[str]) -> Sequence[bool]:
        return [True for _ in job_ids]


class SlowLedger(SlowStore):
    """A mark and an id of the baseline for each."""

    def marks(self) -> Iterator[Sighting]:
        return self._each(Mark.MOVED)

    def baseline(self, run_id: str) -> Iterator[Sighting]:
        return self._each(Place.READY)


class Heard:
    """What a verification tells, with the time."""

    def __init__(self, clock: MemoryClock) -> None:
        self.clock = clock
        self.lines: list[tuple[float, str, int, int]] = []
        self.word = ""

    def stage(self, word: str) -> None:
        self.word = word

    def __call__(self, done: int, total: int) -> None:
        self.lines.append((self.clock.monotonic(), self.word, done, total))


def slow_balance(number: int, seconds: float, expected: Expected | None) -> Heard:
    clock = MemoryClock()
    heard = Heard(clock)
    found = Verification(
        SlowSource(clock, number, seconds),
        SlowTarget(clock, number, seconds),
        cast(Ledger, cast(Any, SlowLedger(clock, number, seconds))),
        clock,
        mappings.parse(yaml.safe_load((ROOT / "inventories" / "lab" / "mapping.yml").read_text())),
        "run",
        progress=heard,
        stage=heard.stage,
        expected=expected,
    ).balance()
    assert found.balance.known == number
    assert found.balance.holds
    return heard


@pytest.mark.parametrize("known", [True, False])
def test_a_slow_balance_says_how_far_it_is_every_ten_seconds(known: bool) -> None:
    """A source that gives 250 rows a second: slower than any that was measured."""
    number = 3_000
    expected = Expected(target=2 * number, rows=number, marks=number, baseline=number) if known else None
    heard = slow_balance(number, 1 / 250, expected)
    reading = [(at, done, total) for at, word, done, total in heard.lines if word == "reading"]
    assert max(b - a for (a, *_), (b, *_) in pairwise(reading)) < 10
    assert [done for _, done, _ in reading] == sorted(done for _, done, _ in reading)
    assert {total for *_, total in reading} == {7 * number if known else 0}
    comparing = [(done, total) for _, word, done, total in heard.lines if word == "comparing"]
    assert comparing[0] == (0, 7 * number)
    assert comparing[-1][0] > 5 * number
    assert all(total == 7 * number for _, total in comparing)


def test_what_was_expected_wrongly_is_put_right_as_it_is_read() -> None:
    number = 3_000
    heard = slow_balance(number, 0.0, Expected(target=100_000, rows=number, marks=0, baseline=number))
    totals = [(done, total) for _, word, done, total in heard.lines if word == "reading"]
    assert totals[0][1] > 100_000, "two readings of the target are expected"
    after_the_target = [total for done, total in totals if done > 2 * number]
    assert after_the_target[0] == 6 * number, "the second reading of the target is expected to be as long as the first"
