"""The application on the test hosts as its operator has it: users, playbooks, looks from outside, the judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pymysql
import testinfra
import yaml
from redis import Redis

from faults.playbook_lab import CANARY_USERS, Looks, Outcome, Run
from hosts.group import CHECKOUT, INVENTORY, JUDGE, Group
from hosts.machine import Machine
from lab.images import IMAGES
from oracle import backlog
from oracle.judge import Allowances, Evidence, Verdict, look_until_settled
from oracle.patience import PATIENCE_SECONDS, until

APPLICATION = ("app1", "app2")
LEGACY = "captions-legacy@1.service"
RQ = "captions-rq@1.service"
WEB = "captions-web.service"
_USERS = {"app1": 1_000_000, "app2": 2_000_000}
_IMAGES = tuple(f"image-{number:02d}.png" for number in range(IMAGES))


class Site(Looks):
    """The running hosts of this checkout (``scripts/hosts up``)."""

    def __init__(self) -> None:
        self.group = Group()
        self.layout = self.group.layout
        self.logs = self.layout.directory / "logs"
        self.seeded = self.layout.directory / "seeded.txt"
        self._runs = 0

    # --- its users -----------------------------------------------------------------------------------------------

    def seed(self, count: int, *, delayed_share: float = 0.3, delay: float = 180.0, first: int = 10_000_000) -> None:
        """A backlog in the table, its ids promised to the judge."""
        wanted = backlog.Backlog(count, _IMAGES, first, delayed_share=delayed_share, delay=delay)
        backlog.seed(self.db_url, wanted, self.seeded)

    def start_users(self, rate: float = 0.3, hz: float = 0.5) -> None:
        """Submissions to each application host, some of them cancelled, and a prober, as units on the control host."""
        images = [word for name in _IMAGES for word in ("--image", name)]
        users = {f"load-{host}": [
            "oracle.load", "--url", f"http://{host}:8000", "--rate", str(rate), "--cancel-share", "0.05",
            "--users-from", str(first), "--accepted", f"/var/lib/users/{host}.jsonl", *images,
        ] for host, first in _USERS.items()}  # fmt: skip
        users["prober"] = [
            "oracle.prober", "--url", "http://app1:8000", "--hz", str(hz), "--log", "/var/lib/users/prober.jsonl",
            *images,
        ]  # fmt: skip
        for unit, words in users.items():
            self.ssh(
                "ops", "systemd-run", "--quiet", f"--unit={unit}", "--setenv=PYTHONPATH=/opt/users",
                "/opt/venv/bin/python", "-m", *words,
            )  # fmt: skip

    def stop_users(self) -> None:
        """End them, their logs whole; AssertionError when one had ended by itself."""
        units = [*(f"load-{host}" for host in _USERS), "prober"]
        states = {unit: self.ssh("ops", "systemctl", "is-active", unit, check=False).strip() for unit in units}
        assert set(states.values()) == {"active"}, states
        self.ssh("ops", "systemctl", "stop", *units)

    # --- its operator --------------------------------------------------------------------------------------------

    def start(self, name: str, *arguments: str, inventory: Path = INVENTORY, **variables: Any) -> Run:
        """``ansible-playbook playbooks/<name>.yml`` over ssh; ``variables`` are given with ``-e``."""
        self.logs.mkdir(exist_ok=True)
        log = self.logs / f"run-{self._runs}-{name}.log"
        self._runs += 1
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        given = ["-e", json.dumps(variables)] if variables else []
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, "-i", str(inventory), f"playbooks/{name}.yml", *given, *arguments],
                cwd=CHECKOUT,
                env={**os.environ, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return Run(process, log)

    def run(self, name: str, *arguments: str, inventory: Path = INVENTORY, **variables: Any) -> Outcome:
        """Run a playbook to its end."""
        return self.start(name, *arguments, inventory=inventory, **variables).wait()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Poll a condition; AssertionError when it never holds."""
        until(condition, what, every=0.2)

    # --- looks ---------------------------------------------------------------------------------------------------

    @cached_property
    def _told(self) -> Mapping[str, Any]:
        told: dict[str, Any] = yaml.safe_load(self.layout.vars_file.read_text(encoding="utf-8"))["test_hosts"]
        return told

    @property
    def db_url(self) -> str:
        """The database, for the account that looks from outside."""
        return f"mysql+pymysql://{JUDGE}:{self._told['passwords'][JUDGE]}@{self.layout.address('db')}:3306/captions"

    @property
    def redis_url(self) -> str:
        """Redis, for its one user that may do everything."""
        return f"redis://sluice:{self._told['passwords']['redis']}@{self.layout.address('redis')}:6379/0"

    @property
    def redis(self) -> Redis:
        """A client of Redis. The caller closes it."""
        return Redis.from_url(self.redis_url)

    def sql(self, statement: str, *values: object) -> Sequence[tuple[Any, ...]]:
        """See :meth:`Looks.sql`."""
        connection = pymysql.connect(
            host=self.layout.address("db"), user=JUDGE, password=self._told["passwords"][JUDGE], database="captions",
            autocommit=True, connect_timeout=10, ssl_disabled=True,
        )  # fmt: skip
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cast("Sequence[tuple[Any, ...]]", cursor.fetchall())

    def password(self, name: str) -> str:
        """A password of these hosts, by its account's name."""
        return str(self._told["passwords"][name])

    def machine(self, host: str) -> Machine:
        """The host itself: its cable, its power, its file system."""
        return self.group.machines[host]

    def host(self, name: str) -> Any:
        """testinfra's view of a host, by ssh as Ansible has it."""
        return testinfra.get_host(f"ssh://{name}", ssh_config=str(self.layout.ssh_config))

    def ssh(self, host: str, *words: str, check: bool = True) -> str:
        """Run a command on a host; its standard output."""
        command = ["ssh", "-F", str(self.layout.ssh_config), host, *words]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=90
        )
        assert not check or done.returncode == 0, f"{words} on {host}: {done.stderr}"
        return done.stdout

    def is_active(self, host: str, unit: str) -> bool:
        """Whether a unit runs."""
        return self.ssh(host, "systemctl", "is-active", unit, check=False).strip() == "active"

    def effects_file(self, host: str) -> Path:
        """What the workers of a host wrote, read from outside, also while the host cannot be reached."""
        return self.layout.root(host) / "srv/captions/effects/effects.jsonl"

    def effects(self, host: str) -> list[dict[str, Any]]:
        """Its whole lines."""
        path = self.effects_file(host)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _make_all_due(self) -> None:
        """What waits for its time waits no longer, in the table and in RQ; that a time is kept has tests of its own."""
        self.sql("UPDATE caption_tasks SET available_at = UTC_TIMESTAMP(6) WHERE available_at > UTC_TIMESTAMP(6)")
        with self.redis as redis:
            for queue in ("urgent", "high", "normal", "low"):
                for job in redis.zrange(f"rq:scheduled:{queue}", 0, -1):
                    redis.zadd(f"rq:scheduled:{queue}", {job: time.time()}, xx=True)

    # --- the judge -----------------------------------------------------------------------------------------------

    def verdict(self, allowed: Allowances | None = None) -> Verdict:
        """The independent judgement, when every task has ended or patience has."""
        users = sorted((self.layout.root("ops") / "var/lib/users").glob("*.jsonl"))
        evidence = Evidence(
            tuple(users),
            tuple(path for path in map(self.effects_file, APPLICATION) if path.exists()),
            self.db_url,
            seeded=(self.seeded,),
            redis_url=self.redis_url,
        )
        return look_until_settled(evidence, allowed or Allowances(canary_users=CANARY_USERS), PATIENCE_SECONDS)

    def clean(self, allowed: Allowances | None = None) -> None:
        """AssertionError with the judge's table unless nothing was lost, doubled or left. Nobody waits for delays."""
        self._make_all_due()
        verdict = self.verdict(allowed)
        named = {task for tasks in verdict.violations.values() for task in tasks}
        done = [f"{name} {line}" for name in APPLICATION for line in self.effects(name) if line["task"] in named]
        assert verdict.clean, "\n".join([verdict.table(), *done])
