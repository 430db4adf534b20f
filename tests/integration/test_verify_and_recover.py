"""The balance finds what is lost, and recovery places exactly that again, on real stores."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.errors import FenceOpen, GenerationMismatch
from ansible.module_utils.sluice.core.verdicts import Check, Gate, Verdict
from ansible.module_utils.sluice.services import verify as verification
from ansible.module_utils.sluice.services.recover import NO_WITNESS, STARTED, recover
from ansible.module_utils.sluice.services.transfer import Transfer
from ansible.module_utils.sluice.services.verify import Verification

from stores_fixture import Ends

pytestmark = pytest.mark.real

OPEN = Gate("fence", (Check("closed", Verdict.PASSED, "by the test"),))
SHUT = Gate("fence", (Check("closed", Verdict.UNKNOWN, "cannot be read"),))


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing moves in these tests, so three looks need no pause between them."""
    monkeypatch.setattr(verification, "SECONDS_BETWEEN_LOOKS", 0.0)


def fill(ends: Ends, number: int, *, custody: str = "db", status: str = "queued", user: int = 1) -> list[str]:
    """Rows of captions, oldest first."""
    begun = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    ids = [str(uuid.uuid4()) for _ in range(number)]
    with ends.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO caption_tasks (id, user_id, status, priority, image_path, available_at, created_at, "
                "custody, "
                "enqueued_at) VALUES (:id, :user, :status, 'normal', 'x.png', :at, :at, :custody, :enqueued)"
            ),
            [
                {
                    "id": task_id,
                    "user": user + i,
                    "status": status,
                    "at": begun + timedelta(seconds=i),
                    "custody": custody,
                    "enqueued": begun if custody == "rq" else None,
                }
                for i, task_id in enumerate(ids)
            ],
        )
    return ids


def move_all(ends: Ends) -> None:
    work = Transfer(ends.source, ends.target, ends.ledger, SystemClock(), prove_fence=lambda: OPEN, custody_in_row=True)
    assert work.slice(ends.lease, 60).done


def balance(ends: Ends) -> verification.Verified:
    return Verification(ends.source, ends.target, ends.ledger, SystemClock(), ends.mapping, ends.run.id).balance()


def born_in_rq(ends: Ends, ids: list[str]) -> None:
    """Jobs for rows that the application gave to RQ itself."""
    claim = ends.source.reread(ids)
    assert {t.id for t in claim.tasks} == set(ids)
    ends.target.stage(ends.lease, claim.tasks)
    pipe = ends.target.client.pipeline()
    for task in claim.tasks:
        pipe.hset(f"rq:job:{task.job_id}", "status", "queued")
        pipe.rpush(f"rq:queue:{task.queue}", task.job_id)
    pipe.execute()


def test_balance_holds_after_a_transfer(ends: Ends) -> None:
    fill(ends, 40)
    ends.ledger.save_baseline(ends.lease)
    move_all(ends)
    found = balance(ends).balance
    assert found.holds
    assert {str(t): n for t, n in found.terms.items() if n} == {"queued": 40}


def test_balance_names_each_id_at_fault(ends: Ends) -> None:
    ids = fill(ends, 10)
    move_all(ends)
    client = ends.target.client
    client.lrem("rq:queue:normal", 0, ids[2])
    client.delete(f"rq:job:{ids[3]}")
    client.rpush("rq:queue:normal", ids[4])
    found = balance(ends).balance
    assert {f.id for f in found.faults} == {ids[2], ids[3], ids[4]}
    assert not found.holds


def test_flushall_with_half_of_the_tasks_born_in_rq(ends: Ends) -> None:
    """Redis emptied after the transfer: the gate names what is missing, recovery places it, started ones are held."""
    moved = fill(ends, 60)
    move_all(ends)
    born = fill(ends, 60, custody="rq", user=1000)
    born_in_rq(ends, born)
    running = fill(ends, 3, custody="rq", status="running", user=5000)
    finished = fill(ends, 5, custody="rq", status="completed", user=6000)
    ends.target.client.flushall()
    with pytest.raises(GenerationMismatch):
        ends.target.activate(ends.lease, ends.source.reread(moved).tasks, 99)
    lost = balance(ends).balance
    assert lost.fault_count == 123
    ends.target.restamp(ends.lease, ends.ledger.next_batch(ends.lease) - 1)

    done = recover(
        Verification(ends.source, ends.target, ends.ledger, SystemClock(), ends.mapping, ends.run.id),
        ends.source, ends.target, ends.ledger, ends.lease, prove_fence=lambda: OPEN,
    )  # fmt: skip

    assert (done.placed, done.held) == (120, 3)
    queued = [i.decode() for i in ends.target.client.lrange("rq:queue:normal", 0, -1)]
    assert sorted(queued) == sorted(moved + born)
    assert {(h.id, h.where) for h in ends.ledger.held()} == {(i, STARTED) for i in running}
    after = balance(ends).balance
    assert after.holds, after.faults
    assert not set(queued) & set(finished)

    again = recover(
        Verification(ends.source, ends.target, ends.ledger, SystemClock(), ends.mapping, ends.run.id),
        ends.source, ends.target, ends.ledger, ends.lease, prove_fence=lambda: OPEN,
    )  # fmt: skip
    assert (again.placed, again.held) == (0, 0)
    assert ends.target.client.llen("rq:queue:normal") == 120


def test_recovery_refuses_while_workers_could_start_something(ends: Ends) -> None:
    fill(ends, 5)
    move_all(ends)
    ends.target.client.delete("rq:queue:normal")
    with pytest.raises(FenceOpen, match="unknown"):
        recover(
            Verification(ends.source, ends.target, ends.ledger, SystemClock(), ends.mapping, ends.run.id),
            ends.source, ends.target, ends.ledger, ends.lease, prove_fence=lambda: SHUT,
        )  # fmt: skip
    assert ends.target.client.llen("rq:queue:normal") == 0


def test_a_moved_task_whose_row_is_gone_is_held_not_guessed(ends: Ends) -> None:
    ids = fill(ends, 3)
    ends.ledger.save_baseline(ends.lease)
    move_all(ends)
    with ends.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM caption_tasks WHERE id = :id"), {"id": ids[1]})
    ends.target.client.delete(f"rq:job:{ids[1]}")
    ends.target.client.lrem("rq:queue:normal", 0, ids[1])
    done = recover(
        Verification(ends.source, ends.target, ends.ledger, SystemClock(), ends.mapping, ends.run.id),
        ends.source, ends.target, ends.ledger, ends.lease, prove_fence=lambda: OPEN,
    )  # fmt: skip
    assert (done.placed, done.held) == (0, 1)
    assert [(h.id, h.where) for h in ends.ledger.held()] == [(ids[1], NO_WITNESS)]
