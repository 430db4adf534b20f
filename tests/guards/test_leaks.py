"""The search for planted secrets finds them in each form in which they leak."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    from conftest import PlantedSecrets


@pytest.mark.parametrize("form", ["plain", "quoted", "base64", "cut", "bytes"])
def test_a_planted_secret_is_found_and_named(planted_secrets: PlantedSecrets, form: str) -> None:
    value = planted_secrets.plant("db-password")
    planted_secrets.plant("other")
    texts: dict[str, str | bytes] = {
        "plain": f"connect mysql://sluice:{value}@localhost",
        "quoted": f"connect mysql://sluice:{quote(value, safe='')}@localhost",
        "base64": base64.b64encode(value.encode()).decode(),
        "cut": value.rsplit("-", 1)[1][:24],
        "bytes": value.encode(),
    }
    text = texts[form]
    assert planted_secrets.found_in(text) == ["db-password"]
    with pytest.raises(pytest.fail.Exception, match=r"the log contains the planted secret.*db-password") as failure:
        planted_secrets.assert_absent(text, "the log")
    assert value not in str(failure.value)


def test_a_clean_text_passes(planted_secrets: PlantedSecrets) -> None:
    planted_secrets.plant("db-password")
    planted_secrets.assert_absent("connected to the database as sluice", "the log")


def test_a_search_without_a_plant_fails(planted_secrets: PlantedSecrets) -> None:
    with pytest.raises(AssertionError, match="proves nothing"):
        planted_secrets.assert_absent("anything", "the log")
