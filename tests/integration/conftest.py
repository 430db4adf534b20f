"""captions' runtime for the tests of the application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.runtime import Runtime


@pytest.fixture
def runtime(tmp_path: Path, database_url: str, redis_url: str, request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """The runtime on a private MariaDB and Redis; a parameter holds more settings."""
    made = Runtime(tmp_path, database_url, redis_url, getattr(request, "param", {}))
    yield made
    made.close()
