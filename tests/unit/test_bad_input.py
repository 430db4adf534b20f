"""Input that nobody meant: mappings, ``.env`` files and RQ's hashes of any content give a message or a sound answer."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import re
import zlib
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
import sqlalchemy as sa
import yaml
from ansible.module_utils.sluice.adapters.dotenv_file import DotenvFile
from ansible.module_utils.sluice.adapters.factory import System
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.rq_source import RqSource
from ansible.module_utils.sluice.adapters.sql_conditions import Compiler, LiveColumn, LiveTable
from ansible.module_utils.sluice.adapters.sql_home import UNREADABLE, _digest
from ansible.module_utils.sluice.core import conditions, dotenv, mapping
from ansible.module_utils.sluice.core.errors import MappingError, SluiceError
from ansible.module_utils.sluice.core.homecoming import Decision, Policy, Step, decide
from ansible.module_utils.sluice.core.tasks import LONGEST_ID, Home, Place, job_id_for, job_name
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql

from captions.settings import SettingsError, load_settings

ROOT = Path(__file__).resolve().parents[2]
#: Drawn alike on every machine: what CI finds can be found again.
ALIKE = settings(derandomize=True, deadline=None, max_examples=200)
FEWER = settings(derandomize=True, deadline=None, max_examples=80)

MAPPINGS = [ROOT / "inventories" / "lab" / "mapping.yml", *sorted((ROOT / "inventories" / "example").rglob("*.yml"))]
REAL = {
    str(path.relative_to(ROOT)): found
    for path in MAPPINGS
    if isinstance(found := yaml.safe_load(path.read_text()), dict) and {"system", "source", "target"} <= set(found)
}
HOSTILE = [
    "",
    "\0",
    "a b",
    "x` OR 1=1 -- ",
    "'; DROP TABLE t; --",
    "$now",
    "$else",
    "\ud800",
    "é\u202e",
    "n\nm",
    "y" * 5000,
]
#: By their places: a strategy shows its words in what it prints, and one of these is very long.
HOSTILE_WORDS = st.integers(0, len(HOSTILE) - 1).map(lambda place: HOSTILE[place])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 10**30]),
    st.just("no column has so many digits").map(lambda _: -(10**400)),
    st.just("more digits than Python writes").map(lambda _: 1 << 20_000),
    st.floats(),
    st.text(max_size=12),
    HOSTILE_WORDS,
    st.binary(max_size=6),
    st.just(date(2026, 1, 2)),
)
WORDS = st.one_of(
    st.sampled_from(
        "system source target route intake user_constraint table columns places order hold claimers clocks witness id "
        "ready leased delayed claimed moved column equals in null due plus below all any not starts_with kind queues "
        "default_queue function args timeouts key first name account processes producer_timeout open paused".split()
    ),
    SCALARS,
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=5)),
    max_leaves=20,
)


def one_message(error: SluiceError) -> None:
    """A message that every screen takes, and that ends."""
    text = str(error)
    assert text
    assert len(text) < 15_000
    text.encode()
    assert "Traceback" not in text


def read_mapping(data: object) -> mapping.TaskMapping | None:
    """The mapping, or None when it was refused in one message; anything else fails the test."""
    try:
        found = mapping.parse(data)
    except MappingError as error:
        one_message(error)
        return None
    # What was taken can be used: compared, asked, walked and put into sets.
    assert found == mapping.parse(copy.deepcopy(data))
    mapping.supports_hybrid(found)
    for condition in found.source.places.values():
        hash(tuple(conditions.leaves(condition)))
    hash((found.source.order, found.source.hold, found.source.claimers, found.intake))
    return found


def test_the_real_mappings_are_here() -> None:
    assert len(REAL) == 4
    assert all(read_mapping(data) for data in REAL.values())


@ALIKE
@given(PLAIN)
@example({"\ud800": 1})
def test_a_mapping_of_any_data_is_read_or_refused(data: object) -> None:
    read_mapping(data)


def test_a_number_that_python_does_not_write_is_refused() -> None:
    huge = yaml.safe_load("0x1" + "0" * 5000)
    for data in ({huge: 1}, {"system": huge}, {"system": "s", "source": {"table": huge, huge: huge}}):
        assert read_mapping(data) is None


def places_in(data: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in plain data."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places_in(value, (*path, key))


@settings(ALIKE, max_examples=300)
@given(st.data())
def test_a_real_mapping_with_something_wrong_in_it_is_read_or_refused(data: st.DataObject) -> None:
    changed = copy.deepcopy(REAL[data.draw(st.sampled_from(sorted(REAL)))])
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in places_in(changed) if path]))
        holder: Any = changed
        for key in path[:-1]:
            holder = holder[key]
        match data.draw(st.sampled_from(["replace", "remove", "add", "itself"])):
            case "replace":
                holder[path[-1]] = data.draw(PLAIN)
            case "remove":
                del holder[path[-1]]
            case "add" if isinstance(holder, dict):
                holder[data.draw(WORDS)] = data.draw(PLAIN)
            case _:
                holder[path[-1]] = copy.copy(holder)
    read_mapping(changed)


def test_a_condition_that_holds_itself_is_refused() -> None:
    endless = yaml.safe_load("&a\n- {column: b, equals: 1}\n- *a\n")
    with pytest.raises(MappingError, match="or itself"):
        conditions.parse(endless, "source.places.ready")
    deep: object = {"column": "a", "equals": 1}
    for _ in range(5000):
        deep = {"not": deep}
    with pytest.raises(MappingError, match="more than 50"):
        conditions.parse(deep, "here")


@FEWER
@given(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [
                b"at: 2026-13-77",
                b"n: " + b"9" * 5000,
                b"[" * 3000,
                b"{a: &a [*a]}",
                b"\xff\xfe",
                b"!!python/name:os.system",
            ]
        ),
        st.text(alphabet="ab:-[]{}&*!\"'|>#\n ", max_size=40).map(str.encode),
    )
)
def test_a_mapping_file_of_any_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("mapping") / "mapping.yml"
    path.write_bytes(content)
    with pytest.raises(MappingError) as caught:
        _ = System(cast(Any, SimpleNamespace(mapping=path))).mapping
    one_message(caught.value)


# -- conditions in SQL ----------------------------------------------------------------------------------------------

TABLE = LiveTable(
    "tasks",
    "InnoDB",
    {
        name: LiveColumn(name, family, (), True, zoned)
        for name, family, zoned in [
            ("a", "text", False),
            ("b", "number", False),
            ("c", "time", False),
            ("d", "time", True),
        ]
    },
    ("a",),
)
PARTS = st.fixed_dictionaries(
    {"column": st.one_of(st.sampled_from("abcd"), HOSTILE_WORDS)},
    optional={
        "equals": SCALARS,
        "in": st.lists(SCALARS, max_size=3),
        "null": st.booleans(),
        "due": st.booleans(),
        "plus": st.one_of(st.floats(), st.integers(), st.sampled_from([1e308, 10**400])),
        "starts_with": SCALARS,
        "below": SCALARS,
        "at_least": st.one_of(st.sampled_from("abcd"), HOSTILE_WORDS),
    },
).map(lambda words: dict(list(words.items())[:2]))
CONDITIONS = st.recursive(
    PARTS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.builds(lambda word, parts: {word: parts}, st.sampled_from(["all", "any"]), st.lists(inner, max_size=3)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=6,
)
#: All that a statement may say besides our columns; every value stands behind a placeholder.
_SAID = re.compile(
    r"(?:`?tasks`?\.`?[abcd]`?|%s|__\[POSTCOMPILE_\w+\]|true|false|NULL|AND|OR|NOT|IN|IS|LIKE|ESCAPE|CONCAT|coalesce|"
    r"UTC_TIMESTAMP|NOW|INTERVAL|MICROSECOND|TIMESTAMPDIFF|'1970-01-01'|'/'|'%%'|[0-9.]++|[(),=<>!+\-*/\s])*\Z",
    re.IGNORECASE,
)


@settings(ALIKE, max_examples=300)
@given(CONDITIONS)
@example({"column": "c", "due": True, "plus": 1e308})
@example({"column": "a", "equals": "x' OR 1=1"})
def test_a_condition_of_any_words_is_compiled_with_its_values_bound_or_refused(data: object) -> None:
    try:
        clause = Compiler(TABLE, {}).compile(conditions.parse(data, "here"))
    except MappingError as error:
        one_message(error)
        return
    text = str(clause.compile(dialect=cast(sa.Dialect, mysql.dialect(paramstyle="format"))))
    assert _SAID.match(text), text


@pytest.mark.parametrize(
    ("charset", "held", "not_held"),
    [
        ("ascii", "a", "é"),
        ("latin1", "é", "€x٣"),
        ("utf8mb3", "٣", "💣"),
        ("utf8mb4", "💣", None),
        ("unheard", "é", None),
    ],
)
def test_a_column_is_asked_only_for_what_its_character_set_has(charset: str, held: str, not_held: str | None) -> None:
    column = LiveColumn("id", "text", (), False, charset=charset)
    assert column.holds(held)
    assert not_held is None or not column.holds(not_held)


# -- .env -----------------------------------------------------------------------------------------------------------

OURS = ("RQ_ENABLED", "RQ_SHARE")
ENV_TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            ["RQ_SHARE", "RQ_ENABLED", "A", "=", "'", '"', "\\", "\n", "\r\n", "\r", " ", "#", " #", "x", "export ",
             "\0", "\udcff", "\ufeff", "`", "$"]
        ),
        max_size=24,
    ).map("".join),
)  # fmt: skip
ENV_VALUES = st.dictionaries(
    st.sampled_from(OURS),
    st.one_of(st.sampled_from(["", "1", "a b", "# none", "it's", ' "', "\ud800", "a\nb"]), st.text(max_size=6)),
    min_size=1,
)


def foreign(text: str) -> list[str]:
    """The lines that are not ours, by what they mean; the end of the last line is not looked at."""
    return [piece.text.rstrip("\r\n") for piece in dotenv._pieces(text) if piece.key not in OURS]


@settings(ALIKE, max_examples=500)
@given(ENV_TEXTS, ENV_VALUES)
@example("A='open", {"RQ_SHARE": "# none"})
@example('A="', {"RQ_SHARE": "it's"})
def test_a_setting_is_there_once_and_all_else_as_it_was_or_nothing_is_changed(
    text: str, values: dict[str, str]
) -> None:
    assert "".join(piece.text for piece in dotenv._pieces(text)) == text
    values_all = {key: values.get(key, "0") for key in OURS}
    try:
        merged = dotenv.merge(text, values_all)
    except SluiceError as error:
        one_message(error)
        return
    assert {key: dotenv.count(merged, key) for key in OURS} == dict.fromkeys(OURS, 1)
    assert {key: dotenv.read(merged)[key] for key in OURS} == values_all
    assert foreign(merged) == foreign(text)
    assert dotenv.merge(merged, values_all) == merged
    assert foreign(dotenv.remove(merged, OURS)) == foreign(text)


@FEWER
@given(
    st.one_of(
        st.binary(max_size=80),
        ENV_TEXTS.map(lambda text: text.encode("utf-8", "surrogateescape" if "\ud800" not in text else "replace")),
    ),
    ENV_VALUES,
)
@example(b"A='open\n", {"RQ_SHARE": "# none"})
@example(b"\xff=\xfe\n", {"RQ_SHARE": "\ud800"})
def test_a_file_of_any_bytes_is_changed_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, values: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("env")
    path = folder / ".env"
    path.write_bytes(content)
    path.chmod(0o600)
    try:
        DotenvFile(path).apply(values, run_id="r")
    except SluiceError as error:
        one_message(error)
        assert path.read_bytes() == content
        assert list(folder.iterdir()) == [path]
        return
    assert {key: DotenvFile(path).read()[key] for key in values} == values
    assert not DotenvFile(path).apply(values, run_id="r").changed


SETTINGS_LINES = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "DATABASE_URL",
                "RQ_ENABLED",
                "RQ_REDIS_URL",
                "EFFECTS_FILE",
                "IMAGES_DIR",
                "WORK_MS",
                "LEASE_SECONDS",
                "A B",
            ]
        ),
        st.sampled_from(["", "x", "true", "/x", "0", "-1", "²", "٣", "9" * 5000, "1e3", "'", '"', "\0", "é", "\udcff"]),
    ).map("=".join),
    max_size=8,
).map(lambda lines: "\n".join(["DATABASE_URL=x", "EFFECTS_FILE=/x", "IMAGES_DIR=/x", *lines]))


@ALIKE
@given(st.one_of(st.binary(max_size=80), SETTINGS_LINES.map(lambda text: text.encode("utf-8", "surrogateescape"))))
@example(b"DATABASE_URL=\xff\n")
@example("DATABASE_URL=x\nEFFECTS_FILE=/x\nIMAGES_DIR=/x\nWORK_MS=²\n".encode())
@example(b"DATABASE_URL=x\nEFFECTS_FILE=/x\nIMAGES_DIR=/x\nWORK_MS=" + b"9" * 5000)
def test_the_applications_settings_of_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("settings") / ".env"
    path.write_bytes(content)
    try:
        found = load_settings(path)
    except SettingsError as error:
        text = str(error)
        assert str(path) in text
        assert len(text) < 1000
        assert "\n" not in text
        return
    assert found.database_url
    assert 0 <= found.work_ms < 10**9


# -- RQ -------------------------------------------------------------------------------------------------------------

CAPTIONS = mapping.parse(REAL["inventories/lab/mapping.yml"])
GOOD = json.dumps([CAPTIONS.target.function, None, ["t"], {}]).encode()
IDS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"\xff\xfe", b"a ", b"a\n", b"x" * 191, b"\xc3\xa9" * 100, b"t|1", b"captions-" + b"a" * 40, b"\0",
         b"a~" + b"0" * 40, b"\xe2\x80\xae", b"\\xff"]
    ),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace")),
)  # fmt: skip
FIELDS = {
    "status": st.sampled_from([b"", b"queued", b"started", b"failed", b"created", b"\xff", b"x" * 9000]),
    "origin": st.sampled_from([b"high", b"", b"\xff\xfe", b"other", b"q" * 9000]),
    "data": st.sampled_from(
        [
            GOOD, zlib.compress(GOOD), b"", b"\xff", b"null", b"[" * 5000, b"[1,2,3,4]", zlib.compress(b"\0" * 100_000),
            zlib.compress(pickle.dumps((CAPTIONS.target.function, None, (b"\xff",), {}))), b"\x78\x9c",
            GOOD.replace(b'"t"', b'"\\ud800"'), GOOD.replace(b'"t"', b"9" * 5000), GOOD.replace(b'"t"', b"NaN"),
        ]
    ),
    "retries_left": st.sampled_from([b"3", b"-1", b"", b"9" * 5000, b"x", "٣".encode(), b"1.5"]),
    "meta": st.sampled_from(
        [b"{}", b"", b"[]", b"\xff", b'{"sluice_task_id": 5}', b'{"sluice_task_id": "stolen"}',
         b'{"sluice_task_id": ["x"]}']
    ),
    "ended_at": st.sampled_from([b"", b"2026-01-01T00:00:00.000000Z", b"9999-99-99T00:00:00Z", b"\xff", b"x" * 9000]),
}  # fmt: skip
HASHES = st.tuples(*[st.one_of(st.none(), values, st.binary(max_size=12)) for values in FIELDS.values()])
SCORES = st.sampled_from([b"0", b"1800000000", b"inf", b"-inf", b"1e300", b"-5", b"253402300800"])
HOMES = sorted(set(Home) - {Home.STAGED, Home.BODILESS, Home.FINISHED})


def source(serializer: str = "json") -> RqSource:
    """The reading side of a run that goes back. No store is asked while entries are read."""
    words = copy.deepcopy(REAL["inventories/lab/mapping.yml"])
    words["target"]["serializer"] = serializer
    made = mapping.parse(words)
    return RqSource(RqQueues(redis.Redis(), made), cast(Any, None), made)


@settings(ALIKE, max_examples=500)
@given(st.sampled_from(["json", "pickle"]), IDS, SCORES, HASHES, st.sampled_from(HOMES), st.sampled_from([0.0, 1e9]))
def test_a_job_of_any_content_is_a_task_or_says_why_not(
    serializer: str, raw: bytes, score: bytes, fields: tuple[bytes | None, ...], home: Home, since: float
) -> None:
    leaving = source(serializer)
    leaving.since = since
    [job] = leaving._found([[raw, score, *fields]], home, "high")
    where = leaving._home(job)
    assert (where is Home.BODILESS) == (fields[0] is None)
    task = leaving._task(job, where, "an error\x1b[2J")
    # Our name leads back to the very bytes, and every store takes the name.
    assert leaving.queues.raw(leaving._job_of(task.id)) == leaving.queues.raw(task.job_id) == raw
    for word in (task.id, task.job_id):
        assert 0 < len(word) <= LONGEST_ID
        assert word.isprintable()
        word.encode()
    assert task.queue in leaving.queues.queues()
    assert task.eta is None or 0 < task.eta < 253_402_300_800
    assert 0 <= task.attempts_allowed <= 1_000_000
    reasons = "".join(value for _, value in task.meta)
    assert reasons.isprintable()
    assert len(reasons) < 1000
    assert len(_digest(task.id, task.args)) == 40
    if fields[2] not in (None, GOOD, zlib.compress(GOOD)) and where not in (Home.FINISHED, Home.CANCELLED):
        assert UNREADABLE in dict(task.meta) or task.args


def test_a_task_id_in_the_meta_counts_only_where_the_job_id_follows_from_it() -> None:
    leaving = source()
    job_id = job_id_for("captions", "task.1")
    meta = json.dumps({"sluice_task_id": "task.1"}).encode()
    assert leaving._task_id(job_id, meta) == "task.1"
    assert leaving._task_id("captions-" + "0" * 40, meta) == "captions-" + "0" * 40


@ALIKE
@given(IDS, IDS)
@example(b"\xff", b"\\xff")
@example(b"a ", b"a")
@example(b"\xff", job_name(b"\xff").encode())
def test_two_ids_never_have_one_name(one: bytes, other: bytes) -> None:
    assert (job_name(one) == job_name(other)) == (one == other)
    assert job_name(one) == one.decode("utf-8", "replace") or job_id_for("s", job_name(one)) != job_name(one)


def test_every_row_and_every_job_together_come_to_a_decision() -> None:
    """No combination, however odd, is without an answer; where a task is held there is a reason."""
    flags = [(False, True)] * 3
    for place, home, policy, *rest in itertools.product([None, *Place], [None, *Home], Policy, *flags):
        witness, pending, held = rest
        found: Decision = decide(place, home, policy=policy, witness=witness, pending=pending, held=held)
        assert found.step in Step
        assert found.reason or found.step in (Step.TAKE, Step.MAKE)


def test_a_worker_of_any_content_is_no_live_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    queues = source().queues
    hashes: Mapping[str, list[bytes | None]] = {
        "a": [b"yesterday", b"high", None, b"app1"],
        "b": [b"\xff\xfe", b"\xff", None, b"\xff"],
        "c": [None, None, None, None],
        "d": [b"2026-01-01T00:00:00.000000Z", b"high,\xff", b"", b"app2"],
    }
    monkeypatch.setattr(queues.client, "smembers", lambda _: set(hashes))
    monkeypatch.setattr(queues.client, "hmget", lambda key, *_: hashes[key])
    hosts, live, _ = queues.worker_checks(1767225600.0, 1, ["app1", "app2"])
    assert live.reading.startswith("1 heard of")
    assert hosts.reading == "none is heard of from app1"
