"""A lab of its own for tests that drive the real playbooks, and looks at it from outside.

Everything goes by what an operator has: ``ansible-playbook`` at the root of the checkout, with the lab's directory as
the only thing that differs. Nothing of Sluice is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pymysql
import yaml
from redis import Redis

from lab.__main__ import Lab
from lab.layout import Layout
from lab.state import State, read_state
from lab.stores import PrivateMariaDB, PrivateRedis
from oracle import backlog
from oracle.judge import Allowances, Evidence, Verdict, look_until_settled
from oracle.patience import PATIENCE_SECONDS, until

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
#: Users of Sluice's canaries in the lab's inventory.
CANARY_USERS = (900_000_000, 999_999_999)
#: What makes a run short, and lets it pass on a machine that others use as well.
SHORT = {
    "queue_validate_observation_seconds": 0,
    "queue_preflight_watch_seconds": 0,
    "queue_plan_watch_seconds": 0,
    "queue_validate_latency_floor_ms": 10_000,
    "queue_validate_pickup_seconds": 60,
    "queue_validate_tasks_per_minute": 1,
    # Tests look at the database as root while a playbook runs: an operator's monitoring, and named as such.
    "queue_known_accounts": ["sluice@127.0.0.1", "sluice_read@127.0.0.1", "root@localhost"],
}
_LONGEST_RUN_SECONDS = 900.0


@dataclass(frozen=True)
class Outcome:
    """How a playbook ended: its exit status (negative: signal) and all that it printed."""

    status: int
    output: str

    @property
    def messages(self) -> list[str]:
        """The lines of failed tasks."""
        return [line for line in self.output.splitlines() if line.startswith("fatal:")]

    @property
    def changed(self) -> int:
        """The sum of what the recap calls changed; AssertionError when there is no recap."""
        recap = self.output.partition("PLAY RECAP")[2]
        numbers = [int(word.removeprefix("changed=")) for word in recap.split() if word.startswith("changed=")]
        assert numbers, self.output
        return sum(numbers)

    def done(self) -> Outcome:
        """Itself; AssertionError with the output when the playbook failed."""
        assert self.status == 0, self.output
        return self

    def refused(self, *words: str) -> Outcome:
        """Itself; AssertionError unless it failed, in words, and every one of ``words`` is in what it said."""
        assert self.status > 0, f"it was not refused:\n{self.output}"
        assert "Traceback" not in self.output, self.output
        for word in words:
            assert word in self.output, f"{word!r} is not in\n{self.output}"
        return self


@dataclass
class Run:
    """A playbook at work."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, seconds: float = _LONGEST_RUN_SECONDS) -> Outcome:
        """Its outcome; it is killed, with its family, when it takes longer."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"no end within {seconds:g} s:\n{self.log.read_text()}") from None
        return Outcome(status, self.log.read_text(encoding="utf-8", errors="replace"))

    def modules(self) -> list[int]:
        """Processes of its modules: a Python on standby has a child for each, and that one the module."""
        among = family()
        waiting = [child for server in self._standby() for child in among.get(server, [])]
        return [module for pid in waiting for module in among.get(pid, [])]

    def end(self) -> None:
        """``kill -9`` of all that it started."""
        for server in self._standby():
            end_family(server)
        end_family(self.process.pid)
        self.process.wait()

    def _standby(self) -> list[int]:
        """The Python on standby of this playbook; it names the playbook's process."""
        mine = str(self.process.pid)
        return [
            pid
            for children in family().values()
            for pid in children
            if (words := _command_line(pid))[3:4] == [mine] and Path(words[1]).name == "standby.py"
        ]

    def kill_ansible_alone(self) -> list[int]:
        """``kill -9`` of ansible-playbook and its forks, but not of the module at work; the modules that live on."""
        modules = self.modules()
        family = [self.process.pid, *family_of(self.process.pid)]
        for pid in family:
            if any("ansible-playbook" in word for word in _command_line(pid)):
                _signal(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)
        return [pid for pid in modules if alive(pid)]


class Looks:
    """What an application and its ledger say of themselves, asked by SQL alone."""

    def sql(self, statement: str, *values: object) -> Sequence[tuple[Any, ...]]:
        """Run one statement with all rights in the application's database; its rows."""
        raise NotImplementedError

    def count(self, condition: str, table: str = "caption_tasks") -> int:
        """Rows that meet a condition; 0 when the table is not there yet."""
        try:
            return int(self.sql(f"SELECT COUNT(*) FROM {table} WHERE {condition}")[0][0])
        except pymysql.err.ProgrammingError as error:
            if error.args[0] == pymysql.constants.ER.NO_SUCH_TABLE:
                return 0
            raise

    @property
    def phase(self) -> str:
        """Where the newest run stands; ``none`` without one."""
        if not self.count("table_schema = 'captions' AND table_name = 'sluice_run'", "information_schema.tables"):
            return "none"
        rows = self.sql("SELECT phase FROM sluice_run ORDER BY seq DESC LIMIT 1")
        return str(rows[0][0]) if rows else "none"

    @property
    def moved(self) -> int:
        """Tasks that were released to the target."""
        return self.count("mark = 'moved'", "sluice_task")

    @property
    def moved_of_users(self) -> int:
        """The same without Sluice's canaries, which wait at the source like any other task."""
        return self.count(
            f"mark = 'moved' AND user_id < {CANARY_USERS[0]}", "sluice_task JOIN caption_tasks ON id = task_id"
        )

    @property
    def route(self) -> tuple[int, int]:
        """Share of new submissions for RQ, and whether legacy workers may poll."""
        rows = self.sql("SELECT rq_share, polling FROM captions_control WHERE id = 1")
        return int(rows[0][0]), int(rows[0][1])

    @property
    def legacy_locked(self) -> bool:
        """Whether the legacy account is locked."""
        rows = self.sql(
            "SELECT JSON_VALUE(Priv, '$.account_locked') FROM mysql.global_priv WHERE User = 'captions_legacy'"
        )
        return rows[0][0] in ("1", "true", 1)


@dataclass
class PlaybookLab(Looks):
    """One lab: its application, its stores, and the playbooks run against it."""

    directory: Path
    runs: list[Run] = field(default_factory=list)
    #: The interpreter whose environment has Ansible, and everything that modules need on the control host.
    python: Path = Path(sys.executable)

    def __post_init__(self) -> None:
        self.lab = Lab(Layout(self.directory))
        self.layout = self.lab.layout
        self.seeded = self.layout.directory / "evidence" / "seeded.txt"

    # --- its life ------------------------------------------------------------------------------------------------

    def up(self, **options: object) -> None:
        """Start it, with one worker of each kind unless ``options`` say otherwise."""
        self.lab.up({"legacy": 1, "rq": 1, "rq_simple": True, "mover": False, **options})
        for path in (self.seeded, self.layout.accepted_file):
            path.touch()

    def down(self) -> None:
        """End every playbook that still runs, then the lab."""
        for run in self.runs:
            if run.process.poll() is None:
                run.end()
        self.lab.down()

    # --- its playbooks -------------------------------------------------------------------------------------------

    def start(self, name: str, *arguments: str, **variables: Any) -> Run:
        """``ansible-playbook playbooks/<name>.yml`` on this lab; a name with a suffix is the path of another playbook.

        ``variables`` are given with ``-e``.
        """
        return self.start_with({}, name, *arguments, **variables)

    def start_with(self, environment: Mapping[str, str], name: str, *arguments: str, **variables: Any) -> Run:
        """The same, with more in the environment of this one command."""
        given = {"lab_directory": str(self.layout.directory), **SHORT, **variables}
        log = self.layout.logs / f"run-{len(self.runs)}-{Path(name).stem}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    str(self.python.with_name("ansible-playbook")),
                    name if Path(name).suffix else f"playbooks/{name}.yml",
                    "-e",
                    json.dumps(given),
                    *arguments,
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                    "ANSIBLE_NOCOLOR": "1",
                    "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        run = Run(process, log)
        self.runs.append(run)
        return run

    def run(self, name: str, *arguments: str, **variables: Any) -> Outcome:
        """Run a playbook to its end."""
        return self.start(name, *arguments, **variables).wait()

    # --- its application -----------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Ports and passwords."""
        state = read_state(self.layout.state_file)
        assert state is not None, "the lab is not up"
        return state

    @property
    def settings(self) -> dict[str, str]:
        """What ``scripts/lab env`` prints, by lower-case name without its prefix."""
        words = yaml.safe_load(self.layout.vars_file.read_text(encoding="utf-8"))
        return {name.removeprefix("sluice_lab_"): str(value) for name, value in words.items()}

    @property
    def images(self) -> tuple[str, ...]:
        """Images that can be read."""
        return tuple(sorted(path.name for path in self.layout.images.glob("image-*.png")))

    def seed(
        self,
        count: int,
        *,
        delayed_share: float = 0.0,
        delay: float = 30.0,
        users_from: int = 10_000_000,
        weights: tuple[float, ...] = backlog.Backlog.weights,
    ) -> None:
        """A backlog, its ids promised to the judge."""
        wanted = backlog.Backlog(count, self.images, users_from, weights, delayed_share, delay)
        backlog.seed(self.settings["db_url"], wanted, self.seeded)

    def submit(self, count: int) -> None:
        """So many tasks by way of the application, each with its job where it goes to RQ."""
        lines = self.layout.accepted_file.read_bytes().count(b"\n")
        images = [word for name in self.images for word in ("--image", name)]
        subprocess.run(
            [
                sys.executable, "-m", "oracle.load", "--url", self.settings["app_url"], "--count", str(count),
                "--accepted", str(self.layout.accepted_file), *images,
            ],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            check=True,
            timeout=PATIENCE_SECONDS,
            capture_output=True,
        )  # fmt: skip
        assert self.layout.accepted_file.read_bytes().count(b"\n") == lines + count
        until(lambda: self.count("custody = 'rq' AND enqueued_at IS NULL") == 0, "every row's job")

    @contextmanager
    def traffic(self, rate: float = 5.0, hz: float = 5.0) -> Iterator[None]:
        """Submissions, some of them cancelled, and a prober beside them, while the body runs."""
        images = [word for name in self.images for word in ("--image", name)]
        url = self.settings["app_url"]
        commands = [
            ["oracle.load", "--url", url, "--rate", str(rate), "--cancel-share", "0.05",
             "--accepted", str(self.layout.accepted_file), *images],
            ["oracle.prober", "--url", url, "--hz", str(hz), "--log", str(self.layout.prober_file), *images],
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        logs = [self.layout.logs / f"{command[0]}.log" for command in commands]
        started = []
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as output:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *command], env=environment, stdout=output, stderr=subprocess.STDOUT
                    )
                )
        try:
            until(self.layout.prober_file.exists, "the first probe")
            yield
            assert all(process.poll() is None for process in started), [log.read_text() for log in logs]
        finally:
            for process in started:
                process.terminate()
            for process, log in zip(started, logs, strict=True):
                assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()

    def verdict(self, allowed: Allowances | None = None) -> Verdict:
        """The independent judgement, when every task has ended or patience has."""
        evidence = Evidence(
            tuple(path for path in (self.layout.accepted_file, self.layout.prober_file) if path.exists()),
            (self.layout.effects_file,),
            self.settings["db_url"],
            seeded=(self.seeded,),
            redis_url=self.settings["redis_url"],
        )
        return look_until_settled(evidence, allowed or Allowances(canary_users=CANARY_USERS), PATIENCE_SECONDS)

    def clean(self, allowed: Allowances | None = None) -> None:
        """AssertionError with the judge's table unless nothing was lost, doubled or left."""
        verdict = self.verdict(allowed)
        assert verdict.clean, verdict.table()

    # --- looks from outside --------------------------------------------------------------------------------------

    @property
    def mariadb(self) -> PrivateMariaDB:
        """Its database server, for connections of root; supervisord keeps the process."""
        return PrivateMariaDB(self.layout.mariadb, self.state.db_port)

    @property
    def redis(self) -> Redis:
        """A client of the user ``default``. The caller closes it."""
        return PrivateRedis(self.layout.redis, self.state.redis_port, self.state.redis_password).client()

    @contextmanager
    def root(self) -> Iterator[pymysql.cursors.Cursor]:
        """A cursor of root in the application's database, autocommit on."""
        connection = self.mariadb.connect_as_root("captions")
        with connection, connection.cursor() as cursor:
            yield cursor

    def sql(self, statement: str, *values: object) -> Sequence[tuple[Any, ...]]:
        """Run one statement as root; its rows."""
        with self.root() as cursor:
            cursor.execute(statement, values or None)
            return cast("Sequence[tuple[Any, ...]]", cursor.fetchall())

    def running(self, group: str) -> int:
        """How many processes of a group run."""
        return sum(p.state == "RUNNING" for p in self.lab.supervisor.processes() if p.group == group)

    def fingerprint(self) -> dict[str, object]:
        """Everything that a dry run must not change, by place."""
        found: dict[str, object] = {}
        with self.root() as cursor:
            cursor.execute("SHOW DATABASES")
            found["databases"] = sorted(name for (name,) in cursor.fetchall())
            cursor.execute("SHOW TABLES")
            for table in sorted(str(name) for (name,) in cursor.fetchall()):
                cursor.execute(f"CHECKSUM TABLE {table} EXTENDED")
                found[f"table {table}"] = cursor.fetchone()
            cursor.execute("SELECT Host, User, Priv FROM mysql.global_priv ORDER BY 1, 2")
            found["accounts"] = cursor.fetchall()
        redis = self.redis
        persistence = redis.info("persistence")
        keys = redis.info("keyspace").get("db0", {"keys": 0, "expires": 0})
        found["redis"] = (
            keys["keys"] - keys["expires"],  # goodbyes of workers and results of jobs go by themselves
            persistence["rdb_changes_since_last_save"],
            redis.lastsave(),
            redis.acl_list(),
            redis.config_get("*"),
        )
        redis.close()
        found["settings"] = (self.layout.env_file.read_bytes(), self.layout.env_file.stat().st_mtime_ns)
        found["files"] = sorted(
            str(path) for folder in (self.layout.backups, self.layout.env_file.parent) for path in folder.glob("*")
            if folder == self.layout.backups or path.name.startswith("captions.env")
        )  # fmt: skip
        return found

    def contents(self) -> dict[str, object]:
        """What both stores hold: a checksum of each table, every key of Redis but those that change by themselves.

        These are the life signs of idle workers, and finished jobs that RQ lets expire, their results and registry.
        """
        found: dict[str, object] = {}
        with self.root() as cursor:
            cursor.execute("SHOW TABLES")
            for table in sorted(str(name) for (name,) in cursor.fetchall()):
                cursor.execute(f"CHECKSUM TABLE {table} EXTENDED")
                found[f"table {table}"] = cursor.fetchone()
        redis = self.redis
        for key in cast("list[bytes]", redis.keys("*")):
            name = key.decode()
            passing = name.startswith(("rq:worker:", "rq:clean_registries", "rq:scheduler", "rq:finished:"))
            expires = name.startswith(("rq:job:", "rq:results:")) and redis.ttl(key) != -1
            if not passing and not expires:
                found[name] = redis.dump(key)
        redis.close()
        return found


@contextmanager
def lab_in(directory: Path, **options: object) -> Iterator[PlaybookLab]:
    """A lab in a directory, ended afterwards whatever happened."""
    made = PlaybookLab(directory)
    try:
        made.up(**options)
        yield made
    finally:
        made.down()


def family() -> dict[int, list[int]]:
    """The children of every process that has any."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    return children


def family_of(pid: int) -> list[int]:
    """Everything a process started and what that started, parents first."""
    children = family()
    found: list[int] = []
    waiting = [pid]
    while waiting:
        mine = children.get(waiting.pop(0), [])
        found += mine
        waiting += mine
    return found


def alive(pid: int) -> bool:
    """Whether a process runs and is no zombie."""
    return _state(pid) not in ("", "Z")


def frozen(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    return _state(pid) == "T"


def _state(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def end_family(pid: int) -> None:
    """``kill -9`` of a process and all that it started; frozen first, so that none starts another meanwhile."""
    found: list[int] = []
    while (now := [pid, *family_of(pid)]) != found:
        found = now
        for one in found:
            _signal(one, signal.SIGSTOP)
    for one in found:
        _signal(one, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _command_line(pid: int) -> list[str]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [word.decode(errors="replace") for word in words if word]
