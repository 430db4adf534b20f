"""The small language in which a mapping says which rows are ready, leased, finished.

A condition is data, never SQL text: ``all``, ``any``, ``not``, and comparisons of one column. The adapter compiles it
against the live schema, so an identifier or a value from a mapping cannot inject.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .errors import MappingError

Scalar = str | int | float | bool | None

#: Half a surrogate pair: YAML can write it, and no store can keep it.
_LONE = re.compile("[\ud800-\udfff]")
#: The name of a table or column.
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class Among:
    """The column's value is one of ``values``."""

    column: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class IsNull:
    """The column is NULL."""

    column: str


@dataclass(frozen=True, slots=True)
class Due:
    """The column's instant plus ``plus`` seconds is at or before the database's now."""

    column: str
    plus: float = 0.0


@dataclass(frozen=True, slots=True)
class Like:
    """The text column begins with ``prefix``."""

    column: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Compare:
    """The column's number is ``op`` (below, above, at_least, at_most) another column or a number."""

    column: str
    op: str
    other: str | float


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds. With no part: true."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """At least one part holds. With no part: false."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold. NULL counts as not holding."""

    part: Condition


Condition = Among | IsNull | Due | Like | Compare | All | Any | Not

#: Conditions within conditions; none of an application's goes so deep.
MAX_DEPTH = 50
#: Seconds by which an instant may be moved: three centuries.
MOST_SECONDS = 10_000_000_000
#: No column has longer whole numbers.
MAX_DIGITS_BITS = 256

_COMPARISONS = ("below", "above", "at_least", "at_most")


def parse(data: object, where: str, depth: int = 0) -> Condition:
    """Read a condition from a mapping's data.

    :param where: the path inside the mapping, for messages
    :param depth: how many conditions this one lies in
    :raises MappingError: naming the place and the offending word
    """
    if depth > MAX_DEPTH:
        # An alias of YAML may stand for the very list that holds it.
        raise MappingError(f"a condition holds more than {MAX_DEPTH} others within each other, or itself.", where=where)
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return All(tuple(parse(part, f"{where}[{i}]", depth + 1) for i, part in enumerate(data)))
    if not isinstance(data, Mapping) or not data:
        raise MappingError("a condition must be a mapping or a list of conditions.", where=where)
    if "all" in data:
        return All(_parts(data, "all", where, depth))
    if "any" in data:
        return Any(_parts(data, "any", where, depth))
    if "not" in data:
        _only(data, {"not"}, where)
        return Not(parse(data["not"], f"{where}.not", depth + 1))
    return _comparison(data, where)


def _parts(data: Mapping[object, object], word: str, where: str, depth: int) -> tuple[Condition, ...]:
    _only(data, {word}, where)
    parts = data[word]
    if not isinstance(parts, Sequence) or isinstance(parts, str | bytes) or not parts:
        raise MappingError(f"'{word}' needs a list with at least one condition.", where=where)
    return tuple(parse(part, f"{where}.{word}[{i}]", depth + 1) for i, part in enumerate(parts))


def _comparison(data: Mapping[object, object], where: str) -> Condition:
    column = data.get("column")
    if not isinstance(column, str) or not column:
        raise MappingError("a condition needs 'column', 'all', 'any' or 'not'.", where=where)
    _name(column, where)
    # YAML reads the bare word null as no value at all.
    data = {"null" if key is None else key if isinstance(key, str) else shown(key): data[key] for key in data}
    words = set(data) - {"column", "plus"}
    if len(words) != 1:
        raise MappingError(
            f"column '{column}' needs exactly one of equals, in, null, due, starts_with, {', '.join(_COMPARISONS)}; "
            f"found {sorted(map(str, words)) or 'none'}.",
            where=where,
        )
    word = str(words.pop())
    value = data[word]
    if "plus" in data and word != "due":
        raise MappingError("'plus' goes with 'due' only.", where=where)
    if word == "equals":
        if value is None:
            raise MappingError(f"column '{column}': say 'null: true' for NULL.", where=where)
        return Among(column, (scalar(value, where),))
    if word == "in":
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
            raise MappingError(f"column '{column}': 'in' needs a list of values.", where=where)
        return Among(column, tuple(scalar(item, where) for item in value))
    if word == "null":
        if not isinstance(value, bool):
            raise MappingError(f"column '{column}': 'null' is true or false.", where=where)
        return IsNull(column) if value else Not(IsNull(column))
    if word == "due":
        plus = data.get("plus", 0)
        sound = isinstance(plus, int | float) and -MOST_SECONDS <= plus <= MOST_SECONDS  # which NaN is not
        if not isinstance(value, bool) or not isinstance(plus, int | float) or not sound:
            raise MappingError(f"column '{column}': 'due' is true or false, 'plus' is seconds.", where=where)
        return Due(column, float(plus)) if value else All((Not(IsNull(column)), Not(Due(column, float(plus)))))
    if word == "starts_with" and isinstance(value, str):
        return Like(column, value)
    if word in _COMPARISONS and isinstance(value, str | int | float) and not isinstance(value, bool):
        if isinstance(value, str):
            _name(value, where)
        else:
            scalar(value, where)
        return Compare(column, word, value)
    raise MappingError(f"column '{column}': '{word}' with {shown(value)} is not a comparison.", where=where)


def _name(value: str, where: str) -> None:
    if not IDENTIFIER.match(value):
        raise MappingError(f"{shown(value)} is not the name of a table or column.", where=where)


def scalar(value: object, where: str) -> str | int | float | bool:
    """A value that a column may have, as it is; no list, no table, and no number that is none (YAML's .inf and .nan).

    :raises MappingError: naming the place and the value
    """
    match value:
        case str() if value.isascii() or not _LONE.search(value):
            return value
        case int() if value.bit_length() <= MAX_DIGITS_BITS:
            return value
        case float() if math.isfinite(value):
            return value
    raise MappingError(f"{shown(value)} is not a plain value.", where=where)


def shown(value: object) -> str:
    """A value for a message: short, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes, or lists without end
        text = f"a {type(value).__name__} that nobody could read"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _only(data: Mapping[object, object], known: set[str], where: str) -> None:
    extra = sorted(shown(key).strip("'") for key in data if key not in known)
    if extra:
        raise MappingError(f"unknown words {extra} beside {sorted(known)}.", where=where)


def leaves(condition: Condition) -> Iterator[Among | IsNull | Due | Like | Compare]:
    """Every comparison in a condition, for checking against a schema."""
    if isinstance(condition, All | Any):
        for part in condition.parts:
            yield from leaves(part)
    elif isinstance(condition, Not):
        yield from leaves(condition.part)
    else:
        yield condition
