"""Load generator: submits captions tasks and keeps its own durable log of what the application accepted."""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from oracle.acceptance import next_user
from oracle.journal import Journal
from oracle.pace import Crew, Pace, stop_on_signals
from oracle.picture import add_image_arguments, chosen_images
from oracle.submission import Answer, Submitter

PRIORITIES = ("urgent", "high", "normal", "low")
LONGEST_CANCEL_DELAY_SECONDS = 2.0


@dataclass(frozen=True)
class Load:
    """One session. rate: submissions a second, 0 for as fast as the threads can. count, seconds: None for no limit."""

    url: str
    accepted: Path
    rate: float
    count: int | None
    seconds: float | None
    users_from: int
    weights: tuple[float, float, float, float]
    images: tuple[str, ...]
    threads: int
    cancel_share: float
    timeout: float = 10.0
    cancel_path: str = "/tasks/{id}/cancel"


class Generator:
    """Runs one load; `counts` has the answers by meaning, counted after they are in the log."""

    def __init__(self, load: Load, stop: threading.Event) -> None:
        self._load = load
        self._stop = stop
        self._journal = Journal(load.accepted)
        self._first_user = next_user(load.accepted, load.users_from)
        self._random = random.Random()
        self._counts_lock = threading.Lock()
        self._cancellations: Queue[tuple[float, str]] = Queue()
        self._submitting = threading.Event()
        self.counts: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        """Submit until the load is done or stop is set. OSError when the log cannot be written."""
        self._submitting.set()
        self._pace = Pace(self._load.rate, self._stop, self._load.count, self._load.seconds)
        submitting = Crew(self._submit, self._load.threads, self._stop)
        cancelling = Crew(self._cancel, 1 if self._load.cancel_share > 0 else 0, self._stop)
        submitting.start()
        cancelling.start()
        try:
            submitting.join()
        finally:
            self._submitting.clear()
        cancelling.join()
        self._journal.close()
        return self.counts

    def _submit(self) -> None:
        client = Submitter(self._load.url, self._load.timeout)
        while (number := self._pace.turn()) is not None:
            user = self._first_user + number
            priority = self._random.choices(PRIORITIES, self._load.weights)[0]
            answer = client.submit(user, self._load.images[number % len(self._load.images)], priority)
            self._note(user, priority, answer)
            if answer.task is not None and self._random.random() < self._load.cancel_share:
                delay = self._random.uniform(0, LONGEST_CANCEL_DELAY_SECONDS)
                self._cancellations.put((time.monotonic() + delay, answer.task))
            if answer.status == 0:
                self._stop.wait(0.05)  # nobody listens: do not spin
        client.close()

    def _note(self, user: int, priority: str, answer: Answer) -> None:
        at = time.time()
        if answer.task is not None:
            self._journal.append({"task": answer.task, "user": user, "priority": priority, "at": at})
            self._count("accepted")
        elif answer.ambiguous:
            self._journal.append({"ambiguous": user, "status": answer.status, "at": at})
            self._count("ambiguous")
        else:
            self._journal.append({"refused": user, "status": answer.status, "at": at})
            self._count("turned away")

    def _cancel(self) -> None:
        client = Submitter(self._load.url, self._load.timeout, self._load.cancel_path)
        while not self._stop.is_set():
            try:
                due, task = self._cancellations.get(timeout=0.2)
            except Empty:
                if not self._submitting.is_set():
                    break
                continue
            if self._stop.wait(max(0.0, due - time.monotonic())):
                break
            status = client.cancel(task)
            self._journal.append({"cancel": task, "status": status, "at": time.time()})
            self._count("cancelled" if status == 200 else "cancellation refused")
        client.close()

    def _count(self, meaning: str) -> None:
        with self._counts_lock:
            self.counts[meaning] += 1


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="oracle.load", description="Submit tasks and log what was accepted.")
    parser.add_argument("--url", default=os.environ.get("SLUICE_LAB_APP_URL"), help="default: SLUICE_LAB_APP_URL")
    parser.add_argument(
        "--accepted",
        type=Path,
        default=os.environ.get("SLUICE_LAB_ACCEPTED_FILE"),
        help="the log, an existing one is continued; default: SLUICE_LAB_ACCEPTED_FILE",
    )
    parser.add_argument("--rate", type=float, default=0.0, metavar="HZ", help="0: as fast as the threads can")
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--users-from", type=int, default=1_000_000)
    parser.add_argument("--priorities", default="1,2,6,1", metavar="U,H,N,L", help="weights of urgent,high,normal,low")
    add_image_arguments(parser)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--cancel-share", type=float, default=0.0, help="share (0..1) of accepted tasks to cancel")
    parser.add_argument("--cancel-path", default="/tasks/{id}/cancel")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when the load ran to its end or was stopped by SIGTERM."""
    parser = _arguments()
    options = parser.parse_args(argv)
    if not options.url:
        parser.error("no application: give --url or set SLUICE_LAB_APP_URL")
    if options.accepted is None:
        parser.error("no log: give --accepted or set SLUICE_LAB_ACCEPTED_FILE")
    weights = tuple(float(weight) for weight in options.priorities.split(","))
    if len(weights) != len(PRIORITIES) or sum(weights) <= 0:
        parser.error("--priorities needs four weights, for example 1,2,6,1")
    load = Load(
        url=options.url,
        accepted=options.accepted,
        rate=options.rate,
        count=options.count,
        seconds=options.seconds,
        users_from=options.users_from,
        weights=(weights[0], weights[1], weights[2], weights[3]),
        images=chosen_images(parser, options),
        threads=options.threads,
        cancel_share=options.cancel_share,
        timeout=options.timeout,
        cancel_path=options.cancel_path,
    )
    began = time.monotonic()
    counts = Generator(load, stop_on_signals()).run()
    seconds = time.monotonic() - began
    names = ("accepted", "turned away", "ambiguous", "cancelled", "cancellation refused")
    print(", ".join(f"{counts[name]} {name}" for name in names) + f" in {seconds:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
