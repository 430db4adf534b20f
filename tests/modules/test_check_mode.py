"""A dry run cannot write: with the plan's own SQL account, and with the mover's, which could."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible.module_utils.sluice.core.phases import Phase

from conftest import PlantedSecrets
from modules.site import MODULES, OWNER, WITHOUT_STORES, Site
from modules.test_refusals import at_the_right_phase

pytestmark = pytest.mark.real


def standings(site: Site, phase: Phase) -> Iterator[str]:
    """Put the site where dry runs are made, one place after the other."""
    site.seed(6, delayed=2)
    yield "untouched"
    site.open(phase)
    yield "in the run"
    site.take_over()
    yield "under someone else's lease"
    site.stand(Phase.OPENED)
    site.take_over(OWNER)
    site.call("queue_run", state="undone", reason="a test").assert_done()
    yield "after the run"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "queue_workers"])
def test_a_dry_run_writes_nothing(site: Site, planted_secrets: PlantedSecrets, name: str) -> None:
    """With the plan's own SQL account, and with the mover's, which could."""
    reader = {"db_url": site.read_url} | ({"mover": site.accounts["sluice"]} if name == "queue_plan" else {})
    for standing in standings(site, at_the_right_phase(name)):
        for options in (reader, {"db_url": site.db_url}):
            with site.unchanged():
                outcome = site.call(name, check=True, **({} if name in WITHOUT_STORES else options))
            planted_secrets.assert_absent(outcome.printed, name)
            # There is nothing to recover before a route was changed, or after the run.
            if name == "queue_recover" and standing in ("untouched", "after the run"):
                outcome.assert_refused("nothing to recover")
            else:
                outcome.assert_done()


@pytest.mark.parametrize("state", ["opened", "advanced", "undone", "released"])
def test_a_dry_run_of_every_state_of_a_run(site: Site, state: str) -> None:
    for _ in standings(site, Phase.OPENED):
        with site.unchanged():
            site.call("queue_run", check=True, db_url=site.read_url, state=state, phase="prepared").assert_done()


@pytest.mark.parametrize("state", ["read", "open", "paused"])
def test_a_dry_run_of_intake(site: Site, state: str) -> None:
    site.open()
    with site.unchanged():
        outcome = site.call("queue_intake", check=True, db_url=site.read_url, state=state).assert_done()
    assert outcome.result["open"] is True
    assert outcome.result["changed"] is (state == "paused")


@pytest.mark.parametrize("state", ["released", "failed", "exported"])
def test_a_dry_run_of_a_decision_on_holds(site: Site, state: str) -> None:
    from ansible.module_utils.sluice.adapters.sql_table import SqlTable

    [task] = site.seed(1)
    lease = site.open(Phase.ROUTED)
    SqlTable(site.engine, site.mapping()).hold(lease, [task], "nobody knows")
    with site.unchanged():
        outcome = site.call(
            "queue_holds",
            check=True,
            db_url=site.read_url,
            state=state,
            ids=[task],
            to="source",
            reason="a test",
            file=str(site.folder / "holds.ndjson"),
        )
    assert outcome.assert_done().result["changed"] is True


def test_the_plan_writes_nothing_outside_check_mode_either(site: Site) -> None:
    """It is the step that people try first, so it does not depend on `--check`."""
    site.seed(6, delayed=2)
    with site.unchanged():
        outcome = site.call("queue_plan", db_url=site.read_url, mover=site.accounts["sluice"]).assert_done()
    assert outcome.result["counts"]["high"]["ready"] >= 1
    assert outcome.result["plan_digest"]
    assert {step["step"] for step in outcome.result["steps"]} >= {"backup", "drain", "fence", "transfer", "verify"}
