"""Short payloads are stored in their zlib stream, long ones compressed; RQ reads both the same way."""

from __future__ import annotations

import zlib

import pytest
from ansible.module_utils.sluice.adapters.rq import deflated


@pytest.mark.parametrize("size", [0, 1, 80, 199, 200, 201, 5_000])
def test_a_payload_comes_back_whole(size: int) -> None:
    payload = bytes(number % 251 for number in range(size))
    assert zlib.decompress(deflated(payload)) == payload


def test_a_long_payload_is_compressed() -> None:
    assert len(deflated(b"x" * 5_000)) < 100


def test_a_damaged_stream_is_noticed() -> None:
    stream = bytearray(deflated(b'["captions.jobs.run_caption", null, ["a"], {}]'))
    stream[20] ^= 1
    with pytest.raises(zlib.error):
        zlib.decompress(bytes(stream))
