"""The small language of a mapping's predicates: what it says, and how a mistake in it is named."""

from __future__ import annotations

import pytest
from ansible.module_utils.sluice.core.conditions import (
    MAX_DEPTH,
    All,
    Among,
    Any,
    Compare,
    Condition,
    Due,
    IsNull,
    Like,
    Not,
    leaves,
    parse,
    shown,
)
from ansible.module_utils.sluice.core.errors import MappingError


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"column": "status", "equals": "queued"}, Among("status", ("queued",))),
        ({"column": "tries", "equals": 0}, Among("tries", (0,))),
        ({"column": "live", "equals": False}, Among("live", (False,))),
        ({"column": "status", "in": ["a", 2]}, Among("status", ("a", 2))),
        ({"column": "owner", "null": True}, IsNull("owner")),
        ({"column": "owner", None: True}, IsNull("owner")),
        ({"column": "owner", "null": False}, Not(IsNull("owner"))),
        ({"column": "at", "due": True}, Due("at")),
        ({"column": "at", "due": True, "plus": 60}, Due("at", 60.0)),
        ({"column": "at", "due": False}, All((Not(IsNull("at")), Not(Due("at"))))),
        ({"column": "at", "due": False, "plus": -5.5}, All((Not(IsNull("at")), Not(Due("at", -5.5))))),
        ({"column": "name", "starts_with": "mail"}, Like("name", "mail")),
        ({"column": "tries", "below": "tries_allowed"}, Compare("tries", "below", "tries_allowed")),
        ({"column": "tries", "above": 3}, Compare("tries", "above", 3)),
        ({"column": "tries", "at_least": 3.5}, Compare("tries", "at_least", 3.5)),
        ({"column": "tries", "at_most": 3}, Compare("tries", "at_most", 3)),
        ({"not": {"column": "a", "equals": 1}}, Not(Among("a", (1,)))),
        ({"all": [{"column": "a", "equals": 1}]}, All((Among("a", (1,)),))),
        ({"any": [{"column": "a", "equals": 1}, {"column": "b", "null": True}]}, Any((Among("a", (1,)), IsNull("b")))),
        ([{"column": "a", "equals": 1}, {"column": "b", "equals": 2}], All((Among("a", (1,)), Among("b", (2,))))),
        ([], All(())),
    ],
)
def test_reads(data: object, expected: Condition) -> None:
    assert parse(data, "here") == expected


@pytest.mark.parametrize(
    ("data", "where", "what"),
    [
        ("status = 'queued'", "here", "must be a mapping or a list"),
        ({}, "here", "must be a mapping or a list"),
        (None, "here", "must be a mapping or a list"),
        ([{"column": "a", "equals": 1}, 7], "here[1]", "must be a mapping or a list"),
        ({"equals": 1}, "here", "needs 'column', 'all', 'any' or 'not'"),
        ({"column": "", "equals": 1}, "here", "needs 'column', 'all', 'any' or 'not'"),
        ({"column": "a; DROP TABLE b", "equals": 1}, "here", "is not the name of a table or column"),
        ({"column": "a"}, "here", "found none"),
        ({"column": "a", "equals": 1, "in": [1]}, "here", "found ['equals', 'in']"),
        ({"column": "a", "equals": None}, "here", "say 'null: true' for NULL"),
        ({"column": "a", "equals": [1]}, "here", "[1] is not a plain value"),
        ({"column": "a", "in": "abc"}, "here", "'in' needs a list of values"),
        ({"column": "a", "in": []}, "here", "'in' needs a list of values"),
        ({"column": "a", "in": [{"b": 1}]}, "here", "is not a plain value"),
        ({"column": "a", "null": "yes"}, "here", "'null' is true or false"),
        ({"column": "a", "due": 1}, "here", "'due' is true or false"),
        ({"column": "a", "due": True, "plus": "1h"}, "here", "'plus' is seconds"),
        ({"column": "a", "due": True, "plus": float("nan")}, "here", "'plus' is seconds"),
        ({"column": "a", "equals": 1, "plus": 2}, "here", "'plus' goes with 'due' only"),
        ({"column": "a", "starts_with": 4}, "here", "'starts_with' with 4 is not a comparison"),
        ({"column": "a", "below": True}, "here", "'below' with True is not a comparison"),
        ({"column": "a", "below": "b c"}, "here", "is not the name of a table or column"),
        ({"column": "a", "like": "%"}, "here", "'like' with '%' is not a comparison"),
        ({"all": []}, "here", "'all' needs a list with at least one condition"),
        ({"any": "x"}, "here", "'any' needs a list with at least one condition"),
        ({"all": [{"column": "a", "equals": 1}], "any": []}, "here", "unknown words ['any'] beside ['all']"),
        ({"not": {"column": "a", "equals": 1}, "column": "a"}, "here", "unknown words ['column'] beside ['not']"),
        ({"not": {"any": [{"column": "a", "nope": 1}]}}, "here.not.any[0]", "'nope' with 1 is not a comparison"),
        ({"all": [{"all": [{"column": "a", "in": 3}]}]}, "here.all[0].all[0]", "'in' needs a list"),
    ],
)
def test_names_the_place_and_the_word(data: object, where: str, what: str) -> None:
    with pytest.raises(MappingError) as caught:
        parse(data, "here")
    assert caught.value.where == where
    assert what in caught.value.what


def test_leaves_are_every_comparison() -> None:
    condition = parse(
        {
            "any": [
                [{"column": "a", "equals": 1}, {"not": {"column": "b", "null": True}}],
                {"column": "c", "due": False},
                {"column": "d", "below": "e"},
            ]
        },
        "here",
    )
    assert [leaf.column for leaf in leaves(condition)] == ["a", "b", "c", "c", "d"]


def test_conditions_within_conditions_end_somewhere() -> None:
    deep: object = {"column": "a", "equals": 1}
    for _ in range(MAX_DEPTH):
        deep = {"not": deep}
    assert parse(deep, "here")
    with pytest.raises(MappingError, match=f"more than {MAX_DEPTH} others within each other"):
        parse({"not": deep}, "here")


def test_a_value_that_python_does_not_write_is_shown_by_its_kind() -> None:
    assert shown(10**5000) == "a int that nobody could read"
    assert shown("x" * 300) == "'" + "x" * 199 + "..."
    assert shown("x" * 198) == "'" + "x" * 198 + "'"
