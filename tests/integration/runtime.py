"""captions' runtime on a private MariaDB and Redis: its web application in this process, its workers beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.sluice.core.phases import Phase
from ansible.module_utils.sluice.ports.ledger import Run
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy import Engine, text

from captions import legacy
from captions.database import make_engine
from captions.effects import EffectsFile
from captions.outbox import RQPlacer
from captions.settings import Settings, load_settings
from captions.sweeper import Sweeper
from captions.web import create_app
from lab.images import make_images
from oracle.patience import PATIENCE_SECONDS

APP = Path(__file__).resolve().parents[2] / "app"
#: A run of Sluice's, as its ledger keeps it.
RUN = Run("run-1", "captions", "forward", "tester", Phase.OPENED, "p", "m", "stamp", datetime.now(UTC), None, {})
TOKENS = {"VIEW_TOKEN": "v" * 32, "OPERATE_TOKEN": "o" * 32, "ADMIN_TOKEN": "a" * 32}


@dataclass
class Runtime:
    """One settings file, and whoever reads it."""

    directory: Path
    database_url: str
    redis_url: str
    extra: dict[str, str]

    def __post_init__(self) -> None:
        images = self.directory / "images"
        make_images(images)
        self.env_file = self.directory / "captions.env"
        values = {
            "DATABASE_URL": self.database_url,
            "RQ_ENABLED": "true",
            "RQ_REDIS_URL": self.redis_url,
            "EFFECTS_FILE": str(self.directory / "effects.jsonl"),
            "IMAGES_DIR": str(images),
            **TOKENS,
            **self.extra,
        }
        self.env_file.write_text("".join(f"{key}={value}\n" for key, value in values.items()), encoding="utf-8")
        self.settings: Settings = load_settings(self.env_file, environment={})
        self.engine: Engine = make_engine(self.database_url, connections=2)
        self.redis = Redis.from_url(self.redis_url)
        self.client: FlaskClient = create_app(self.settings, sweeper=False).test_client()
        self.sweeper = Sweeper(self.settings, self.engine, RQPlacer(self.redis_url, "rq"))
        self.last_user = 0

    def close(self) -> None:
        """Close what is open."""
        self.engine.dispose()
        self.redis.close()

    def sql(self, statement: str, **values: object) -> list[Any]:
        """Run one statement and commit; its rows."""
        with self.engine.begin() as connection:
            done = connection.execute(text(statement), values)
            return list(done.all()) if done.returns_rows else []

    def route(self, share: int) -> None:
        """Send that share of users to RQ."""
        self.sql("UPDATE captions_control SET rq_share = :share", share=share)

    def submit(self, **body: object) -> str:
        """The id of a new task, of a new user unless one is given."""
        self.last_user += 1
        body = {"user_id": self.last_user, **({} if "kind" in body else {"image": "image-01.png"}), **body}
        answer = self.client.post("/tasks", json=body)
        assert answer.status_code == 201, answer.get_json()
        return str(answer.get_json()["id"])

    def task(self, task_id: str) -> dict[str, Any]:
        """The task as its user sees it."""
        return dict(self.client.get(f"/tasks/{task_id}").get_json())

    def ask(self, method: str, path: str, body: object = None, role: str = "admin") -> tuple[int, Any]:
        """An administrative request: status and answer."""
        token = TOKENS[f"{role.upper()}_TOKEN"]
        headers = {"Authorization": f"Bearer {token}"}
        answer = self.client.open(f"/admin/{path}", method=method, json=body, headers=headers)
        return answer.status_code, answer.get_json()

    def poll(self) -> int:
        """Let a polling worker do all that is ready; how many tasks."""
        effects = EffectsFile(self.settings.effects_file, "db", "poller")
        done = 0
        while legacy.run_guarded_once(self.settings, self.engine, effects):
            done += 1
        return done

    def process(self, module: str, *arguments: str, python_path: Path | None = None) -> str:
        """Run a module of captions to its end; what it printed. AssertionError when it failed."""
        paths = [str(APP), *([str(python_path)] if python_path else [])]
        environment = {**os.environ, "CAPTIONS_ENV_FILE": str(self.env_file), "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def work(self, **more: Any) -> str:
        """Let an RQ worker do all that is queued."""
        return self.process("captions.rqworker", "--burst", **more)
