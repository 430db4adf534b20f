"""A mover as a process of its own: ``python -m faults.mover``. It can end or freeze itself at a named arrow.

With ``--back`` it moves for a run that goes back. Attaches to the open run of the database ``SLUICE_LAB_DB_URL`` and
the Redis ``SLUICE_LAB_REDIS_URL``, waits for the lease as any second command must, and calls slices of the transfer
until nothing is left. The arrows are wrapped around the two ends here; the code under test has no hooks. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml
from ansible.module_utils.sluice.adapters import redis_connect, sql_connect
from ansible.module_utils.sluice.adapters.ledger_sql import SqlLedger
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.rq_source import RqSource
from ansible.module_utils.sluice.adapters.sql_home import SqlHome, SqlJournal
from ansible.module_utils.sluice.adapters.sql_table import SqlTable
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core import mapping as mappings
from ansible.module_utils.sluice.core.errors import RunConflict, SluiceError
from ansible.module_utils.sluice.core.homecoming import Policy
from ansible.module_utils.sluice.core.tasks import Lease
from ansible.module_utils.sluice.core.verdicts import Check, Gate, Verdict
from ansible.module_utils.sluice.services.transfer import Pace, Transfer

from faults import ROOT

#: What the arrows are called here, and the method of an end that each one is. Also `commit`: that of a release, and on
#: the way back `done`: Redis forgets what the commit has brought home.
ARROWS = {"claim": "claim", "stage": "stage", "confirm": "digests", "release": "release", "activate": "activate"}
ARROWS |= {"discard": "discard", "hold": "hold"}
MAPPING = ROOT / "inventories" / "lab" / "mapping.yml"
#: Exit status when the transfer ended with an error of Sluice; the printed object names it.
REFUSED = 3
_LEASE_WAIT_SECONDS = 30.0


@dataclass
class Trap:
    """Ends (SIGKILL) or freezes (SIGSTOP) this process on the n-th crossing of one side of an arrow."""

    arrow: str
    side: str
    nth: int
    number: signal.Signals
    crossings: int = 0

    @classmethod
    def parse(cls, text: str, number: signal.Signals) -> Trap:
        """Read ARROW:SIDE:NTH."""
        arrow, side, nth = text.split(":")
        if arrow not in (*ARROWS, "commit", "done") or side not in ("before", "after"):
            raise ValueError(f"{text!r} names no arrow")
        return cls(arrow, side, int(nth), number)


@dataclass
class Traps:
    """The traps of this process."""

    traps: Sequence[Trap]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cross(self, arrow: str, side: str) -> None:
        """To be called at every arrow, before and after."""
        for trap in self.traps:
            if (trap.arrow, trap.side) == (arrow, side):
                with self._lock:
                    trap.crossings += 1
                    sprung = trap.crossings == trap.nth
                if sprung:
                    # To this thread: it goes no further, while a signal to the process might take another thread first.
                    signal.pthread_kill(threading.get_ident(), trap.number)


class Trapped:
    """An end whose arrows are watched; everything else goes straight through."""

    def __init__(self, end: object, traps: Traps) -> None:
        self._end = end
        self._traps = traps

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._end, name)
        arrow = next((arrow for arrow, method in ARROWS.items() if method == name), None)
        if arrow is None:
            return inner

        def watched(*arguments: Any) -> Any:
            self._traps.cross(arrow, "before")
            answer = inner(*arguments)
            self._traps.cross(arrow, "after")
            return answer

        return watched


def watch_commits(engine: sa.Engine, traps: Traps) -> None:
    """The arrow `commit`: right before the COMMIT of a transaction that wrote released tasks into the ledger."""
    releasing: set[int] = set()

    @sa.event.listens_for(engine, "after_cursor_execute")
    def after(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT INTO sluice_task") and ("'moved'" in statement or "'returned'" in statement):
            releasing.add(id(connection))

    @sa.event.listens_for(engine, "commit")
    def commit(connection: Any) -> None:
        if id(connection) in releasing:
            releasing.discard(id(connection))
            traps.cross("commit", "before")


def watch_done(leaving: Any, traps: Traps) -> None:
    """The arrow `done`: between the database's commit and what Redis forgets then."""
    inner = leaving._done

    def done(lease: Lease, job_ids: Sequence[str]) -> Any:
        traps.cross("done", "before")
        answer = inner(lease, job_ids)
        traps.cross("done", "after")
        return answer

    leaving._done = done


def ways(
    options: argparse.Namespace, engine: sa.Engine, ledger: SqlLedger, mapping: mappings.TaskMapping, traps: Traps
) -> tuple[Lease, list[tuple[Any, Any]]]:
    """The lease, and the pairs of ends between which this mover works, one pair after the other."""
    owner = f"mover-{os.getpid()}"
    if options.rows:
        home = SqlHome(engine, mapping, Policy(options.started))
        lease = take_lease(ledger, owner, options.lease_seconds)
        return lease, [(Trapped(SqlJournal(home), traps), Trapped(home, traps))]
    queues = RqQueues(redis_connect.connect(os.environ["SLUICE_LAB_REDIS_URL"]), mapping)
    lease = take_lease(ledger, owner, options.lease_seconds)
    if not options.back:
        return lease, [(Trapped(SqlTable(engine, mapping), traps), Trapped(queues, traps))]
    home = SqlHome(engine, mapping, Policy(options.started))
    leaving = RqSource(queues, home, mapping)
    watch_done(leaving, traps)
    run = ledger.open_run()
    undone = ledger.find_run(str(run.settings["undoes"])) if run else None
    leaving.adopt(lease, [undone.generation] if undone else [])
    into = Trapped(home, traps)
    return lease, [(Trapped(leaving, traps), into), (Trapped(SqlJournal(home), traps), into)]


def take_lease(ledger: SqlLedger, owner: str, seconds: float) -> Lease:
    """Wait for a foreign lease to expire, then take it; RunConflict when that lasts too long."""
    run = ledger.open_run()
    if run is None:
        raise RunConflict("no run is open.", where="ledger")
    deadline = time.monotonic() + _LEASE_WAIT_SECONDS
    while True:
        try:
            return ledger.take_lease(run, owner, seconds)
        except RunConflict:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def passed_fence() -> Gate:
    """Fences are tested elsewhere: here nobody but the tests' own processes claims."""
    return Gate("fence", [Check("no claimer", Verdict.PASSED, "the test started none that is not guarded")])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: done; 3: ended by an error of Sluice."""
    parser = argparse.ArgumentParser(prog="faults.mover", description=__doc__)
    parser.add_argument("--batch", type=int, default=300)
    parser.add_argument("--rate", type=float, default=0.0, help="tasks a second, 0: as fast as the stores allow")
    parser.add_argument("--lease-seconds", type=float, default=25.0)
    parser.add_argument("--slice-seconds", type=float, default=5.0)
    parser.add_argument("--kill", action="append", default=[], metavar="ARROW:SIDE:NTH", help="SIGKILL ourselves there")
    parser.add_argument(
        "--freeze", action="append", default=[], metavar="ARROW:SIDE:NTH", help="SIGSTOP ourselves there"
    )
    parser.add_argument("--follow", type=Path, help="go on until this file exists, then once more to the end")
    parser.add_argument("--back", action="store_true", help="the open run goes back: first RQ's jobs, then the rows")
    parser.add_argument("--rows", action="store_true", help="as --back, by the rows alone: Redis is not spoken to")
    parser.add_argument("--started", default=Policy.HOLD.value, choices=[policy.value for policy in Policy])
    options = parser.parse_args(argv)
    kinds = ((signal.SIGKILL, options.kill), (signal.SIGSTOP, options.freeze))
    traps = Traps([Trap.parse(text, number) for number, texts in kinds for text in texts])
    mapping = mappings.parse(yaml.safe_load(MAPPING.read_text(encoding="utf-8")))
    slices: list[dict[str, Any]] = []
    try:
        engine = sql_connect.connect(os.environ["SLUICE_LAB_DB_URL"])
        ledger = SqlLedger(engine, mapping.system)
        watch_commits(engine, traps)
        lease, ends = ways(options, engine, ledger, mapping, traps)
        for source, target in ends:
            transfer = Transfer(
                source,
                target,
                ledger,
                SystemClock(),
                prove_fence=passed_fence,
                custody_in_row=True,
                pace=Pace(
                    batch=options.batch, largest=options.batch, rate=options.rate, lease_seconds=options.lease_seconds
                ),
            )
            while True:
                last = options.follow is None or options.follow.exists()
                moved = transfer.slice(lease, options.slice_seconds)
                if any((moved.moved, moved.held, moved.lost, moved.reactivated)):
                    slices.append(asdict(moved))
                if moved.done and last:
                    break
                if moved.done:
                    time.sleep(0.05)
        ledger.give_up(lease)
    except SluiceError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error), "slices": slices}))
        return REFUSED
    totals = {name: sum(s[name] for s in slices) for name in ("moved", "held", "lost", "reactivated", "batches")}
    print(json.dumps({"error": None, **totals, "seconds": sum(s["seconds"] for s in slices)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
