"""The control host without power in mid-transfer. In the order of the tests."""

from __future__ import annotations

import pytest

from hosts.site import APPLICATION, LEGACY, RQ, Site

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def site() -> Site:
    """The hosts with a prepared run."""
    return Site()


def test_the_control_host_loses_its_power_in_the_middle_of_the_transfer(site: Site) -> None:
    site.stop_users()  # they live on that host
    site.seed(100, delayed_share=1.0, delay=240, first=20_000_000)
    run = site.start("migrate", queue_transfer_rate=5)
    site.until(lambda: site.moved_of_users > 5, "the transfer")
    site.machine("ops").kill()
    run.wait().refused("ops", "unreachable")
    assert site.phase == "fenced"
    assert site.count("custody = 'db' AND status = 'queued'") > 0, "the transfer had ended already"


def test_the_same_command_goes_on_when_it_is_back(site: Site) -> None:
    site.group.power_on("ops")
    outcome = site.run("migrate").done()
    assert "resumed; it stands at 'fenced'" in outcome.output
    assert site.phase == "validated"
    for name in APPLICATION:
        assert site.is_active(name, RQ)
        assert not site.is_active(name, LEGACY)


def test_nothing_was_lost_or_doubled(site: Site) -> None:
    site.clean()  # until the last delayed task
