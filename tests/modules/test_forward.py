"""A whole forward run, module by module: each returns what its RETURN promises, and the tasks are where they belong."""

from __future__ import annotations

import os

import pytest
from ansible.module_utils.sluice.adapters.supervisord import SupervisordWorkers
from ansible.module_utils.sluice.ports.surroundings import WorkerProcess

from conftest import PlantedSecrets
from modules.site import MODULES, Site

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = 40


def advance(site: Site, phase: str) -> None:
    reached = site.call("queue_run", state="advanced", phase=phase).assert_done()
    assert reached.result["phase"] == phase or phase == "cleaned"


def test_a_forward_run(site: Site, planted_secrets: PlantedSecrets, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = site.seed(TASKS, delayed=5)
    (site.folder / "app.env").write_text("SECRET_KEY=x\n")
    (site.folder / "app.env").chmod(0o600)
    called: list[str] = []

    def does(name: str, **options: object) -> dict[str, object]:
        called.append(name)
        sliced = "sliced" in __import__(name).ARGUMENT_SPEC
        outcome = site.drive(name, **options) if sliced else site.call(name, **options)
        return outcome.assert_done().result

    assert does("queue_plan", db_url=site.read_url)["counts"]
    assert does("queue_assess", db_url=site.read_url)["standing"] == "settled"
    assert does("queue_assess_host")["logs"] == [
        {"path": str(site.folder / "app.env"), "errors": 0, "last": [], "problem": ""}
    ]
    opened = does("queue_run")
    assert opened["phase"] == "opened"
    assert opened["changed"] is True
    assert does("queue_run")["changed"] is False
    does("queue_preflight", attest={})
    assert does("queue_accounts")["changed"] is True
    assert does("queue_accounts")["changed"] is False
    assert does("queue_backup", files=[str(site.folder / "app.env")])["artefacts"]
    assert does("queue_revision")["changed"] is True
    assert does("queue_revision")["changed"] is False
    assert does("queue_config")["changed"] is True
    assert does("queue_config")["changed"] is False
    assert does("queue_revision", state="checked")["in_place"] is False
    does("queue_probe")
    assert does("queue_baseline")["known"] == TASKS
    advance(site, "prepared")
    does("queue_soak")
    site.application.forget_jobs()
    with site.worker():
        does("queue_workers_prove")
        assert does("queue_route", share=100, polling=None)["after"] == {"share": 100, "polling": True}
        advance(site, "routed")
        does("queue_drain")
        assert does("queue_route", share=None, polling=False)["changed"] is True
        assert does("queue_fence")["changed"] is True
        assert does("queue_fence")["changed"] is False
        advance(site, "fenced")
        moved = does("queue_transfer")
        assert moved["moved"] == TASKS
        assert does("queue_transfer")["moved"] == 0
        advance(site, "transferred")
        assert does("queue_verify")["fault_count"] == 0
        advance(site, "verified")

        lost = ids[3]
        site.client.delete(f"rq:job:{lost}")
        assert site.call("queue_verify").assert_refused(lost).result["fault_count"] == 1
        assert does("queue_recover")["placed"] == 1
        does("queue_transfer")
        advance(site, "transferred")
        assert does("queue_verify")["fault_count"] == 0
        advance(site, "verified")

        assert does("queue_intake")["open"] is True
        workers = [{"host": "app1", "name": "rq_0", "memory_mb": 61.5}]
        criteria = {c["name"]: c["value"] for c in does("queue_validate", processes=workers)["criteria"]}
        assert criteria["worker memory"] == "largest of 1: 62 MB (app1 rq_0); limit 500 MB"
        assert "tasks a minute" in criteria["throughput"]
        assert criteria["results kept"].startswith("in the rows of 20 canaries")
        advance(site, "validated")
    site.application.forget_jobs()
    assert does("queue_status")["phase"] == "validated"
    assert does("queue_report", directory=str(site.folder / "reports"))["report_file"]
    assert does("queue_holds")["count"] == 0
    assert does("queue_cleanup")["removed"]
    assert site.sql("SELECT COUNT(*) FROM caption_tasks WHERE status = 'queued' AND custody = 'rq'") == [(TASKS,)]
    assert site.client.keys("sluice:*") == []

    process = WorkerProcess("w1", "h", os.getpid(), "RUNNING", None, True)
    monkeypatch.setattr(SupervisordWorkers, "list", lambda _self, _group: [process])
    monkeypatch.setattr(SupervisordWorkers, "leftovers", lambda _self, _group: [])
    (seen,) = does("queue_workers")["processes"]
    assert 10 < seen["memory_mb"] < 2000

    # What only a way back uses is called in test_back.
    assert set(called) == set(MODULES) - {"queue_evidence"}, "a module was left out"
    planted_secrets.assert_absent("".join(site.printed), "what the modules printed")
    for password in ("password-of-the-workers", "password-of-redis-workers", "password-of-the-settings"):
        assert password not in "".join(site.printed)
