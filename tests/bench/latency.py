"""What a submission takes through captions' HTTP interface: database mode, RQ mode, and RQ mode during a transfer."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible.module_utils.sluice.services.transfer import Pace

from bench import ROOT
from bench.figures import Figure
from bench.stores import Addresses, Ends, Stores, open_ends
from lab.images import make_images
from lab.stores import LOOPBACK, free_port, wait_for, write_private
from oracle.prober import ProbeSummary, turned_away

AIM_P50_MS = 10.0
AIM_RATIO = 2.0
#: The rate that the role queue_transfer has by default (tasks per second).
GUEST_RATE = 2000.0
TOKEN = secrets.token_hex(16)
_HZ = 20.0
_SECONDS = 15.0


def measure(stores: Stores, tasks: int, say: Callable[[str], None]) -> list[Figure]:
    """p50, p95 and p99 in milliseconds at 20 submissions a second; the transfer moves ``tasks`` tasks meanwhile."""
    with stores.backlog(tasks) as where, application(stores, where) as url:
        found: dict[str, ProbeSummary] = {}
        for mode, share in (("database", 0), ("rq", 100)):
            route(stores, where, share)
            # The first requests of a mode open connections and import RQ.
            _probe(stores, url, f"warm-{mode}", lambda: time.sleep(2))
            found[mode] = _probe(stores, url, mode, lambda: time.sleep(_SECONDS))
            say(f"latency: {mode} mode, {found[mode].probes} submissions: {_words(found[mode])}")
        ends = open_ends(where)
        found["transfer"] = _probe(stores, url, "transfer", lambda: _move(ends, GUEST_RATE, _SECONDS))
        say(f"latency: during a transfer at {GUEST_RATE:,.0f} tasks/s: {_words(found['transfer'])}")
        found["full_speed"] = _probe(stores, url, "full-speed", lambda: _move(ends, 0.0, 600.0))
        say(f"latency: during a transfer at full speed: {_words(found['full_speed'])}")
        ends.source.engine.dispose()
    figures = []
    for mode, summary in found.items():
        note = f"{summary.probes} submissions, {summary.turned_away_probes} turned away"
        for name, value in (("p50", summary.p50), ("p95", summary.p95), ("p99", summary.p99)):
            aim = ("<=", AIM_P50_MS) if (mode, name) == ("rq", "p50") else None
            figures.append(Figure(f"latency.{mode}_{name}_ms", value * 1000, "ms", aim, note if name == "p50" else ""))
    ratio = found["transfer"].p99 / found["rq"].p99
    note = f"baseline: RQ mode; at {GUEST_RATE:,.0f} tasks/s, the role's default"
    figures.append(Figure("latency.transfer_p99_vs_baseline", ratio, "x", ("<=", AIM_RATIO), note))
    return figures


def _move(ends: Ends, rate: float, seconds: float) -> None:
    """Move what is left, for about ``seconds`` at most."""
    ends.transfer_all(Pace(rate=rate), seconds=seconds)


def _words(summary: ProbeSummary) -> str:
    return f"p50 {summary.p50 * 1e3:.1f} ms, p95 {summary.p95 * 1e3:.1f} ms, p99 {summary.p99 * 1e3:.1f} ms"


@contextmanager
def application(stores: Stores, where: Addresses, name: str = "captions", **more: str) -> Iterator[str]:
    """captions under Gunicorn, as the lab runs it, on the benchmark's stores; yields its address.

    ``more`` are settings; modules that they name are found in the folder ``name``.
    """
    directory = stores.directory / name
    directory.mkdir(mode=0o700, exist_ok=True)
    images = directory / "images"
    make_images(images)
    port = free_port()
    env_file = directory / "captions.env"
    lines = {
        "DATABASE_URL": where.database_url,
        "RQ_ENABLED": "true",
        "RQ_REDIS_URL": where.redis_url,
        "ADMIN_TOKEN": TOKEN,
        "EFFECTS_FILE": directory / "effects.jsonl",
        "IMAGES_DIR": images,
        **more,
    }
    write_private(env_file, "".join(f"{key}={value}\n" for key, value in lines.items()))
    log = directory / "web.log"
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--config",
        "python:captions.gunicorn_conf",
        "--bind",
        f"{LOOPBACK}:{port}",
    ]
    environment = {**os.environ, "CAPTIONS_ENV_FILE": str(env_file), "PYTHONPATH": f"{ROOT / 'app'}:{directory}"}
    url = f"http://{LOOPBACK}:{port}"
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, cwd=directory, stdout=output, stderr=output)
    try:
        wait_for("captions", lambda: _healthy(url), 60, lambda: process.poll() is None, log)
        yield url
    finally:
        process.terminate()
        process.wait(120)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def route(stores: Stores, where: Addresses, share: int) -> None:
    connection = stores.connect(where)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE captions_control SET rq_share = %s WHERE id = 1", (share,))
    connection.commit()
    connection.close()


def _probe(stores: Stores, url: str, name: str, meanwhile: Callable[[], object]) -> ProbeSummary:
    """Submit at a steady rate from another process for as long as ``meanwhile`` takes, but at least two seconds."""
    log = stores.directory / f"probe-{name}.jsonl"
    first_user = 1_000_000 * (1 + len(list(stores.directory.glob("probe-*.jsonl"))))
    command = [
        *(sys.executable, "-m", "oracle.prober", "--url", url, "--log", str(log), "--hz", str(_HZ)),
        *("--images-dir", str(stores.directory / "captions" / "images"), "--users-from", str(first_user)),
    ]
    prober = subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True)
    try:
        wait_for("the prober", lambda: _lines(log) > 0, 20, lambda: prober.poll() is None, log)
        since = time.time()
        meanwhile()
        until = time.time()
    finally:
        prober.terminate()
        _, errors = prober.communicate(timeout=30)
    if prober.returncode != 0:
        raise RuntimeError(f"the prober ended with {prober.returncode}: {errors.strip().splitlines()[-1:]}")
    return turned_away(log, since, until)


def _lines(log: Path) -> int:
    return len(log.read_bytes().splitlines()) if log.exists() else 0
