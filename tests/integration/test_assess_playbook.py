"""``playbooks/assess.yml`` at two in the morning: stores stopped and frozen, workers killed, the command it prints."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from faults.playbook_lab import Outcome, PlaybookLab, lab_in
from oracle.patience import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PROMISE_SECONDS = 30.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaybookLab]:
    """A lab after a forward run: RQ does the work."""
    with lab_in(tmp_path_factory.mktemp("assess")) as made:
        made.seed(40)
        said = asked(made).output
        assert "action       nothing to roll back" in said, said
        made.run("migrate").done()
        yield made


def asked(lab: PlaybookLab, **variables: str) -> Outcome:
    """One assessment, which keeps its promise whatever is down and changes nothing."""
    begun = time.monotonic()
    outcome = lab.run("assess", **variables).done()
    assert time.monotonic() - begun < PROMISE_SECONDS, outcome.output
    assert outcome.changed == 0, outcome.output
    assert re.search(r"^ *next: ansible-playbook playbooks/\S+\.yml", outcome.output, re.MULTILINE), outcome.output
    passwords = [
        path.read_text().split()[0] for path in (lab.layout.directory / "passwords").glob("*") if path.is_file()
    ]
    assert not any(password in outcome.output for password in passwords)
    return outcome


@contextmanager
def frozen(lab: PlaybookLab, name: str) -> Iterator[None]:
    """A store stopped in its tracks: the kernel still takes connections for it."""
    lab.lab.supervisor.signal(name, "STOP")
    try:
        yield
    finally:
        lab.lab.supervisor.signal(name, "CONT")


def untouched(lab: PlaybookLab) -> dict[str, object]:
    """Everything that an assessment could change, but for Redis, where the workers' heartbeats are writes."""
    return {name: value for name, value in lab.fingerprint().items() if name != "redis"}


def test_a_healthy_target(lab: PlaybookLab) -> None:
    before = untouched(lab)
    said = asked(lab).output
    for line in ("function     works", "integrity    intact", "performance  normal", "action       fix in place"):
        assert line in said, said
    assert "0 at fault" in said
    assert untouched(lab) == before


def test_what_the_operator_states(lab: PlaybookLab) -> None:
    said = asked(lab, queue_severity="medium").output
    assert "next: ansible-playbook playbooks/hybrid.yml -e queue_share=25" in said, said


def test_redis_is_frozen_and_the_workers_are_gone(lab: PlaybookLab) -> None:
    with frozen(lab, "redis"):
        said = asked(lab).output
    assert "function     none" in said, said
    assert "next: ansible-playbook playbooks/emergency-rollback.yml" in said, said
    lab.lab.supervisor.stop_group("rqworkers")
    try:
        said = asked(lab).output
        assert "no RQ worker lives" in said, said
        assert "next: ansible-playbook playbooks/emergency-rollback.yml" in said, said
    finally:
        lab.lab.supervisor.start_group("rqworkers")


def test_the_application_is_down(lab: PlaybookLab) -> None:
    lab.lab.supervisor.stop_group("web")
    try:
        said = asked(lab).output
    finally:
        lab.lab.supervisor.start_group("web")
    assert "the application answers on no host" in said, said
    assert "action       emergency rollback" in said, said


def test_the_database_is_frozen(lab: PlaybookLab) -> None:
    with frozen(lab, "mariadb"):
        said = asked(lab).output
    assert "action       bring the database back first" in said, said
    until(lambda: lab.count("1 = 1") >= 0, "the database")
