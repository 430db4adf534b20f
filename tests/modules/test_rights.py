"""The documented rights suffice, and without any one of them the step that needs it says which.

The accounts are those of docs/mapping.md on real servers: of the lab's SQL accounts another test says that they are,
the Redis user is read from the page itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ansible.module_utils.sluice.core.phases import Phase

from lab.accounts import RIGHTS
from lab.stores import PrivateMariaDB
from modules.site import Site
from rights import documented as rights_of_the_page

pytestmark = pytest.mark.real
NEXT = "Next: give the ACL user the keys, channels and commands listed in docs/mapping.md"


def rights(account: str) -> list[tuple[str, str]]:
    """Each privilege of an account with its scope, as the lab grants them in the database ``captions``."""
    found = []
    for line in RIGHTS[account]:
        words, _, scope = line.partition(" WITH GRANT OPTION")[0].partition(" ON ")
        found += [(word.strip(), scope) for word in words.split(",")]
        found += [("GRANT OPTION", scope)] if line.endswith("WITH GRANT OPTION") else []
    return found


@contextmanager
def one_less(site: Site, mariadb: PrivateMariaDB, account: str, privilege: str, scope: str) -> Iterator[str]:
    """The account without one of its rights; its scope as the server names it."""
    user, host = site.accounts[account].split("@")
    database = str(site.engine.url.database)
    scope = scope.replace("captions", database)
    other = " WITH GRANT OPTION" if privilege == "GRANT OPTION" else ""
    granted = "USAGE" if privilege == "GRANT OPTION" else privilege
    quoted = scope.replace("%", "%%")
    with mariadb.connect_as_root() as root, root.cursor() as cursor:
        cursor.execute(f"REVOKE {privilege} ON {quoted} FROM %s@%s", (user, host))
        yield scope
        cursor.execute(f"GRANT {granted} ON {quoted} TO %s@%s{other}", (user, host))


def test_the_preflight_names_each_right_that_the_mover_lacks(site: Site, mariadb: PrivateMariaDB) -> None:
    site.open()
    with site.worker():
        known = {"worker_hosts": ["h1"]}
        site.call("queue_preflight", **known).assert_done()
        everything = rights("sluice")
        assert len(everything) > 20
        for privilege, scope in everything:
            with one_less(site, mariadb, "sluice", privilege, scope) as there:
                refused = site.call("queue_preflight", **known)
            place = there if "`" in there or there == "*.*" else f"`{there.removesuffix('.*')}`.*"
            # What the step needs for itself the server denies, in the same words.
            refused.assert_refused(privilege)
            assert f"{privilege} ON {place}" in refused.message or (
                f"{privilege} command denied" in refused.message and "docs/mapping.md" in refused.message
            ), refused.message
        site.call("queue_preflight", **known).assert_done()


@pytest.mark.parametrize(
    ("privilege", "scope", "words"),
    [
        ("PROCESS", "*.*", "this account sees its own sessions only. Next: GRANT PROCESS"),
        ("SLAVE MONITOR", "*.*", "sql_replica"),
        ("SELECT", "mysql.*", "sql_privileges"),
    ],
)
def test_the_plan_says_what_it_may_not_read(
    site: Site, mariadb: PrivateMariaDB, privilege: str, scope: str, words: str
) -> None:
    given = {"db_url": site.read_url, "mover": site.accounts["sluice"]}
    assert site.call("queue_plan", **given).assert_done().result["blocking"] == []
    with one_less(site, mariadb, "sluice_read", privilege, scope):
        outcome = site.call("queue_plan", **given)
    said = outcome.message if outcome.failed else "; ".join(outcome.result["blocking"])
    assert words in said, said


def test_the_plan_without_the_application_s_tables(site: Site, mariadb: PrivateMariaDB) -> None:
    assert {scope for _, scope in rights("sluice_read")} == {"*.*", "`captions`.*", "mysql.*"}
    with one_less(site, mariadb, "sluice_read", "SELECT", "`captions`.*"):
        site.call("queue_plan", db_url=site.read_url).assert_refused("denied", "docs/mapping.md")


# -- Redis ----------------------------------------------------------------------------------------------------------


def documented() -> list[str]:
    """The rules of the mover's Redis user, as the page has them, for this system."""
    words = "ACL SETUSER sluice on ><password> "
    line = next(line for line in rights_of_the_page("text", words, {"system": "captions"}) if line.startswith(words))
    return line.removeprefix(words).split()


def grant(site: Site, words: list[str]) -> None:
    """Give the mover exactly these rules; its password stays."""
    site.client.execute_command("ACL", "SETUSER", "mover", "resetkeys", "resetchannels", "-@all", *words)


#: What is taken away, the step that needs it, and words of its refusal.
PHASES = {"queue_workers_prove": Phase.PREPARED, "queue_fence": Phase.ROUTED}
REDIS_LACKS = [
    ("~rq:*", "queue_probe", ("keys", NEXT)),
    ("~sluice:{captions}:*", "queue_baseline", ("keys", NEXT)),
    ("~sluice:{captions_try}:*", "queue_probe", ("keys", NEXT)),
    ("~sluice:try:captions:*", "queue_probe", ("keys", NEXT)),
    ("&rq:pubsub:*", "queue_probe", ("channel", NEXT)),
    ("acl|setuser", "queue_accounts", ("acl|setuser",)),
    ("config|get", "queue_preflight", ("config|get",)),
    ("info", "queue_preflight", ("info",)),
    ("bgsave", "queue_backup", ("bgsave",)),
    ("script|load", "queue_probe", ("script|load", NEXT)),
    ("evalsha", "queue_probe", ("evalsha", NEXT)),
    ("get", "queue_baseline", ("get", NEXT)),
    ("scan", "queue_plan", ("scan",)),
    ("smembers", "queue_workers_prove", ("smembers", NEXT)),
]


def test_the_documented_redis_rights_suffice(site: Site) -> None:
    grant(site, documented())
    site.seed(4)
    site.open()
    site.client.execute_command("ACL", "LOG", "RESET")
    with site.worker():
        site.call("queue_plan", worker_hosts=["h1"]).assert_done()
        site.call("queue_preflight", worker_hosts=["h1"]).assert_done()
    for name in ("queue_accounts", "queue_backup", "queue_probe", "queue_baseline"):
        site.drive(name).assert_done() if name == "queue_backup" else site.call(name).assert_done()
    assert site.client.execute_command("ACL", "LOG") == []


@pytest.mark.parametrize(
    ("lack", "name", "words"), REDIS_LACKS, ids=[f"{lack} {name}" for lack, name, _ in REDIS_LACKS]
)
def test_each_redis_right_that_is_missing_is_named(site: Site, lack: str, name: str, words: tuple[str, ...]) -> None:
    """The keys and channels of the page one by one, and the commands that steps cannot do without."""
    site.seed(4)
    site.open(PHASES.get(name, Phase.OPENED))
    rules = documented()
    assert lack in rules or lack[0] not in "~&"
    grant(site, [word for word in rules if word != lack] + ([] if lack[0] in "~&" else [f"-{lack}"]))
    outcome = site.call(name)
    said = outcome.message if outcome.failed else "; ".join(outcome.result.get("blocking", []))
    assert said
    assert "Traceback" not in outcome.printed
    for word in words:
        assert word in said, said
