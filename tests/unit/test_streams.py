"""The sorted streams on which the balance stands."""

from __future__ import annotations

import random

import pytest
from ansible.module_utils.sluice.services import streams
from ansible.module_utils.sluice.services.streams import grouped, sorted_stream


@pytest.mark.parametrize("number", [0, 1, 99, 100, 101, 1000])
def test_a_stream_comes_out_sorted_and_whole(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_RUN", 100)
    monkeypatch.setattr(streams, "_READ", 7)
    seen = [(f"id-{i:05}", kind, "place", "") for i in range(number) for kind in ("s", "t1")]
    mixed = random.Random(4).sample(seen, len(seen))
    assert list(sorted_stream(mixed)) == seen


def test_groups_hold_every_observation_of_one_key() -> None:
    stream = [("a", "s", "ready", ""), ("a", "t1", "queued", "q"), ("b", "m", "moved", "")]
    assert [(key, len(group)) for key, group in grouped(stream)] == [("a", 2), ("b", 1)]
    assert list(grouped([])) == []


def test_keys_sort_by_code_point_not_by_locale() -> None:
    keys = ["ä", "Z", "a", "z", "A"]
    stream = sorted_stream([(key, "s", "", "") for key in keys])
    assert [key for key, *_ in stream] == ["A", "Z", "a", "z", "ä"]
