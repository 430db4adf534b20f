"""Poison in Redis beside good tasks: there and back without a traceback; what cannot be carried is held."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import pytest
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.rq_archive import RqArchive
from ansible.module_utils.sluice.adapters.sql_table import SqlTable
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.tasks import job_name
from ansible.module_utils.sluice.services.verify import Verification

from faults.rollback import Rollback, held, ids, rows
from faults.scene import QUEUES, Scene

pytestmark = [pytest.mark.real, pytest.mark.slow]

DATA = zlib.compress(b'["captions.jobs.run_caption", null, ["gone"], {}]')
#: Ids that no row has: no UTF-8, longer than any column, unprintable, with a space that SQL does not see, or in forms
#: that look like ours, like SQL, like a number.
IDS = [
    b"\xff\xfe", b"\xc3", b"x" * 500, b"\xc3\xa9" * 150, b"", b"\0", b"new\nline", b"right\xe2\x80\xaeto left",
    b"pipe|1|2", b"colon:1:2", b"' OR 1=1 -- ", b"captions-" + b"0" * 40, b"named~" + b"0" * 40, "٣".encode(),
    b"\xf0\x9f\x92\xa3",
]  # fmt: skip
HASHES: list[dict[str, bytes] | bytes | None] = [
    {"status": b"queued", "origin": b"high", "data": DATA},
    {"status": b"queued", "origin": b"\xff", "data": b"\x78\x9cgarbage", "retries_left": b"9" * 5000},
    {"status": b"\xff", "data": b"[" * 3000, "meta": b"\xff"},
    {"origin": b"o" * 5000},
    {"status": b"failed", "origin": b"low", "exc_info": b"\xff\xff", "ended_at": b"\xff"},
    {"status": b"started", "origin": b"low", "data": b"", "meta": b'{"sluice_task_id": ["stolen"]}'},
    {"": b"", "status": b"s" * 100_000},
    b"of another type",
    None,
]
WHERE = ["queue:high", "queue:low:intermediate", "scheduled:low", "wip:high", "failed:low", "deferred:high"]
SCORES = [1.0, 1e300, -5.0, float("inf")]


def put(scene: Scene, raw: bytes, content: dict[str, bytes] | bytes | None, where: str, score: float) -> None:
    """One entry, and what lies under the key of its job."""
    if isinstance(content, dict):
        scene.client.hset(b"rq:job:" + raw, mapping=content)
    elif content is not None:
        scene.client.set(b"rq:job:" + raw, content)
    key = f"rq:{where}"
    if where.startswith("queue"):
        scene.client.rpush(key, raw)
    else:
        scene.client.zadd(key, {raw + b":execution" if where.startswith("wip") else raw: score})


class Hasty(SystemClock):  # type: ignore[misc]
    """Between two looks at a store that nobody changes there is nothing to wait for."""

    def wait(self, seconds: float) -> None:
        """Not a moment."""


def balance_of(scene: Scene) -> Verification:
    """The balance of the run that goes forward."""
    queues = RqQueues(scene.client, scene.mapping)
    return Verification(SqlTable(scene.engine, scene.mapping), queues, scene.ledger, Hasty(), scene.mapping, "run-1")


def reasons_of(verification: Verification) -> dict[str, str]:
    """The ids that break the balance."""
    return {entry.id: entry.fault for entry in verification.balance().balance.faults}


@pytest.mark.parametrize("seed", [1, 2])
def test_poison_is_held_with_its_reason_and_good_tasks_come_home(scene: Scene, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    scene.seed(12)
    good = ids(scene)
    occupied, spoiled, timeless = good[:3]
    scene.client.set(f"rq:job:{occupied}", "of another type")
    report = scene.move_to_the_end()
    assert (report["moved"], set(held(scene))) == (11, {occupied})
    assert held(scene)[occupied] == "another job of this id exists at the target"
    poison = [*IDS, good[3].encode() + b" ", good[4].encode() + b"\xff", good[5].upper().encode() + b"\n"]
    # Each hash is drawn as often as the next one.
    content = [HASHES[at % len(HASHES)] for at in range(len(poison))]
    draw.shuffle(content)
    for raw, fields in zip(poison, content, strict=True):
        put(scene, raw, fields, draw.choice(WHERE), draw.choice(SCORES))
    scene.client.delete(f"rq:job:{spoiled}")
    scene.client.set(f"rq:job:{spoiled}", "of another type")
    for queue in QUEUES:
        if scene.client.lrem(f"rq:queue:{queue}", 0, timeless):
            scene.client.zadd(f"rq:scheduled:{queue}", {timeless: float("inf")})

    names = {job_name(raw) for raw in poison}
    faults = reasons_of(balance_of(scene))
    assert set(faults) <= {*names, spoiled}
    assert "without its job" in faults[spoiled]

    back = Rollback(scene)
    back.bring_home()

    reasons = held(scene)
    assert reasons.pop(occupied) == "another job of this id exists at the target"
    assert "no calendar" in reasons.pop(timeless)
    assert set(reasons) <= names
    assert all(reason.isprintable() and len(reason) > 20 for reason in reasons.values())
    # Of what is not held RQ said itself that it had ended; it never had a row.
    over = [job_name(raw) for raw, fields in zip(poison, content, strict=True) if job_name(raw) not in reasons]
    assert len(over) < len(poison) / 2
    assert rows(scene) == {"db queued": 10, "held queued": 2}
    assert not [key for key in scene.client.keys("rq:queue:*") if key.decode().count(":") == 2]
    returned = set(back.leaving.returned())
    assert {os.fsencode(job_id) for job_id in returned} == {*poison, *(task_id.encode() for task_id in good[1:])}
    assert back.leaving.waiting() == 0
    balance = back.balance()
    assert balance.holds, balance.faults
    before = scene.fingerprint()
    assert [(m.moved, m.held, m.lost) for m in Rollback(scene).bring_home()] == [(0, 0, 0), (0, 0, 0)]
    assert scene.fingerprint()["caption_tasks"] == before["caption_tasks"]
    exported = RqArchive(back.queues).export(back.leaving.returned(), tmp_path / "jobs.jsonl.gz")
    assert exported.jobs + exported.bodiless == len(returned)


def test_an_undo_puts_poison_back_as_it_lay(scene: Scene) -> None:
    scene.seed(3)
    scene.move_to_the_end()
    for at, raw in enumerate(IDS):
        put(scene, raw, HASHES[at % 4], WHERE[at % len(WHERE)], 5.0)
    lay = {key: scene.client.dump(key) for key in scene.client.keys("rq:*")}
    back = Rollback(scene)
    claim = back.leaving.claim(back.lease, 5)
    assert len(claim.tasks) == 5
    again = Rollback(scene)  # another process: it finds what the first one had claimed
    while again.leaving.claim(again.lease, 1000).tasks:
        continue
    assert again.leaving.waiting() == len(IDS) + 3
    again.leaving.put_back(again.lease)
    assert {key: scene.client.dump(key) for key in scene.client.keys("rq:*")} == lay
