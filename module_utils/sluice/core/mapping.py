"""The mapping: the data that describes an application's tasks to Sluice.

:func:`parse` turns plain data (from YAML) into frozen dataclasses and refuses what it does not know, naming the place.
Whether it fits the live schema is asked of the store (``SourceEnd.fit``), before anything moves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from . import conditions
from .conditions import IDENTIFIER, Condition, Scalar, shown
from .errors import MappingError
from .tasks import Place

QUEUE_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,120}\Z")
#: It goes into patterns of ACL rules and of SCAN, where * ? [ ] and spaces would widen what is ours.
KEY_PREFIX = re.compile(r"[A-Za-z0-9_.{}:-]{1,100}\Z")

#: The order in which the source's predicates are tried is no matter: exactly one must hold.
SOURCE_PLACES = (
    Place.READY,
    Place.DELAYED,
    Place.LEASED,
    Place.CLAIMED,
    Place.MOVED,
    Place.RUNNING,
    Place.FINISHED,
    Place.FAILED,
    Place.CANCELLED,
)


@dataclass(frozen=True, slots=True)
class Order:
    """One step of the claim order: a column ascending, descending, or by a stated list of values."""

    column: str
    descending: bool = False
    first: tuple[Scalar, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """``column = value``; the words ``$now``, ``$token``, ``$null`` and ``$reason`` stand for themselves."""

    column: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class Hold:
    """How a row is taken out of circulation: by the row's own columns, or in the ledger's companion table."""

    kind: str  # columns | companion
    claim: tuple[Assignment, ...] = ()
    moved: tuple[Assignment, ...] = ()
    back: tuple[Assignment, ...] = ()
    requeue: tuple[Assignment, ...] = ()  # an operator's word that a held task has not run
    fail: tuple[Assignment, ...] = ()  # a task shall not run any more: by an operator, or as it failed at the target
    cancel: tuple[Assignment, ...] = ()  # it was cancelled at the target
    token_column: str = ""


@dataclass(frozen=True, slots=True)
class Claimer:
    """One kind of process that claims tasks at the source. ``order`` is its own, where it is not the source's."""

    name: str
    guarded: bool
    account: str  # the SQL account it logs in with, e.g. captions_legacy@%
    processes: int = 1
    order: tuple[Order, ...] = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what. An empty name means that the table has none."""

    id: str
    queue: str = ""
    created: str = ""
    available: str = ""
    attempts: str = ""
    attempts_allowed: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A polled SQL table."""

    table: str
    columns: Columns
    places: Mapping[Place, Condition]
    order: tuple[Order, ...]
    hold: Hold
    claimers: tuple[Claimer, ...]
    clocks: Mapping[str, str] = field(default_factory=dict)  # column -> utc | local | epoch
    started: Condition | None = None  # the witness: the task has been started
    ended: Condition | None = None  # the witness: the task has ended
    journal: bool = False  # rows record the tasks born in the target
    pending: Condition | None = None  # journalled, accepted, and still to be enqueued by the application


@dataclass(frozen=True, slots=True)
class Target:
    """RQ: queues, the function and how its arguments are made of the row."""

    queues: Mapping[str, str]  # the source's queue value -> RQ queue
    default_queue: str
    function: str
    args: tuple[str, ...]  # columns, passed as they are
    opaque: str = ""  # a column whose bytes are carried whole to the function
    serializer: str = "json"  # json | pickle
    key_prefix: str = "rq"
    timeouts: Mapping[str, int] = field(default_factory=dict)  # RQ queue -> seconds
    default_timeout: int = 180
    result_ttl: int = 500
    failure_ttl: int = 31536000
    retries: str = "application"  # application: the row counts them; carry: RQ's retries_left, from the row's attempts
    retry_max: int = 0  # runs after a first one that failed, for `application`: what RQ does when the job raises
    retry_intervals: tuple[int, ...] = ()  # seconds before each


@dataclass(frozen=True, slots=True)
class Route:
    """Where the share of new submissions is kept, and how a change is proved."""

    kind: str  # sql_row | none
    table: str = ""
    share: str = ""
    key: str = ""
    key_value: Scalar = None
    polling: str = ""
    emergency: str = ""  # a column that sends every submission to the source, whatever the share
    barrier: str = "shared_lock"  # shared_lock | timeout
    producer_timeout: float = 30.0
    producer_accounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Intake:
    """Where the application keeps whether submissions are accepted."""

    table: str
    key: str
    key_value: Scalar
    state: str
    open_value: Scalar
    paused_value: Scalar
    until: str = ""


@dataclass(frozen=True, slots=True)
class TaskMapping:
    """The whole mapping of one system."""

    system: str
    source: Source
    target: Target
    route: Route
    intake: Intake | None
    user_constraint: bool


def parse(data: object) -> TaskMapping:
    """Read a mapping.

    :param data: plain data as YAML gives it
    :raises MappingError: one message naming the place inside the mapping
    """
    top = _table(data, "mapping")
    _known(top, {"system", "source", "target", "route", "intake", "user_constraint"}, "mapping")
    system = _text(top, "system", "mapping")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", system):
        raise MappingError(f"system '{system}' must be lower-case letters, digits and _.", where="mapping.system")
    source = _source(_table(top.get("source"), "source"))
    target = _target(_table(top.get("target"), "target"))
    if not source.columns.queue and not target.default_queue:
        raise MappingError("without source.columns.queue it needs 'default_queue'.", where="target")
    constraint = top.get("user_constraint", False)
    if not isinstance(constraint, bool):
        raise MappingError("must be true or false.", where="mapping.user_constraint")
    if constraint and not source.columns.user:
        raise MappingError("needs source.columns.user.", where="mapping.user_constraint")
    route = _route(top.get("route"))
    intake = _intake(top.get("intake"))
    return TaskMapping(system, source, target, route, intake, constraint)


def supports_hybrid(mapping: TaskMapping) -> str:
    """Empty when both sides may run at once; else the reason why the plan goes ``prepared -> routed``."""
    if mapping.route.kind == "none":
        return "the mapping names no route that can be split"
    if Place.MOVED not in mapping.source.places:
        return "the table has no word for custody: rows born in the target look ready to the pollers"
    return ""


def _source(data: Mapping[str, object]) -> Source:
    where = "source"
    _known(
        data,
        {"kind", "table", "columns", "clocks", "places", "order", "hold", "claimers", "witness", "journal", "pending"},
        where,
    )
    if data.get("kind", "sql_table") != "sql_table":
        raise MappingError(f"kind {shown(data.get('kind'))} is not known; use sql_table.", where=f"{where}.kind")
    columns_data = _table(data.get("columns"), f"{where}.columns")
    _known(columns_data, set(Columns.__dataclass_fields__), f"{where}.columns")
    columns = (
        Columns(**{name: _identifier(value, f"{where}.columns.{name}") for name, value in columns_data.items()})
        if ("id" in columns_data)
        else _missing("id", f"{where}.columns")
    )
    places = {}
    for word, condition in _table(data.get("places"), f"{where}.places").items():
        if word not in {str(p) for p in SOURCE_PLACES}:
            raise MappingError(f"'{word}' is not a place; known: {', '.join(SOURCE_PLACES)}.", where=f"{where}.places")
        places[Place(word)] = conditions.parse(condition, f"{where}.places.{word}")
    if Place.READY not in places:
        raise MappingError("'ready' is missing: without it nothing can be moved.", where=f"{where}.places")
    if Place.LEASED not in places:
        raise MappingError(
            "'leased' is missing: say which rows are being worked on, or that none can be told "
            "(leased: {column: <id>, null: true}) with claimers that are unguarded.",
            where=f"{where}.places",
        )
    if Place.DELAYED in places and not columns.available:
        raise MappingError("needs source.columns.available: when is a row due?", where=f"{where}.places.delayed")
    clocks = {}
    for column, clock in _table(data.get("clocks", {}), f"{where}.clocks").items():
        if clock not in ("utc", "local", "epoch"):
            raise MappingError(
                f"'{_said(clock)}' is not a clock; use utc, local or epoch.", where=f"{where}.clocks.{column}"
            )
        clocks[_identifier(column, f"{where}.clocks")] = str(clock)
    witness = _table(data.get("witness", {}), f"{where}.witness")
    _known(witness, {"started", "ended"}, f"{where}.witness")
    pending = data.get("pending")
    hold = _hold(_table(data.get("hold"), f"{where}.hold"))
    if hold.kind == "columns" and (Place.CLAIMED not in places or Place.MOVED not in places):
        raise MappingError(
            "a hold by columns needs the places 'claimed' and 'moved', so that a resume finds its own rows.",
            where=f"{where}.hold",
        )
    claimers = tuple(
        _claimer(item, f"{where}.claimers[{i}]")
        for i, item in enumerate(_list(data.get("claimers"), f"{where}.claimers"))
    )
    if not columns.created and not all(claimer.guarded for claimer in claimers):
        raise MappingError(
            "'created' is missing: only by their age it is known which rows an unguarded claimer may have had in hand.",
            where=f"{where}.columns",
        )
    return Source(
        table=_identifier(data.get("table"), f"{where}.table"),
        columns=columns,
        places=places,
        order=_orders(data.get("order"), f"{where}.order"),
        hold=hold,
        claimers=claimers,
        clocks=clocks,
        started=conditions.parse(witness["started"], f"{where}.witness.started") if "started" in witness else None,
        ended=conditions.parse(witness["ended"], f"{where}.witness.ended") if "ended" in witness else None,
        journal=_flag(data, "journal", False, where),
        pending=conditions.parse(pending, f"{where}.pending") if pending is not None else None,
    )


def _orders(data: object, where: str) -> tuple[Order, ...]:
    return tuple(_order(item, f"{where}[{i}]") for i, item in enumerate(_list(data, where)))


def _order(item: object, where: str) -> Order:
    if isinstance(item, str):
        return Order(_identifier(item, where))
    data = _table(item, where)
    _known(data, {"column", "descending", "first"}, where)
    first = data.get("first", ())
    if not isinstance(first, Sequence) or isinstance(first, str | bytes):
        raise MappingError("'first' must be a list of values, the first to be claimed first.", where=where)
    return Order(
        _identifier(data.get("column"), where),
        _flag(data, "descending", False, where),
        tuple(conditions.scalar(value, where) for value in first),
    )


def _hold(data: Mapping[str, object]) -> Hold:
    where = "source.hold"
    _known(data, {"kind", "claim", "moved", "back", "requeue", "fail", "cancel", "token_column"}, where)
    kind = data.get("kind")
    if kind == "companion":
        if set(data) != {"kind"}:
            raise MappingError("a companion hold takes no assignments: the row keeps its own words.", where=where)
        return Hold("companion")
    if kind != "columns":
        raise MappingError("kind must be 'columns' or 'companion'.", where=f"{where}.kind")
    parts = {word: _assignments(data.get(word), f"{where}.{word}") for word in ("claim", "moved", "back")}
    token_column = _identifier(data.get("token_column"), f"{where}.token_column")
    if not any(a.column == token_column and a.value == "$token" for a in parts["claim"]):
        raise MappingError(f"'claim' must set {token_column}: $token, for the compare-and-set.", where=where)
    for word in ("requeue", "fail", "cancel"):
        parts[word] = _assignments(data[word], f"{where}.{word}", reason=word != "requeue") if word in data else ()
    return Hold("columns", token_column=token_column, **parts)


def _assignments(data: object, where: str, *, reason: bool = False) -> tuple[Assignment, ...]:
    words = ("$now", "$token", "$null", *(["$reason"] if reason else []))
    found = []
    for column, value in _table(data, where).items():
        plain = None if value is None else conditions.scalar(value, f"{where}.{column}")
        if isinstance(value, str) and value.startswith("$") and value not in words:
            known = f"{', '.join(words[:-1])} or {words[-1]}"
            raise MappingError(f"{value} is not known; use {known}.", where=f"{where}.{column}")
        found.append(Assignment(_identifier(column, where), plain))
    if not found:
        raise MappingError("needs at least one column.", where=where)
    return tuple(found)


def _claimer(item: object, where: str) -> Claimer:
    data = _table(item, where)
    _known(data, {"name", "kind", "account", "processes", "order"}, where)
    kind = data.get("kind")
    if kind not in ("guarded", "unguarded"):
        raise MappingError(
            "kind must be 'guarded' (conditional update or row lock) or 'unguarded'.", where=f"{where}.kind"
        )
    processes = data.get("processes", 1)
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        raise MappingError("must be a number of at least 1.", where=f"{where}.processes")
    return Claimer(
        _text(data, "name", where),
        kind == "guarded",
        _account(data.get("account"), f"{where}.account"),
        processes,
        _orders(data.get("order", ()), f"{where}.order"),
    )


def _account(value: object, where: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}@[A-Za-z0-9_.:%-]{1,200}", value):
        raise MappingError(f"{shown(value)} is not an account; write user@host.", where=where)
    return value


def _target(data: Mapping[str, object]) -> Target:
    where = "target"
    _known(
        data,
        {"kind", "queues", "default_queue", "function", "args", "opaque", "serializer", "key_prefix", "timeouts",
         "default_timeout", "result_ttl", "failure_ttl", "retries", "retry_max", "retry_intervals"},
        where,
    )  # fmt: skip
    if data.get("kind", "rq") != "rq":
        raise MappingError(f"kind {shown(data.get('kind'))} is not known; use rq.", where=f"{where}.kind")
    queues = {}
    for value, name in _table(data.get("queues", {}), f"{where}.queues").items():
        queues[str(value)] = _queue(name, f"{where}.queues.{value}")
    default_queue = data.get("default_queue", "")
    if default_queue:
        default_queue = _queue(default_queue, f"{where}.default_queue")
    if not queues and not default_queue:
        raise MappingError("needs 'queues' or 'default_queue'.", where=where)
    function = _text(data, "function", where)
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", function):
        raise MappingError(f"'{function}' is not a dotted Python name.", where=f"{where}.function")
    serializer = _said(data.get("serializer", "json"))
    if serializer not in ("json", "pickle"):
        raise MappingError(f"'{serializer}' is not known; use json or pickle.", where=f"{where}.serializer")
    retries = _said(data.get("retries", "application"))
    if retries not in ("application", "carry"):
        raise MappingError("must be 'application' or 'carry'.", where=f"{where}.retries")
    timeouts = {}
    for name, seconds in _table(data.get("timeouts", {}), f"{where}.timeouts").items():
        timeouts[_queue(name, f"{where}.timeouts")] = _seconds(seconds, f"{where}.timeouts.{name}")
    opaque = data.get("opaque", "")
    key_prefix = _text(data, "key_prefix", where) if "key_prefix" in data else "rq"
    if not KEY_PREFIX.match(key_prefix):
        raise MappingError(
            f"'{key_prefix}' cannot begin a key; use letters, digits and _ . : - {{ }}.", where=f"{where}.key_prefix"
        )
    return Target(
        queues=queues,
        default_queue=str(default_queue),
        function=function,
        args=tuple(
            _identifier(a, f"{where}.args[{i}]") for i, a in enumerate(_list(data.get("args", []), f"{where}.args"))
        ),
        opaque=_identifier(opaque, f"{where}.opaque") if opaque else "",
        serializer=serializer,
        key_prefix=key_prefix,
        timeouts=timeouts,
        default_timeout=_seconds(data.get("default_timeout", 180), f"{where}.default_timeout"),
        result_ttl=_seconds(data.get("result_ttl", 500), f"{where}.result_ttl"),
        failure_ttl=_seconds(data.get("failure_ttl", 31536000), f"{where}.failure_ttl"),
        retries=retries,
        retry_max=_seconds(data.get("retry_max", 0), f"{where}.retry_max"),
        retry_intervals=tuple(
            _seconds(s, f"{where}.retry_intervals[{i}]")
            for i, s in enumerate(_list(data.get("retry_intervals", []), f"{where}.retry_intervals"))
        ),
    )


def _route(data: object) -> Route:
    where = "route"
    if data is None:
        return Route("none")
    table = _table(data, where)
    _known(table, {"kind", *Route.__dataclass_fields__} - {"key_value"}, where)
    kind = table.get("kind", "sql_row")
    accounts = tuple(
        _account(a, f"{where}.producer_accounts")
        for a in _list(table.get("producer_accounts", []), f"{where}.producer_accounts")
    )
    timeout = table.get("producer_timeout", 30)
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 <= timeout < 86400:
        raise MappingError("must be seconds.", where=f"{where}.producer_timeout")
    if kind == "none":
        return Route("none", producer_accounts=accounts, barrier="timeout", producer_timeout=float(timeout))
    if kind != "sql_row":
        raise MappingError(f"kind {shown(kind)} is not known; use sql_row or none.", where=f"{where}.kind")
    key, key_value = _single_key(table.get("key"), f"{where}.key")
    barrier = _said(table.get("barrier", "shared_lock"))
    if barrier not in ("shared_lock", "timeout"):
        raise MappingError("must be 'shared_lock' or 'timeout'.", where=f"{where}.barrier")
    switches = {word: table.get(word, "") for word in ("polling", "emergency")}
    return Route(
        "sql_row",
        _identifier(table.get("table"), f"{where}.table"),
        _identifier(table.get("share"), f"{where}.share"),
        key,
        key_value,
        barrier=barrier,
        producer_timeout=float(timeout),
        producer_accounts=accounts,
        polling=_identifier(switches["polling"], f"{where}.polling") if switches["polling"] else "",
        emergency=_identifier(switches["emergency"], f"{where}.emergency") if switches["emergency"] else "",
    )


def _intake(data: object) -> Intake | None:
    if data is None:
        return None
    where = "intake"
    table = _table(data, where)
    _known(table, {"table", "key", "state", "open", "paused", "until"}, where)
    key, key_value = _single_key(table.get("key"), f"{where}.key")
    for word in ("open", "paused"):
        if not isinstance(table.get(word), str | int):
            raise MappingError("needs a plain value.", where=f"{where}.{word}")
    until = table.get("until", "")
    return Intake(
        _identifier(table.get("table"), f"{where}.table"),
        key,
        key_value,
        _identifier(table.get("state"), f"{where}.state"),
        _plain(table.get("open")),
        _plain(table.get("paused")),
        _identifier(until, f"{where}.until") if until else "",
    )


def _plain(value: object) -> Scalar:
    return None if value is None else conditions.scalar(value, "intake")


def _single_key(data: object, where: str) -> tuple[str, Scalar]:
    table = _table(data, where)
    if len(table) != 1:
        raise MappingError("needs exactly one column and its value, e.g. {id: 1}.", where=where)
    [(column, value)] = table.items()
    if not isinstance(value, str | int):
        raise MappingError(f"{shown(value)} is not a plain value.", where=where)
    return _identifier(column, where), conditions.scalar(value, where)


def _table(data: object, where: str) -> Mapping[str, object]:
    if not isinstance(data, Mapping):
        raise MappingError("is missing or is not a table of words.", where=where)
    return {_said(key): value for key, value in data.items()}


def _said(value: object) -> str:
    """A word as it is, or what stands in its place."""
    return value if isinstance(value, str) else shown(value)


def _list(data: object, where: str) -> Sequence[object]:
    if not isinstance(data, Sequence) or isinstance(data, str | bytes):
        raise MappingError("is missing or is not a list.", where=where)
    return data


def _known(data: Mapping[str, object], known: set[str], where: str) -> None:
    extra = sorted(set(data) - known)
    if extra:
        raise MappingError(f"unknown words: {', '.join(extra)}. Known: {', '.join(sorted(known))}.", where=where)


def _text(data: Mapping[str, object], word: str, where: str) -> str:
    value = data.get(word)
    if not isinstance(value, str) or not value:
        raise MappingError("is missing or is not text.", where=f"{where}.{word}")
    return str(conditions.scalar(value, f"{where}.{word}"))


def _flag(data: Mapping[str, object], word: str, default: bool, where: str) -> bool:
    value = data.get(word, default)
    if not isinstance(value, bool):
        raise MappingError("must be true or false.", where=f"{where}.{word}")
    return value


def _seconds(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < -1:
        raise MappingError("must be whole seconds (-1: no limit).", where=where)
    return value


def _queue(value: object, where: str) -> str:
    if not isinstance(value, str) or not QUEUE_NAME.match(value):
        raise MappingError(f"{shown(value)} is not a queue name.", where=where)
    return value


def _identifier(value: object, where: str) -> str:
    if not isinstance(value, str) or not IDENTIFIER.match(value):
        raise MappingError(f"{shown(value)} is not the name of a table or column.", where=where)
    return value


def _missing(word: str, where: str) -> Columns:
    raise MappingError(f"'{word}' is missing.", where=where)
