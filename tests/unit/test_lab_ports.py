"""Ports of the lab and of tests: nobody else of ours is given the same, and the kernel hands none of them out."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from lab.stores import LOOPBACK, StoreError, free_port
from oracle.patience import PATIENCE_SECONDS


def test_no_port_is_given_twice_before_its_server_listens() -> None:
    ports = [free_port(20_990) for _ in range(3)]
    assert len(set(ports)) == 3
    source = "from lab.stores import free_port; print(free_port(20_990))"
    other = subprocess.run(
        [sys.executable, "-c", source],
        cwd=ROOT / "app",
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    assert int(other.stdout) not in ports


def test_a_port_that_somebody_listens_on_is_passed_over() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        taken = free_port(20_900)
        server.bind((LOOPBACK, taken))
        server.listen()
        assert free_port(taken) > taken


def test_ports_are_below_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert 10_000 <= free_port() < min(lowest, 21_000)


def test_a_full_range_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise OSError("taken")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(StoreError, match=r"no free port on 127\.0\.0\.1 from 20900"):
        free_port(20_900)
