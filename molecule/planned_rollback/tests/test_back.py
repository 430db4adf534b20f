"""What stands after playbooks/planned-rollback.yml, asked of each host itself and of both stores."""

from __future__ import annotations

import pytest

from hosts.site import APPLICATION, LEGACY, RQ, WEB, Site

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def site() -> Site:
    """The hosts as molecule left them, under traffic."""
    return Site()


def test_the_way_back_has_ended(site: Site) -> None:
    assert site.sql("SELECT phase FROM sluice_run ORDER BY seq") == (("rolled_back",), ("cleaned",))
    assert site.route == (0, 1)
    assert not site.legacy_locked
    assert site.count("custody <> 'db' AND status IN ('queued', 'running')") == 0


@pytest.mark.parametrize("name", APPLICATION)
def test_the_old_workers_have_the_work(site: Site, name: str) -> None:
    host = site.host(name)
    assert host.service(WEB).is_running
    assert host.service(LEGACY).is_running
    assert not host.service(RQ).is_running
    assert host.service(RQ).is_masked
    done = len(site.effects(name))
    site.until(lambda: len(site.effects(name)) > done, f"work on {name}")
    assert site.effects(name)[-1]["side"] == "db"


@pytest.mark.parametrize("name", APPLICATION)
def test_the_settings_are_byte_for_byte_as_before(site: Site, name: str) -> None:
    path = "srv/captions/.env"
    assert (site.layout.root(name) / path).read_bytes() == site.group.installed(name, path).read_bytes()
    settings = site.host(name).file(f"/{path}")
    assert (settings.user, settings.group, settings.mode) == ("root", "captions", 0o640)


def test_nothing_of_ours_is_left_in_redis(site: Site) -> None:
    with site.redis as redis:
        assert [key for key in redis.keys("*") if key.startswith((b"sluice:", b"rq:job", b"rq:queue"))] == []


def test_nothing_was_lost_doubled_or_left(site: Site) -> None:
    site.stop_users()
    site.clean()
