"""The modules that work long in one call say how far they are, in a file that they leave to nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.shell import progress

from modules.site import Site

pytestmark = pytest.mark.real

TASKS = 300


@pytest.fixture(autouse=True)
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tables are read in less than the second that lies between two lines."""
    monkeypatch.setattr(progress, "WRITE_SECONDS", 0.0)


@contextmanager
def kept(folder: Path) -> Iterator[tuple[str, Path]]:
    """A progress file, and a second name of it under which its lines stay when the module removes it."""
    folder.mkdir()
    file, second = folder / "progress", folder / "kept"
    file.touch()
    second.hardlink_to(file)
    yield str(file), second
    assert not file.exists(), "the module removes its file"


@pytest.mark.parametrize("check", [False, True])
def test_the_balance_says_how_far_it_is(site: Site, tmp_path: Path, check: bool) -> None:
    site.seed(TASKS)
    lease = site.open(Phase.TRANSFERRED)
    site.ledger.record(
        lease, "measure", "counts at baseline", "", {"counts": {"normal": {"ready": TASKS - 1}, "high": {"delayed": 1}}}
    )
    with kept(tmp_path / "lines") as (file, lines):
        site.call("queue_verify", check=check, progress_file=file)
    said = lines.read_text().splitlines()
    assert said[0] == "balance, reading"
    assert said[1] == f"balance, reading: 0 of {2 * TASKS}", "rows and baseline, of which the run's record knows"
    assert "balance, comparing" in said
    assert f"balance, comparing: 0 of {TASKS}" in said


def test_the_backup_says_how_far_each_part_is(site: Site, tmp_path: Path) -> None:
    site.seed(TASKS)
    site.open(Phase.OPENED)
    with kept(tmp_path / "lines") as (file, lines):
        site.call("queue_backup", progress_file=file).assert_done()
    said = lines.read_text().splitlines()
    assert said[0] == "backup, sql"
    assert said[1].startswith("backup, sql: 0 bytes of ")
    assert any(line.endswith(" s left") and "/s, " in line for line in said), said
    assert said[-1] == "backup, redis"


@pytest.mark.parametrize("name", ["queue_verify", "queue_backup"])
def test_without_the_plugin_nothing_is_written(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    site.seed(4)
    site.open(Phase.TRANSFERRED if name == "queue_verify" else Phase.OPENED)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    site.call(name)
    assert list(empty.iterdir()) == []


def test_a_file_that_cannot_be_written_is_a_warning(site: Site, tmp_path: Path) -> None:
    site.seed(4)
    site.open(Phase.OPENED)
    outcome = site.call("queue_backup", progress_file=str(tmp_path / "missing" / "progress")).assert_done()
    assert "the progress of this step cannot be shown" in outcome.printed
