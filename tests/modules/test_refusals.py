"""What every module says when it cannot work: one message, every promised key, nothing written, no secret let out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ansible.module_utils.sluice.core.phases import Phase

from conftest import PlantedSecrets
from lab.stores import LOOPBACK, free_port
from modules.site import MODULES, WITHOUT_STORES, Site

pytestmark = pytest.mark.real

#: They answer whatever is down, and say what they could not read (test_assess.py).
ALWAYS_ANSWER = ("queue_assess", "queue_assess_host")
WITH_STORES = [name for name in MODULES if name not in WITHOUT_STORES and name not in ALWAYS_ANSWER]
#: They read, and need no run and no lease.
READERS = ("queue_holds", "queue_plan", "queue_report", "queue_status")
#: They ask Redis nothing.
SQL_ONLY = ("queue_holds", "queue_intake", "queue_report", "queue_status")
WRITERS = [name for name in WITH_STORES if name not in READERS]
#: Options with which a module would write, where its usual ones only read.
WRITING: Mapping[str, Mapping[str, Any]] = {
    "queue_run": {"state": "advanced", "phase": "prepared"},
    "queue_intake": {"state": "paused"},
}


def at_the_right_phase(name: str) -> Phase:
    """Where a run stands when this module may work, so that only the cause under test can refuse it."""
    return {
        "queue_transfer": Phase.FENCED,
        "queue_fence": Phase.ROUTED,
        "queue_drain": Phase.ROUTED,
        "queue_verify": Phase.TRANSFERRED,
        "queue_recover": Phase.TRANSFERRED,
        "queue_validate": Phase.VERIFIED,
        "queue_cleanup": Phase.VALIDATED,
        "queue_route": Phase.PREPARED,
        "queue_soak": Phase.PREPARED,
        "queue_workers_prove": Phase.PREPARED,
    }.get(name, Phase.OPENED)


@pytest.mark.parametrize("name", [name for name in WITH_STORES if name not in SQL_ONLY])
def test_redis_is_not_to_be_had(site: Site, planted_secrets: PlantedSecrets, name: str) -> None:
    """It does not answer, or refuses the password."""
    site.seed(3)
    site.open(at_the_right_phase(name))
    port = site.redis_url.rsplit(":", 1)[1].split("/")[0]
    silent = site.redis_url.replace(f":{port}/", f":{free_port()}/")
    wrong = planted_secrets.plant("wrong").removesuffix("@s3")
    with site.unchanged(lease=False):
        outcome = site.call(name, redis_url=silent)
        outcome.assert_refused(f"{LOOPBACK}:", "no answer", "Next: check host, port")
        planted_secrets.assert_absent(outcome.printed, name)
        outcome = site.call(name, redis_url=f"redis://mover:{wrong}@{LOOPBACK}:{port}/0")
        outcome.assert_refused("login refused", "check user and password of the Redis URL")
        planted_secrets.assert_absent(outcome.printed, name)


@pytest.mark.parametrize("name", WITH_STORES)
def test_the_database_is_not_to_be_had(site: Site, planted_secrets: PlantedSecrets, name: str) -> None:
    """It refuses the password, does not answer, or has no database of that name."""
    site.open(at_the_right_phase(name))
    wrong = planted_secrets.plant("wrong").removesuffix("@s3")
    user, rest = site.db_url.removeprefix("mysql+pymysql://").split(":", 1)
    port = site.db_url.rsplit(":", 1)[1].split("/")[0]
    causes = {
        f"mysql+pymysql://{user}:{wrong}@{rest.rsplit('@', 1)[1]}": (
            "Access denied",
            "check user and password of the database URL",
        ),
        site.db_url.replace(f":{port}/", f":{free_port()}/"): ("check host and port of the database URL",),
        # The mover's account has no right to a database that is not the application's: the server does not even say
        # whether it exists.
        f"{site.db_url.rsplit('/', 1)[0]}/sluice_nowhere": (
            "Access denied",
            "check the database name of the URL",
        ),
    }
    with site.unchanged():
        for url, words in causes.items():
            outcome = site.call(name, db_url=url).assert_refused(*words)
            planted_secrets.assert_absent(outcome.printed, name)


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "queue_run"])
def test_no_run_is_open(site: Site, name: str) -> None:
    """Nor is there a ledger. A cleanup has nothing to do then, which is no failure."""
    site.seed(2)
    with site.unchanged():
        outcome = site.call(name, **WRITING.get(name, {}))
    if name == "queue_cleanup":
        outcome.assert_done()
        return
    outcome.assert_refused("no open run" if name == "queue_recover" else "no run is open", "Next: ")


@pytest.mark.parametrize("state", ["advanced", "undone", "released"])
def test_queue_run_without_a_run(site: Site, state: str) -> None:
    with site.unchanged():
        outcome = site.call("queue_run", state=state, phase="prepared", owner="first@host:1")
    if state == "advanced":
        outcome.assert_refused("no run is open")
    else:
        assert outcome.assert_done().result["changed"] is False


@pytest.mark.parametrize("name", WRITERS)
def test_the_lease_is_someone_elses(site: Site, name: str) -> None:
    """Live or expired: only opening the run takes a lease over, and that waits its turn."""
    site.seed(3)
    site.open(at_the_right_phase(name))
    for remaining in (600, -600):
        site.take_over(seconds=remaining)
        with site.unchanged():
            outcome = site.call(name, **WRITING.get(name, {}))
        outcome.assert_refused("belongs to 'second@host:2', not to 'first@host:1'", "--start-at-task")


@pytest.mark.parametrize("state", ["undone", "released", "advanced"])
def test_queue_run_under_someone_elses_lease(site: Site, state: str) -> None:
    site.open()
    site.take_over()
    with site.unchanged():
        site.call("queue_run", state=state, phase="prepared").assert_refused("belongs to 'second@host:2'")


@pytest.mark.parametrize("name", [name for name in WITHOUT_STORES if name not in ALWAYS_ANSWER])
def test_a_host_step_that_cannot_work(site: Site, name: str) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "queue_config": {"path": str(site.folder / "no" / "folder" / "app.env")},
        "queue_revision": {"state": "restored"},
        "queue_workers": {},
    }
    with site.unchanged():
        site.call(name, **wrong[name]).assert_refused()


@pytest.mark.parametrize("name", ["queue_transfer", "queue_validate", "queue_drain"])
def test_a_slice_that_is_not_the_last_fails_for_a_caller_who_did_not_ask(
    site: Site, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the action plugin nobody would call again, and the play would go on as if the step were done."""
    from ansible.module_utils.sluice.shell import runner
    from ansible.module_utils.sluice.shell.steps import movement, validate

    for step in (movement, validate):
        monkeypatch.setattr(step, "SLICE_SECONDS", 0.0)
    site.seed(30)
    if name == "queue_drain":
        site.sql("UPDATE caption_tasks SET status = 'running', lease_until = UTC_TIMESTAMP(6) LIMIT 1")
    if name != "queue_drain":
        site.open(Phase.ROUTED)
        site.call("queue_fence").assert_done()
    site.open(at_the_right_phase(name))
    options: dict[str, dict[str, Any]] = {
        "queue_transfer": {"batch": 10},
        "queue_validate": {"observation_seconds": 60},
        "queue_drain": {"deadline": 60},
    }
    outcome = site.call(name, **options[name])
    assert outcome.failed
    assert outcome.message == runner.UNFINISHED
    outcome.assert_complete()
    again = site.call(name, sliced=True, **options[name])
    assert again.assert_done().result["cursor"]


def test_a_defect_lets_no_secret_out(
    site: Site, planted_secrets: PlantedSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody foresaw may hold anything: the message and the trace are redacted as all else is."""
    from ansible.module_utils.sluice.services import run as runs

    def broken(*_: object) -> None:
        raise ValueError(f"cannot use {site.db_url} with\n{site.redis_url}")

    monkeypatch.setattr(runs, "continue_run", broken)
    outcome = site.call("queue_probe")
    assert outcome.failed
    assert "\n" not in outcome.message
    assert "defect of Sluice" in outcome.message
    assert "ValueError: cannot use ********" in outcome.message
    outcome.assert_complete()
    planted_secrets.assert_absent(outcome.printed, "a defect")
