"""How long the sweeper of the outbox pauses."""

from __future__ import annotations

import pytest

from captions.outbox import AT_ONCE
from captions.sweeper import pause_after


@pytest.mark.parametrize(
    ("found", "placed", "seconds", "pause"),
    [
        (0, 0, 0.001, 1.0),  # nothing to do: the next look is soon
        (0, 0, 0.2, 4.0),  # a slow look is a rare one
        (AT_ONCE, AT_ONCE, 0.7, 0.7),  # more wait: half of the time is theirs
        (AT_ONCE, 1, 0.7, 0.7),  # another process places the others
        (AT_ONCE, 0, 0.2, 4.0),  # none of them can be placed
        (AT_ONCE - 1, AT_ONCE - 1, 0.2, 4.0),  # these were all
    ],
)
def test_many_tasks_that_wait_are_placed_half_of_the_time(
    found: int, placed: int, seconds: float, pause: float
) -> None:
    assert pause_after(found, placed, seconds) == pytest.approx(pause)
