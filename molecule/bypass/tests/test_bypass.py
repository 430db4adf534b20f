"""Ways past the gates of playbooks/migrate.yml that Ansible itself offers. In the order of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from faults.playbook_lab import Outcome
from hosts.group import INVENTORY
from hosts.site import APPLICATION, LEGACY, RQ, Site

pytestmark = pytest.mark.timeout(1200)

TASK = "Move the tasks, batch by batch"


@pytest.fixture(scope="module")
def site() -> Site:
    """The hosts with a prepared run, under traffic."""
    return Site()


def untouched(site: Site) -> None:
    """AssertionError unless the run stands where it stood, and the source has all of its work."""
    assert site.phase == "prepared"
    assert site.route == (0, 1)
    assert site.moved_of_users == 0
    assert not site.legacy_locked
    for name in APPLICATION:
        assert site.is_active(name, LEGACY) and not site.is_active(name, RQ), name
        settings = site.host(name).file("/srv/captions/.env").content_string
        assert "\nRQ_ENABLED=false" in settings and "\nDATABASE_POLLING_ENABLED=false" not in settings, name


def nothing_ran(outcome: Outcome) -> None:
    """AssertionError when a command that was not refused changed anything; one that ran no task names no host."""
    _, recap, hosts = outcome.output.partition("PLAY RECAP")
    assert recap, outcome.output
    assert "changed=" not in hosts or outcome.changed == 0, outcome.output


@pytest.mark.parametrize("limit", ["app", "app1", "app1,ops", "ops", "workers", "!app2"])
def test_limit(site: Site, limit: str) -> None:
    site.run("migrate", "--limit", limit).refused()
    untouched(site)


@pytest.mark.parametrize("words", [("--tags", "transfer"), ("--skip-tags", "always,untagged"), ("--tags", "never")])
def test_tags(site: Site, words: tuple[str, str]) -> None:
    outcome = site.run("migrate", *words)
    if outcome.status == 0:
        nothing_ran(outcome)
    untouched(site)


def test_start_at_task(site: Site) -> None:
    site.run("migrate", "--start-at-task", TASK).refused()
    untouched(site)


def test_an_empty_group(site: Site, tmp_path: Path) -> None:
    # The group's variables belong to the inventory's folder: they come along by a link.
    (tmp_path / "group_vars").symlink_to(INVENTORY.parent / "group_vars")
    hosts = yaml.safe_load(INVENTORY.read_text(encoding="utf-8"))
    hosts["all"]["children"]["workers"]["hosts"] = {}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump(hosts), encoding="utf-8")
    site.run("migrate", inventory=inventory).refused("at least one in each of")
    untouched(site)


def test_one_failed_host_of_two(site: Site) -> None:
    settings = "/srv/captions/.env"
    site.ssh("app2", "chmod", "o+r", settings)
    site.run("migrate").refused("everybody may read it", "was taken back")
    site.ssh("app2", "chmod", "o=", settings)
    assert site.phase == "aborted"
    assert site.route == (0, 1)
    assert site.moved_of_users == 0
    for name in APPLICATION:
        assert site.is_active(name, LEGACY) and not site.is_active(name, RQ), name
        assert "\nRQ_ENABLED=false" in site.host(name).file(settings).content_string, name


def test_a_second_operator(site: Site) -> None:
    site.seed(200, delayed_share=1.0, delay=240, first=20_000_000)  # what there was has been worked off meanwhile
    first = site.start("migrate", queue_transfer_rate=4, queue_run_operator="first")
    site.until(lambda: site.moved_of_users > 5, "the transfer")
    second = site.run("migrate", queue_run_operator="second").refused()
    assert "first" in second.output or "lease" in second.output, second.output
    first.wait().done()
    assert site.phase == "validated"


def test_nothing_was_lost_doubled_or_left(site: Site) -> None:
    site.stop_users()
    site.clean()  # until the last delayed task
