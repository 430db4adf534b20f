"""``python -m demo``: the main job in seven steps, each said in a line before it is done."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import pymysql

from demo.processes import Children, kill_family
from oracle.stores import TableFacts, connect, unfinished

ROOT = Path(__file__).resolve().parents[2]
PLAN = ("ansible-playbook", "playbooks/plan.yml")
MIGRATE = ("ansible-playbook", "playbooks/migrate.yml")
#: Slow enough that a kill meets the transfer, when a kill is asked for (tasks a second).
RATE_FOR_A_KILL = 100
#: Users of the load generator, the prober and the backlog are below this, those of Sluice's canaries from here on.
CANARY_USERS = "900000000-999999999"
FAILED_BEFORE_THE_VERDICT = 3
COUNT = "SELECT status, custody AS side, COUNT(*) AS tasks FROM captions.caption_tasks GROUP BY 1, 2"


class Unfinished(Exception):
    """The demo cannot go on; the message says why and what to look at."""


class Stopped(Exception):
    """Somebody asked the demo to end."""


class Clock:
    """Seconds since the demo began, for the lines that it prints."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line of the demo's own, at once."""
        seconds = int(time.monotonic() - self._began)
        print(f"demo [{seconds // 60}:{seconds % 60:02d}] {line}", flush=True)


class Demo:
    """One demonstration."""

    def __init__(self, tasks: int, kill: bool, environment: Mapping[str, str], clock: Clock) -> None:
        self.tasks = tasks
        self.kill = kill
        self.say = clock.say
        path = f"{ROOT / '.venv' / 'bin'}:{environment.get('PATH', os.defpath)}"
        # Ansible refuses a locale that the machine does not have, as ssh often brings one along.
        locale = {"LC_ALL": "C.UTF-8"}
        self.environment = {**environment, **locale, "PATH": path, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        self.settings: dict[str, str] = {}
        self.children = Children(ROOT, self.environment)

    # --- the steps -----------------------------------------------------------------------------------------------

    def lab(self) -> None:
        """A fresh lab: two polling workers at work, eight RQ workers defined and not started."""
        self.say("1/7  lab: fresh MariaDB, Redis and application under .lab; two workers poll the table")
        self._run([*_lab("reset"), "--legacy", "2", "--rq", "8", "--rq-simple", "--work-ms", "30"])
        printed = subprocess.run(
            _lab("env"), cwd=ROOT, env=self.environment, capture_output=True, text=True, check=True
        ).stdout
        self.settings = {
            name: shlex.split(value)[0] for name, _, value in (line.partition("=") for line in printed.splitlines())
        }
        self.environment |= self.settings
        self.children = Children(ROOT, self.environment)

    def backlog(self) -> None:
        """Tasks that wait before anybody looks, a tenth of them for later."""
        self.say(f"2/7  backlog: {self.tasks:,} tasks into the table, a tenth of them due only in a minute")
        seeding = ["--ids", str(self.seeded), "--count", str(self.tasks), "--delayed-share", "0.1", "--delay", "60"]
        self._run([*_oracle("backlog"), *seeding, *self._images()])

    def traffic(self) -> list[subprocess.Popen[bytes]]:
        """Users who submit and cancel, and a prober that submits ten times a second."""
        self.say("3/7  traffic: 10 submissions a second, some cancelled again; and a prober, ten times a second")
        load = [*_oracle("load"), "--rate", "10", "--cancel-share", "0.05", *self._images()]
        prober = [*_oracle("prober"), "--hz", "10", *self._images()]
        logs = self.directory / "log"
        with (logs / "load.log").open("ab") as load_log, (logs / "prober.log").open("ab") as prober_log:
            return [self.children.start(load, load_log), self.children.start(prober, prober_log)]

    def plan(self) -> None:
        """The dry run."""
        self.say("4/7  the plan: reads both stores, writes nothing")
        self._playbook(PLAN)

    def migrate(self, traffic: Sequence[subprocess.Popen[bytes]]) -> float:
        """The migration under traffic, once killed on the way if asked for; when it began, in epoch seconds."""
        began = time.time()
        if self.kill:
            self.say(f"5/7  the migration under traffic, at most {RATE_FOR_A_KILL} tasks a second, to be killed")
            command = (*MIGRATE, "-e", f"queue_transfer_rate={RATE_FOR_A_KILL}")
            self._killed(command)
            self.say("     the same command again; it first waits for the lease of the one that was killed")
            self._playbook(command)
        else:
            self.say("5/7  the migration under traffic")
            self._playbook(MIGRATE)
        for process in traffic:
            if process.poll() is not None:
                raise Unfinished(f"a process of the traffic ended by itself; see {self.directory / 'log'}")
        return began

    def finish(self, traffic: Sequence[subprocess.Popen[bytes]], began: float) -> Mapping[str, float | None]:
        """End the traffic, read how long it was turned away, and wait until every task has ended."""
        self.say("6/7  the traffic ends; RQ's workers finish what is left")
        ended = time.time()
        for process in traffic:
            if self.children.stop(process) != 0:
                raise Unfinished(f"a process of the traffic failed; see {self.directory / 'log'}")
        print(textwrap.indent((self.directory / "log" / "load.log").read_text().strip(), "     load: "), flush=True)
        asked = [*_oracle("prober"), "--summary", "--since", str(began), "--until", str(ended)]
        answer = subprocess.run(asked, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise Unfinished(f"the prober gives no figures: {answer.stderr.strip()}")
        self._wait_for_the_last()
        return dict(json.loads(answer.stdout))

    def result(self, probes: Mapping[str, float | None]) -> int:
        """Sluice's own balance beside the oracle's verdict; the oracle's exit status."""
        self.say("7/7  the result: what Sluice's ledger says, and what an oracle says that shares no code with it")
        judging = [
            *_oracle("judge"), "--accepted", self.settings["SLUICE_LAB_ACCEPTED_FILE"],
            "--accepted", self.settings["SLUICE_LAB_PROBER_FILE"], "--seeded", str(self.seeded),
            "--redis-url", "env", "--canary-users", CANARY_USERS, "--wait", "20",
        ]  # fmt: skip
        judged = subprocess.run(
            judging, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        print()
        print("\n".join(beside(self._balance(), ["oracle, after the last task", *judged.stdout.splitlines()])))
        print()
        print(
            f"turned away {probes['turned_away_probes']:.0f} of {probes['probes']:,.0f} probes,"
            f" {probes['seconds_turned_away']:.1f} s; p50 {_ms(probes['p50'])}, p99 {_ms(probes['p99'])}"
        )
        print()
        self._count()
        return judged.returncode

    def how_to_look(self) -> None:
        """Commands for a lab that stays up."""
        self.say("the lab stays up; look for yourself from the root of the checkout:")
        for line in (
            'eval "$(scripts/lab env)"',
            f"mariadb --defaults-extra-file={self._client_file().relative_to(ROOT)} -e '{COUNT}'",
            'redis-cli --no-auth-warning -u "$SLUICE_LAB_REDIS_URL" zcard rq:finished:normal',
            "source .venv/bin/activate && ansible-playbook playbooks/status.yml",
            "scripts/lab down       # ends it",
        ):
            print(f"  $ {line}")

    # --- parts ---------------------------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """The lab's directory."""
        return Path(self.settings["SLUICE_LAB_DIR"])

    @property
    def seeded(self) -> Path:
        """The list of seeded ids."""
        return Path(self.settings["SLUICE_LAB_ACCEPTED_FILE"]).with_name("seeded.txt")

    def _images(self) -> list[str]:
        """Images that can be read: what fails is the business of tests."""
        names = sorted(path.name for path in Path(self.settings["SLUICE_LAB_IMAGES"]).glob("image-*.png"))
        return [word for name in names for word in ("--image", name)]

    def _run(self, command: Sequence[str]) -> None:
        process = self.children.start(command)
        if process.wait() != 0:
            raise Unfinished(f"'{' '.join(command[:4])}' ended with status {process.returncode}")

    def _playbook(self, command: Sequence[str]) -> None:
        print(f"\n$ {' '.join(command)}", flush=True)
        self._run(command)

    def _killed(self, command: Sequence[str]) -> None:
        """Start a playbook and kill it, with everything that it started, when the first tasks have moved."""
        print(f"\n$ {' '.join(command)}", flush=True)
        process = self.children.start(command)
        while not (moved := self._moved()):
            if process.poll() is not None:
                raise Unfinished(f"it ended with status {process.returncode} before it could be killed")
            time.sleep(0.02)
        number = kill_family(process.pid)
        process.wait()
        print()
        self.say(f"     kill -9: {number} processes, ansible-playbook first; {moved:,} tasks were moved by then")

    def _moved(self) -> int:
        connection = connect(self.settings["SLUICE_LAB_DB_READ_URL"])
        with connection, connection.cursor() as cursor:
            try:
                cursor.execute("SELECT COUNT(*) FROM sluice_task WHERE mark = 'moved'")
            except pymysql.err.ProgrammingError:
                return 0  # the ledger's tables are not there yet
            return int(cursor.fetchone()[0])

    def _wait_for_the_last(self) -> None:
        deadline = time.monotonic() + 60 + self.tasks / 20
        said = 0.0
        while left := unfinished(self.settings["SLUICE_LAB_DB_READ_URL"], TableFacts()):
            if time.monotonic() > deadline:
                self.say(f"     {left:,} tasks have not ended; the oracle will name them")
                return
            if time.monotonic() - said > 5:
                print(f"     {left:,} left", flush=True)
                said = time.monotonic()
            time.sleep(0.2)

    def _balance(self) -> list[str]:
        """The balance in the run's report, from its first line to the held tasks."""
        reports = sorted(self.directory.rglob("captions-*.md"), key=lambda path: path.stat().st_mtime)
        if not reports:
            raise Unfinished(f"migrate.yml wrote no report under {self.directory}")
        text = reports[-1].read_text(encoding="utf-8").splitlines()
        first = next(number for number, line in enumerate(text) if line.startswith("balance"))
        last = next(number for number, line in enumerate(text) if line.startswith("validation"))
        return ["Sluice, under traffic", *text[first:last]]

    def _client_file(self) -> Path:
        """Settings for the mariadb client, so that its password is not among the arguments."""
        parts = urlsplit(self.settings["SLUICE_LAB_DB_READ_URL"])
        words = {"user": parts.username, "password": parts.password, "host": parts.hostname, "port": parts.port}
        path = self.directory / "client.cnf"
        path.touch(mode=0o600)
        path.write_text("[client]\n" + "".join(f"{name}={value}\n" for name, value in words.items()), encoding="utf-8")
        return path

    def _count(self) -> None:
        """The same counted with the stores' own clients."""
        print("counted with mariadb and redis-cli:", flush=True)
        self._run(["mariadb", f"--defaults-extra-file={self._client_file()}", "--table", "-e", COUNT])
        redis = urlsplit(self.settings["SLUICE_LAB_REDIS_URL"])
        asked = [f"{what}:{name}" for name in ("urgent", "high", "normal", "low") for what in ("queue", "scheduled")]
        answer = subprocess.run(
            ["redis-cli", "-p", str(redis.port)],
            env={**self.environment, "REDISCLI_AUTH": redis.password or ""},
            input="".join(f"{'LLEN' if word.startswith('queue') else 'ZCARD'} rq:{word}\n" for word in asked),
            capture_output=True,
            text=True,
            check=True,
        )
        counted = zip(asked, answer.stdout.split(), strict=True)
        print("  ".join(f"{word} {number}" for word, number in counted), flush=True)


def beside(left: Sequence[str], right: Sequence[str]) -> list[str]:
    """Two texts as two columns."""
    width = max(map(len, left), default=0) + 4
    return [f"{one:<{width}}{other}".rstrip() for one, other in zip_longest(left, right, fillvalue="")]


def _lab(verb: str) -> list[str]:
    return [sys.executable, "-m", "lab", verb]


def _oracle(tool: str) -> list[str]:
    return [sys.executable, "-m", f"oracle.{tool}"]


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:.0f} ms"


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Two demos of one checkout would share its lab; Unfinished for the second one."""
    lock.parent.mkdir(exist_ok=True)
    with lock.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unfinished("a demo of this checkout is running; wait for it, or use another checkout") from None
        yield


def perform(demo: Demo, keep: bool) -> int:
    """All steps; whatever happens, what was started has ended afterwards, but for the lab of a kept success."""
    up = False
    try:
        demo.lab()
        demo.backlog()
        traffic = demo.traffic()
        demo.plan()
        began = demo.migrate(traffic)
        probes = demo.finish(traffic, began)
        verdict = demo.result(probes)
        up = keep
        return verdict
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        demo.children.end()
        if up:
            demo.how_to_look()
        else:
            subprocess.run(_lab("down"), cwd=ROOT, env=demo.environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Migrate the lab under live traffic.")
    parser.add_argument("--tasks", type=_tasks, default=3000, metavar="N", help="size of the backlog (3000)")
    parser.add_argument("--kill", action="store_true", help="kill -9 ansible-playbook in mid-transfer, then resume")
    parser.add_argument("--keep", action="store_true", help="leave the lab up afterwards")
    options = parser.parse_args()
    clock = Clock()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        with one_at_a_time(ROOT / ".cache" / "demo.lock"):
            verdict = perform(Demo(options.tasks, options.kill, os.environ, clock), options.keep)
    except (Unfinished, Stopped, OSError, subprocess.CalledProcessError, pymysql.Error) as error:
        clock.say(f"stopped: {str(error) or type(error).__name__}")
        return FAILED_BEFORE_THE_VERDICT
    words = {0: "clean: nothing lost, nothing doubled", 1: "VIOLATED: see the oracle's list above"}
    clock.say(f"done, the oracle's verdict is {words.get(verdict, 'missing')}; logs and evidence are in .lab")
    return verdict


def _tasks(text: str) -> int:
    number = int(text)
    if not 100 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError("from 100 to 1000000")
    return number


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(f"asked to by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
