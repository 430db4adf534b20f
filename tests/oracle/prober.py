"""Prober: submits at a steady rate and measures how long, if ever, submissions were turned away."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from oracle.acceptance import next_user
from oracle.journal import Damage, Journal, read_records
from oracle.pace import Crew, Pace, stop_on_signals
from oracle.picture import add_image_arguments, chosen_images
from oracle.submission import Submitter


@dataclass(frozen=True)
class ProbeSummary:
    """Figures of a span of probes; all times in seconds.

    seconds_turned_away: sum of the spans from the last good probe before a bad one to the next good one.
    p50, p95, p99: latency of the accepted probes, NaN when there was none.
    longest_gap: longest time without any probe; a long one means that the prober, not the application, was away.
    """

    probes: int
    turned_away_probes: int
    seconds_turned_away: float
    p50: float
    p95: float
    p99: float
    longest_gap: float


def turned_away(log: Path, since: float = 0.0, until: float = math.inf) -> ProbeSummary:
    """Summarise the probes sent between two epoch times.

    Raises ValueError when the log has no probe in that span, or lines that are no record: no figure is not zero.
    """
    damage = Damage(0, [])
    probes = sorted(
        (float(probe["at"]), int(probe["status"]) == 201, float(probe["seconds"]))
        for probe in read_records(log, damage)
        if since <= float(probe["at"]) <= until
    )
    if damage.malformed:
        raise ValueError(f"{log.name} has lines that are no record: {', '.join(damage.malformed[:5])}")
    if not probes:
        raise ValueError(f"{log.name} has no probe in the span asked for: was the prober running?")
    total = 0.0
    last_good: float | None = None
    away = False
    for at, good, _ in probes:
        if good:
            if away:
                total += at - (probes[0][0] if last_good is None else last_good)
            last_good, away = at, False
        else:
            away = True
    if away:
        end = until if math.isfinite(until) else probes[-1][0]
        total += end - (probes[0][0] if last_good is None else last_good)
    latencies = sorted(seconds for _, good, seconds in probes if good)
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(probes)]
    return ProbeSummary(
        probes=len(probes),
        turned_away_probes=sum(1 for _, good, _ in probes if not good),
        seconds_turned_away=total,
        p50=_percentile(latencies, 50),
        p95=_percentile(latencies, 95),
        p99=_percentile(latencies, 99),
        longest_gap=max(gaps, default=0.0),
    )


def _percentile(ordered: list[float], percent: int) -> float:
    """Nearest rank."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


class Prober:
    """Probes until stopped. Threads only keep a slow answer from delaying the next probe."""

    def __init__(
        self,
        url: str,
        log: Path,
        rate: float,
        images: tuple[str, ...],
        stop: threading.Event,
        users_from: int = 5_000_000,
        timeout: float = 5.0,
        threads: int = 8,
    ) -> None:
        self._url = url
        self._timeout = timeout
        self._images = images
        self._first_user = next_user(log, users_from)
        self._journal = Journal(log)
        self._pace = Pace(rate, stop)
        self._crew = Crew(self._probe, threads, stop)

    def run(self) -> None:
        """Probe until stop is set. OSError when the log cannot be written."""
        self._crew.start()
        self._crew.join()
        self._journal.close()

    def _probe(self) -> None:
        client = Submitter(self._url, self._timeout)
        while (number := self._pace.turn()) is not None:
            user = self._first_user + number
            at = time.time()
            answer = client.submit(user, self._images[number % len(self._images)], "normal")
            probe = {"at": at, "seconds": answer.seconds, "status": answer.status, "task": answer.task, "user": user}
            if answer.ambiguous:
                probe["ambiguous"] = user
            self._journal.append(probe)
        client.close()


def main(argv: list[str] | None = None) -> int:
    """Probe until SIGTERM, or with --summary print the figures of a log as JSON."""
    parser = argparse.ArgumentParser(prog="oracle.prober", description=__doc__)
    parser.add_argument("--url", default=os.environ.get("SLUICE_LAB_APP_URL"), help="default: SLUICE_LAB_APP_URL")
    parser.add_argument(
        "--log",
        type=Path,
        default=os.environ.get("SLUICE_LAB_PROBER_FILE"),
        help="an existing one is continued; default: SLUICE_LAB_PROBER_FILE",
    )
    parser.add_argument("--hz", type=float, default=10.0)
    parser.add_argument("--users-from", type=int, default=5_000_000)
    add_image_arguments(parser)
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds")
    parser.add_argument("--summary", action="store_true", help="read the log instead of probing")
    parser.add_argument("--since", type=float, default=0.0, help="epoch seconds")
    parser.add_argument("--until", type=float, default=math.inf, help="epoch seconds")
    options = parser.parse_args(argv)
    if options.log is None:
        parser.error("no log: give --log or set SLUICE_LAB_PROBER_FILE")
    if options.summary:
        try:
            summary = turned_away(options.log, options.since, options.until)
        except (OSError, ValueError) as error:
            print(f"oracle.prober: no figures: {error}", file=sys.stderr)
            return 2
        # NaN is no JSON: no accepted probe, no latency
        print(json.dumps({key: None if math.isnan(value) else value for key, value in asdict(summary).items()}))
        return 0
    if not options.url:
        parser.error("no application: give --url or set SLUICE_LAB_APP_URL")
    if options.hz <= 0:
        parser.error("--hz must be above 0")
    Prober(
        options.url,
        options.log,
        options.hz,
        chosen_images(parser, options),
        stop_on_signals(),
        users_from=options.users_from,
        timeout=options.timeout,
    ).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
