"""A short campaign that is the same each time, and campaigns that must find what was planted (scripts/campaign)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible.module_utils.sluice.services import verify

from faults.campaign import Campaign, World, run_for
from faults.scene import FULL, QUEUES

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1800)]

SECONDS = 600.0 if FULL else 60.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Stores, lines and nurseries of this campaign. Nothing moves while a balance is taken, so looks need no pause."""
    made = World(tmp_path_factory.mktemp("campaign"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SECONDS_BETWEEN_LOOKS", 0.0)
        yield made
    made.close()


class Planted(Campaign):
    """With tasks to plant something in, whatever was drawn."""

    def teardown(self) -> None:
        self._submit(4, 0, later=False, placed=True)
        super().teardown()


class Steals(Planted):
    """A job vanishes from RQ behind the last mover."""

    def _until_done(self) -> None:
        super()._until_done()
        assert any(self.scene.client.lpop(f"rq:queue:{queue}") for queue in QUEUES)


class RunsTwice(Planted):
    """A task has an effect that its row does not know of."""

    def _work_everything_off(self) -> None:
        super()._work_everything_off()
        task_id = list(self.tasks)[-1]
        self.effects.started(task_id)
        self.effects.ended(task_id, "once more")


class Leaves(Planted):
    """A task is given back to the table behind the last mover's back."""

    def _until_done(self) -> None:
        super()._until_done()
        self.scene.sql("UPDATE caption_tasks SET custody = 'db' WHERE custody = 'rq' LIMIT 1")


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        (Steals, "the balance does not hold"),
        (RunsTwice, "doubled"),
        (Leaves, "ready at the source and queued at the target"),
    ],
    ids=["a loss", "a double", "two owners"],
)
def test_what_is_planted_is_found(world: World, planted: type[Campaign], said: str) -> None:
    with pytest.raises(AssertionError, match=said) as found:
        run_for(world, 0, seed=1, machine=planted, sequences=1, shrink=False)
    assert any("the steps of this sequence:\nbacklog" in note for note in found.value.__notes__)
    assert any("scripts/campaign --seed 1 --first-round 0" in note for note in found.value.__notes__)


def test_every_sequence_keeps_every_promise(world: World) -> None:
    run_for(world, SECONDS, seed=1, sequences=10)
    assert world.counts["movers"] > 0
