"""The scene of a fault test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.scene import Scene


@pytest.fixture
def scene(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[Scene]:
    """captions with empty tables, an open run and nobody at work."""
    made = Scene(tmp_path, database_url, redis_url)
    made.open_run()
    yield made
    made.close()
