"""What a row keeps of a task's work, and the kinds of tasks."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from captions import task_types
from captions.payload import LARGEST_BYTES, PayloadError, dump, load
from captions.task_types import TaskType

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=4)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=3), PLAIN, max_size=1))
def test_what_is_written_is_read(data: dict[str, object]) -> None:
    assume(len(json.dumps(data)) < LARGEST_BYTES - 20)
    text = dump(data)
    assert len(text.encode()) <= LARGEST_BYTES
    assert load(text) == data


@pytest.mark.parametrize(
    ("data", "says"),
    [({"a": "x" * 2000}, "2023 bytes"), ({"a": float("inf")}, "not plain JSON"), ({"a": object()}, "not plain JSON")],
)
def test_what_cannot_be_kept_is_refused(data: dict[str, object], says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        dump(data)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ('{"v":1,"da', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("null", "no version"),
        ('{"v":1}', "no version"),
        ('{"v":1,"data":{},"more":1}', "no version"),
        ('{"v":2,"data":{}}', "another version"),
        ('{"v":true,"data":{}}', "another version"),
        ('{"v":1,"data":[]}', "no object"),
    ],
)
def test_what_is_damaged_or_unknown_is_named(text: str, says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        load(text)


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of the test's own."""
    monkeypatch.setattr(task_types, "_types", {})


def _type(name: str, queue: str | None = None) -> TaskType:
    return TaskType(name, work=lambda _: "", queue=queue)


@pytest.mark.usefixtures("types")
def test_queues_of_single_types_come_after_the_four() -> None:
    for kind in (_type("caption"), _type("thumbnail", "thumbnails"), _type("report", "reports")):
        task_types.register(kind)
    assert task_types.queues() == ("urgent", "high", "normal", "low", "thumbnails", "reports")
    assert task_types.timeouts() == {"thumbnails": 300, "reports": 300}
    with pytest.raises(PayloadError, match="no task type 'other'"):
        task_types.task_type("other")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (_type("caption"), "two task types"),
        (_type("other", "urgent"), "belongs to others"),
        (_type("Other"), "is no name"),
        (_type("other", "a b"), "is no name"),
        (_type("other", "x'); --"), "is no name"),
    ],
)
@pytest.mark.usefixtures("types")
def test_a_type_whose_name_or_queue_is_taken_is_refused(kind: TaskType, says: str) -> None:
    task_types.register(_type("caption"))
    with pytest.raises(ValueError, match=says):
        task_types.register(kind)
