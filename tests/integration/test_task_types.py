"""A second kind of task, word for word as app/README.md says, on both systems and through a migration."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core import mapping as mappings
from ansible.module_utils.sluice.core.verdicts import Check, Gate
from ansible.module_utils.sluice.services.transfer import Transfer
from rq.job import Job

from captions import task_types
from integration.runtime import Runtime
from stores_fixture import CAPTIONS_MAPPING, open_ends

pytestmark = pytest.mark.real
README = Path(__file__).resolve().parents[2] / "app" / "README.md"


@pytest.fixture
def runtime(tmp_path: Path, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """Steps 1 and 2 of the README; the registry is this test's own."""
    (source,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert source.count("\n") < 30
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "thumbnails.py").write_text(source)
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setattr(task_types, "_types", dict(task_types._types))
    made = Runtime(tmp_path, database_url, redis_url, {"TASK_MODULES": "thumbnails"})
    assert "tables are there" in made.process("captions.schema", python_path=modules)
    yield made
    made.close()
    del sys.modules["thumbnails"]


def thumbnail(runtime: Runtime, image: str = "image-01.png") -> str:
    return runtime.submit(kind="thumbnail", payload={"image": image})


@pytest.mark.parametrize("share", [0, 100])
def test_it_runs_on_both_systems_in_its_own_queue(runtime: Runtime, tmp_path: Path, share: int) -> None:
    runtime.route(share)
    task_id = thumbnail(runtime)
    assert runtime.task(task_id)["priority"] == "thumbnails"
    assert runtime.redis.lrange("rq:queue:thumbnails", 0, -1) == ([task_id.encode()] if share else [])
    runtime.work(python_path=tmp_path / "modules") if share else runtime.poll()
    task = runtime.task(task_id)
    assert (task["status"], task["owner"], task["progress"]) == ("completed", "rq" if share else "db", 50)
    assert re.fullmatch(r"image-01\.png as \d+ by \d+", task["caption"])


def test_its_own_retry_policy_holds(runtime: Runtime) -> None:
    gone = thumbnail(runtime, "gone.png")
    (runtime.settings.images_dir / "text.png").write_text("no image")
    unreadable = thumbnail(runtime, "text.png")
    runtime.poll()
    assert (runtime.task(gone)["status"], runtime.task(gone)["error_category"]) == ("failed", "permanent")
    task = runtime.task(unreadable)
    assert (task["status"], task["attempts"], task["max_attempts"]) == ("queued", 1, 7)
    ((left,),) = runtime.sql(
        "SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(6), available_at) FROM caption_tasks WHERE id = :id", id=unreadable
    )
    assert 0 < left <= 30


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"payload": {"image": "../x"}}, "payload.image must be the name of an image"),
        ({"payload": ["image"]}, "payload must be a JSON object"),
        ({"payload": {"image": "x" * 2000}}, "bytes as JSON"),
        ({"payload": {"image": "x.png"}, "priority": "high"}, "leave priority out"),
        ({"payload": {"image": "x.png"}, "kind": "riddle"}, "kind must be one of caption, thumbnail"),
    ],
)
def test_what_it_cannot_take_is_answered_400(runtime: Runtime, body: dict[str, object], says: str) -> None:
    answer = runtime.client.post("/tasks", json={"user_id": 1, "kind": "thumbnail", **body})
    assert answer.status_code == 400
    assert says in answer.get_json()["error"]


def test_it_is_moved_by_a_migration(runtime: Runtime, tmp_path: Path) -> None:
    """Step 5: the queue in the mapping, and nothing else."""
    data = yaml.safe_load(CAPTIONS_MAPPING.read_text())
    data["source"]["order"][0]["first"].append("thumbnails")
    data["target"]["queues"]["thumbnails"] = "thumbnails"
    data["target"]["timeouts"]["thumbnails"] = 300
    task_id, caption = thumbnail(runtime), runtime.submit()
    ends = open_ends(runtime.database_url, runtime.redis_url, mappings.parse(data))
    idle = Gate("fence", (Check.of("no claimer is alive", True, "none was started"),))
    transfer = Transfer(
        ends.source, ends.target, ends.ledger, SystemClock(), prove_fence=lambda: idle, custody_in_row=True
    )
    moved = transfer.slice(ends.lease, 60)
    ends.engine.dispose()
    assert moved.moved == 2
    assert runtime.redis.hget(Job.key_for(task_id), "origin") == b"thumbnails"
    runtime.work(python_path=tmp_path / "modules")
    assert [(runtime.task(i)["status"], runtime.task(i)["owner"]) for i in (task_id, caption)] == [
        ("completed", "rq")
    ] * 2
