"""The real playbooks over more than one application host: named, unreachable from the start, and lost in mid-run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from faults import ROOT
from faults.playbook_lab import PlaybookLab, lab_in
from faults.scene import only_full
from fleet.run import Fleet, fleet_of
from oracle.patience import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
#: A connection that is there until a file is: then nobody listens.
CONNECTION = "{{ 'ssh' if lookup('ansible.builtin.fileglob', lost_file) else 'local' }}"


@dataclass
class Two:
    """A lab with a second, simulated application host, and the switch that cuts that one off."""

    lab: PlaybookLab
    fleet: Fleet
    inventory: Path
    lost: Path

    @property
    def settings(self) -> tuple[bytes, bytes]:
        """The settings files of both."""
        return self.lab.layout.env_file.read_bytes(), (self.fleet.of("app001") / "app.env").read_bytes()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    """Both up, and an inventory beside the lab's own variables."""
    with lab_in(tmp_path / "lab", work_ms=100) as lab, fleet_of(1) as fleet:
        lost = tmp_path / "lost"
        (known,) = json.loads((fleet.directory / "hosts.yml").read_text())["all"]["children"]["app"]["hosts"].values()
        second = {
            **known,
            "ansible_connection": CONNECTION,
            "ansible_host": "127.0.0.1",
            "ansible_port": 1,
            "lost_file": str(lost),
        }
        hosts = yaml.safe_load((ROOT / "inventories" / "lab" / "hosts.yml").read_text())
        hosts["all"]["children"]["app"]["hosts"]["app001"] = second
        folder = tmp_path / "inventory"
        folder.mkdir()
        (folder / "hosts.yml").write_text(yaml.safe_dump(hosts, sort_keys=False))
        for name in ("group_vars", "mapping.yml"):
            (folder / name).symlink_to(ROOT / "inventories" / "lab" / name)
        yield Two(lab, fleet, folder / "hosts.yml", lost)


def test_the_plan_names_both_and_says_who_is_silent(two: Two) -> None:
    where = ("-i", str(two.inventory))
    done = two.lab.run("plan", *where).done()
    assert "app 2: lab_app, app001" in done.output
    assert "every host answers" in done.output
    two.lost.touch()
    before = two.settings
    blocked = two.lab.run("plan", *where).done()
    assert "silent: app001" in blocked.output
    assert "blocking    1" in blocked.output
    assert two.settings == before


@only_full  # host_lost shows it on hosts in every run
def test_a_host_lost_at_the_drain_takes_the_run_back_on_the_others(two: Two) -> None:
    """Nobody knows whether its pollers still run, so the run ends before its fence, and the others poll as before."""
    lab = two.lab
    lab.seed(60, delayed_share=0.5, delay=600)
    run = lab.start("migrate", "-i", str(two.inventory))
    until(
        lambda: (
            "TASK [queue_reload" in run.log.read_text().partition("PLAY [10/15")[2] or run.process.poll() is not None
        ),
        "the play that drains",
    )
    two.lost.touch()
    run.wait().refused("not reached: app001. Their settings are as they were left", "unreachable is not dead")
    assert lab.phase == "aborted"
    assert lab.route == (0, 1)
    assert not lab.legacy_locked
    assert lab.running("legacy") == 1
    assert b"RQ_ENABLED=false" in two.settings[0]
    assert b"DATABASE_POLLING_ENABLED=true" in two.settings[0]
    # Found again, the same command carries the run through, there too.
    two.lost.unlink()
    lab.run("migrate", "-i", str(two.inventory)).done()
    assert lab.phase == "validated"
    assert "RQ_ENABLED" in (two.fleet.of("app001") / "app.env").read_text()
    assert two.fleet.by_host()["app001"]["stopProcessGroup legacy False"] >= 1
    lab.clean()
