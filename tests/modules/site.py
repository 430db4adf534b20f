"""One application between two real stores, and the modules that move it: called in process, looked at from outside."""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redis
import sqlalchemy as sa
import yaml
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.core import mapping as mappings
from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.core.verdicts import Check, Gate, Verdict
from ansible.module_utils.sluice.services import run as runs
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).resolve().parents[2]
MODULES = tuple(sorted(path.stem for path in (ROOT / "library").glob("queue_*.py")))
#: These touch no store.
WITHOUT_STORES = ("queue_assess_host", "queue_config", "queue_revision", "queue_workers")
OWNER = "first@host:1"


def load(name: str) -> ModuleType:
    """A module of library/, which tests/conftest.py has put on the path."""
    return importlib.import_module(name)


def promised(name: str) -> set[str]:
    """The keys that a module's RETURN promises on every exit."""
    documented: Mapping[str, Mapping[str, Any]] = yaml.safe_load(load(name).RETURN)
    return {key for key, entry in documented.items() if str(entry["returned"]).startswith("always")}


@dataclass(frozen=True)
class Outcome:
    """What one call of a module gave back: its JSON, and everything that it printed."""

    module: str
    result: dict[str, Any]
    printed: str

    @property
    def failed(self) -> bool:
        """Whether Ansible would call the task failed."""
        return bool(self.result.get("failed"))

    @property
    def message(self) -> str:
        """The one message of a failure."""
        return str(self.result.get("msg", ""))

    def assert_complete(self) -> None:
        """Every promised key is there."""
        missing = promised(self.module) - set(self.result)
        assert not missing, f"{self.module} returns no {sorted(missing)}: {self.printed}"

    def assert_done(self) -> Outcome:
        """It succeeded, with every promised key."""
        assert not self.failed, f"{self.module} failed: {self.message}"
        self.assert_complete()
        return self

    def assert_refused(self, *words: str) -> Outcome:
        """It failed with one message of one line that has these words, no traceback, and every promised key."""
        assert self.failed, f"{self.module} did not refuse: {self.printed}"
        assert self.message
        assert "\n" not in self.message
        assert "Traceback" not in self.printed
        assert "exception" not in self.result
        for word in words:
            assert word in self.message, f"{word!r} is not in: {self.message}"
        self.assert_complete()
        return self


class FakeApplication:
    """Takes canaries over HTTP; each is done at once, every other one on the target's side."""

    def __init__(self, engine: sa.Engine, client: redis.Redis) -> None:
        self.engine = engine
        self.client = client
        self.users: set[int] = set()
        self.jobs: list[str] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = outer.submit(int(body["user_id"]), str(body.get("priority", "normal")))
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                """Silence: the modules' output is what is looked at."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def canary(self) -> dict[str, Any]:
        """The setting `queue_canary`."""
        host, port = self.server.server_address[:2]
        return {"url": f"http://{host!s}:{port}/tasks", "priorities": ["high", "normal"]}

    def submit(self, user: int, priority: str) -> tuple[int, dict[str, str]]:
        """A row that is finished already; a second submission of a user is turned away."""
        with self._lock:
            if user in self.users:
                return 409, {"error": "one active task per user"}
            self.users.add(user)
            task_id = str(uuid.uuid4())
            in_target = len(self.users) % 2 == 0
        with self.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO caption_tasks (id, user_id, status, priority, image_path, available_at, created_at, "
                    "custody, enqueued_at) VALUES (:id, :user, 'completed', :priority, 'x.png', UTC_TIMESTAMP(6), "
                    "UTC_TIMESTAMP(6), :custody, UTC_TIMESTAMP(6))"
                ),
                {"id": task_id, "user": user, "priority": priority, "custody": "rq" if in_target else "db"},
            )
        if in_target:
            self.jobs.append(task_id)
            self.client.hset(f"rq:job:{task_id}", mapping={"status": "finished", "data": b"theirs", "origin": priority})
        return 202, {"id": task_id}

    def forget_jobs(self) -> None:
        """What the expiry of results does."""
        for task_id in self.jobs:
            self.client.delete(f"rq:job:{task_id}")
        self.jobs.clear()

    def close(self) -> None:
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@dataclass
class Site:
    """Everything a module is given, and everything it could change."""

    engine: sa.Engine
    client: redis.Redis
    db_url: str
    read_url: str
    redis_url: str
    mapping_file: Path
    folder: Path
    accounts: Mapping[str, str]
    application: FakeApplication
    capsys: pytest.CaptureFixture[str]
    printed: list[str] = field(default_factory=list)

    # -- calling ------------------------------------------------------------------------------------------------

    def options(self, name: str) -> dict[str, Any]:
        """Sensible options for every module: what a playbook would give it."""
        given: dict[str, Any] = {
            "db_url": self.db_url,
            "redis_url": self.redis_url,
            "mapping": str(self.mapping_file),
            "owner": OWNER,
        }
        target = {
            "target_sql_accounts": [self.accounts["rq"]],
            "target_redis_users": [self.accounts["rq_user"]],
            "producer_redis_users": [],
        }
        own: dict[str, dict[str, Any]] = {
            "queue_assess_host": {"owner": None, "log_files": [str(self.folder / "app.env")]},
            "queue_backup": {"directory": str(self.folder / "backups")},
            "queue_accounts": {
                "sql_accounts": [
                    {
                        "account": self.accounts["rq"],
                        "password": "password-of-the-workers",
                        "grants": [f"SELECT, UPDATE ON {self.engine.url.database}.caption_tasks"],
                    }
                ],
                "redis_users": [
                    {"name": self.accounts["rq_user"], "password": "password-of-redis-workers", "role": "worker"}
                ],
            },
            "queue_baseline": {"canary": self.application.canary, "samples": 4},
            "queue_cleanup": {**target, "stability_seconds": 0, "archive_dir": str(self.folder / "archive")},
            "queue_config": {
                "owner": None,
                "path": str(self.folder / "app.env"),
                "values": {"RQ_ENABLED": True},
                "secrets": {"RQ_PASSWORD": "password-of-the-settings"},
                "run_id": "run-1",
            },
            "queue_drain": {"deadline": 0},
            "queue_evidence": {"directory": str(self.folder / "evidence"), "reason": "a test"},
            "queue_fence": target,
            "queue_plan": {**target, "watch_seconds": 0, "known_accounts": self.known()},
            "queue_preflight": {**target, "watch_seconds": 0, "known_accounts": self.known()},
            "queue_recover": {**target, "reason": "a test"},
            "queue_revision": {
                "files": [str(self.folder / "app.env")],
                "archive_dir": str(self.folder / "revisions"),
                "run_id": "run-1",
                "state": "archived",
            },
            "queue_route": {"share": 100, "polling": False},
            "queue_run": {**target, "operator": "tester"},
            "queue_soak": {"share": 50, "canary": self.application.canary, "seconds": 0, "sample_min": 4},
            "queue_transfer": target,
            "queue_validate": {"canary": self.application.canary, "deadline": 20, "latency_floor_ms": 2000},
            "queue_workers_prove": {"deadline": 0},
            "queue_workers": {"supervisor": "supervisord", "socket": str(self.folder / "none.sock"), "group": "g"},
        }
        given |= own.get(name, {})
        spec = load(name).ARGUMENT_SPEC
        return {key: value for key, value in given.items() if key in spec and value is not None}

    def known(self) -> list[str]:
        """Accounts that a preflight knows: those of the servers' fixtures as well."""
        return ["root@localhost", *(a for a in self.accounts.values() if "@" in a)]

    def call(self, name: str, *, check: bool = False, **options: Any) -> Outcome:
        """One call, as Ansible makes it."""
        arguments = {**self.options(name), **options}
        if check:
            arguments["_ansible_check_mode"] = True
        self.capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            load(name).main()
        out, err = self.capsys.readouterr()
        self.printed.append(out + err)
        return Outcome(name, json.loads(out), out + err)

    def drive(self, name: str, **options: Any) -> Outcome:
        """Slice by slice to the end, as the action plugin does."""
        cursor: dict[str, Any] = {}
        for _ in range(100):
            outcome = self.call(name, sliced=True, cursor=cursor, **options)
            cursor = outcome.result.get("cursor", {})
            if not cursor:
                return outcome
            assert not outcome.failed, outcome.message
            outcome.assert_complete()
        raise AssertionError(f"{name} came to no end")

    # -- the application and its workers ------------------------------------------------------------------------

    def seed(self, count: int, *, delayed: int = 0) -> list[str]:
        """Rows waiting in the table; the last `delayed` of them are due in an hour."""
        now = datetime.now(UTC).replace(tzinfo=None)
        ids = [str(uuid.uuid4()) for _ in range(count)]
        with self.engine.begin() as connection:
            for number, task_id in enumerate(ids):
                connection.execute(
                    sa.text(
                        "INSERT INTO caption_tasks (id, user_id, priority, image_path, available_at, created_at) "
                        "VALUES (:id, :user, :priority, 'x.png', :due, :born)"
                    ),
                    {
                        "id": task_id,
                        "user": number + 1,
                        "priority": ("urgent", "high", "normal", "low")[number % 4],
                        "due": now + timedelta(hours=1 if number >= count - delayed else -1),
                        "born": now - timedelta(hours=1) + timedelta(seconds=number),
                    },
                )
        return ids

    def sql(self, statement: str, **values: object) -> list[tuple[Any, ...]]:
        """One statement past Sluice."""
        with self.engine.begin() as connection:
            done = connection.execute(sa.text(statement), values)
            return [tuple(row) for row in done] if done.returns_rows else []

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        """A live RQ worker's registration on every queue, as RQ writes it."""
        now = datetime.now(UTC)
        key = "rq:worker:w1"
        self.client.sadd("rq:workers", key)
        self.client.hset(
            key,
            mapping={
                "last_heartbeat": f"{now:%Y-%m-%dT%H:%M:%S.%f}Z",
                "birth": f"{now:%Y-%m-%dT%H:%M:%S.%f}Z",
                "queues": "urgent,high,normal,low",
                "hostname": "h1",
                "pid": "1",
                "state": "idle",
            },
        )
        yield
        self.client.delete(key)
        self.client.srem("rq:workers", key)

    # -- where a run stands -------------------------------------------------------------------------------------

    @property
    def ledger(self) -> SqlLedger:
        """The ledger, seen with rights of root."""
        return SqlLedger(self.engine, "captions")

    def mapping(self) -> mappings.TaskMapping:
        """The mapping the modules are given."""
        return mappings.parse(yaml.safe_load(self.mapping_file.read_text()))

    def open(self, phase: Phase = Phase.OPENED, *, stamped: bool = True) -> Lease:
        """A run of OWNER that stands at `phase`, as the ledger sees it."""
        self.call("queue_run").assert_done()
        self.stand(phase)
        lease = self.lease()
        run = self.ledger.open_run()
        if stamped and run is not None:
            prefix = "sluice:{captions}:"
            self.client.mset(
                {
                    prefix + "generation": run.generation,
                    prefix + "token": lease.token,
                    prefix + "batch": 0,
                    prefix + "run": run.id,
                }
            )
        return lease

    def lease(self) -> Lease:
        """OWNER's lease under a new token."""
        run = self.ledger.open_run()
        assert run is not None
        return self.ledger.take_lease(run, OWNER, 60)

    def stand(self, phase: Phase) -> None:
        """Put the open run at a phase without asking any gate."""
        self.sql("UPDATE sluice_run SET phase = :phase WHERE open_system IS NOT NULL", phase=phase.value)
        if phase is Phase.VALIDATED:
            self.sql(
                "INSERT INTO sluice_event (run_id, at, kind, name, verdict, detail) "
                "SELECT id, UTC_TIMESTAMP(6), 'phase', 'validated', 'passed', '{}' FROM sluice_run "
                "WHERE open_system IS NOT NULL"
            )

    def verdict(self, lease: Lease, name: str, verdict: Verdict = Verdict.PASSED) -> None:
        """A gate's verdict in the ledger."""
        runs.record_gate(self.ledger, lease, Gate(name, (Check("of a test", verdict, "as the test says"),)))

    def take_over(self, owner: str = "second@host:2", seconds: float = 600) -> None:
        """The lease belongs to somebody else now."""
        self.sql(
            "UPDATE sluice_lease SET owner = :owner, token = token + 1, "
            "expires_at = UTC_TIMESTAMP(6) + INTERVAL :seconds SECOND",
            owner=owner,
            seconds=int(seconds),
        )

    # -- what could be changed ----------------------------------------------------------------------------------

    def state(self, *, lease: bool = True) -> dict[str, object]:
        """Checksums of every table, the accounts' locks and rights, each key of Redis, and its counter of changes.

        :param lease: also the ledger's lease: whoever may write raises its token even when the step is then refused
        """
        found: dict[str, object] = {}
        with self.engine.connect() as connection:
            tables = [row[0] for row in connection.execute(sa.text("SHOW TABLES"))]
            for table in sorted(tables):
                if table != "sluice_lease" or lease:
                    found[table] = connection.execute(sa.text(f"CHECKSUM TABLE `{table}`")).one()[1]
            for table in ("global_priv", "db", "tables_priv"):
                found[f"mysql.{table}"] = connection.execute(sa.text(f"CHECKSUM TABLE mysql.{table}")).one()[1]
            found["schemas"] = sorted(row[0] for row in connection.execute(sa.text("SHOW DATABASES")))
        for key in self.client.scan_iter("*"):
            found[key.decode()] = self.client.dump(key)
        found["changes"] = self.client.info("persistence")["rdb_changes_since_last_save"]
        found["users"] = self.client.acl_list()
        found["files"] = sorted(str(path) for path in self.folder.rglob("*") if path.is_file())
        return found

    @contextlib.contextmanager
    def unchanged(self, *, lease: bool = True) -> Iterator[None]:
        """What happens here writes nothing anywhere."""
        before = self.state(lease=lease)
        yield
        after = self.state(lease=lease)
        differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        assert not differing, f"changed: {differing}"
