"""The module that would do the harm reads the ledger itself, and refuses. Whatever was skipped, nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.sluice.core import phases
from ansible.module_utils.sluice.core.phases import REQUIRED_GATES, Phase
from ansible.module_utils.sluice.core.verdicts import Verdict
from ansible.module_utils.sluice.services import run as runs

from modules.site import Site

pytestmark = pytest.mark.real

TOO_EARLY = [
    ("queue_route", Phase.OPENED, Phase.PREPARED),
    ("queue_soak", Phase.OPENED, Phase.PREPARED),
    ("queue_workers_prove", Phase.OPENED, Phase.PREPARED),
    ("queue_drain", Phase.HYBRID, Phase.ROUTED),
    ("queue_fence", Phase.HYBRID, Phase.ROUTED),
    ("queue_transfer", Phase.ROUTED, Phase.FENCED),
    ("queue_verify", Phase.FENCED, Phase.TRANSFERRED),
    ("queue_validate", Phase.TRANSFERRED, Phase.VERIFIED),
    ("queue_cleanup", Phase.VERIFIED, Phase.VALIDATED),
]
TOO_LATE = [
    ("queue_preflight", Phase.ROUTED),
    ("queue_accounts", Phase.ROUTED),
    ("queue_backup", Phase.ROUTED),
    ("queue_probe", Phase.ROUTED),
    ("queue_baseline", Phase.ROUTED),
    ("queue_drain", Phase.TRANSFERRED),
]
BEFORE = {
    Phase.PREPARED: Phase.OPENED,
    Phase.HYBRID: Phase.PREPARED,
    Phase.ROUTED: Phase.PREPARED,
    Phase.FENCED: Phase.ROUTED,
    Phase.TRANSFERRED: Phase.FENCED,
    Phase.VERIFIED: Phase.TRANSFERRED,
    Phase.VALIDATED: Phase.VERIFIED,
    Phase.CLEANED: Phase.VALIDATED,
}


@pytest.mark.parametrize(("name", "stands", "needs"), TOO_EARLY)
def test_too_early(site: Site, name: str, stands: Phase, needs: Phase) -> None:
    site.seed(4)
    site.open(stands)
    with site.unchanged(lease=False):
        site.call(name).assert_refused(f"has reached '{needs}'", f"stands at '{stands}'", "steps cannot be skipped")


@pytest.mark.parametrize(("name", "stands"), TOO_LATE)
def test_too_late(site: Site, name: str, stands: Phase) -> None:
    """A second preparation would overwrite the baseline that the balance needs."""
    site.seed(4)
    site.open(stands)
    with site.unchanged(lease=False):
        site.call(name).assert_refused("is over", f"already stands at '{stands}'")


def test_recovery_before_anything_was_routed(site: Site) -> None:
    site.open(Phase.PREPARED)
    with site.unchanged():
        site.call("queue_recover").assert_refused("nothing to recover")


def test_a_transfer_without_a_fence(site: Site) -> None:
    """The ledger says fenced; what counts is the accounts, read in the slice that moves."""
    site.seed(4)
    lease = site.open(Phase.FENCED)
    site.verdict(lease, "fence source")
    with site.unchanged(lease=False):
        redis_server = site.sql("SELECT COUNT(*) FROM sluice_event")
        assert redis_server
        # The server's run id is noted before the fence is proved.
        site.call("queue_transfer")
        site.sql("DELETE FROM sluice_event WHERE name = 'redis server'")
    outcome = site.call("queue_transfer").assert_refused("failed", "fence")
    assert outcome.result["moved"] == 0
    assert site.sql("SELECT COUNT(*) FROM caption_tasks WHERE custody = 'db'") == [(4,)]
    assert site.client.keys("rq:*") == []


@pytest.mark.parametrize("wanted", [phase for phase in REQUIRED_GATES if phase is not Phase.CLEANED])
def test_a_phase_whose_gates_were_never_checked(site: Site, wanted: Phase) -> None:
    site.open(BEFORE[wanted])
    names = REQUIRED_GATES[wanted]
    with site.unchanged(lease=False):
        outcome = site.call("queue_run", state="advanced", phase=wanted.value)
    outcome.assert_refused(*(f"{name} unknown: never checked in this run" for name in names))


@pytest.mark.parametrize("wanted", [phase for phase in REQUIRED_GATES if phase is not Phase.CLEANED])
def test_one_gate_that_did_not_pass(site: Site, wanted: Phase) -> None:
    """All others passed, and this one had passed before: the newest verdict counts."""
    lease = site.open(BEFORE[wanted])
    for name in REQUIRED_GATES[wanted]:
        site.verdict(lease, name)
    for closed in REQUIRED_GATES[wanted]:
        for verdict in (Verdict.FAILED, Verdict.UNKNOWN):
            lease = site.lease()
            site.verdict(lease, closed, verdict)
            with site.unchanged(lease=False):
                outcome = site.call("queue_run", state="advanced", phase=wanted.value)
            outcome.assert_refused(f"{closed} {verdict}: of a test {verdict}: as the test says")
        site.verdict(site.lease(), closed)


@pytest.mark.parametrize("wanted", [Phase.PREPARED, Phase.TRANSFERRED, Phase.VERIFIED])
def test_a_verdict_expires(site: Site, wanted: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    site.open(BEFORE[wanted])
    if wanted is Phase.PREPARED:  # whose accounts are given their work there
        site.call("queue_accounts").assert_done()
    lease = site.lease()
    names = REQUIRED_GATES[wanted]
    for name in names:
        site.verdict(lease, name)
    monkeypatch.setitem(phases.GATE_LIFETIME, names[-1], -1.0)
    with site.unchanged(lease=False):
        outcome = site.call("queue_run", state="advanced", phase=wanted.value)
        outcome.assert_refused(f"{names[-1]} unknown: passed", "too old", "run the same command again")
    monkeypatch.setitem(phases.GATE_LIFETIME, names[-1], 900.0)
    assert site.call("queue_run", state="advanced", phase=wanted.value).assert_done().result["phase"] == wanted


def test_an_expired_verdict_about_the_present_is_read_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long drain must not outdate the fence for ever; but the fence is read, and here it is open."""
    lease = site.open(BEFORE[Phase.FENCED])
    for name in REQUIRED_GATES[Phase.FENCED]:
        site.verdict(lease, name)
    monkeypatch.setitem(phases.GATE_LIFETIME, "fence source", -1.0)
    outcome = site.call("queue_run", state="advanced", phase="fenced")
    outcome.assert_refused("fence source failed", "not locked")


def test_a_verdict_of_an_earlier_run_opens_nothing(site: Site) -> None:
    lease = site.open()
    for name in REQUIRED_GATES[Phase.PREPARED]:
        site.verdict(lease, name)
    site.call("queue_run", state="undone", reason="a test").assert_done()
    site.call("queue_run").assert_done()
    site.call("queue_run", state="advanced", phase="prepared").assert_refused("never checked in this run")


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.UNKNOWN])
def test_an_override_needs_a_reason_and_is_kept(site: Site, verdict: Verdict) -> None:
    lease = site.open(Phase.FENCED)
    site.verdict(lease, "transfer", verdict)
    with site.unchanged(lease=False):
        site.call("queue_run", state="advanced", phase="transferred", override={"transfer": "  "}).assert_refused()
    reason = {"transfer": "two rows are settled by hand, ticket 7"}
    site.call("queue_run", state="advanced", phase="transferred", override=reason).assert_done()
    [(kept,)] = site.sql("SELECT detail FROM sluice_event WHERE kind = 'override'")
    assert "ticket 7" in kept


def test_an_override_does_not_stand_for_a_check_that_was_never_made(site: Site) -> None:
    site.open(Phase.FENCED)
    with site.unchanged(lease=False):
        site.call(
            "queue_run", state="advanced", phase="transferred", override={"transfer": "I am sure"}
        ).assert_refused("never checked in this run")


@pytest.mark.parametrize(
    ("stands", "wanted"),
    [(Phase.OPENED, Phase.ROUTED), (Phase.ROUTED, Phase.TRANSFERRED), (Phase.FENCED, Phase.VALIDATED)],
)
def test_no_phase_is_jumped_over(site: Site, stands: Phase, wanted: Phase) -> None:
    lease = site.open(stands)
    for name in REQUIRED_GATES[wanted]:
        site.verdict(lease, name)
    with site.unchanged(lease=False):
        site.call("queue_run", state="advanced", phase=wanted.value).assert_refused(f"cannot go to '{wanted}'")


def test_a_cleanup_before_its_time(site: Site) -> None:
    site.open(Phase.VALIDATED)
    outcome = site.call("queue_cleanup", stability_seconds=3600)
    outcome.assert_refused("stability time failed")
    assert outcome.result["removed"] == []
    assert site.client.exists("sluice:{captions}:generation") == 1
    assert site.ledger.open_run() is not None


def test_a_cleanup_while_a_hold_is_undecided(site: Site) -> None:
    [task] = site.seed(1)
    lease = site.open(Phase.ROUTED)
    from ansible.module_utils.sluice.adapters.sql_table import SqlTable

    SqlTable(site.engine, site.mapping()).hold(lease, [task], "nobody knows")
    site.stand(Phase.VALIDATED)
    site.call("queue_cleanup").assert_refused("holds decided failed: 1 held", "playbooks/holds.yml")
    assert site.client.exists("sluice:{captions}:generation") == 1


def undone_after_the_first_release(site: Site) -> dict[str, Any]:
    return site.call("queue_run", state="undone", reason="a test").assert_done().result


def test_no_way_back_after_the_first_release(site: Site) -> None:
    site.open(Phase.FENCED)
    site.sql("UPDATE sluice_run SET point_of_no_return_at = UTC_TIMESTAMP(6)")
    with site.unchanged(lease=False):
        result = undone_after_the_first_release(site)
    assert result["undone"] is False
    assert result["past_return"] is True


def test_the_gates_of_a_run_under_another_mapping(site: Site) -> None:
    """The rows it would read are not those that were judged."""
    site.open(Phase.FENCED)
    site.mapping_file.write_text(site.mapping_file.read_text().replace("processes: 2", "processes: 3"))
    with site.unchanged(lease=False):
        site.call("queue_transfer").assert_refused("the mapping has changed since run")
        site.call("queue_run").assert_refused("the mapping has changed since run")


def test_lifetimes_are_stated_for_every_gate() -> None:
    assert {name for names in REQUIRED_GATES.values() for name in names} <= phases.GATE_LIFETIME.keys()
    assert runs.GATE_LIFETIME is phases.GATE_LIFETIME


def test_a_stop_ends_the_transfer_between_batches_and_the_same_command_goes_on(site: Site) -> None:
    """The flag is set without the lease, ends the slice politely, and is gone when the run is resumed."""
    site.open(Phase.FENCED)
    site.sql("DELETE FROM caption_tasks")
    ids = site.seed(300)
    site.call("queue_fence").assert_done()
    asked = site.call("queue_run", state="stopping", owner="").assert_done()
    assert asked.result["changed"]
    assert not site.call("queue_run", state="stopping", owner="").assert_done().result["changed"]
    stopped = site.call("queue_transfer", sliced=True, batch=50)
    stopped.assert_refused("stop flag failed", "run the same command to go on")
    assert 0 < stopped.result["moved"] < len(ids)
    site.call("queue_run").assert_done()
    site.drive("queue_transfer", batch=50).assert_done()
    assert site.sql("SELECT COUNT(*) FROM caption_tasks WHERE custody = 'rq'") == [(300,)]
