"""Seeds a backlog straight into the captions table, as if it had been submitted before anybody looked."""

from __future__ import annotations

import argparse
import datetime
import os
import random
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from oracle.load import PRIORITIES
from oracle.picture import add_image_arguments, chosen_images
from oracle.stores import connect

BATCH = 1000


@dataclass(frozen=True)
class Backlog:
    """What to seed. A share (0..1) becomes available only `delay` seconds from now; weights in the order of PRIORITIES.

    The tasks were created one millisecond apart, the last one just now.
    """

    count: int
    images: tuple[str, ...]
    users_from: int = 10_000_000
    weights: tuple[float, ...] = (1, 2, 6, 1)
    delayed_share: float = 0.0
    delay: float = 60.0
    seed: int | None = None


def seed(url: str, backlog: Backlog, ids: Path, table: str = "caption_tasks") -> int:
    """Insert the backlog in batches of a thousand and append each batch's ids to `ids` once it is committed.

    Returns the number of rows. pymysql.err.IntegrityError when a user already has an active task.
    """
    if not table.replace("_", "").isalnum():
        raise ValueError(f"{table!r} is no table name")
    insert = (
        f"INSERT INTO {table} (id, user_id, status, priority, image_path, available_at, created_at, custody)"
        " VALUES (%s, %s, 'queued', %s, %s, %s, %s, 'db')"
    )
    connection = connect(url)
    rows = _rows(backlog)
    total = 0
    try:
        with ids.open("a", encoding="ascii") as listing, connection.cursor() as cursor:
            while batch := list(islice(rows, BATCH)):
                cursor.executemany(insert, batch)
                connection.commit()
                listing.writelines(f"{row[0]}\n" for row in batch)
                listing.flush()
                os.fsync(listing.fileno())
                total += len(batch)
    finally:
        connection.close()
    return total


def _rows(backlog: Backlog) -> Iterator[tuple[Any, ...]]:
    chance = random.Random(backlog.seed)
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    first = now - datetime.timedelta(milliseconds=backlog.count)
    later = now + datetime.timedelta(seconds=backlog.delay)
    for number in range(backlog.count):
        created = first + datetime.timedelta(milliseconds=number)
        yield (
            str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            backlog.users_from + number,
            chance.choices(PRIORITIES, backlog.weights)[0],
            backlog.images[number % len(backlog.images)],
            later if chance.random() < backlog.delayed_share else created,
            created,
        )


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when all rows are committed."""
    parser = argparse.ArgumentParser(prog="oracle.backlog", description=__doc__)
    parser.add_argument("--db-url", default=os.environ.get("SLUICE_LAB_DB_URL"), help="default: SLUICE_LAB_DB_URL")
    parser.add_argument("--ids", type=Path, required=True, help="file that gets the ids, one a line")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--users-from", type=int, default=10_000_000)
    parser.add_argument("--priorities", default="1,2,6,1", metavar="U,H,N,L", help="weights of urgent,high,normal,low")
    parser.add_argument("--delayed-share", type=float, default=0.0)
    parser.add_argument("--delay", type=float, default=60.0, help="seconds until the delayed ones are available")
    add_image_arguments(parser)
    parser.add_argument("--table", default="caption_tasks")
    parser.add_argument("--seed", type=int, default=None, help="repeat the same ids and priorities")
    options = parser.parse_args(argv)
    if not options.db_url:
        parser.error("no database: give --db-url or set SLUICE_LAB_DB_URL")
    weights = tuple(float(weight) for weight in options.priorities.split(","))
    if len(weights) != len(PRIORITIES) or sum(weights) <= 0:
        parser.error("--priorities needs four weights, for example 1,2,6,1")
    backlog = Backlog(
        count=options.count,
        images=chosen_images(parser, options),
        users_from=options.users_from,
        weights=weights,
        delayed_share=options.delayed_share,
        delay=options.delay,
        seed=options.seed,
    )
    began = time.monotonic()
    total = seed(options.db_url, backlog, options.ids, options.table)
    print(f"{total} tasks seeded in {time.monotonic() - began:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
