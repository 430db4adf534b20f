"""A hostile mapping: no name of it gets into a statement that is not a name, and every value travels as a parameter."""

from __future__ import annotations

import copy
import inspect
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters.sql_accounts import SqlAccounts, parse_rights
from ansible.module_utils.sluice.adapters.sql_conditions import Compiler, LiveColumn, LiveTable
from ansible.module_utils.sluice.core.conditions import parse as parse_condition
from ansible.module_utils.sluice.core.errors import MappingError, StoreError
from ansible.module_utils.sluice.core.mapping import Order, parse
from sqlalchemy.dialects.mysql import pymysql as mysql_dialect

from captions import access

HOSTILE_NAMES = (
    "id; DROP TABLE tasks",
    "id`",
    "`id`",
    "id' OR '1'='1",
    'id"',
    "id--",
    "id -- ",
    "id/**/",
    "id#",
    "id,1",
    "(SELECT 1)",
    "a.b",
    "id\n",
    "id\0",
    " id",
    "id\\",
    "%s",
    ":id",
    "1",
    "ıd",  # letters of no alphabet that a server folds alike
    "a" * 65,
    "",
    7,
    ["id"],
    {"id": 1},
)
#: Those of them that may be in a key of Redis or name a queue.
GOOD_KEYS = ("a.b", "1", "a" * 65, ":id", "id--")
HOSTILE_VALUES = (
    "'; DROP TABLE tasks; --",
    "' OR 1=1 -- ",
    "\\' OR 1=1 #",
    "%s %(a)s :b ?",
    "`; DELETE FROM tasks",
    "\0\x1a\n\\",
    "100%_/",
)
#: Every place of a mapping is in it.
FULL: dict[str, Any] = {
    "system": "mail",
    "source": {
        "kind": "sql_table",
        "table": "mails",
        "columns": {
            "id": "id",
            "queue": "kind",
            "created": "made",
            "available": "due_at",
            "attempts": "tries",
            "attempts_allowed": "most",
            "user": "sender",
        },
        "clocks": {"made": "utc"},
        "places": {
            "ready": {
                "all": [
                    {"column": "state", "equals": "waiting"},
                    {"any": [{"column": "due_at", "null": True}, {"column": "due_at", "due": True, "plus": 5}]},
                ]
            },
            "leased": {"not": {"column": "state", "in": ["waiting", "sent"]}},
            "delayed": {"column": "state", "starts_with": "later"},
            "claimed": {"column": "tries", "below": "most"},
            "moved": {"column": "tries", "at_least": 3},
        },
        "order": ["kind", {"column": "made", "descending": True}, {"column": "state", "first": ["a", "b"]}],
        "hold": {
            "kind": "columns",
            "token_column": "token",
            "claim": {"state": "held", "token": "$token"},
            "moved": {"state": "gone"},
            "back": {"state": "waiting"},
            "requeue": {"state": "waiting"},
            "fail": {"state": "failed"},
            "cancel": {"state": "cancelled"},
        },
        "claimers": [
            {"name": "senders", "kind": "guarded", "account": "mail@%", "processes": 1, "order": [{"column": "made"}]}
        ],
        "witness": {"started": {"column": "state", "equals": "s"}, "ended": {"column": "state", "equals": "e"}},
        "journal": True,
        "pending": {"column": "state", "equals": "p"},
    },
    "target": {
        "kind": "rq",
        "queues": {"x": "mail"},
        "default_queue": "mail",
        "function": "mail.jobs.send",
        "args": ["id"],
        "opaque": "body",
        "serializer": "json",
        "key_prefix": "rq",
        "timeouts": {"mail": 5},
        "default_timeout": 5,
        "result_ttl": 5,
        "failure_ttl": 5,
        "retries": "application",
        "retry_max": 1,
        "retry_intervals": [1],
    },
    "route": {
        "kind": "sql_row",
        "table": "control",
        "share": "share",
        "key": {"id": 1},
        "polling": "polling",
        "emergency": "emergency",
        "barrier": "shared_lock",
        "producer_timeout": 5,
        "producer_accounts": ["web@%"],
    },
    "intake": {
        "table": "control",
        "key": {"id": 1},
        "state": "intake",
        "open": "open",
        "paused": "paused",
        "until": "until",
    },
    "user_constraint": True,
}
Path = tuple[str | int, ...]


def leaves(data: Any, path: Path = ()) -> Iterator[Path]:
    """Where plain values stand."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from leaves(value, (*path, key))
    else:
        yield path


def tables(data: Any, path: Path = ()) -> Iterator[Path]:
    """Where words stand beside their values: each could be made another word."""
    if isinstance(data, dict):
        yield from ((*path, key) for key in data)
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from tables(value, (*path, key))


def is_value(path: Path) -> bool:
    """Whether any text may stand at a place: it is compared with a column, written into one, or shown."""
    *_, above, last = ("", "", *path)
    if path[:2] == ("source", "hold"):
        return len(path) == 4 and last != "token"  # instead of the token's word it is refused
    return last in ("equals", "starts_with", "open", "paused", "name") or above in ("in", "first", "key")


def changed(path: Path, value: object) -> dict[str, Any]:
    data = copy.deepcopy(FULL)
    node: Any = data
    for word in path[:-1]:
        node = node[word]
    node[path[-1]] = value
    return data


def renamed(path: Path, word: object) -> dict[str, Any]:
    data = copy.deepcopy(FULL)
    node: Any = data
    for step in path[:-1]:
        node = node[step]
    node[word] = node.pop(path[-1])
    return data


def shown(path: object) -> str:
    return ".".join(map(str, path)) if isinstance(path, tuple) else repr(path)


def test_the_mapping_of_this_test_is_one() -> None:
    assert parse(FULL).user_constraint
    assert len([path for path in leaves(FULL) if not is_value(path)]) > 55


@pytest.mark.parametrize("path", [path for path in leaves(FULL) if not is_value(path)], ids=shown)
def test_a_hostile_name_is_refused_wherever_it_stands(path: Path) -> None:
    for name in HOSTILE_NAMES:
        if harmless(path, name):
            continue
        assert refused(changed(path, name)), f"{name!r} was taken at {shown(path)}"


def refused(data: dict[str, Any]) -> bool:
    """Whether a mapping is refused in words; any other error goes on up."""
    try:
        parse(data)
    except MappingError:
        return True
    return False


def harmless(path: Path, name: object) -> bool:
    """Whether it is a good word at that place, which is not that of a table or column."""
    if name == "":
        return path[-1] in ("default_queue", "polling", "emergency", "opaque") or path == ("intake", "until")
    if name == 7:
        return path[-1] == "below" or (isinstance(at(path), int) and not isinstance(at(path), bool))
    if path == ("target", "key_prefix") or path[-1] == "default_queue" or path[:2] == ("target", "queues"):
        return name in GOOD_KEYS  # the middle of a key of Redis: no pattern, no separator of words
    return path == ("target", "function") and name == "a.b"


def at(path: Path) -> Any:
    node: Any = FULL
    for word in path:
        node = node[word]
    return node


@pytest.mark.parametrize("path", list(tables(FULL)), ids=shown)
def test_a_hostile_word_is_refused_wherever_a_word_stands(path: Path) -> None:
    if path[:-1] == ("target", "queues"):
        assert parse(renamed(path, HOSTILE_VALUES[0])).target.queues == {HOSTILE_VALUES[0]: "mail"}
        return  # a value of the queue column: compared with what was read, never in a statement
    for name in HOSTILE_NAMES:
        if not isinstance(name, str) or (path[:-1] == ("target", "timeouts") and name in GOOD_KEYS):
            continue
        assert refused(renamed(path, name)), f"{name!r} was taken as a word at {shown(path)}"


@pytest.mark.parametrize("path", [path for path in leaves(FULL) if is_value(path)], ids=shown)
def test_a_value_is_kept_as_it_is_and_must_be_plain(path: Path) -> None:
    for value in HOSTILE_VALUES:
        assert value in repr(parse(changed(path, value))) or repr(value)[1:-1] in repr(parse(changed(path, value)))
    no_values: tuple[object, ...] = (["a"], {"a": 1}, float("nan"), float("inf"))
    for nothing in no_values:
        assert refused(changed(path, nothing)), f"{nothing!r} was taken at {shown(path)}"


@pytest.mark.parametrize("prefix", ["*", "rq*", "r[qx]", "rq?", "rq ~*", "rq +@all", "rq\n", "r\\q", "", "a" * 101])
def test_a_key_prefix_cannot_widen_a_pattern(prefix: str) -> None:
    with pytest.raises(MappingError, match="key_prefix"):
        parse(changed(("target", "key_prefix"), prefix))


@pytest.mark.parametrize(
    "account", ["mail", "mail@", "mail@% IDENTIFIED BY 'x'", "mail'@'%", "`mail`@`%`", "mail@%\n", "a;b@%", "a b@%"]
)
def test_an_account_is_a_user_and_a_host(account: str) -> None:
    for path in (("source", "claimers", 0, "account"), ("route", "producer_accounts", 0)):
        with pytest.raises(MappingError, match="is not an account"):
            parse(changed(path, account))
    engine = sa.create_engine("mysql+pymysql://nobody@127.0.0.1:1/none")  # refused before anything is opened
    with pytest.raises(StoreError, match="is not an account"):
        SqlAccounts(engine).ensure(account, "password", ["SELECT ON tasks"])


@pytest.mark.parametrize(
    "right",
    ["SELECT ON tasks; DROP TABLE tasks", "SELECT ON `tasks`", "SELECT ON a.b.c", "SELECT ON tasks TO x@y --",
     "SELECT (a) ON tasks", "SELECT ON tasks'", "SELECT ON *.*", "PROXY", "SELECT ON tasks\nTO x@y"],
)  # fmt: skip
def test_a_right_is_words_on_a_table(right: str) -> None:
    with pytest.raises(StoreError, match="is not a right"):
        parse_rights([right], "captions")


# -- what becomes of values in a statement ---------------------------------------------------------------------------

TABLE = LiveTable(
    "mails",
    "InnoDB",
    {
        name: LiveColumn(name, family, (), True)
        for name, family in (("id", "text"), ("state", "text"), ("tries", "number"), ("due_at", "time"))
    },
    ("id",),
)


def statement(clause: Any) -> tuple[str, list[object]]:
    """A SELECT as the driver gets it: its text, and its parameters."""
    query: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(TABLE.clause())
    query = query.order_by(*clause) if isinstance(clause, list) else query.where(clause)
    # Lists of values are spread when a statement is run; here at once.
    compiled = query.compile(dialect=mysql_dialect.dialect(), compile_kwargs={"render_postcompile": True})
    return str(compiled), list((compiled.params or {}).values())


@pytest.mark.parametrize("value", HOSTILE_VALUES)
@pytest.mark.parametrize(
    "condition",
    [
        lambda v: {"column": "state", "equals": v},
        lambda v: {"column": "state", "in": [v, "x"]},
        lambda v: {"column": "state", "starts_with": v},
        lambda v: {"not": {"any": [{"column": "state", "equals": v}, {"column": "state", "null": True}]}},
    ],
)
def test_a_value_of_a_condition_is_a_parameter(condition: Any, value: str) -> None:
    compiler = Compiler(TABLE, {})
    text, parameters = statement(compiler.compile(parse_condition(condition(value), "here")))
    harmless, _ = statement(compiler.compile(parse_condition(condition("harmless"), "here")))
    assert text == harmless, "the statement depends on the value"
    escaped = value.replace("/", "//").replace("%", "/%").replace("_", "/_")
    assert value in parameters or escaped in parameters


@pytest.mark.parametrize("value", HOSTILE_VALUES)
def test_a_value_of_an_order_is_a_parameter(value: str) -> None:
    compiler = Compiler(TABLE, {})
    text, parameters = statement(compiler.order((Order("state", first=(value, "b")),), "id"))
    harmless, _ = statement(compiler.order((Order("state", first=("a", "b")),), "id"))
    assert text == harmless, "the statement depends on the value"
    assert value in parameters


@pytest.mark.parametrize("plus", [5, -5.5, 1e9, True])
def test_seconds_are_written_as_a_number(plus: float) -> None:
    for column in ("due_at", "tries"):
        condition = parse_condition({"column": column, "due": True, "plus": plus}, "here")
        text, _ = statement(Compiler(TABLE, {}).compile(condition))
        assert (f"- {float(plus):f})" if column == "tries" else f"INTERVAL {int(plus * 1_000_000)} MICROSECOND") in text


@pytest.mark.parametrize("name", ["id; DROP TABLE mails", "other"])
def test_a_column_that_the_table_has_not_is_in_no_statement(name: str) -> None:
    compiler = Compiler(TABLE, {})
    with pytest.raises(MappingError, match="does not exist"):
        compiler.column(name)
    with pytest.raises(MappingError, match="does not exist"):
        compiler.order((Order(name),), "id")


@pytest.mark.parametrize("name", ["order", "select", "Key", "rank of"])
def test_a_name_that_is_a_word_of_sql_is_quoted(name: str) -> None:
    table = LiveTable("table", "InnoDB", {name: LiveColumn(name, "text", (), True)}, (name,))
    text = str(sa.select(table.clause().c[name]).compile(dialect=mysql_dialect.dialect()))
    assert f"`{name}`" in text
    assert "FROM `table`" in text


def test_the_tokens_of_the_application_are_compared_in_constant_time() -> None:
    """Nowhere else are they compared: the time of an answer says nothing of how much of it was right."""
    folder = pathlib.Path(inspect.getfile(access)).parent
    assert [path.name for path in folder.glob("*.py") if "Bearer {" in path.read_text()] == ["access.py"]
    (line,) = [line for line in inspect.getsource(access).splitlines() if "Bearer {" in line]
    assert "hmac.compare_digest(" in line
