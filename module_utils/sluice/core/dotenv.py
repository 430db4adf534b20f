"""Managed keys inside an application's ``.env`` text: set, removed and read, everything else kept as it is.

Lines end at ``\\n`` only; a ``\\r`` before it belongs to the line. A quoted value may run over several lines. Text that
was not UTF-8 passes through when the caller decodes it with ``surrogateescape``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from .errors import SluiceError

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ASSIGNMENT = re.compile(r"(?P<head>\ufeff?[ \t]*(?:export[ \t]+)?(?P<key>[A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*)")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]*\Z")
_URL_LOGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"]*@")
_URL_SECRET = re.compile(r"(?P<name>[?&][A-Za-z_-]*(?:password|passwd|secret|token|key)=)[^&#\s'\"]*", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r"PASS(WORD|WD|PHRASE)?|SECRET|TOKEN|CREDENTIAL|PRIVATE|API_?KEY|SALT|(^|_)(KEY|AUTH)$", re.IGNORECASE
)

MASK = "***"


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of whole lines. ``key`` is empty for what is no assignment."""

    text: str
    key: str = ""
    head: str = ""
    value: str = ""
    tail: str = ""  # a comment behind the value, and the line end

    def with_value(self, value: str) -> _Piece:
        """The same assignment with another value; prefix, spacing, comment and line end are kept."""
        gap = " " if self.tail.startswith("#") else ""  # without it the comment would become part of the value
        text = self.head + _written(self.key, value) + gap + self.tail
        return _Piece(text, self.key, self.head, value, gap + self.tail)


def merge(text: str, values: Mapping[str, str]) -> str:
    """Set keys: each is there exactly once afterwards, at the place of its first assignment, else at the end.

    An assignment that already has the value is left as it is written. Setting the same again gives the same text.

    :raises SluiceError: a key is not a name, no notation for its value is read alike by every reader, or a quote that
        another line leaves open would take ours in
    """
    for key, value in values.items():
        _check_key(key)
        _written(key, value)
    pieces = list(_pieces(text))
    last = {piece.key: piece.value for piece in pieces if piece.key}
    seen: set[str] = set()
    kept: list[_Piece] = []
    for piece in pieces:
        if piece.key not in values:
            kept.append(piece)
        elif piece.key not in seen:
            seen.add(piece.key)
            wanted = values[piece.key]
            same = piece.value == wanted and last[piece.key] == wanted
            kept.append(piece if same else piece.with_value(wanted))
    result = "".join(piece.text for piece in kept)
    missing = [key for key in values if key not in seen]
    if missing:
        end = "\r\n" if "\r\n" in text else "\n"
        if result and not result.endswith("\n"):
            result += end
        result += "".join(f"{key}={_written(key, values[key])}{end}" for key in missing)
    _check_kept(text, result, values)
    written = read(result)
    for key, value in values.items():
        if written.get(key) != value or count(result, key) != 1:
            raise _open_quote(key)
    return result


def remove(text: str, keys: Collection[str]) -> str:
    """Take every assignment of ``keys`` out, with the whole of its lines; nothing else changes."""
    for key in keys:
        _check_key(key)
    result = "".join(piece.text for piece in _pieces(text) if piece.key not in keys)
    _check_kept(text, result, keys)
    return result


def read(text: str) -> dict[str, str]:
    """The assigned values. Of several assignments of one key the last counts, as it does for every reader."""
    return {piece.key: piece.value for piece in _pieces(text) if piece.key}


def count(text: str, key: str) -> int:
    """How many times ``key`` is assigned."""
    return sum(piece.key == key for piece in _pieces(text))


def masked(value: str) -> str:
    """A value, or any text, with the login part and secret parameters of the URLs in it shown as ``***``."""
    return _URL_SECRET.sub(rf"\g<name>{MASK}", _URL_LOGIN.sub(rf"\g<scheme>{MASK}@", value))


def masked_change(before: str, after: str, keys: Collection[str], secret_keys: Collection[str] = ()) -> tuple[str, str]:
    """What a change did to ``keys``, fit for a log: their assignments before and after, secrets masked.

    Only our keys are shown: a secret of the application, whatever its name, cannot leave with the context of a diff.
    A secret whose value changed is shown as changed, though both values are masked.
    """
    old, new = read(before), read(after)
    lines: tuple[list[str], list[str]] = ([], [])
    for key in keys:
        changed = key in old and key in new and old[key] != new[key]
        for values, target in ((old, lines[0]), (new, lines[1])):
            if key not in values:
                continue
            shown = MASK if key in secret_keys or _SECRET_NAME.search(key) else masked(values[key])
            # Two masks look alike; the difference must still be seen.
            note = " (changed)" if changed and MASK in shown and target is lines[1] else ""
            target.append(f"{key}={shown}{note}\n")
        copies = count(before, key)
        if copies > 1:
            lines[0].append(f"{key} is assigned {copies} times\n")
    return "".join(lines[0]), "".join(lines[1])


def _check_kept(before: str, after: str, keys: Collection[str]) -> None:
    """Every line that is not ours must mean what it meant: a quote that one leaves open can swallow what follows it.

    :raises SluiceError: it would not
    """
    old, new = ([(p.key, p.text.rstrip("\r\n")) for p in _pieces(t) if p.key not in keys] for t in (before, after))
    for was, now in zip_longest(old, new):
        if was != now:
            raise _open_quote((was or now or ("",))[0] or "a line that is not ours")


def _open_quote(key: str) -> SluiceError:
    return SluiceError(
        f"a quote is opened and not closed, so that {key} would be read differently after the change.",
        where=".env",
        next_step="close the quote in the file, then run the same command again.",
    )


def _pieces(text: str) -> Iterator[_Piece]:
    position = 0
    while position < len(text):
        end = _line_end(text, position)
        found = _ASSIGNMENT.match(text, position, end)
        if found is None:
            yield _Piece(text[position:end])
            position = end
            continue
        value, value_end = _value(text, found.end(), end)
        if value_end > end:
            end = _line_end(text, value_end)
        yield _Piece(text[position:end], found["key"], found["head"], value, text[value_end:end])
        position = end


def _line_end(text: str, position: int) -> int:
    newline = text.find("\n", position)
    return len(text) if newline < 0 else newline + 1


def _value(text: str, start: int, line_end: int) -> tuple[str, int]:
    """The value that begins at ``start`` and the position behind its notation."""
    quote = text[start : start + 1]
    if quote in ("'", '"'):
        close = _closing(text, start, quote, line_end)
        if close is not None:
            return text[start + 1 : close], close + 1
    bare = text[start:line_end].rstrip("\r\n")
    comment = re.search(r"[ \t]+#", bare)
    if bare.startswith("#") and text[start - 1] in " \t":
        bare = ""
    elif comment is not None:
        bare = bare[: comment.start()]
    bare = bare.rstrip(" \t")
    return bare, start + len(bare)


def _closing(text: str, opening: int, quote: str, line_end: int) -> int | None:
    """Where the quote ends: on its own line if it can, else on a later one. Only a comment may follow."""
    close = _next_quote(text, opening + 1, quote)
    if close is not None and close < line_end and _nothing_follows(text, close + 1):
        return close
    if quote == "'":  # for shells a backslash escapes nothing here
        raw = text.find(quote, opening + 1, line_end)
        if raw >= 0 and _nothing_follows(text, raw + 1):
            return raw
    return close if close is not None and close >= line_end and _nothing_follows(text, close + 1) else None


def _next_quote(text: str, start: int, quote: str) -> int | None:
    position = start
    while position < len(text):
        if text[position] == "\\":
            position += 2
        elif text[position] == quote:
            return position
        else:
            position += 1
    return None


def _nothing_follows(text: str, position: int) -> bool:
    rest = text[position : _line_end(text, position)].strip(" \t\r\n")
    return not rest or rest.startswith("#")


def _check_key(key: str) -> None:
    if not _KEY.match(key):
        raise SluiceError(
            f"'{key}' is not the name of a setting.", where=".env", next_step="use letters, digits and _."
        )


def _written(key: str, value: str) -> str:
    """The notation of a value which shells, systemd and the usual libraries read alike: no escapes in it."""
    if any(character in value for character in "\n\r\0"):
        reason = "a line break or NUL"
    elif any("\ud800" <= character <= "\udfff" for character in value):
        reason = "half a surrogate pair"
    elif _PLAIN.match(value):
        return value
    elif "\\" in value or "${" in value:
        reason = "a backslash or ${"
    elif "'" not in value:
        return f"'{value}'"
    elif not set('"$`').intersection(value):
        return f'"{value}"'
    else:
        reason = 'a single quote together with one of " $ `'
    raise SluiceError(
        f"the value of {key} has {reason} in it, which readers of such files understand differently.",
        where=".env",
        next_step="choose another value; inside a URL write the character percent-encoded.",
    )
