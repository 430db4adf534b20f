"""The story that the demo and the drill tell: a lab, a backlog, live traffic, playbooks, a verdict."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
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
COUNT = "SELECT status, custody AS side, COUNT(*) AS tasks FROM captions.caption_tasks GROUP BY 1, 2"


class Unfinished(Exception):
    """The demo cannot go on; the message says why and what to look at."""


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

    #: How many steps the story has.
    steps = 7
    #: What the lab is made with.
    workers: tuple[str, ...] = ("--legacy", "2", "--rq", "8", "--rq-simple", "--work-ms", "30")
    #: The share of the backlog that is due later, and in how many seconds.
    delayed = (0.1, 60)

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
        """A fresh lab: polling workers at work, RQ workers defined and not started."""
        self.say(f"1/{self.steps}  lab: fresh MariaDB, Redis and application under .lab; workers poll the table")
        self._run([*lab_command("reset"), *self.workers])
        printed = subprocess.run(
            lab_command("env"), cwd=ROOT, env=self.environment, capture_output=True, text=True, check=True
        ).stdout
        self.settings = {
            name: shlex.split(value)[0] for name, _, value in (line.partition("=") for line in printed.splitlines())
        }
        self.environment |= self.settings
        self.children = Children(ROOT, self.environment)

    def backlog(self) -> None:
        """Tasks that wait before anybody looks, a tenth of them for later."""
        share, delay = self.delayed
        later = f"{share:.0%} of them due only in {delay} s"
        self.say(f"2/{self.steps}  backlog: {self.tasks:,} tasks into the table, {later}")
        seeding = ["--ids", str(self.seeded), "--count", str(self.tasks)]
        seeding += ["--delayed-share", str(share), "--delay", str(delay)]
        self._run([*oracle_command("backlog"), *seeding, *self._images()])

    def traffic(self) -> list[subprocess.Popen[bytes]]:
        """Users who submit and cancel, and a prober that submits ten times a second."""
        self.say(
            f"3/{self.steps}  traffic: 10 submissions a second, some cancelled again; and a prober, ten times a second"
        )
        load = [*oracle_command("load"), "--rate", "10", "--cancel-share", "0.05", *self._images()]
        prober = [*oracle_command("prober"), "--hz", "10", *self._images()]
        logs = self.directory / "log"
        with (logs / "load.log").open("ab") as load_log, (logs / "prober.log").open("ab") as prober_log:
            return [self.children.start(load, load_log), self.children.start(prober, prober_log)]

    def plan(self) -> None:
        """The dry run."""
        self.say(f"4/{self.steps}  the plan: reads both stores, writes nothing")
        self._playbook(PLAN)

    def migrate(self, traffic: Sequence[subprocess.Popen[bytes]]) -> float:
        """The migration under traffic, once killed on the way if asked for; when it began, in epoch seconds."""
        began = time.time()
        if self.kill:
            self.say(
                f"5/{self.steps}  the migration under traffic, at most {RATE_FOR_A_KILL} tasks a second, to be killed"
            )
            command = (*MIGRATE, "-e", f"queue_transfer_rate={RATE_FOR_A_KILL}")
            self._killed(command)
            self.say("     the same command again; it first waits for the lease of the one that was killed")
            self._playbook(command)
        else:
            self.say(f"5/{self.steps}  the migration under traffic")
            self._playbook(MIGRATE)
        for process in traffic:
            if process.poll() is not None:
                raise Unfinished(f"a process of the traffic ended by itself; see {self.directory / 'log'}")
        return began

    def finish(self, traffic: Sequence[subprocess.Popen[bytes]], began: float) -> Mapping[str, float | None]:
        """End the traffic, read how long it was turned away, and wait until every task has ended."""
        self.say(f"6/{self.steps}  the traffic ends; RQ's workers finish what is left")
        ended = time.time()
        self.end_traffic(traffic)
        asked = [*oracle_command("prober"), "--summary", "--since", str(began), "--until", str(ended)]
        answer = subprocess.run(asked, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise Unfinished(f"the prober gives no figures: {answer.stderr.strip()}")
        self._wait_for_the_last()
        return dict(json.loads(answer.stdout))

    def end_traffic(self, traffic: Sequence[subprocess.Popen[bytes]]) -> None:
        """End users and prober; Unfinished when one of them failed."""
        for process in traffic:
            if self.children.stop(process) != 0:
                raise Unfinished(f"a process of the traffic failed; see {self.directory / 'log'}")
        print(textwrap.indent((self.directory / "log" / "load.log").read_text().strip(), "     load: "), flush=True)

    def result(self, probes: Mapping[str, float | None]) -> int:
        """Sluice's own balance beside the oracle's verdict; the oracle's exit status."""
        self.say(f"7/{self.steps}  the result: what Sluice's ledger says, and what an oracle says that shares no code")
        judging = [
            *oracle_command("judge"), "--accepted", self.settings["SLUICE_LAB_ACCEPTED_FILE"],
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


def lab_command(verb: str) -> list[str]:
    return [sys.executable, "-m", "lab", verb]


def oracle_command(tool: str) -> list[str]:
    return [sys.executable, "-m", f"oracle.{tool}"]


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:.0f} ms"
