"""The hosts of a run: named by the plan, remembered by the run, and nobody else's workers beside them."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.shell.steps import movement

from modules.site import Site

TWO = {"app": ["app1", "app2"], "workers": ["rq1"]}
THREE = {"app": ["app1", "app2", "app3"], "workers": ["rq1"]}


def test_the_plan_names_every_host(site: Site) -> None:
    lines = site.call("queue_plan", hosts=THREE).assert_done().result["lines"]
    assert "hosts       app 3: app1, app2, app3" in lines
    assert "            workers 1: rq1" in lines


def test_a_host_that_does_not_answer_blocks_the_plan_by_name(site: Site) -> None:
    answers = {"app1": True, "app2": False, "app3": True, "rq1": True}
    done = site.call("queue_plan", hosts=THREE, answers=answers).assert_done()
    (check,) = [check for check in done.result["checks"] if check["name"] == "every host answers"]
    assert (check["verdict"], check["reading"]) == ("failed", "silent: app2")
    assert "every host answers: silent: app2" in done.result["blocking"]
    well = site.call("queue_plan", hosts=THREE, answers=dict.fromkeys(answers, True)).assert_done()
    assert [c["reading"] for c in well.result["checks"] if c["name"] == "every host answers"] == ["4 of 4"]


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.ROUTED, Phase.FENCED])
def test_a_host_added_in_mid_run_is_refused_by_name_and_nothing_is_changed(site: Site, phase: Phase) -> None:
    site.call("queue_run", state="opened", hosts=TWO).assert_done()
    site.stand(phase)
    with site.unchanged():
        refused = site.call("queue_run", state="opened", hosts=THREE)
    refused.assert_refused("app3 (app) came into the inventory after run", "take it out until this run is validated")


def test_a_host_added_before_the_preparation_is_prepared_with_the_others(site: Site) -> None:
    site.call("queue_run", state="opened", hosts=TWO).assert_done()
    site.call("queue_run", state="opened", hosts=THREE).assert_done()
    site.stand(Phase.PREPARED)
    again = site.call("queue_run", state="opened", hosts=THREE).assert_done()
    assert not again.result["changed"]


def test_a_host_added_after_the_validation_is_nobodys_concern(site: Site) -> None:
    site.call("queue_run", state="opened", hosts=TWO).assert_done()
    site.stand(Phase.VALIDATED)
    site.call("queue_run", state="opened", hosts=THREE).assert_done()


def test_a_host_that_is_gone_is_named_and_stops_nothing(site: Site) -> None:
    site.call("queue_run", state="opened", hosts=THREE).assert_done()
    site.stand(Phase.PREPARED)
    lines = site.call("queue_run", state="opened", hosts=TWO).assert_done().result["lines"]
    assert any("no longer in the inventory: app3 (app)" in line for line in lines)
    # It is not welcome any more: its settings may be of any time.
    site.call("queue_run", state="opened", hosts=THREE).assert_refused("app3 (app)")


def test_a_worker_on_an_unknown_host_stops_the_run_before_the_route(site: Site) -> None:
    """One that came after the preflight: a host added by hand, or one that the inventory forgot."""
    site.open(Phase.PREPARED)
    with site.worker():
        site.call("queue_workers_prove", worker_hosts=["h1"]).assert_done()
        refused = site.call("queue_workers_prove", worker_hosts=["app1"])
        refused.assert_refused("no unknown RQ worker failed", "h1", "add the host to the inventory, or stop the worker")


def test_a_host_whose_workers_end_at_once_closes_the_gate(site: Site) -> None:
    """Its supervisor said that they run, and those of the other hosts serve every queue."""
    site.open(Phase.PREPARED)
    with site.worker():
        refused = site.call("queue_workers_prove", worker_hosts=["h1", "h2", "h3"], deadline=0)
    refused.assert_refused("every host has a worker failed: none is heard of from h2, h3", "take it out of")


def test_workers_that_are_on_their_way_up_are_waited_for(site: Site) -> None:
    """A supervisor says that a process runs before the worker in it is heard of."""
    site.open(Phase.PREPARED)
    with ExitStack() as registered:
        coming = threading.Timer(1.5, lambda: registered.enter_context(site.worker()))
        coming.start()
        done = site.call("queue_workers_prove", sliced=True, deadline=60).assert_done()
        coming.join()
    assert "cursor" not in done.result
    assert done.result["verdict"] == "passed"


def test_a_wait_for_workers_says_so_in_each_slice(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movement, "SLICE_SECONDS", 0.0)
    site.open(Phase.PREPARED)
    waiting = site.call("queue_workers_prove", sliced=True, deadline=60).assert_done()
    (line,) = waiting.result["lines"]
    assert line.startswith("not every queue and host has a worker that is heard of, at most ")
    over = site.call("queue_workers_prove", sliced=True, deadline=60, cursor={"until": 1.0})
    over.assert_refused("live RQ workers failed: 0 heard of")


def test_a_stranger_is_not_waited_for(site: Site) -> None:
    site.open(Phase.PREPARED)
    with site.worker():
        refused = site.call("queue_workers_prove", sliced=True, deadline=600, workers_min=2, worker_hosts=["app1"])
    refused.assert_refused("no unknown RQ worker failed", "live RQ workers failed: 1 heard of")
