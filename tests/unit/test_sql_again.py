"""Which errors of the database are worth a second try, and how often."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ansible.module_utils.sluice.adapters.sql_connect import again_after_deadlock
from ansible.module_utils.sluice.core.errors import StoreError
from sqlalchemy import exc


def failing(codes: list[int]) -> Callable[[], int]:
    """A write that meets these errors, one a try, and then succeeds; it returns the number of tries."""
    tries = 0

    def write() -> int:
        nonlocal tries
        tries += 1
        if codes:
            cause = exc.OperationalError("UPDATE", {}, Exception(codes.pop(0), "said the server"))
            raise StoreError("said the server") from cause
        return tries

    return again_after_deadlock(write)


@pytest.mark.parametrize(
    ("codes", "tries"), [([], 1), ([1213], 2), ([1213] * 5, 6), ([1205], 2), ([1213, 1205, 1213], 4)]
)
def test_worth_another_try(codes: list[int], tries: int) -> None:
    assert failing(codes)() == tries


@pytest.mark.parametrize("codes", [[1213] * 6, [1205, 1205], [2013], [1045], [1213, 2013]])
def test_the_operators_to_see(codes: list[int]) -> None:
    with pytest.raises(StoreError, match="said the server"):
        failing(codes)()
