"""scripts/bench: measure, print a table with the aim beside each figure, and with --json keep the figures."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench import emergency, gates, latency, memory, runtime, transfer_rate, way_back
from bench.figures import Figure, as_json, table
from bench.stores import private_stores

PARTS = ("transfer", "back", "memory", "latency", "runtime", "gates", "emergency")


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when everything asked for was measured and met its aim, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000, help="backlog of the transfer (100,000)")
    parser.add_argument("--million", action="store_true", help="1,000,000 tasks; memory at 100,000 and 1,000,000")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of the transfer and its rivals (3)")
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given more than once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    if options.tasks < 1000 or options.repeat < 1:
        parser.error("--tasks must be at least 1000 and --repeat at least 1")
    tasks = 1_000_000 if options.million else options.tasks
    small, large = (100_000, 1_000_000) if options.million else (20_000, 100_000)
    wanted = options.only or PARTS
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", file=sys.stderr, flush=True)

    figures: list[Figure] = []
    if set(wanted) - {"gates", "emergency"}:
        say("starting a private MariaDB and Redis, durable as the lab's")
        with private_stores() as stores:
            if "transfer" in wanted:
                figures += transfer_rate.measure(stores, tasks, options.repeat, say)
            if "back" in wanted:
                figures += way_back.measure(stores, tasks, options.repeat, say)
            if "memory" in wanted:
                figures += memory.measure(stores, small, large, say)
            if "latency" in wanted:
                figures += latency.measure(stores, min(tasks, 100_000), say)
            if "runtime" in wanted:
                figures += runtime.measure(stores, say)
    if "gates" in wanted:
        figures += gates.measure(say)
    if "emergency" in wanted:
        figures += emergency.measure(min(tasks, 100_000), say)
    print(table(figures))
    if options.json:
        found = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "tasks": tasks, **as_json(figures)}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if all(figure.met is not False and figure.value is not None for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
