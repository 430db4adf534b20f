"""Sizes as an operator reads them."""

from __future__ import annotations

import pytest
from ansible.module_utils.sluice.core.figures import size


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9_700_000, "9.7 MB"),
        (999_900_000, "999.9 MB"),
        (1_000_000_000, "1.0 GB"),
        (5_300_000_000_000, "5.3 TB"),
        (5_300_000_000_000_000, "5300.0 TB"),
    ],
)
def test_the_largest_unit_that_leaves_a_figure_above_one(number: int, words: str) -> None:
    assert size(number) == words
