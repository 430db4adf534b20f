"""What an RQ job's hash says, read without running anything of it.

The payload is zlib (or raw) over the serializer's form of ``[function, instance, args, kwargs]``. A pickle is a
programme; here its opcodes are interpreted by a machine that knows plain data only and stops at the first one that
would import, call or build something.
"""

from __future__ import annotations

import json
import pickletools
import re
import zlib
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, cast
from zlib import adler32

from ..core.errors import SluiceError

Serializer = Literal["json", "pickle"]

#: Bytes of a payload once inflated; more is refused before it is held in memory.
MAX_INFLATED = 64 << 20
#: Lists within lists; what goes deeper could not be written down again by recursive writers.
MAX_DEPTH = 100
#: Opcodes of one pickle.
MAX_OPCODES = 1_000_000
#: Characters and members (of 32 each), counted as often as they are mentioned: shared lists can stand for exponentially
#: many.
MAX_WEIGHT = MAX_INFLATED
_MEMBER = 32
#: Bits of a whole number: Python writes none of more than 4300 digits.
MAX_BITS = 14_000
_SUMMARY = 500

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
#: What protocols 0 and 1 call in place of the class itself; the class is named right behind.
_REBUILDERS = frozenset({"copy_reg _reconstructor", "copyreg _reconstructor"})
_WHOLE = re.compile(rb"-?[0-9]{1,18}\Z")
_LONE = re.compile("[\ud800-\udfff]")
_decode_json = json.JSONDecoder().decode


class UnreadablePayload(SluiceError):
    """The payload cannot be told as plain data; :attr:`reason` says why, in words fit for a held task."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)

    @property
    def reason(self) -> str:
        """Why, without a place: the caller knows the job."""
        return self.what


@dataclass(frozen=True, slots=True)
class Payload:
    """What a worker would call: ``function`` (dotted name) on ``instance`` (None for a plain function)."""

    function: str
    instance: object | None
    args: tuple[object, ...]
    kwargs: dict[str, object]


def read_payload(data: bytes, serializer: Serializer) -> Payload:
    """Read the field ``data`` of a job's hash. Nothing is imported, called or built.

    :param serializer: what the application's queues use; a job does not record it
    :raises UnreadablePayload: damaged, too large, or holding more than plain data
    """
    plain = _inflated(data)
    try:
        content = _read_json(plain) if serializer == "json" else _read_pickle(plain)
    except UnreadablePayload:
        # A damaged stream is taken for raw bytes, as RQ does; its damage is then the better reason.
        if plain is data and (damage := _damage(data)):
            raise UnreadablePayload(f"the payload's zlib stream is damaged ({damage})") from None
        raise
    return _payload(content)


def _payload(content: object) -> Payload:
    if type(content) not in (list, tuple) or len(content) != 4:  # type: ignore[arg-type]
        raise UnreadablePayload("the payload is not [function, instance, args, kwargs]")
    function, instance, args, kwargs = cast("tuple[object, ...]", content)
    if type(function) is not str or not function:
        raise UnreadablePayload("the payload names no function")
    if type(args) not in (list, tuple):
        raise UnreadablePayload("the payload's args are not a list")
    if type(kwargs) is not dict:
        raise UnreadablePayload("the payload's kwargs are not a dictionary")
    for name in kwargs:
        if type(name) is not str:
            raise UnreadablePayload("the payload's kwargs have a name that is not text")
    return Payload(function, instance, tuple(cast("list[object]", args)), kwargs)


# -- compression ----------------------------------------------------------------------------------------------------


def _inflated(data: bytes) -> bytes:
    """The payload out of its zlib stream, or as it is when it is in none."""
    if data[:3] == b"\x78\x01\x01" and len(data) >= 11:
        # One stored block, as ours are: no decompressor is needed. Its sum is compared as zlib would.
        plain = data[7:-4]
        if (
            len(plain) == data[3] | data[4] << 8
            and data[3] ^ data[5] == 0xFF == data[4] ^ data[6]
            and adler32(plain) == int.from_bytes(data[-4:], "big")
        ):
            return plain
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, MAX_INFLATED + 1)
    except zlib.error:
        plain = data
    else:
        if not stream.eof and len(plain) <= MAX_INFLATED:
            plain = data
    if len(plain) > MAX_INFLATED:
        raise UnreadablePayload(f"the payload is larger than {MAX_INFLATED >> 20} MiB")
    return plain


def _damage(data: bytes) -> str:
    """What zlib says of bytes that have the head of a zlib stream and are none; '' without such a head."""
    if len(data) < 2 or data[0] != 0x78 or (data[0] << 8 | data[1]) % 31:
        return ""
    try:
        zlib.decompressobj().decompress(data, MAX_INFLATED)
    except zlib.error as error:
        return str(error).rsplit(": ", 1)[-1]
    return "cut off"


# -- JSON -----------------------------------------------------------------------------------------------------------


def _read_json(plain: bytes) -> object:
    try:
        text = plain.decode()
        content = _decode_json(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        if plain[:1] == b"\x80":
            raise UnreadablePayload("the payload is a pickle, but the mapping's serializer is json") from None
        raise UnreadablePayload(f"the payload is no JSON ({_short(error)})") from None
    # As many brackets as the depth allows cannot go deeper than it; half a surrogate pair is always escaped.
    if text.count("[") + text.count("{") > MAX_DEPTH or "\\ud" in text or "\\uD" in text:
        _weigh(content, MAX_WEIGHT)
    return content


# -- pickle ---------------------------------------------------------------------------------------------------------


def _read_pickle(plain: bytes) -> object:
    if plain[:1] in (b"[", b"{"):
        raise UnreadablePayload("the payload is JSON, but the mapping's serializer is pickle")
    machine = _Machine()
    try:
        content = machine.run(plain)
    except UnreadablePayload:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise UnreadablePayload(f"the payload is no readable pickle ({_short(error)})") from None
    _weigh(content, machine.budget)
    return content


class _Machine:
    """A pickle machine for plain data. Whatever it does not know, it refuses by the opcode's name."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.budget = MAX_WEIGHT

    def run(self, plain: bytes) -> object:
        known = _OPCODES
        opcodes = pickletools.genops(plain)
        for count, (opcode, argument, _) in enumerate(opcodes):
            if count >= MAX_OPCODES:
                raise UnreadablePayload(f"the pickle has more than {MAX_OPCODES} opcodes")
            name = opcode.name
            if name in _PUSHED:
                self.stack.append(argument)
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            elif name == "STOP":
                return self.pop()
            else:
                act = known.get(name)
                if act is None:
                    self.refuse(name, argument, opcodes)
                act(self, argument)
        raise UnreadablePayload("the pickle has no end")

    def refuse(self, name: str, argument: object, following: Any) -> NoReturn:
        """Name what the pickle would have built, where that can be told."""
        where = f"pickle opcode {name}"
        if name in ("GLOBAL", "INST"):
            wanted = str(argument)
            if wanted in _REBUILDERS:
                behind = next(following, None)
                while behind is not None and behind[0].name in ("MARK", "PUT", "BINPUT", "LONG_BINPUT"):
                    behind = next(following, None)
                if behind is not None and behind[0].name == "GLOBAL":
                    wanted = str(behind[1])
            raise UnreadablePayload(f"it holds a {_clean(wanted.replace(' ', '.'))} ({where})")
        if name == "STACK_GLOBAL" and len(self.stack) > 1 and all(type(word) is str for word in self.stack[-2:]):
            raise UnreadablePayload(f"it holds a {_clean('.'.join(self.stack[-2:]))} ({where})")
        raise UnreadablePayload(f"it holds more than plain data ({where})")

    def floor(self) -> int:
        return self.marks[-1] if self.marks else 0

    def top(self) -> Any:
        if len(self.stack) <= self.floor():
            raise ValueError("its stack is empty")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        self.stack.pop()
        return value

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("a mark is missing")
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def container(self, kind: type) -> Any:
        found = self.top()
        if type(found) is not kind:
            raise ValueError(f"a {kind.__name__} is missing")
        return found

    def key(self, value: object) -> object:
        """A value that may be hashed: hashing goes down by recursion, so it is weighed before."""
        if type(value) not in _SCALARS:
            self.budget = _weigh(value, self.budget)
        return value

    # What the opcodes do, in the words of pickletools.

    def proto(self, argument: Any) -> None:
        if argument > 5:
            raise ValueError(f"protocol {argument}")

    def frame(self, _: Any) -> None:
        """Frames only say how far to read ahead."""

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def pop_one(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def pop_mark(self, _: Any) -> None:
        self.since_mark()

    def dup(self, _: Any) -> None:
        self.stack.append(self.top())

    def put(self, argument: Any) -> None:
        self.memo[int(argument)] = self.top()

    def get(self, argument: Any) -> None:
        self.stack.append(self.memo[int(argument)])

    def text(self, argument: Any) -> None:
        """A string of Python 2: bytes or text, which only ASCII leaves open without harm."""
        if not argument.isascii():
            raise ValueError("a string of Python 2 that is not ASCII")
        self.stack.append(argument)

    def append(self, _: Any) -> None:
        value = self.pop()
        self.container(list).append(value)

    def appends(self, _: Any) -> None:
        values = self.since_mark()
        self.container(list).extend(values)

    def make_list(self, _: Any) -> None:
        self.stack.append(self.since_mark())

    def make_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.since_mark()))

    def make_frozenset(self, _: Any) -> None:
        self.stack.append(frozenset([self.key(value) for value in self.since_mark()]))

    def make_dict(self, _: Any) -> None:
        self.stack.append({})
        self.fill(self.since_mark_below_top())

    def since_mark_below_top(self) -> list[Any]:
        made = self.stack.pop()
        values = self.since_mark()
        self.stack.append(made)
        return values

    def fill(self, values: list[Any]) -> None:
        found = self.container(dict)
        if len(values) % 2:
            raise ValueError("a key without a value")
        for at in range(0, len(values), 2):
            found[self.key(values[at])] = values[at + 1]

    def setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.fill([key, value])

    def setitems(self, _: Any) -> None:
        self.fill(self.since_mark())

    def additems(self, _: Any) -> None:
        values = self.since_mark()
        self.container(set).update([self.key(value) for value in values])


def _tuple_of(size: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(size)]
        machine.stack.append(tuple(reversed(values)))

    return make


def _constant(make: Callable[[], object]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


#: Opcodes whose argument is the value.
_PUSHED = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)
_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.proto,
    "FRAME": _Machine.frame,
    "MARK": _Machine.mark,
    "POP": _Machine.pop_one,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "STRING": _Machine.text,
    "BINSTRING": _Machine.text,
    "SHORT_BINSTRING": _Machine.text,
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(set),
    "EMPTY_TUPLE": _constant(tuple),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": _Machine.make_tuple,
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "FROZENSET": _Machine.make_frozenset,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.setitem,
    "SETITEMS": _Machine.setitems,
    "ADDITEMS": _Machine.additems,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
}


def _weigh(value: object, budget: int) -> int:
    """Walk a value as a writer of it would, and return what is left of the budget.

    :raises UnreadablePayload: it goes too deep (or holds itself), or says too much
    """
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        found, depth = waiting.pop()
        kind = type(found)
        if kind in (str, bytes, bytearray):
            budget -= 1 + len(found)
            if kind is str and not found.isascii() and _LONE.search(found):
                raise UnreadablePayload("the payload has text that is no Unicode (half of a surrogate pair)")
        elif kind in _SCALARS:
            budget -= 1
            if kind is int and found.bit_length() > MAX_BITS:
                raise UnreadablePayload("the payload has a whole number of more than 4000 digits")
        else:
            if depth > MAX_DEPTH:
                raise _too_deep()
            budget -= 1 + len(found) * (2 * _MEMBER if kind is dict else _MEMBER)
            if budget >= 0:  # else its members are not even listed
                waiting += [(member, depth + 1) for member in found]
                if kind is dict:
                    waiting += [(member, depth + 1) for member in found.values()]
        if budget < 0:
            raise UnreadablePayload("the payload mentions shared values so often that it grows beyond all bounds")
    return budget


def _too_deep() -> UnreadablePayload:
    return UnreadablePayload(f"the payload is nested deeper than {MAX_DEPTH} levels, or holds itself")


def _short(error: BaseException) -> str:
    return _clean(str(error))[:120] or type(error).__name__


def _clean(text: str) -> str:
    """Text for a reason: printable, one line, short."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


# -- the other fields of the hash -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobFields:
    """A job's hash in plain values. What is unset, missing or garbled is None; ``faults`` says what is more than unset.

    Times are epoch seconds (UTC); ``timeout`` and ``retry_intervals`` seconds (a timeout of -1 means none);
    ``exc_info`` is the last line of the error; ``peculiar`` names what a task elsewhere may be unable to express
    (callbacks, webhooks, rate limits, repeats, groups).
    """

    id: str
    origin: str | None
    status: str | None
    created: float | None
    enqueued: float | None
    started: float | None
    ended: float | None
    timeout: int | None
    retries_left: int | None
    retry_intervals: tuple[float, ...] | None
    dependencies: tuple[str, ...] | None
    meta: dict[str, object] | None
    worker_name: str | None
    exc_info: str | None
    peculiar: tuple[str, ...]
    faults: tuple[str, ...]

    @classmethod
    def from_hash(
        cls, mapping: Mapping[bytes, bytes], *, job_id: str = "", serializer: Serializer = "json"
    ) -> JobFields:
        """Read the answer of HGETALL. Never raises for what the fields contain.

        :param job_id: the id, which only the key has
        """
        read = _Fields(mapping)
        read.require("data")
        return cls(
            id=job_id,
            origin=read.text("origin", required=True),
            status=read.text("status", required=True),
            created=read.time("created_at", required=True),
            enqueued=read.time("enqueued_at"),
            started=read.time("started_at"),
            ended=read.time("ended_at"),
            timeout=read.whole("timeout"),
            retries_left=read.whole("retries_left"),
            retry_intervals=read.intervals("retry_intervals"),
            dependencies=read.dependencies(),
            meta=read.meta(serializer),
            worker_name=read.text("worker_name"),
            exc_info=read.error("exc_info"),
            peculiar=tuple(
                word for word, names in _PECULIAR.items() if any(mapping.get(name.encode()) for name in names)
            ),
            faults=tuple(read.faults),
        )


_PECULIAR = {
    "callbacks": ("success_callback_name", "failure_callback_name", "stopped_callback_name"),
    "webhooks": ("webhooks",),
    "rate limit": ("rate_limit_key",),
    "repeats": ("repeats_left",),
    "group": ("group_id",),
}


class _Fields:
    def __init__(self, mapping: Mapping[bytes, bytes]) -> None:
        self.mapping = mapping
        self.faults: list[str] = []

    def _value(self, name: str, required: bool = False) -> bytes | None:
        value = self.mapping.get(name.encode())
        if required and not value:
            self.faults.append(f"{name}: missing")
        return value or None

    def require(self, name: str) -> None:
        self._value(name, required=True)

    def text(self, name: str, required: bool = False) -> str | None:
        value = self._value(name, required)
        if value is None:
            return None
        try:
            return value.decode()
        except UnicodeDecodeError:
            self.faults.append(f"{name}: not UTF-8")
            return None

    def time(self, name: str, required: bool = False) -> float | None:
        value = self._value(name, required)
        if value is None:
            return None
        try:
            text = value.decode("ascii")
            if len(text) < 20 or text[10] != "T" or not text.endswith("Z"):
                raise ValueError(text)
            found = datetime.fromisoformat(text[:-1])
            if found.tzinfo is not None:
                raise ValueError(text)
            return found.replace(tzinfo=UTC).timestamp()
        except (ValueError, OverflowError):
            self.faults.append(f"{name}: not a time of RQ's")
            return None

    def whole(self, name: str) -> int | None:
        value = self._value(name)
        if value is None:
            return None
        if not _WHOLE.match(value):
            self.faults.append(f"{name}: not a whole number")
            return None
        return int(value)

    def _list(self, name: str) -> list[object] | None:
        value = self._value(name)
        if value is None:
            return None
        try:
            found = _read_json(value)
        except UnreadablePayload:
            found = None
        if type(found) is not list:
            self.faults.append(f"{name}: not a JSON list")
            return None
        return found

    def intervals(self, name: str) -> tuple[float, ...] | None:
        found = self._list(name)
        if found is None:
            return None
        seconds = [value for value in found if type(value) in (int, float)]
        if len(seconds) != len(found) or not all(0 <= cast("float", value) < 1e12 for value in seconds):
            self.faults.append(f"{name}: not a list of seconds")
            return None
        return tuple(cast("list[float]", seconds))

    def dependencies(self) -> tuple[str, ...] | None:
        if self._value("dependency_ids") is None:
            one = self.text("dependency_id")
            return (one,) if one else None if self._value("dependency_id") else ()
        found = self._list("dependency_ids")
        if found is None:
            return None
        ids = [value for value in found if isinstance(value, str)]
        if len(ids) != len(found):
            self.faults.append("dependency_ids: not a list of ids")
            return None
        return tuple(ids)

    def meta(self, serializer: Serializer) -> dict[str, object] | None:
        value = self._value("meta")
        if value is None:
            return {}
        try:
            if len(value) > MAX_INFLATED:
                raise UnreadablePayload(f"larger than {MAX_INFLATED >> 20} MiB")
            found = _read_json(value) if serializer == "json" else _read_pickle(value)
        except UnreadablePayload as error:
            self.faults.append(f"meta: {error.reason}")
            return None
        if type(found) is not dict or any(type(name) is not str for name in found):
            self.faults.append("meta: not a dictionary with names of text")
            return None
        return cast("dict[str, object]", found)

    def error(self, name: str) -> str | None:
        value = self._value(name)
        if value is None:
            return None
        try:
            text = _inflated(value).decode()
        except (UnreadablePayload, UnicodeDecodeError):
            self.faults.append(f"{name}: not text")
            return None
        return _last_line(text)


def epoch(value: bytes | None) -> float | None:
    """RQ's time in epoch seconds (UTC); None when it is unset or cannot be read."""
    return JobFields.from_hash({b"ended_at": value}).ended if value else None


def result_error(entry: Mapping[bytes, bytes]) -> str | None:
    """The last line of the error in one entry of a job's results stream, where RQ 1.12 and later keep it; else None."""
    value = entry.get(b"exc_string")
    if not value:
        return None
    try:
        return _last_line(_inflated(b64decode(value, validate=True)).decode())
    except (UnreadablePayload, ValueError):
        return None


def _last_line(text: str) -> str | None:
    # SQLAlchemy ends its errors with a line that only points elsewhere.
    lines = [line for line in text.rstrip().splitlines() if not line.startswith("(Background on this error at")]
    return lines[-1].strip()[:_SUMMARY] if lines else None
