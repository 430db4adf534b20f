"""The adapters under contract, one parameter each."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from ansible.module_utils.sluice.adapters import redis_connect

import stores_fixture

from . import rigs


@pytest.fixture(
    params=[
        "memory",
        pytest.param("captions", marks=pytest.mark.real),
        pytest.param("companion", marks=pytest.mark.real),
    ]
)
def source(request: pytest.FixtureRequest) -> Iterator[rigs.SourceRig]:
    """Each source, with an open run and its lease."""
    if request.param == "memory":
        yield rigs.MemorySourceRig()
        return
    url = request.getfixturevalue("database_url")
    made: rigs.SqlSourceRig
    if request.param == "captions":
        made = rigs.CaptionsRig(url, stores_fixture.load_mapping())
    else:
        made = rigs.CompanionRig(url, rigs.plain_mapping())
    yield made
    made.close()


@pytest.fixture(params=["memory", pytest.param("rq", marks=pytest.mark.real)])
def target(request: pytest.FixtureRequest) -> rigs.TargetRig:
    """Each target, with the stamp of a run."""
    if request.param == "memory":
        return rigs.MemoryTargetRig()
    rig: rigs.RqRig = request.getfixturevalue("rq_target")
    return rig


@pytest.fixture
def rq_target(redis_url: str) -> rigs.RqRig:
    """RQ alone, for what only a real Redis can show."""
    return rigs.RqRig(redis_connect.connect(redis_url), stores_fixture.load_mapping(), time.time)


@pytest.fixture(params=["rq", "rows"])
def homeward(request: pytest.FixtureRequest, database_url: str, redis_url: str) -> Iterator[rigs.HomewardRig]:
    """Each source of a run that goes back, with its lease."""
    made = rigs.HomewardRig(
        database_url, redis_connect.connect(redis_url), stores_fixture.load_mapping(), request.param
    )
    yield made
    made.close()
