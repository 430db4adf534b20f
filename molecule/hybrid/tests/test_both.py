"""What stands after playbooks/hybrid.yml, asked of each host itself and of both stores."""

from __future__ import annotations

import pytest

from hosts.site import APPLICATION, LEGACY, RQ, Site

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def site() -> Site:
    """The hosts as molecule left them, under traffic."""
    return Site()


def test_a_quarter_of_the_users_is_at_the_target(site: Site) -> None:
    assert site.phase == "hybrid"
    assert site.route == (25, 1)
    assert not site.legacy_locked
    assert site.moved_of_users == 0


@pytest.mark.parametrize("name", APPLICATION)
def test_both_kinds_of_workers_run(site: Site, name: str) -> None:
    host = site.host(name)
    assert host.service(LEGACY).is_running
    assert host.service(RQ).is_running
    assert host.service(RQ).is_enabled


def test_both_sides_finish_tasks(site: Site) -> None:
    def sides() -> set[str]:
        return {line["side"] for name in APPLICATION for line in site.effects(name) if line["event"] == "end"}

    site.until(lambda: sides() == {"db", "rq"}, "an effect of each side")


def test_nothing_was_lost_doubled_or_left(site: Site) -> None:
    site.stop_users()
    site.clean()
