"""Wrong inputs: one message that says what, where, and what to do next. Nothing was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.sluice.core.phases import Phase

from conftest import PlantedSecrets
from lab.stores import PrivateMariaDB, free_port
from modules.site import Site

pytestmark = pytest.mark.real


def rewrite(old: str, new: str) -> Callable[[Site], None]:
    """A mapping with one thing wrong."""

    def wrong(site: Site) -> None:
        text = site.mapping_file.read_text()
        assert old in text
        site.mapping_file.write_text(text.replace(old, new))

    return wrong


MAPPINGS: dict[str, tuple[Callable[[Site], Any], tuple[str, ...]]] = {
    "missing": (lambda site: site.mapping_file.unlink(), ("cannot be read: No such file", "set queue_mapping")),
    "a directory": (
        lambda site: (site.mapping_file.unlink(), site.mapping_file.mkdir()),
        ("cannot be read", "set queue_mapping"),
    ),
    "not YAML": (lambda site: site.mapping_file.write_text("a: [1"), ("is not YAML", "docs/mapping.md")),
    "not text": (lambda site: site.mapping_file.write_bytes(b"\xff\xfe\x00"), ("is not YAML",)),
    "empty": (lambda site: site.mapping_file.write_text(""), ("is missing or is not a table",)),
    "a list": (lambda site: site.mapping_file.write_text("- 1"), ("is not a table",)),
    "no table": (rewrite("table: caption_tasks", "table: captoin_tasks"), ("captoin_tasks",)),
    "no column": (rewrite("available: available_at", "available: due_at"), ("due_at", "caption_tasks")),
    "no column in a condition": (rewrite("column: status", "column: state"), ("state", "status")),
    "no such value": (rewrite("equals: completed", "equals: complete"), ("complete", "completed")),
    "a function without a name": (rewrite("function: captions.jobs.run_caption", "function: ''"), ("function",)),
}


@pytest.mark.parametrize(
    ("wrong", "name"),
    [(wrong, name) for wrong in MAPPINGS for name in ("queue_plan", "queue_preflight")]
    # Opening a run reads no task; the plan and preflight judge the schema.
    + [(wrong, "queue_run") for wrong in MAPPINGS if not wrong.startswith("no ")],
)
def test_a_mapping_that_is_wrong(site: Site, wrong: str, name: str) -> None:
    spoil, words = MAPPINGS[wrong]
    if name == "queue_preflight":
        site.open()
    spoil(site)
    fits_no_schema = wrong.startswith("no ")
    with site.unchanged(lease=False):
        outcome = site.call(name)
    if name == "queue_preflight" and fits_no_schema:
        outcome.assert_refused()
        return
    outcome.assert_refused(*words)


@pytest.mark.parametrize("wrong", [wrong for wrong in MAPPINGS if wrong.startswith("no ")])
def test_a_mapping_that_fits_no_schema_moves_nothing(site: Site, wrong: str) -> None:
    """The run began with it: preflight names the column or value, and no gate opens."""
    site.seed(3)
    spoil, words = MAPPINGS[wrong]
    spoil(site)
    site.open()
    site.call("queue_preflight").assert_refused(*words)
    site.call("queue_run", state="advanced", phase="prepared").assert_refused("preflight")
    assert site.sql("SELECT COUNT(*) FROM caption_tasks WHERE custody = 'db'") == [(3,)]
    assert site.client.keys("rq:*") == []


URLS = {
    "another database": ("db_url", "postgresql://u:{secret}@h/db"),
    "no database URL": ("db_url", "caption {secret}"),
    "no database named": ("db_url", "mysql+pymysql://u:{secret}@127.0.0.1"),
    "a port that is no number": ("db_url", "mysql+pymysql://u:{secret}@127.0.0.1:port/db"),
    "not Redis": ("redis_url", "http://u:{secret}@h/0"),
    "no Redis URL": ("redis_url", "{secret}"),
    "a Redis port that is no number": ("redis_url", "redis://u:{secret}@127.0.0.1:port/0"),
    "no number of a database": ("redis_url", "redis://u:{secret}@127.0.0.1:6/zero"),
}


@pytest.mark.parametrize("wrong", URLS)
def test_a_url_that_is_wrong(site: Site, planted_secrets: PlantedSecrets, wrong: str) -> None:
    option, url = URLS[wrong]
    secret = planted_secrets.plant("url").removesuffix("@s3")
    with site.unchanged():
        outcome = site.call("queue_plan", **{option: url.format(secret=secret)}).assert_refused("Next: ")
    planted_secrets.assert_absent(outcome.printed, wrong)


def test_a_database_number_that_redis_does_not_have(site: Site) -> None:
    with site.unchanged():
        outcome = site.call("queue_plan", redis_url=site.redis_url.rsplit("/", 1)[0] + "/99")
    outcome.assert_refused("there is no database of that number", "correct the number at the end of the Redis URL")


def blocked(site: Site, name: str, *words: str) -> None:
    """Preflight fails by one check and the plan lists it; the gate of the ledger stays closed."""
    plan = site.call("queue_plan")
    assert not plan.failed, plan.message
    assert any(line.startswith(name) for line in plan.result["blocking"]), plan.result["blocking"]
    site.open()
    outcome = site.call("queue_preflight").assert_refused(*words)
    checks = {check["name"]: check["verdict"] for check in outcome.result["checks"]}
    assert checks[name] != "passed"
    site.call("queue_run", state="advanced", phase="prepared").assert_refused("preflight")


def test_a_table_that_is_not_in_innodb(site: Site) -> None:
    site.sql("ALTER TABLE caption_tasks ENGINE = MyISAM")
    blocked(site, "sql_engine", "MyISAM", "InnoDB")


def test_a_redis_that_evicts(site: Site) -> None:
    site.client.config_set("maxmemory-policy", "allkeys-lru")
    blocked(site, "redis_eviction", "allkeys-lru")


def test_a_redis_without_persistence(site: Site) -> None:
    site.client.config_set("appendonly", "no")
    try:
        blocked(site, "redis_persistence", "appendonly")
    finally:
        site.client.config_set("appendonly", "yes")


def test_a_redis_that_is_a_replica(site: Site) -> None:
    site.open()
    site.client.replicaof("127.0.0.1", str(free_port()))
    try:
        outcome = site.call("queue_preflight")
    finally:
        site.client.replicaof("NO", "ONE")
    outcome.assert_refused("redis_role failed", "point the Redis URL at the primary")


def test_a_redis_with_other_data_in_it(site: Site) -> None:
    site.client.set("session:1", "x")
    blocked(site, "redis_other_keys", "session")
    site.call("queue_preflight", shared_redis_note="sessions of the shop; agreed with its owner").assert_done()


def test_a_worker_that_the_inventory_does_not_know(site: Site) -> None:
    with site.worker():
        blocked(site, "no unknown RQ worker", "h1")
        site.call("queue_preflight", worker_hosts=["h1"]).assert_done()


def test_queues_without_workers(site: Site) -> None:
    site.open(Phase.PREPARED)
    site.call("queue_workers_prove").assert_refused("live RQ workers failed: 0 heard of", "start the target's workers")


@pytest.mark.parametrize("right", ["CREATE USER", "CONNECTION ADMIN", "PROCESS"])
def test_a_missing_right_of_the_server(site: Site, mariadb: PrivateMariaDB, right: str) -> None:
    """Without it no fence can be closed or proved; the plan says so before the window."""
    user, host = site.accounts["sluice"].split("@")
    with mariadb.connect_as_root() as root:
        root.cursor().execute(f"REVOKE {right} ON *.* FROM %s@%s", (user, host))
    site.open()
    site.call("queue_preflight").assert_refused(right)


def test_a_missing_right_on_the_tables(site: Site, mariadb: PrivateMariaDB, planted_secrets: PlantedSecrets) -> None:
    """The plan's account is given to a step that writes."""
    site.open(Phase.ROUTED)
    with site.unchanged():
        for name in ("queue_fence", "queue_route", "queue_drain", "queue_run"):
            outcome = site.call(name, db_url=site.read_url)
            outcome.assert_refused("command denied", "grant the account the rights listed in docs/mapping.md")
            planted_secrets.assert_absent(outcome.printed, name)


def test_passwords_of_accounts_that_cannot_be_made(
    site: Site, mariadb: PrivateMariaDB, planted_secrets: PlantedSecrets
) -> None:
    user, host = site.accounts["sluice"].split("@")
    with mariadb.connect_as_root() as root:
        root.cursor().execute("REVOKE CREATE USER ON *.* FROM %s@%s", (user, host))
    site.open()
    given = site.options("queue_accounts")
    given["sql_accounts"][0]["password"] = planted_secrets.plant("workers").removesuffix("@s3")
    given["redis_users"][0]["password"] = planted_secrets.plant("redis-workers").removesuffix("@s3")
    outcome = site.call("queue_accounts", **given).assert_refused()
    planted_secrets.assert_absent(outcome.printed, "the refusal of an SQL account")
    site.client.acl_setuser("mover", commands=["-acl"])
    outcome = site.call("queue_accounts", **{**given, "sql_accounts": []}).assert_refused()
    planted_secrets.assert_absent(outcome.printed, "the refusal of a Redis user")
    stored = "".join(str(row) for row in site.sql("SELECT detail FROM sluice_event"))
    planted_secrets.assert_absent(stored, "the ledger")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("queue_baseline", {"canary": {"address": "http://127.0.0.1/"}}),
        ("queue_baseline", {"canary": {"url": "ftp://127.0.0.1/"}}),
        ("queue_soak", {"canary": {"url": "tasks"}}),
        ("queue_validate", {"canary": {}}),
        ("queue_plan", {"canary": {"address": "http://127.0.0.1/"}}),
    ],
)
def test_a_canary_that_cannot_be_submitted(site: Site, name: str, options: dict[str, Any]) -> None:
    site.open({"queue_soak": Phase.PREPARED, "queue_validate": Phase.VERIFIED}.get(name, Phase.OPENED))
    with site.unchanged(lease=False):
        site.call(name, **options).assert_refused("queue_canary")


@pytest.mark.parametrize(
    ("name", "option", "phase"),
    [
        ("queue_backup", "directory", Phase.OPENED),
        ("queue_cleanup", "archive_dir", Phase.VALIDATED),
        ("queue_report", "directory", Phase.OPENED),
    ],
)
def test_a_directory_that_cannot_be_written(site: Site, name: str, option: str, phase: Phase) -> None:
    site.open(phase)
    (site.folder / "file").write_text("in the way")
    outcome = site.call(name, **{option: str(site.folder / "file" / "below")}).assert_refused(str(site.folder / "file"))
    assert outcome.result["changed"] is False
    assert site.client.exists("sluice:{captions}:generation") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"state": "released", "ids": ["nobody"], "reason": "x"}, "not held: nobody"),
        ({"state": "failed", "ids": [], "reason": "x"}, "names its ids and its reason"),
        ({"state": "released", "ids": ["HELD"], "reason": " "}, "names its ids and its reason"),
        ({"state": "released", "ids": ["HELD"], "reason": "x", "to": "target"}, "the target has not taken over"),
        ({"state": "exported", "file": "relative.ndjson"}, "absolute path"),
    ],
)
def test_decisions_on_holds_that_cannot_be_taken(site: Site, options: dict[str, Any], words: str) -> None:
    from ansible.module_utils.sluice.adapters.sql_table import SqlTable

    [task] = site.seed(1)
    lease = site.open(Phase.ROUTED)
    SqlTable(site.engine, site.mapping()).hold(lease, [task], "nobody knows")
    ids = [task if one == "HELD" else one for one in options.get("ids", [])]
    with site.unchanged(lease=False):
        site.call("queue_holds", **{**options, "ids": ids, "owner": "first@host:1"}).assert_refused(words)
