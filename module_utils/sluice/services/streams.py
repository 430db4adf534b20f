"""Sorting more ids than fit in memory: sorted runs on disk, merged as they are read."""

from __future__ import annotations

import heapq
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

#: One observation: key, kind, value, detail. Tuples of text, to sort by the key's code points everywhere alike.
Seen = tuple[str, str, str, str]

#: Observations sorted in memory at a time: about 20 MiB.
_RUN = 60_000
_READ = 500


def sorted_stream(observations: Iterable[Seen]) -> Iterator[Seen]:
    """Yield observations in order, holding one run of them in memory and the rest in unlinked temporary files.

    The files are written and read by this process alone, and vanish with it.
    """
    source = iter(observations)
    files: list[IO[bytes]] = []
    run = sorted(islice(source, _RUN))
    if len(run) < _RUN:
        yield from run
        return
    try:
        while run:
            file: IO[bytes] = tempfile.TemporaryFile(prefix="sluice-sort-")  # noqa: SIM115  closed below, all together
            files.append(file)
            for start in range(0, len(run), _READ):
                pickle.dump(run[start : start + _READ], file, protocol=pickle.HIGHEST_PROTOCOL)
            file.seek(0)
            run = sorted(islice(source, _RUN))
        yield from heapq.merge(*[_read(file) for file in files])
    finally:
        for file in files:
            file.close()


def _read(file: IO[bytes]) -> Iterator[Seen]:
    while True:
        try:
            # Our own bytes, from a file that never had a name.
            part: list[Seen] = pickle.load(file)  # noqa: S301
        except EOFError:
            return
        yield from part


def grouped(stream: Iterable[Seen]) -> Iterator[tuple[str, list[Seen]]]:
    """Group a sorted stream by key."""
    key: str | None = None
    group: list[Seen] = []
    for seen in stream:
        if seen[0] != key:
            if group:
                yield group[0][0], group
            key, group = seen[0], []
        group.append(seen)
    if group:
        yield group[0][0], group
