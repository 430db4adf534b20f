"""Claimers that mark nothing while they work: what of theirs is held at the fence."""

from __future__ import annotations

import pytest
from ansible.module_utils.sluice.core.phases import Phase

from modules.site import Site

pytestmark = [pytest.mark.real, pytest.mark.slow]

KILLED = [{"host": "app1", "name": "legacy_0", "pid": 0, "state": "STOPPED", "exit": -1}]


@pytest.fixture
def unguarded(site: Site) -> Site:
    """The site, its pollers being unguarded; ten tasks wait, the first of them is the oldest and most urgent."""
    words = site.mapping_file.read_text()
    assert words.count("kind: guarded") == 1
    site.mapping_file.write_text(words.replace("kind: guarded", "kind: unguarded"))
    return site


def _routed(site: Site) -> None:
    site.open(Phase.OPENED)
    site.call("queue_accounts").assert_done()
    site.stand(Phase.ROUTED)


@pytest.mark.parametrize("drains", [[KILLED], [KILLED, []], [[], KILLED]])
def test_who_had_to_be_killed_is_not_forgotten_by_a_resumed_drain(
    unguarded: Site, drains: list[list[dict[str, object]]]
) -> None:
    first, *others = unguarded.seed(10)
    _routed(unguarded)
    for unproved in drains:
        unguarded.drive("queue_drain", unproved=unproved).assert_done()

    assert unguarded.call("queue_fence").assert_done().result["held"] == 1

    assert unguarded.sql("SELECT id FROM caption_tasks WHERE custody = 'held'") == [(first,)]
    assert unguarded.call("queue_fence").assert_done().result["held"] == 0
    unguarded.stand(Phase.FENCED)
    assert unguarded.drive("queue_transfer").assert_done().result["moved"] == len(others)


def test_nothing_is_held_where_all_ended_by_themselves(unguarded: Site) -> None:
    unguarded.seed(10)
    _routed(unguarded)
    unguarded.drive("queue_drain", unproved=[]).assert_done()
    assert unguarded.call("queue_fence").assert_done().result["held"] == 0
    unguarded.stand(Phase.FENCED)
    assert unguarded.drive("queue_transfer").assert_done().result["moved"] == 10
