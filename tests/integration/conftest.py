"""captions' runtime for the tests of the application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger

from captions.database import make_engine
from integration.runtime import RUN, Runtime


@pytest.fixture
def runtime(tmp_path: Path, database_url: str, redis_url: str, request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """The runtime on a private MariaDB and Redis; a parameter holds more settings."""
    made = Runtime(tmp_path, database_url, redis_url, getattr(request, "param", {}))
    yield made
    made.close()


@pytest.fixture
def ledger(runtime: Runtime) -> Iterator[SqlLedger]:
    """Sluice's own ledger beside the tasks, as it is between two runs: somebody had the lease once."""
    engine = make_engine(runtime.database_url, connections=2)
    made = SqlLedger(engine, "captions")
    made.install()
    made.give_up(made.take_lease(RUN, "an earlier run", 30))
    yield made
    engine.dispose()
