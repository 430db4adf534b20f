"""The mapping: what it says, and that each mistake in it is named with its place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.sluice.core.conditions import Among
from ansible.module_utils.sluice.core.errors import MappingError
from ansible.module_utils.sluice.core.mapping import Assignment, Claimer, Order, parse, supports_hybrid
from ansible.module_utils.sluice.core.tasks import Place

LAB = Path(__file__).resolve().parents[2] / "inventories" / "lab" / "mapping.yml"

WAITING = {"column": "state", "equals": "waiting"}
LEAST: dict[str, Any] = {
    "system": "mail",
    "source": {
        "table": "mails",
        "columns": {"id": "id"},
        "places": {"ready": WAITING, "leased": {"column": "state", "equals": "sending"}},
        "order": ["id"],
        "hold": {"kind": "companion"},
        "claimers": [{"name": "senders", "kind": "guarded", "account": "mail@%"}],
    },
    "target": {"default_queue": "mail", "function": "mail.jobs.send"},
}
COLUMNS_HOLD = {
    "kind": "columns",
    "token_column": "token",
    "claim": {"owner": "mover", "token": "$token"},
    "moved": {"owner": "rq", "at": "$now"},
    "back": {"owner": "$null", "token": 0},
}
ROUTE = {"table": "control", "share": "share", "key": {"id": 1}}
INTAKE = {"table": "control", "key": {"id": 1}, "state": "intake", "open": "open", "paused": "paused"}


def changed(path: str, value: object) -> dict[str, Any]:
    """The least mapping with one place set; ``DROP`` takes it out."""
    data = copy.deepcopy(LEAST)
    *above, last = path.split(".")
    node = data
    for word in above:
        node = node.setdefault(word, {})
    if value is DROP:
        del node[last]
    else:
        node[last] = value
    return data


DROP = object()


# -- what is read -----------------------------------------------------------------------------------------------------


def test_the_least_mapping_and_its_defaults() -> None:
    mapping = parse(LEAST)
    assert (mapping.system, mapping.user_constraint, mapping.intake) == ("mail", False, None)
    assert mapping.source.order == (Order("id"),)
    assert mapping.source.claimers == (Claimer("senders", True, "mail@%", 1),)
    assert (mapping.source.journal, mapping.source.started, mapping.source.pending) == (False, None, None)
    target = mapping.target
    assert (target.serializer, target.key_prefix, target.retries) == ("json", "rq", "application")
    assert (target.default_timeout, target.result_ttl, target.failure_ttl) == (180, 500, 31536000)
    assert mapping.route.kind == "none"


def test_an_unguarded_claimer_and_the_age_of_rows() -> None:
    data = changed("source.columns", {"id": "id", "created": "born"})
    data["source"]["claimers"][0]["kind"] = "unguarded"
    assert parse(data).source.claimers == (Claimer("senders", False, "mail@%", 1),)


def test_the_mapping_of_the_lab() -> None:
    mapping = parse(yaml.safe_load(LAB.read_text()))
    assert mapping.system == "captions"
    assert set(mapping.source.places) == set(Place) - {Place.UNKNOWN}
    assert mapping.source.order == (Order("priority", first=("urgent", "high", "normal", "low")), Order("created_at"))
    assert mapping.source.hold.token_column == "custody_token"
    assert Assignment("custody_token", "$token") in mapping.source.hold.claim
    assert mapping.target.timeouts["urgent"] == 600
    assert (mapping.route.share, mapping.route.key, mapping.route.key_value) == ("rq_share", "id", 1)
    assert mapping.intake is not None
    assert mapping.intake.until == "intake_until"
    assert supports_hybrid(mapping) == ""


def test_a_hold_by_columns() -> None:
    data = changed("source.hold", COLUMNS_HOLD)
    data["source"]["places"] |= {"claimed": WAITING, "moved": {"column": "owner", "equals": "rq"}}
    hold = parse(data).source.hold
    assert hold.claim == (Assignment("owner", "mover"), Assignment("token", "$token"))
    assert hold.back == (Assignment("owner", "$null"), Assignment("token", 0))


def test_order_by_column_direction_and_list() -> None:
    data = changed("source.order", ["a", {"column": "b", "descending": True}, {"column": "c", "first": ["x", 2]}])
    assert parse(data).source.order == (Order("a"), Order("b", descending=True), Order("c", first=("x", 2)))


def test_witness_and_pending() -> None:
    data = changed("source.witness", {"started": WAITING, "ended": WAITING})
    data["source"]["pending"] = WAITING
    source = parse(data).source
    assert source.started == source.ended == source.pending == Among("state", ("waiting",))


def test_a_route_without_a_row_is_waited_out() -> None:
    route = parse(changed("route", {"kind": "none", "producer_accounts": ["web@10.0.0.%"]})).route
    assert (route.kind, route.barrier, route.producer_accounts) == ("none", "timeout", ("web@10.0.0.%",))


def test_why_hybrid_is_not_possible() -> None:
    assert "no route that can be split" in supports_hybrid(parse(LEAST))
    assert "no word for custody" in supports_hybrid(parse(changed("route", ROUTE)))


# -- what is refused --------------------------------------------------------------------------------------------------

WRONG: list[tuple[Mapping[str, Any] | object, str, str]] = [
    (None, "mapping", "is missing or is not a table"),
    (["system"], "mapping", "is missing or is not a table"),
    (changed("extra", 1), "mapping", "unknown words: extra"),
    (changed("system", DROP), "mapping.system", "is missing or is not text"),
    (changed("system", "Mail Server"), "mapping.system", "must be lower-case letters"),
    (changed("user_constraint", "yes"), "mapping.user_constraint", "must be true or false"),
    (changed("user_constraint", True), "mapping.user_constraint", "needs source.columns.user"),
    # source
    (changed("source", DROP), "source", "is missing or is not a table"),
    (changed("source.extra", 1), "source", "unknown words: extra"),
    (changed("source.kind", "mongo"), "source.kind", "'mongo' is not known; use sql_table"),
    (changed("source.table", "a.b"), "source.table", "'a.b' is not the name of a table or column"),
    (changed("source.table", DROP), "source.table", "is not the name of a table"),
    (changed("source.columns", DROP), "source.columns", "is missing or is not a table"),
    (changed("source.columns", {"queue": "q"}), "source.columns", "'id' is missing"),
    (
        changed("source.claimers", [{"name": "a", "kind": "unguarded", "account": "a@%"}]),
        "source.columns",
        "'created' is missing",
    ),
    (changed("source.columns.colour", "c"), "source.columns", "unknown words: colour"),
    (changed("source.columns.id", "1d"), "source.columns.id", "'1d' is not the name"),
    (changed("source.places", DROP), "source.places", "is missing or is not a table"),
    (changed("source.places.lost", WAITING), "source.places", "'lost' is not a place; known: ready"),
    (changed("source.places.unknown", WAITING), "source.places", "'unknown' is not a place"),
    (changed("source.places.ready", DROP), "source.places", "'ready' is missing"),
    (changed("source.places.leased", DROP), "source.places", "'leased' is missing"),
    (changed("source.places.ready", {"column": "a"}), "source.places.ready", "needs exactly one of"),
    (changed("source.places.delayed", WAITING), "source.places.delayed", "needs source.columns.available"),
    (changed("source.order", DROP), "source.order", "is missing or is not a list"),
    (changed("source.order", "id"), "source.order", "is missing or is not a list"),
    (changed("source.order", ["id", 3]), "source.order[1]", "is missing or is not a table"),
    (changed("source.order", [{"column": "a", "up": 1}]), "source.order[0]", "unknown words: up"),
    (changed("source.order", [{"first": ["a"]}]), "source.order[0]", "is not the name"),
    (changed("source.order", [{"column": "a", "first": "abc"}]), "source.order[0]", "'first' must be a list"),
    (changed("source.order", [{"column": "a", "descending": 1}]), "source.order[0].descending", "must be true or"),
    (changed("source.hold", DROP), "source.hold", "is missing or is not a table"),
    (changed("source.hold", {"kind": "row"}), "source.hold.kind", "must be 'columns' or 'companion'"),
    (changed("source.hold", {"kind": "companion", "claim": {}}), "source.hold", "takes no assignments"),
    (changed("source.hold", {"kind": "columns", "x": 1}), "source.hold", "unknown words: x"),
    (changed("source.hold", COLUMNS_HOLD), "source.hold", "needs the places 'claimed' and 'moved'"),
    (changed("source.hold", COLUMNS_HOLD | {"moved": None}), "source.hold.moved", "is missing or is not a table"),
    (changed("source.hold", COLUMNS_HOLD | {"back": {}}), "source.hold.back", "needs at least one column"),
    (changed("source.hold", COLUMNS_HOLD | {"back": {"a": [1]}}), "source.hold.back.a", "[1] is not a plain value"),
    (changed("source.hold", COLUMNS_HOLD | {"back": {"a": "$then"}}), "source.hold.back.a", "$then is not known"),
    (changed("source.hold", COLUMNS_HOLD | {"back": {"a b": 1}}), "source.hold.back", "'a b' is not the name"),
    (changed("source.hold", COLUMNS_HOLD | {"token_column": ""}), "source.hold.token_column", "is not the name"),
    (changed("source.hold", COLUMNS_HOLD | {"claim": {"a": 1}}), "source.hold", "'claim' must set token: $token"),
    (changed("source.claimers", DROP), "source.claimers", "is missing or is not a list"),
    (changed("source.claimers", ["x"]), "source.claimers[0]", "is missing or is not a table"),
    (
        changed("source.claimers", [{"name": "a", "kind": "shy", "account": "a@%"}]),
        "source.claimers[0].kind",
        "must be 'guarded'",
    ),
    (
        changed("source.claimers", [{"name": "a", "kind": "guarded", "account": "a@%", "processes": 0}]),
        "source.claimers[0].processes",
        "at least 1",
    ),
    (changed("source.claimers", [{"kind": "guarded", "account": "a@%"}]), "source.claimers[0].name", "is missing"),
    (
        changed("source.claimers", [{"name": "a", "kind": "guarded", "account": "a"}]),
        "source.claimers[0].account",
        "'a' is not an account; write user@host",
    ),
    (
        changed("source.claimers", [{"name": "a", "kind": "guarded", "pace": 1}]),
        "source.claimers[0]",
        "unknown words: pace",
    ),
    (changed("source.clocks", {"at": "moon"}), "source.clocks.at", "'moon' is not a clock"),
    (changed("source.clocks", {"a t": "utc"}), "source.clocks", "'a t' is not the name"),
    (changed("source.witness", {"begun": WAITING}), "source.witness", "unknown words: begun"),
    (changed("source.witness", {"started": {}}), "source.witness.started", "must be a mapping or a list"),
    (changed("source.pending", {"column": "a"}), "source.pending", "needs exactly one of"),
    (changed("source.journal", "row"), "source.journal", "must be true or false"),
    # target
    (changed("target", DROP), "target", "is missing or is not a table"),
    (changed("target.extra", 1), "target", "unknown words: extra"),
    (changed("target.kind", "celery"), "target.kind", "'celery' is not known; use rq"),
    (changed("target.default_queue", DROP), "target", "needs 'queues' or 'default_queue'"),
    (
        {**LEAST, "target": {"queues": {"mail": "mail"}, "function": "mail.jobs.send"}},
        "target",
        "needs 'default_queue'",
    ),
    (changed("target.key_prefix", "rq*"), "target.key_prefix", "'rq*' cannot begin a key"),
    (changed("target.default_queue", "a queue"), "target.default_queue", "'a queue' is not a queue name"),
    (changed("target.queues", ["mail"]), "target.queues", "is missing or is not a table"),
    (changed("target.queues", {"high": ""}), "target.queues.high", "'' is not a queue name"),
    (changed("target.function", DROP), "target.function", "is missing or is not text"),
    (changed("target.function", "send"), "target.function", "'send' is not a dotted Python name"),
    (changed("target.function", "mail.send()"), "target.function", "is not a dotted Python name"),
    (changed("target.args", "id"), "target.args", "is missing or is not a list"),
    (changed("target.args", ["id", "b c"]), "target.args[1]", "'b c' is not the name"),
    (changed("target.opaque", "b c"), "target.opaque", "'b c' is not the name"),
    (changed("target.serializer", "yaml"), "target.serializer", "'yaml' is not known; use json or pickle"),
    (changed("target.key_prefix", ""), "target.key_prefix", "is missing or is not text"),
    (changed("target.retries", "never"), "target.retries", "must be 'application' or 'carry'"),
    (changed("target.timeouts", {"mail": "5m"}), "target.timeouts.mail", "must be whole seconds"),
    (changed("target.timeouts", {"a b": 5}), "target.timeouts", "'a b' is not a queue name"),
    (changed("target.default_timeout", -2), "target.default_timeout", "must be whole seconds"),
    (changed("target.result_ttl", 1.5), "target.result_ttl", "must be whole seconds"),
    (changed("target.failure_ttl", True), "target.failure_ttl", "must be whole seconds"),
    # route and intake
    (changed("route", "row"), "route", "is missing or is not a table"),
    (changed("route", ROUTE | {"x": 1}), "route", "unknown words: x"),
    (changed("route", ROUTE | {"kind": "dns"}), "route.kind", "'dns' is not known"),
    (changed("route", ROUTE | {"table": "a b"}), "route.table", "'a b' is not the name"),
    (changed("route", ROUTE | {"share": None}), "route.share", "is not the name"),
    (changed("route", ROUTE | {"key": {}}), "route.key", "needs exactly one column and its value"),
    (changed("route", ROUTE | {"key": {"id": 1, "b": 2}}), "route.key", "needs exactly one column"),
    (changed("route", ROUTE | {"key": {"id": None}}), "route.key", "None is not a plain value"),
    (changed("route", ROUTE | {"polling": "a b"}), "route.polling", "'a b' is not the name"),
    (changed("route", ROUTE | {"barrier": "hope"}), "route.barrier", "must be 'shared_lock' or 'timeout'"),
    (changed("route", ROUTE | {"producer_timeout": "x"}), "route.producer_timeout", "must be seconds"),
    (changed("route", ROUTE | {"producer_timeout": -1}), "route.producer_timeout", "must be seconds"),
    (changed("route", ROUTE | {"producer_accounts": "a@b"}), "route.producer_accounts", "is not a list"),
    (changed("route", ROUTE | {"producer_accounts": ["a"]}), "route.producer_accounts", "'a' is not an account"),
    (changed("intake", []), "intake", "is missing or is not a table"),
    (changed("intake", INTAKE | {"x": 1}), "intake", "unknown words: x"),
    (changed("intake", INTAKE | {"key": {}}), "intake.key", "needs exactly one column"),
    (changed("intake", INTAKE | {"open": None}), "intake.open", "needs a plain value"),
    (changed("intake", INTAKE | {"paused": []}), "intake.paused", "needs a plain value"),
    (changed("intake", INTAKE | {"state": ""}), "intake.state", "is not the name"),
    (changed("intake", INTAKE | {"until": "a b"}), "intake.until", "'a b' is not the name"),
]


@pytest.mark.parametrize(
    ("data", "where", "what"), WRONG, ids=[f"{where}-{n}" for n, (_, where, _) in enumerate(WRONG)]
)
def test_each_mistake_is_named_with_its_place(data: object, where: str, what: str) -> None:
    with pytest.raises(MappingError) as caught:
        parse(data)
    assert caught.value.where == where
    assert what in caught.value.what
    assert str(caught.value).startswith(f"{where}: ")
