"""What stands after playbooks/migrate.yml, asked of each host itself and of both stores."""

from __future__ import annotations

import shutil

import pytest

from hosts.site import APPLICATION, LEGACY, RQ, WEB, Site

pytestmark = pytest.mark.timeout(1200)
LOCKED = "database error 4151"  # access denied, this account is locked
MANAGED = ("RQ_ENABLED", "RQ_REDIS_URL", "RQ_WORKER_REDIS_URL", "RQ_DATABASE_URL", "DATABASE_POLLING_ENABLED")


@pytest.fixture(scope="module")
def site() -> Site:
    """The hosts as molecule left them, under traffic."""
    return Site()


@pytest.fixture(params=APPLICATION)
def name(request: pytest.FixtureRequest) -> str:
    """Each application host."""
    return str(request.param)


def test_the_run_is_validated_and_everything_goes_to_the_target(site: Site) -> None:
    assert site.sql("SELECT phase FROM sluice_run") == (("validated",),)
    assert site.route == (100, 0)
    assert site.legacy_locked
    assert site.moved_of_users > 0, "nothing was left to move"


def test_legacy_workers_are_ended_and_stay_so_after_a_reboot(site: Site, name: str) -> None:
    legacy = site.host(name).service(LEGACY)
    assert not legacy.is_running
    assert legacy.is_masked


def test_web_and_target_workers_run_under_systemd(site: Site, name: str) -> None:
    host = site.host(name)
    assert host.service(WEB).is_running
    assert host.service(RQ).is_running
    assert host.socket("tcp://0.0.0.0:8000").is_listening


def test_each_managed_key_is_there_once_and_nobody_else_may_read_them(site: Site, name: str) -> None:
    settings = site.host(name).file("/srv/captions/.env")
    keys = [line.partition("=")[0] for line in settings.content_string.splitlines() if "=" in line]
    assert {key: keys.count(key) for key in MANAGED} == dict.fromkeys(MANAGED, 1)
    assert (settings.user, settings.group, settings.mode) == ("root", "captions", 0o640)


def test_both_hosts_work_for_the_target(site: Site, name: str) -> None:
    assert {line["side"] for line in site.effects(name)[-4:]} == {"rq"}


def test_a_killed_target_worker_comes_back_and_works(site: Site) -> None:
    before = site.host("app1").service(RQ).systemd_properties["MainPID"]
    done = len(site.effects("app1"))
    site.ssh("app1", "systemctl", "kill", "--kill-who=main", "--signal=TERM", RQ)
    site.until(lambda: site.host("app1").service(RQ).systemd_properties["MainPID"] not in ("0", before), "a new worker")
    site.until(lambda: len(site.effects("app1")) > done + 2, "work by the new worker")


def test_a_legacy_worker_with_the_settings_of_before_gets_nothing(site: Site) -> None:
    """Somebody starts one by hand, past the mask and past the settings: the store turns it away."""
    old = site.layout.root("app2") / "srv/captions/old.env"
    shutil.copy(site.group.installed("app2", "srv/captions/.env"), old)
    site.ssh("app2", "chgrp captions /srv/captions/old.env && chmod 640 /srv/captions/old.env")
    site.ssh(
        "app2", "systemd-run", "--quiet", "--unit=colleague", "--uid=captions", "--setenv=PYTHONPATH=/srv/captions/app",
        "--setenv=CAPTIONS_ENV_FILE=/srv/captions/old.env",
        "--property=StandardError=append:/srv/captions/logs/colleague.log",
        "/opt/venv/bin/python", "-m", "captions.legacy", "--name", "colleague",
    )  # fmt: skip
    log = site.layout.root("app2") / "srv/captions/logs/colleague.log"
    site.until(lambda: log.exists() and LOCKED in log.read_text(), "a refusal by the database")
    site.ssh("app2", "systemctl", "stop", "colleague")
    assert [line for line in site.effects("app2") if line["worker"] == "colleague"] == []


def test_nothing_was_lost_doubled_or_left(site: Site) -> None:
    site.stop_users()
    site.clean()
