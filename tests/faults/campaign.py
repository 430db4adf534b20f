"""Sequences of what users, operators and bad luck do, drawn at random, against a simple model, on real stores.

``python -m faults.campaign --seconds 3600 --seed 7`` (scripts/campaign). Every sequence begins with empty stores and
ends with the operator's next command, a balance, and the oracle's judgement of every task. One that fails is shrunk to
its shortest form and printed; round and seed are named, so that it can be run again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import secrets
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import hypothesis
import pytest
from ansible.module_utils.sluice.adapters.rq import RqQueues
from ansible.module_utils.sluice.adapters.sql_route import SqlRouter
from ansible.module_utils.sluice.adapters.sql_table import SqlTable
from ansible.module_utils.sluice.adapters.system_clock import SystemClock
from ansible.module_utils.sluice.core.phases import Direction, Phase
from ansible.module_utils.sluice.core.tasks import Mark
from ansible.module_utils.sluice.ports.ledger import Run
from ansible.module_utils.sluice.services import verify
from ansible.module_utils.sluice.services.recover import recover
from ansible.module_utils.sluice.services.transfer import abort
from ansible.module_utils.sluice.services.verify import Verification
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from rq.registry import StartedJobRegistry
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

from captions import legacy, outbox, tasks
from captions.control import bucket_of
from captions.database import make_engine
from captions.effects import EffectsFile
from captions.schema import create_schema
from captions.settings import load_settings
from faults.mover import REFUSED
from faults.nursery import Child, Nursery
from faults.proxy import Proxy
from faults.rollback import FENCED, Rollback, clean_up, open_back, undo
from faults.scene import QUEUES, Scene
from lab.stores import LOOPBACK, free_port
from oracle.effects import read_effects
from oracle.journal import Journal
from oracle.judge import Allowances, look
from oracle.patience import until
from stores_fixture import ChangedMariaDB, SkewedRedis, SmallDisk, small_disk, with_clock_off

#: What a sequence may do to a store while a mover stands at an arrow.
HARM = (
    "nothing",
    "its connections are cut",
    "redis is killed and restarted",
    "redis is emptied",
    "redis is away",
    "the database is killed and restarted",
    "the database is away",
    "redis' disk is full",
    "the database's disk is full",
)
ARROWS = ("claim", "stage", "confirm", "release", "commit", "activate", "done")
HOUR = 3600
SKEWS = (0, HOUR, -HOUR)
#: In the names of workers who take it to be another time: so the times that they write down say nothing.
CLOCK_OFF = "clock-off"
_FIRST_JOB = "queued again, and the job it had before is still at the target"
_WORKED_ON = 20_000  # ms that a task takes whose worker is to be killed
_LEDGER = ("sluice_event", "sluice_task", "sluice_baseline", "sluice_lease", "sluice_run")
_MIB = 1 << 20


class World:
    """The stores, the lines to them and the nurseries: made once, used by every sequence."""

    def __init__(self, directory: Path, tell: Callable[[str], None] = print) -> None:
        self.directory = directory
        self.tell = tell
        self.failed = False
        self.round = 0
        self.begun = self.told = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.longest = 0.0
        self._open = contextlib.ExitStack()
        self._nurseries: dict[int, Nursery] = {}
        database, redis = directory / "mariadb", directory / "redis"
        self.disks: dict[str, SmallDisk] = {}
        if os.geteuid() == 0:
            with contextlib.suppress(pytest.skip.Exception):
                self.disks["database"] = self._open.enter_context(small_disk(database / "data", 400))
                self.disks["redis"] = self._open.enter_context(small_disk(redis, 64))
        self.mariadb = ChangedMariaDB(database, free_port(), "--innodb-fast-shutdown=2")
        self.redis = SkewedRedis(redis, free_port(), "test-password", 0.0)
        for server in (self.mariadb, self.redis):
            self._open.callback(server.kill)
            server.start()
        password = secrets.token_hex(8)
        with self.mariadb.connect_as_root() as root, root.cursor() as cursor:
            cursor.execute("CREATE DATABASE captions")
            cursor.execute(f"CREATE USER 'mover'@'{LOOPBACK}' IDENTIFIED BY '{password}'")
            cursor.execute(f"GRANT ALL ON *.* TO 'mover'@'{LOOPBACK}'")
        self.lines = {"database": Proxy(self.mariadb.port), "redis": Proxy(self.redis.port)}
        for line in self.lines.values():
            self._open.callback(line.close)
        address = f"{LOOPBACK}:{self.lines['redis'].port}"
        self.mover_environment = {
            "SLUICE_LAB_DB_URL": f"mysql+pymysql://mover:{password}@{LOOPBACK}:{self.lines['database'].port}/captions",
            "SLUICE_LAB_REDIS_URL": f"redis://default:test-password@{address}/0",
        }
        self.database_url = self.mariadb.root_url("captions")
        engine = make_engine(self.database_url)
        create_schema(engine)
        engine.dispose()
        self.skews = self._usable_skews()

    def _usable_skews(self) -> tuple[int, ...]:
        try:
            with_clock_off(HOUR)
        except pytest.skip.Exception:
            return (0,)
        return SKEWS

    def heard(self, error: BaseException, lines: Sequence[str]) -> None:
        """Tell of the first failure of a round at once: to shrink it takes a while."""
        if not self.failed:
            self.failed = True
            self.tell(
                "\n".join([f"{type(error).__name__}: {error}", "after:", *lines, "now the shortest form is sought"])
            )

    def ended(self, count: int, seconds: float) -> None:
        """A sequence of so many tasks is over; every ten seconds that is worth a line."""
        self.counts["sequences"] += 1
        self.counts["tasks"] += count
        self.longest = max(self.longest, seconds)
        if time.monotonic() - self.told >= 10:
            self.tell_how_far()

    def tell_how_far(self) -> None:
        """What has been done so far."""
        self.told = time.monotonic()
        counts = self.counts
        self.tell(
            f"{self.told - self.begun:7.0f} s  round {self.round:4}  {counts['sequences']:6} sequences  "
            f"{counts['tasks']:7} tasks  {counts['movers']:6} movers  {counts['refusals']:5} refusals  "
            f"longest {self.longest:.1f} s"
        )

    def nursery(self, skew: int = 0) -> Nursery:
        """Processes that take the time to be so many seconds later than it is."""
        if skew not in self._nurseries:
            self._nurseries[skew] = Nursery(with_clock_off(skew))
            self._open.callback(self._nurseries[skew].close)
        return self._nurseries[skew]

    def scene(self) -> Scene:
        """Empty stores, an empty ledger, nobody at work."""
        for path in self.directory.glob("*.*"):
            path.unlink()
        for name in ("effects.jsonl", "seeded", "accepted.jsonl"):
            (self.directory / name).unlink(missing_ok=True)
        made = Scene(self.directory, self.database_url, self.redis.url())
        made.client.flushall()
        if int(made.client.info("persistence")["aof_current_size"]) > 16 * _MIB:
            made.client.bgrewriteaof()
            until(lambda: not made.client.info("persistence")["aof_rewrite_in_progress"], what="a shorter AOF")
        made.ledger.install()
        with made.engine.begin() as connection:
            for table in ("caption_tasks", *_LEDGER):
                connection.exec_driver_sql(f"DELETE FROM {table}")
            connection.exec_driver_sql("UPDATE captions_control SET rq_share = 0, emergency = 0, polling = 1")
        return made

    def close(self) -> None:
        """End everything."""
        self._open.close()


@dataclass
class Known:
    """What the model knows of one task: what its user was told, and what excuses an end that is not the usual one."""

    user: int
    cancelled: bool = False
    retried: bool = False
    #: Its worker was killed while it ran: nobody can know what came of it.
    uncertain: bool = False
    due: datetime | None = None


@dataclass
class Steps:
    """What was done in this sequence, for a failure that does not come again when it is repeated."""

    lines: list[str] = field(default_factory=list)
    failed: bool = False


P = ParamSpec("P")
R = TypeVar("R")


def step(function: Callable[P, R]) -> Callable[P, R]:
    """Count a step and remember it; an error carries all steps so far."""

    @functools.wraps(function)
    def done(*arguments: P.args, **named: P.kwargs) -> R:
        machine: Any = arguments[0]
        words = ", ".join(f"{name}={value!r}" for name, value in named.items())
        machine.steps.lines.append(f"{function.__name__}({words})")
        machine.world.counts[function.__name__] += 1
        try:
            return function(*arguments, **named)
        except BaseException as error:
            machine.steps.failed = True
            if not isinstance(error, Exception):
                raise
            error.add_note("\n".join(["the steps of this sequence:", *machine.steps.lines]))
            machine.world.heard(error, machine.steps.lines)
            raise

    return done


class Campaign(RuleBasedStateMachine):
    """One sequence. A rule that has nothing to do in the present state does nothing.

    What is drawn must not depend on the stores, where a moment can decide: hypothesis could not repeat it. So there are
    no preconditions.
    """

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.steps = Steps()
        self.begun = time.monotonic()
        self.scene = self.world.scene()
        self.app = make_engine(self.world.database_url)
        self.settings = load_settings(self.scene.env_file)
        self.effects = EffectsFile(self.scene.effects, "db", "poller")
        self.placer = outbox.RQPlacer(self.scene.redis_url, "rq")
        self.slow_env = self.scene.directory / "slow.env"
        self.slow_env.write_text(f"{self.scene.env_file.read_text()}WORK_MS={_WORKED_ON}\n")
        self.tasks: dict[str, Known] = {}
        self.share_now = 0
        self.kills = 0
        self.processes = 0
        self.runs = 0
        self.frozen: list[Child] = []
        #: Something has taken jobs from RQ which only a recovery brings back.
        self.bereft = False
        #: The order in which the table's tasks must come out in RQ; None: nobody can say.
        self.order: dict[str, list[str]] | None = None
        #: Rows came home while RQ kept their jobs, as when it cannot be reached; the custody guard turns those away.
        self.by_rows = False
        self.touched: set[str] = set()

    # -- users --------------------------------------------------------------------------------------------------

    @initialize(count=st.integers(1, 12))
    @step
    def backlog(self, count: int) -> None:
        self._submit(count, 0, later=False, placed=True)

    @rule(count=st.integers(1, 6), first=st.integers(0, 3), later=st.booleans(), placed=st.booleans())
    @step
    def submit(self, count: int, first: int, later: bool, placed: bool) -> None:
        """``placed``: the web process lives long enough to make the jobs of tasks that go to RQ."""
        self._submit(count, first, later=later, placed=placed)

    def _submit(self, count: int, first: int, *, later: bool, placed: bool) -> None:
        for number in range(count):
            user = 1000 + len(self.tasks)
            task_id, custody = tasks.submit(
                self.app,
                rq_usable=True,
                user_id=user,
                image=self.scene.images[number % len(self.scene.images)],
                priority=QUEUES[(first + number) % 4],
                delay_seconds=HOUR if later else 0,
            )
            assert custody == ("rq" if bucket_of(user) < self.share_now else "db"), "the route is not what was set"
            due = self.scene.sql("SELECT available_at FROM caption_tasks WHERE id = :id", id=task_id)[0][0]
            self.tasks[task_id] = Known(user, due=due if later else None)
            if custody == "rq" and placed:
                outbox.place_row(self.app, self.placer, task_id)

    @rule(pick=st.integers(0, 30))
    @step
    def cancel(self, pick: int) -> None:
        task_id = self._picked(pick)
        with contextlib.suppress(tasks.TaskStateConflict):
            tasks.cancel(self.app, task_id)
            self.tasks[task_id].cancelled = True
            self.touched.add(task_id)

    @rule(pick=st.integers(0, 30), placed=st.booleans())
    @step
    def retry(self, pick: int, placed: bool) -> None:
        """Of the tasks that were cancelled, else nothing."""
        cancelled = [task_id for task_id, known in self.tasks.items() if known.cancelled]
        if not cancelled:
            return
        task_id = cancelled[pick % len(cancelled)]
        with contextlib.suppress(tasks.TaskStateConflict):
            custody = tasks.retry(self.app, task_id, rq_usable=True)
            known = self.tasks[task_id]
            known.cancelled, known.retried, known.due = False, True, None
            self.touched.add(task_id)
            if custody == "rq" and placed:
                outbox.place_row(self.app, self.placer, task_id)

    def _picked(self, pick: int) -> str:
        return list(self.tasks)[pick % len(self.tasks)]

    # -- workers ------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 6))
    @step
    def poll(self, count: int) -> None:
        for _ in range(count):
            if not legacy.run_guarded_once(self.settings, self.app, self.effects):
                break

    @rule(skew=st.sampled_from(SKEWS), horses=st.booleans())
    @step
    def work(self, skew: int, horses: bool) -> None:
        """One of RQ's own workers until the queues are empty."""
        flags = ["--burst"] if horses else ["--burst", "--simple"]
        name = CLOCK_OFF if skew else "rq"
        worker = self._start("queue_worker", "--name", name, *flags, *QUEUES, skew=skew)
        assert worker.wait() == 0, worker.said("err")

    @rule()
    @step
    def a_poller_is_killed(self) -> None:
        """In the middle of a task."""
        if not any(self.scene.claim_order().values()):
            return
        running = self._running()
        poller = self._start("legacy", "--name", "dying", slow=True)
        self._begun(poller, running, lambda: not self._ready())
        poller.send(signal.SIGKILL)
        poller.wait()
        self._bury(running)

    @rule(at=st.sampled_from(["popped", "forking", "both", "only the horse"]))
    @step
    def a_worker_is_killed(self, at: str) -> None:
        """At one of the points where a kill leaves something else behind."""
        if not any(self.scene.queued().values()):
            return
        running = self._running()
        point = at if at in ("popped", "forking") else "never"
        worker = self._start("dying_worker", "--name", "dying", "--at", point, *QUEUES, slow=True)
        self._begun(worker, running, lambda: not any(self.scene.queued().values()))
        horses = [] if worker.status is not None else worker.children
        victims = horses if at == "only the horse" else [worker.pid, *horses]
        if worker.status is None:
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            if at == "only the horse" and horses:
                # It has seen that, and told RQ so, once it goes on to the next job or waits for one.
                until(lambda: horses[0] not in worker.children, what="the end of a horse")
            self._end(worker)
        self._bury(running)
        self.bereft = True

    def _begun(self, worker: Child, running: set[str], nothing_left: Callable[[], bool]) -> None:
        """Wait until it works on a task, has ended by itself, or has nothing to do."""
        until(lambda: worker.status is not None or bool(self._running() - running) or nothing_left(), what="a start")

    def _end(self, worker: Child) -> None:
        """The worker and whatever it has started meanwhile."""
        worker.send(signal.SIGSTOP)
        for pid in worker.children if worker.status is None else []:
            os.kill(pid, signal.SIGKILL)
        worker.send(signal.SIGKILL)
        worker.wait()

    def _bury(self, before: set[str]) -> None:
        """Nobody is at work now: what still says that it runs is uncertain."""
        for task_id in self._running() - before:
            self.kills += 1
            self.tasks[task_id].uncertain = True

    def _running(self) -> set[str]:
        return {row[0] for row in self.scene.sql("SELECT id FROM caption_tasks WHERE status = 'running'")}

    def _ready(self) -> bool:
        query = "SELECT 1 FROM caption_tasks WHERE custody = 'db' AND status = 'queued' AND available_at <= NOW(6)"
        return bool(self.scene.sql(f"{query} LIMIT 1"))

    # -- operators ----------------------------------------------------------------------------------------------

    @rule(share=st.sampled_from([0, 50, 100]))
    @step
    def change_share(self, share: int) -> None:
        """With an open run by its own step, under the lease; a mover that stood frozen has lost it then."""
        run = self.scene.ledger.open_run()
        if self._goes_back():
            return
        self.share_now = share
        if run is None:
            self.scene.sql("UPDATE captions_control SET rq_share = :share", share=share)
            return
        self._expire()
        lease = self.scene.ledger.take_lease(run, "route", 10)
        SqlRouter(self.scene.engine, self.scene.mapping.route).set_share(lease, share)
        self.scene.ledger.give_up(lease)

    @rule(
        batch=st.integers(1, 6),
        skew=st.sampled_from(SKEWS),
        slow=st.sampled_from(["neither", "database", "redis"]),
    )
    @step
    def migrate(self, batch: int, skew: int, slow: str) -> None:
        """A run that goes back is cleaned up first."""
        if self._goes_back() and not self._cleaned_up():
            return
        self._open_forward()
        if slow != "neither":
            self.world.lines[slow].delay = 0.01
        self._moved(self._mover("--batch", str(batch), skew=skew))

    @rule(
        arrow=st.sampled_from(ARROWS),
        side=st.sampled_from(["before", "after"]),
        nth=st.integers(1, 3),
        batch=st.integers(1, 6),
        dies=st.booleans(),
        skew=st.sampled_from(SKEWS),
    )
    @step
    def a_mover_gets_to(self, arrow: str, side: str, nth: int, batch: int, dies: bool, skew: int) -> None:
        """It is killed there, or stands there while other things happen. It goes whichever way the open run goes."""
        self._open_forward()
        trap = ("--kill" if dies else "--freeze", f"{arrow}:{side}:{nth}")
        mover = self._mover(*trap, "--batch", str(batch), skew=skew)
        until(lambda: mover.status is not None or mover.frozen, what="an arrow")
        if mover.status is None:
            self.frozen.append(mover)
        else:
            self._moved(mover, killed=dies)

    @rule(harm=st.sampled_from(HARM))
    @step
    def it_goes_on(self, harm: str) -> None:
        """The mover that has stood longest, after something has happened to a store."""
        if not self.frozen:
            return
        self.world.counts[harm] += 1
        mover = self.frozen.pop(0)
        with self._harmed(harm):
            mover.send(signal.SIGCONT)
            self._moved(mover)

    @rule()
    @step
    def it_is_killed(self) -> None:
        """The mover that has stood longest."""
        if not self.frozen:
            return
        mover = self.frozen.pop(0)
        mover.send(signal.SIGKILL)
        mover.wait()

    @rule(store=st.sampled_from(["database", "redis"]), answers=st.integers(0, 40), batch=st.integers(1, 6))
    @step
    def an_answer_is_lost(self, store: str, answers: int, batch: int) -> None:
        """The store does what it is told, and the connection is cut before it says so."""
        self._open_forward()
        self.world.lines[store].answers = answers
        self._moved(self._mover("--batch", str(batch)))

    @rule(harm=st.sampled_from([harm for harm in HARM if "restarted" in harm or "emptied" in harm]))
    @step
    def a_store_suffers(self, harm: str) -> None:
        """Between two commands."""
        self.world.counts[harm] += 1
        with self._harmed(harm):
            pass

    @rule()
    @step
    def recover(self) -> None:
        """Of a run that goes forward."""
        if self._goes_forward():
            self._recover()

    @rule()
    @step
    def turn_back(self) -> None:
        """New submissions go to the table, and a run that goes back takes the place of the open one."""
        self._turn_back()

    def _turn_back(self) -> None:
        run = self.scene.ledger.open_run()
        if run is None or run.direction == Direction.BACK:
            return
        self._expire()
        lease = self.scene.ledger.take_lease(run, "route", 10)
        SqlRouter(self.scene.engine, self.scene.mapping.route).set_share(lease, 0)
        self.scene.ledger.give_up(lease)
        self.share_now, self.order = 0, None
        self.runs += 1
        open_back(self.scene, f"run-{self.runs}-back", f"stamp-{uuid.uuid4()}")

    @rule(batch=st.integers(1, 6), started=st.sampled_from(["hold", "requeue"]), rows=st.booleans())
    @step
    def come_home(self, batch: int, started: str, rows: bool) -> None:
        """``rows``: as if Redis could not be used, by what the rows say alone."""
        self._turn_back()
        if not self._goes_back():
            return
        words = ("--rows",) if rows else ()
        self.by_rows |= rows
        self._moved(self._mover("--batch", str(batch), "--started", started, *words))

    @rule()
    @step
    def take_it_back(self) -> None:
        """The undo of a run, which is there while nothing was released."""
        run = self.scene.ledger.open_run()
        if run is None or self._stamp() != run.generation:
            return
        if self.scene.sql("SELECT 1 FROM sluice_task WHERE run_id = :run AND mark <> 'claimed' LIMIT 1", run=run.id):
            return
        self._expire()
        self.order = None
        if run.direction == Direction.BACK:
            undo(self.scene)
            return
        lease = self.scene.ledger.take_lease(run, "undo", 10)
        queues = RqQueues(self.scene.client, self.scene.mapping)
        abort(SqlTable(self.scene.engine, self.scene.mapping), queues, lease)
        queues.clear_stamp()
        self.scene.ledger.set_phase(lease, Phase.ABORTED, FENCED)
        self.scene.ledger.give_up(lease)

    @rule()
    @step
    def clean_up(self) -> None:
        """The end of a run that has brought everything home; then there is none."""
        if self._goes_back():
            self._cleaned_up()

    def _cleaned_up(self) -> bool:
        """False when tasks are held: an operator would have to decide on them first."""
        self._expire()
        back = Rollback(self.scene)
        back.bring_home()
        if self.scene.ledger.held():
            self.scene.ledger.give_up(back.lease)
            return False
        clean_up(self.scene, back, self.scene.directory)
        return True

    # -- how it is done -----------------------------------------------------------------------------------------

    def _goes_back(self) -> bool:
        run = self.scene.ledger.open_run()
        return run is not None and run.direction == Direction.BACK

    def _goes_forward(self) -> bool:
        run = self.scene.ledger.open_run()
        return run is not None and run.direction == Direction.FORWARD

    def _stamp(self) -> str:
        return str(RqQueues(self.scene.client, self.scene.mapping).read_stamp()[0])

    def _open_forward(self) -> None:
        """What the preparation does, if no run is open."""
        if self.scene.ledger.open_run() is not None:
            return
        self.runs += 1
        run = Run(
            f"run-{self.runs}",
            self.scene.mapping.system,
            Direction.FORWARD,
            "tester",
            Phase.OPENED,
            "",
            "",
            f"stamp-{uuid.uuid4()}",
            datetime.now(UTC),
            None,
            {},
        )
        self.scene.ledger.start_run(run)
        self._expire()
        lease = self.scene.ledger.take_lease(run, "preparation", 5)
        RqQueues(self.scene.client, self.scene.mapping).stamp(lease)
        self.scene.ledger.give_up(lease)

    def _expire(self) -> None:
        """As if the lease of whoever died or stands still had run out."""
        self.scene.sql("UPDATE sluice_lease SET expires_at = '2000-01-01'")

    def _start(self, module: str, *arguments: str, skew: int = 0, slow: bool = False) -> Child:
        self.processes += 1
        env_file = self.slow_env if slow else self.scene.env_file
        return self.world.nursery(skew if skew in self.world.skews else 0).start(
            module,
            *arguments,
            environment={"CAPTIONS_ENV_FILE": str(env_file), **self.world.mover_environment},
            output=self.scene.directory / f"child-{self.processes}",
        )

    def _mover(self, *options: str, skew: int = 0) -> Child:
        """The operator's command for the open run."""
        self._expire()
        if self._goes_back():
            options = options if "--rows" in options else ("--back", *options)
        elif self.order is None and not self.bereft:
            waiting = {task_id for ids in self.scene.queued().values() for task_id in ids}
            later = {row[0] for row in self.scene.sql("SELECT id FROM caption_tasks WHERE available_at > NOW(6)")}
            self.order = {
                queue: [task_id for task_id in ids if task_id not in waiting | later]
                for queue, ids in self.scene.claim_order().items()
            }
            self.touched = set()
        return self._start("mover", "--lease-seconds", "5", *options, skew=skew)

    def _moved(self, mover: Child, *, killed: bool = False) -> int:
        """Its end must be a good one, a refusal in one message, or the kill."""
        status = mover.wait()
        self.world.counts["movers"] += 1
        for line in self.world.lines.values():
            line.mend()
        said = mover.said("out") + mover.said("err")
        assert status in (0, REFUSED, *((-signal.SIGKILL,) if killed else ())), f"exit status {status}: {said}"
        assert "Traceback" not in said, said
        if status == REFUSED:
            self.world.counts["refusals"] += 1
            assert len(said.splitlines()) == 1, said
            assert "Next: " in said, said
        if status == 0 and self._goes_forward():
            self._in_order()
        return status

    def _in_order(self) -> None:
        """What was ready when the first mover began has come out in the order of claiming."""
        if self.order is None:
            return
        for queue, ids in self.scene.queued().items():
            wanted = [task_id for task_id in self.order[queue] if task_id in ids and task_id not in self.touched]
            assert [task_id for task_id in ids if task_id in set(wanted)] == wanted, f"the order of {queue}"
        self.order = None

    @contextlib.contextmanager
    def _harmed(self, harm: str) -> Iterator[None]:
        """A store in a bad state for as long as the context lasts; afterwards it is as before, less what was lost."""
        world = self.world
        disk = {"redis' disk is full": "redis", "the database's disk is full": "database"}.get(harm)
        match harm:
            case "its connections are cut":
                for line in world.lines.values():
                    line.cut()
            case "redis is killed and restarted":
                world.redis.kill()
                world.redis.start()
            case "redis is emptied":
                self.scene.client.flushall()
                self.bereft, self.order = True, None
            case "redis is away":
                world.redis.kill()
            case "the database is killed and restarted":
                world.mariadb.kill()
                world.mariadb.start()
            case "the database is away":
                world.mariadb.kill()
        if disk in world.disks:
            world.disks[disk].fill(leave=20_000)
        try:
            yield
        finally:
            if disk in world.disks:
                world.disks[disk].give_back()
            world.redis.start()
            world.mariadb.start()
        if disk == "redis" and disk in world.disks:
            until(lambda: self.scene.client.info("persistence")["aof_last_write_status"] == "ok", what="room for Redis")

    def _recover(self) -> None:
        run = self.scene.ledger.open_run()
        assert run is not None
        self._expire()
        self.order = None
        queues = RqQueues(self.scene.client, self.scene.mapping)
        lease = self.scene.ledger.take_lease(run, "recover", 30)
        if queues.read_stamp()[0] != run.generation:
            queues.restamp(lease, self.scene.ledger.next_batch(lease) - 1)
        source = SqlTable(self.scene.engine, self.scene.mapping)
        recover(self._verification(run), source, queues, self.scene.ledger, lease, prove_fence=lambda: FENCED)
        self.scene.ledger.give_up(lease)

    def _verification(self, run: Run) -> Verification:
        source = SqlTable(self.scene.engine, self.scene.mapping)
        queues = RqQueues(self.scene.client, self.scene.mapping)
        return Verification(source, queues, self.scene.ledger, SystemClock(), self.scene.mapping, run.id)

    # -- the end ------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if not self.steps.failed and self.tasks:
                self._judged()
        finally:
            for child in self.frozen:
                child.send(signal.SIGKILL)
                child.wait()
            for line in self.world.lines.values():
                line.mend()
            self.app.dispose()
            self.scene.close()
            self.world.ended(len(self.tasks), time.monotonic() - self.begun)

    @step
    def _judged(self) -> None:
        """Every invariant, on what the sequence has left; then all is brought to its end and judged again."""
        while self.frozen:
            mover = self.frozen.pop(0)
            mover.send(signal.SIGCONT)
            self._moved(mover)
        self._seen_by_the_oracle(in_flight=True)
        self._finish_the_run()
        self._sides_agree()
        self._let_time_pass()
        self._work_everything_off()
        self._seen_by_the_oracle(in_flight=False)
        for task_id, known in self.tasks.items():
            self._as_promised(task_id, known)

    def _seen_by_the_oracle(self, *, in_flight: bool) -> None:
        self.scene.seeded.write_text("".join(f"{task_id}\n" for task_id in self.tasks))
        self.scene.accepted.write_text("")
        with Journal(self.scene.accepted) as journal:
            for task_id, known in self.tasks.items():
                if known.cancelled:
                    journal.append({"cancel": task_id, "status": 200, "at": time.time()})
        found = look(self.scene.evidence(), Allowances(kills=self.kills, held=True, in_flight=in_flight, failed=False))
        uncertain = {task_id for task_id, known in self.tasks.items() if known.uncertain}
        retried = {task_id for task_id, known in self.tasks.items() if known.retried}
        excused = {
            # Nobody may give these to anybody: the worker died over them.
            "unfinished": uncertain,
            "effect_without_completion": uncertain,
            # Cancelled and submitted again while its first job waits: whoever comes second is turned away.
            "two_homes": set(self.tasks) if in_flight and self.by_rows else retried,
            "cancelled_unasked": retried,
            "started_early": self._started_by_a_wrong_clock(),
        }
        for kind, ids in found.violations.items():
            left = set(ids) - excused.get(kind, set())
            assert not left, f"{kind}: {sorted(left)}\n{found.table()}"

    def _started_by_a_wrong_clock(self) -> set[str]:
        effects = read_effects([self.scene.effects])
        return {
            task_id
            for task_id, history in effects.tasks.items()
            if any(CLOCK_OFF in mark.runner for mark in history.starts)
        }

    def _finish_the_run(self) -> None:
        """The operator types the same command until it is done."""
        if self._goes_back():
            self._until_done()
        else:
            self._open_forward()
            if self.bereft:
                self._rq_looks_after_itself()
                self._recover()
            self._until_done()
        run = self.scene.ledger.open_run()
        assert run is not None
        found = self._verification(run).balance().balance
        assert found.known >= len(self.tasks), "the balance does not know every task"
        assert found.holds, f"the balance does not hold: {found.faults}"
        # A run that goes back has them in its manifest, which the cleanup deletes.
        returned = {member.decode() for member in self.scene.client.smembers("sluice:{captions}:returned")}
        assert not self.scene.staged() - returned, "stages are left"

    def _until_done(self) -> None:
        for _ in range(4):
            if self._moved(self._mover("--batch", "5")) == 0:
                return
        raise AssertionError("the same command does not finish, although both stores are well")

    def _rq_looks_after_itself(self) -> None:
        """What RQ's maintenance does minutes later with jobs whose worker died; their time is brought forward."""
        for queue in QUEUES:
            key = f"rq:wip:{queue}"
            for member in self.scene.client.zrange(key, 0, -1):
                self.scene.client.zadd(key, {member: 1})
            StartedJobRegistry(queue, connection=self.scene.client, serializer=JSONSerializer).cleanup()

    def _sides_agree(self) -> None:
        """Row, ledger and RQ name one owner for each task, and nothing is left in between."""
        rows = {row.id: row for row in self.scene.sql("SELECT id, custody, status FROM caption_tasks")}
        marks = {row.task_id: row.mark for row in self.scene.sql("SELECT task_id, mark FROM sluice_task")}
        assert rows.keys() == self.tasks.keys()
        back = self._goes_back()
        for task_id, row in rows.items():
            if row.status in ("completed", "failed", "cancelled"):
                continue
            mark, known = marks.get(task_id), self.tasks[task_id]
            assert mark != Mark.CLAIMED, f"{task_id} is claimed by nobody"
            assert (row.custody == "held") == (mark == Mark.HELD), f"{task_id}: {row}, the ledger says {mark}"
            if not known.retried:
                owner = {Mark.MOVED: "rq", Mark.RETURNED: "db"}.get(Mark(mark)) if mark else None
                assert owner in (None, row.custody), f"{task_id}: {row}, the ledger says {mark}"
            if row.status == "queued" and row.custody != "held":
                assert row.custody == ("db" if back else "rq"), f"{task_id} was left behind: {row}"
        for seen in self.scene.ledger.held():
            known = self.tasks[seen.id]
            assert known.uncertain or (known.retried and seen.where == _FIRST_JOB), f"held without need: {seen}"

    def _let_time_pass(self) -> None:
        """Every delayed task has kept its time; then that time comes."""
        client = self.scene.client
        scheduled = {
            member.decode(): (queue, score)
            for queue in QUEUES
            for member, score in client.zrange(f"rq:scheduled:{queue}", 0, -1, withscores=True)
        }
        for row in self.scene.sql("SELECT id, custody, available_at, enqueued_at FROM caption_tasks"
                                  " WHERE status = 'queued' AND available_at > NOW(6)"):  # fmt: skip
            assert row.available_at == self.tasks[row.id].due, f"{row.id} has another time than its user was promised"
            if row.custody == "rq" and row.enqueued_at is not None:
                assert row.id in scheduled, f"{row.id} waits for no time in RQ"
                due = row.available_at.replace(tzinfo=UTC).timestamp()
                assert 0 <= scheduled[row.id][1] - due < 1.001, f"{row.id} is scheduled for another time"
        self.scene.sql("UPDATE caption_tasks SET available_at = created_at WHERE available_at > NOW(6)")
        for task_id, (queue, _) in scheduled.items():
            client.zadd(f"rq:scheduled:{queue}", {task_id: 1})
        scheduler = RQScheduler(QUEUES, connection=client, serializer=JSONSerializer, logging_level="WARNING")
        scheduler.acquire_locks()  # type: ignore[no-untyped-call]
        scheduler.enqueue_scheduled_jobs()  # type: ignore[no-untyped-call]
        scheduler.release_locks()  # type: ignore[no-untyped-call]

    def _work_everything_off(self) -> None:
        query = "SELECT id FROM caption_tasks WHERE custody = 'rq' AND status = 'queued' AND enqueued_at IS NULL"
        for row in self.scene.sql(query):
            outbox.place_row(self.app, self.placer, row.id)
        if any(self.scene.queued().values()):
            worker = self._start("queue_worker", "--name", "last", "--burst", "--simple", *QUEUES)
            assert worker.wait() == 0, worker.said("err")
        while legacy.run_guarded_once(self.settings, self.app, self.effects):
            pass

    def _as_promised(self, task_id: str, known: Known) -> None:
        [row] = self.scene.sql("SELECT status, custody, error FROM caption_tasks WHERE id = :id", id=task_id)
        if known.cancelled:
            assert row.status == "cancelled", f"{task_id} was cancelled: {row}"
        elif not known.uncertain and not (known.retried and row.custody == "held"):
            assert row.status == "completed", f"{task_id}: {row}"


# -- for a time --------------------------------------------------------------------------------------------------------


def run_for(
    world: World,
    seconds: float,
    seed: int,
    *,
    machine: type[Campaign] = Campaign,
    first_round: int = 0,
    sequences: int = 20,
    shrink: bool = True,
) -> None:
    """Rounds of sequences, each with a seed of its own, until the time is over; at least one round.

    :raises AssertionError: or whatever else the shortest failing sequence ends with
    """
    Campaign.world = world
    world.failed = False
    begun = world.begun = world.told = time.monotonic()
    number = world.round = first_round
    while number == first_round or time.monotonic() - begun < seconds:
        chosen = hypothesis.seed(seed * 1_000_003 + number)(type("Round", (machine,), {}))
        try:
            run_state_machine_as_test(
                chosen,
                settings=settings(
                    max_examples=sequences,
                    stateful_step_count=12,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                    report_multiple_bugs=False,
                    print_blob=False,
                    phases=[HypothesisPhase.generate, *([HypothesisPhase.shrink] if shrink else [])],
                ),
            )
        except BaseException as error:
            error.add_note(f"found in round {number}: scripts/campaign --seed {seed} --first-round {number}")
            raise
        number = world.round = number + 1
    world.tell_how_far()


def main() -> int:
    """Exit status 0 when every sequence kept every promise."""
    parser = argparse.ArgumentParser(prog="scripts/campaign", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first-round", type=int, default=0, help="begin there: a failure names its round")
    parser.add_argument("--no-shrink", action="store_true", help="print a failing sequence as it was drawn")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the stores are ours to end
    verify.SECONDS_BETWEEN_LOOKS = 0.0  # nothing moves while a balance is taken here
    with tempfile.TemporaryDirectory(prefix="sluice-campaign-") as directory:
        world = World(Path(directory), functools.partial(print, flush=True))
        try:
            if len(world.disks) < 2:
                print("no full disks: only root may mount a small one")
            if world.skews == (0,):
                print("no clocks that are off: libfaketime is not installed (Debian: faketime)")
            run_for(
                world,
                options.seconds,
                options.seed,
                first_round=options.first_round,
                shrink=not options.no_shrink,
            )
        except KeyboardInterrupt:
            world.tell("ended from outside")
        finally:
            world.close()
            for name, number in sorted(world.counts.items()):
                print(f"  {name.replace('_', ' '):<40}{number:>8}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
