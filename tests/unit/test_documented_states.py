"""What the pages say is what the code does: phases, gates, ledger tables, keys, variables, lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml
from ansible.module_utils.sluice.adapters import ledger_sql
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.rq_source import RqSource
from ansible.module_utils.sluice.adapters.sql_home import SqlHome
from ansible.module_utils.sluice.core import mapping
from ansible.module_utils.sluice.core.phases import BACK_GATES, GATE_LIFETIME, REQUIRED_GATES, TRANSITIONS, Phase
from ansible.module_utils.sluice.core.tasks import Mark
from redis import Redis

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
TASKS = mapping.parse(yaml.safe_load((ROOT / "inventories" / "lab" / "mapping.yml").read_text()))
SECONDS = {"min": 60, "h": 3600}


def _rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    text = (DOCS / page).read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def _words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_arrow_is_documented_and_no_other() -> None:
    documented = {(_words(row[0])[0], _words(row[1])[0]) for row in _rows("states.md", "A run: its phases")}
    assert documented == {(str(one), str(other)) for one, others in TRANSITIONS.items() for other in others}


@pytest.mark.parametrize(
    ("heading", "required"),
    [("The gates of each phase", REQUIRED_GATES), ("The gates of each phase on the way back", BACK_GATES)],
)
def test_every_gate_is_documented_with_its_lifetime(heading: str, required: dict[Phase, tuple[str, ...]]) -> None:
    rows = _rows("states.md", heading)
    assert {_words(row[0])[0]: tuple(_words(row[1])) for row in rows} == {
        str(phase): gates for phase, gates in required.items()
    }
    for _, gates, within in rows:
        lifetimes = {name: _seconds(within.split(";")[0]) for name in _words(gates)}
        for exception in within.split(";")[1:]:
            lifetimes[_words(exception)[0]] = _seconds(exception)
        assert lifetimes == {name: GATE_LIFETIME[name] for name in lifetimes}


def _seconds(text: str) -> float:
    number, unit = re.findall(r"(\d+) (min|h)\b", text)[0]
    return float(number) * SECONDS[unit]


def test_the_ledger_is_documented_column_by_column() -> None:
    rows = _rows("architecture.md", "Tables of the ledger")
    tables = {_words(row[0])[0]: row[1] for row in rows}
    assert set(tables) == set(ledger_sql.metadata.tables)
    for name, table in ledger_sql.metadata.tables.items():
        missing = [column for column in table.columns.keys() if f"`{column}`" not in tables[name]]  # noqa: SIM118
        assert missing == [], name
    assert all(f"`{mark}`" in tables["sluice_task"] for mark in Mark)


def test_the_captions_schema_is_documented_column_by_column() -> None:
    schema = (ROOT / "app" / "captions" / "schema.sql").read_text()
    page = (DOCS / "architecture.md").read_text()
    columns = re.findall(r"^  (?:ADD COLUMN IF NOT EXISTS +)?([a-z_]+) +[A-Z]+\b", schema, re.MULTILINE)
    assert len(columns) > 30
    missing = [name for name in columns if not re.search(rf"^  {name} +[A-Z]", page, re.MULTILINE)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_variable_of_a_page_is_one_of_a_role_or_an_inventory(page: Path) -> None:
    sources = [*ROOT.glob("roles/*/meta/argument_specs.yml"), *ROOT.glob("inventories/**/*.yml")]
    known = {name for source in sources for name in re.findall(r"\bqueue_\w+", source.read_text())}
    known |= {path.name for path in ROOT.glob("roles/queue_*")}
    used = set(re.findall(r"\bqueue_\w+", page.read_text()))
    assert sorted(used - known) == []


def test_the_keys_in_redis_are_documented() -> None:
    queues = RqQueues(Redis(), TASKS)
    leaving = RqSource(queues, SqlHome(sa.create_engine("mysql+pymysql://"), TASKS), TASKS)
    ours = {queues.generation_key, queues.token_key, queues.batch_key, queues.marker_key, queues.run_key}
    ours |= {leaving.claimed_key, leaving.returned_key}
    documented = {_words(row[0])[0] for row in _rows("architecture.md", "Keys of ours in Redis")}
    assert {f"sluice:{{{TASKS.system}}}:{name}" for name in documented} == ours


LINES = [
    *["nothing blocks", "blocking", "has reached", "waiting for the lease of", "it stands at", "cancelled meanwhile"],
    *["tasks whose state nobody can know", "was taken back at", "passed its point of no return", "at fault"],
    *["turned away not measured", "forward only", "still possible", "resumed"],
    *["would die with Redis", "had lost their jobs", "the stamp of this run is missing", "the database was restored"],
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_a_page_explains_is_one_that_a_step_prints(line: str) -> None:
    assert any(line in page.read_text() for page in PAGES), "no page has it any more"
    sources = (ROOT / "module_utils" / "sluice").rglob("*.py")
    assert any(line in re.sub(r'"\s*f?"', "", source.read_text()) for source in sources)
