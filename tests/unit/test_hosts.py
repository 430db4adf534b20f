"""Test hosts of two checkouts never meet, and a machine that cannot carry any says why."""

from __future__ import annotations

import os
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from hosts import kernel
from hosts.base import key_of
from hosts.layout import HOSTS, Layout, group_wanted, layout_of

ROOT = Path(__file__).resolve().parents[2]


def _names(layout: Layout) -> set[str]:
    return {layout.tag, str(layout.network), str(layout.directory), *map(layout.address, HOSTS)}


def test_everything_follows_from_the_path() -> None:
    one, again, other = (layout_of(Path(f"/srv/{name}"), "1", []) for name in ("one", "one", "other"))
    assert _names(one) == _names(again)
    assert not _names(one) & _names(other)


def test_two_groups_of_one_checkout_never_meet() -> None:
    one, two = (layout_of(ROOT, group, []) for group in ("1", "2"))
    assert not _names(one) & _names(two)
    assert not one.network.overlaps(two.network)
    assert one.cache == two.cache


def test_a_group_has_a_short_word_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_HOSTS", "")
    assert group_wanted() == "1"
    monkeypatch.setenv("SLUICE_HOSTS", "second")
    assert group_wanted() == "second"
    monkeypatch.setenv("SLUICE_HOSTS", "../other")
    with pytest.raises(ValueError, match="SLUICE_HOSTS is '"):
        group_wanted()


def test_each_host_has_an_address_of_its_own_in_a_private_network() -> None:
    layout = layout_of(ROOT, "1", [])
    addresses = {layout.address(host) for host in HOSTS} | {layout.gateway}
    assert len(addresses) == len(HOSTS) + 1
    assert layout.network.is_private and layout.network.prefixlen == 24
    assert all(address.startswith(layout.accounts_from.removesuffix("%")) for address in addresses)


def test_a_network_that_the_machine_has_is_passed_over() -> None:
    first = layout_of(ROOT, "1", []).network
    second = layout_of(ROOT, "1", [first]).network
    assert not first.overlaps(second)
    assert layout_of(ROOT, "1", [first, second]).network not in (first, second)


def test_a_machine_without_a_free_network_says_so() -> None:
    with pytest.raises(LookupError, match="is taken"):
        layout_of(ROOT, "1", [IPv4Network("10.0.0.0/8")])


def test_the_names_of_interfaces_fit_into_the_kernel() -> None:
    assert len(f"{layout_of(ROOT, '1', []).tag}-{len(HOSTS)}") <= 15


def test_without_root_there_are_no_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert kernel.why_not() == "test hosts need root"


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(kernel.shutil, "which", lambda name: None if name == "mmdebstrap" else name)
    assert kernel.why_not().startswith("not installed: mmdebstrap (Debian: ")


def test_a_recipe_that_changes_has_another_key(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "recipe"
    file.write_text("one")
    before = key_of([tmp_path / "a"], "word")
    assert key_of([tmp_path / "a"], "word") == before
    assert key_of([tmp_path / "a"], "other word") != before
    file.write_text("two")
    assert key_of([tmp_path / "a"], "word") != before
