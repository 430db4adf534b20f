"""A dry run cannot write: with the plan's own SQL account, and with the mover's, which could."""

from __future__ import annotations

import pytest
from ansible.module_utils.sluice.core.phases import Phase

from conftest import PlantedSecrets
from modules.site import MODULES, OWNER, Site
from modules.test_refusals import at_the_right_phase

pytestmark = pytest.mark.real

STANDINGS = ["untouched", "in the run", "under someone else's lease", "after the run"]


def bring(site: Site, standing: str, name: str) -> None:
    """Put the site where a dry run is to be made."""
    site.seed(6, delayed=2)
    if standing == "untouched":
        return
    site.open(Phase.OPENED if standing == "after the run" else at_the_right_phase(name))
    if standing == "under someone else's lease":
        site.take_over()
    elif standing == "after the run":
        site.call("queue_run", state="undone", owner=OWNER, reason="a test").assert_done()


@pytest.mark.parametrize("account", ["reader", "mover"])
@pytest.mark.parametrize("standing", STANDINGS)
@pytest.mark.parametrize("name", [name for name in MODULES if name != "queue_workers"])
def test_a_dry_run_writes_nothing(
    site: Site, planted_secrets: PlantedSecrets, name: str, standing: str, account: str
) -> None:
    bring(site, standing, name)
    options = {"db_url": site.read_url if account == "reader" else site.db_url}
    if name == "queue_config":
        options = {}
    if name == "queue_plan" and account == "reader":
        options["mover"] = site.accounts["sluice"]
    with site.unchanged():
        outcome = site.call(name, check=True, **options)
    # There is nothing to recover before a route was changed, and a finished run has nothing to clean up.
    if name == "queue_recover" and standing in ("untouched", "after the run"):
        outcome.assert_refused("nothing to recover")
    else:
        outcome.assert_done()
    planted_secrets.assert_absent(outcome.printed, name)


@pytest.mark.parametrize("state", ["opened", "advanced", "undone", "released"])
@pytest.mark.parametrize("standing", STANDINGS)
def test_a_dry_run_of_every_state_of_a_run(site: Site, standing: str, state: str) -> None:
    bring(site, standing, "queue_run")
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
