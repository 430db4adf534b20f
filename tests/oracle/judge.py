"""Compares what was promised, what was done and what the stores hold, id by id.

`judge` is pure over its arguments; `python -m oracle.judge` reads files and stores and exits 1 on any violation.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pymysql
import redis

from oracle.acceptance import Acceptance, read_acceptance
from oracle.effects import Effects, History, read_effects
from oracle.stores import Row, TableFacts, places, rows, unfinished

MEANINGS: dict[str, str] = {
    "lost": "promised, and neither in the database nor in Redis",
    "unfinished": "promised, still waiting or running at the end",
    "held": "taken out of circulation and undecided",
    "doubled": "more than one completed effect",
    "started_again": "started again after its effect was complete",
    "started_twice": "started again without a kill that explains it",
    "ended_without_start": "an end whose worker never started it",
    "unknown": "an effect of an id that nobody was promised",
    "completed_without_effect": "the row says completed, no worker wrote an end",
    "effect_without_completion": "a worker wrote an end, the row does not say completed",
    "ran_after_cancellation": "started after the application confirmed its cancellation",
    "cancellation_undone": "cancellation confirmed, the row says otherwise",
    "cancelled_unasked": "the row says cancelled, nobody asked for it",
    "failed": "the row says failed",
    "started_early": "started before the time for which it was submitted",
    "two_homes": "waiting in more than one place",
    "id_given_twice": "one id answered to two submissions",
    "unreadable": "complete lines of a log that are no record",
}
# RQ keeps scheduled times in whole seconds, and a worker may have claimed just before a cancellation was confirmed.
EARLY_TOLERANCE_SECONDS = 1.1
CANCEL_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True)
class Allowances:
    """What a test expects besides a clean history.

    kills: workers killed in mid-task; each explains one interrupted attempt, or one end that was never written.
    attempts: starts that the application allows a task whose work fails.
    held, failed: whether such tasks may exist at the end.
    in_flight: judge a moving system: waiting, half-told and not yet logged tasks are no violations.
    canary_users: first and last user number of tasks that others submit; known, but nobody waits for them.
    """

    kills: int = 0
    attempts: int = 1
    held: bool = False
    failed: bool = False
    in_flight: bool = False
    canary_users: tuple[int, int] | None = None


@dataclass
class Verdict:
    """Violations by kind and id, and the figures of the comparison."""

    violations: dict[str, list[str]] = field(default_factory=dict)
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether nothing was violated."""
        return not self.violations

    def add(self, kind: str, task: str) -> None:
        """Record a violation of a kind of MEANINGS."""
        if kind not in MEANINGS:
            raise KeyError(kind)
        self.violations.setdefault(kind, []).append(task)

    def table(self, most: int = 10) -> str:
        """A short table: the figures, then each violation with up to `most` ids."""
        lines = [f"  {name.replace('_', ' '):<28}{number:>10}" for name, number in self.figures.items()]
        for kind, tasks in self.violations.items():
            lines.append(f"  VIOLATION {kind.replace('_', ' '):<28}{len(tasks):>10}  {MEANINGS[kind]}")
            lines += [f"      {task}" for task in sorted(tasks)[:most]]
            if len(tasks) > most:
                lines.append(f"      and {len(tasks) - most} more")
        lines.append("  verdict: " + ("clean" if self.clean else "VIOLATED"))
        return "\n".join(lines)


def judge(
    promised: Acceptance,
    effects: Effects,
    table: Iterable[Row],
    facts: TableFacts | None = None,
    homes: Mapping[str, list[str]] | None = None,
    allowed: Allowances | None = None,
) -> Verdict:
    """Compare promises, effects and rows by identity.

    homes: where Redis has each id, as `stores.places` gives it; None when Redis was not read, then a row that says
    it is in RQ is taken at its word (and is `unfinished` unless the system is in flight).
    """
    return _Comparison(promised, effects, facts or TableFacts(), homes, allowed or Allowances()).run(table)


class _Comparison:
    def __init__(
        self,
        promised: Acceptance,
        effects: Effects,
        facts: TableFacts,
        homes: Mapping[str, list[str]] | None,
        allowed: Allowances,
    ) -> None:
        self.promised = promised
        self.effects = effects
        self.facts = facts
        self.homes = homes
        self.allowed = allowed
        self.verdict = Verdict()
        self.to_explain: dict[str, list[str]] = {"started_twice": [], "completed_without_effect": []}
        self.seen: set[str] = set()
        self.known_by_user: set[str] = set()
        self.states: dict[str, int] = {}

    def run(self, table: Iterable[Row]) -> Verdict:
        for row in table:
            self._row(row)
        self._missing_rows()
        self._unpromised_effects()
        for task in sorted(self.promised.twice):
            self.verdict.add("id_given_twice", task)
        for place in self.promised.damage.malformed + self.effects.damage.malformed:
            self.verdict.add("unreadable", place)
        explained = self._spend_kills()
        self.verdict.figures = {
            "promised": len(self.promised.tasks),
            "without_answer_but_present": len(self.known_by_user),
            "turned_away": self.promised.turned_away,
            "cancellations_confirmed": len(self.promised.cancelled),
            **{f"rows_{state}": number for state, number in sorted(self.states.items())},
            "starts": self.effects.starts,
            "ends": self.effects.ends,
            "explained_by_kills": explained,
            "torn_lines": self.promised.damage.torn + self.effects.damage.torn,
        }
        return self.verdict

    def _row(self, row: Row) -> None:
        waited_for = row.id in self.promised.tasks
        if not waited_for and row.user is not None:
            canaries = self.allowed.canary_users
            if row.user in self.promised.ambiguous_users:
                self.known_by_user.add(row.id)
                waited_for = True
            elif canaries is not None and canaries[0] <= row.user <= canaries[1]:
                self.known_by_user.add(row.id)
        if not waited_for and row.id not in self.known_by_user:
            return
        self.seen.add(row.id)
        held = row.custody == "held"
        state = "held" if held and row.status not in self.facts.terminal else row.status
        self.states[state] = self.states.get(state, 0) + 1
        history = self.effects.tasks.get(row.id, History())
        self._effects_of(row.id, history, failed=row.status == self.facts.failed)
        self._agreement(row, history, held)
        self._cancellation(row, history)
        if waited_for and row.status not in self.facts.terminal:
            self._waiting(row, held)
        # only the last start: the application may move the time when it retries
        last_start = max((mark.at for mark in history.starts), default=math.inf)
        if row.available_at is not None and last_start < row.available_at - EARLY_TOLERANCE_SECONDS:
            self.verdict.add("started_early", row.id)

    def _effects_of(self, task: str, history: History, failed: bool) -> None:
        """What the effects say about a task by themselves."""
        if len(history.ends) > 1:
            self.verdict.add("doubled", task)
        if history.unmatched_ends():
            self.verdict.add("ended_without_start", task)
        if history.repeated_after_effect():
            self.verdict.add("started_again", task)
        interrupted = history.interrupted()
        if failed:
            interrupted = max(0, len(history.starts) - self.allowed.attempts)
        self.to_explain["started_twice"] += [task] * interrupted

    def _agreement(self, row: Row, history: History, held: bool) -> None:
        """Row and effects must tell the same story."""
        if row.status == self.facts.completed:
            if not history.ends:
                if history.starts:
                    self.to_explain["completed_without_effect"].append(row.id)
                else:
                    self.verdict.add("completed_without_effect", row.id)
        elif history.ends and row.status != self.facts.cancelled and not held:
            # a worker killed between its two writes leaves this, which is why a held row is only reported as held
            if row.status in self.facts.terminal or not self.allowed.in_flight:
                self.verdict.add("effect_without_completion", row.id)
        if row.status == self.facts.failed and not self.allowed.failed:
            self.verdict.add("failed", row.id)

    def _cancellation(self, row: Row, history: History) -> None:
        confirmed = self.promised.cancelled.get(row.id)
        if confirmed is not None:
            if row.status != self.facts.cancelled:
                self.verdict.add("cancellation_undone", row.id)
            if any(start.at > confirmed + CANCEL_TOLERANCE_SECONDS for start in history.starts):
                self.verdict.add("ran_after_cancellation", row.id)
        elif row.status == self.facts.cancelled and row.id not in self.promised.perhaps_cancelled:
            # in flight, the answer to the cancellation may not be logged yet
            if not self.allowed.in_flight:
                self.verdict.add("cancelled_unasked", row.id)

    def _waiting(self, row: Row, held: bool) -> None:
        """A promised task that is not terminal must be in exactly one place."""
        if not self.allowed.in_flight:
            if not held:
                self.verdict.add("unfinished", row.id)
            elif not self.allowed.held:
                self.verdict.add("held", row.id)
        if self.homes is None:
            return
        ready = [key for key in self.homes.get(row.id, ()) if _is_waiting_place(key)]
        if len(ready) > 1 or (ready and row.custody in ("db", "held")):
            self.verdict.add("two_homes", row.id)
        nowhere = row.custody == "rq" and row.enqueued and row.id not in self.homes
        if nowhere and not self.allowed.in_flight:
            self.verdict.add("lost", row.id)

    def _missing_rows(self) -> None:
        for task in sorted(self.promised.tasks - self.seen):
            history = self.effects.tasks.get(task, History())
            self._effects_of(task, history, failed=False)
            if self.facts.forgets and history.ends:
                continue
            if self.facts.forgets and self.homes is not None and task in self.homes:
                if not self.allowed.in_flight:
                    self.verdict.add("unfinished", task)
                continue
            self.verdict.add("lost", task)

    def _unpromised_effects(self) -> None:
        if self.allowed.in_flight:  # a task may run before its 201 is in the log
            return
        for task, history in self.effects.tasks.items():
            if task not in self.promised.tasks and task not in self.known_by_user:
                self.verdict.add("unknown", task)
                self._effects_of(task, history, failed=False)

    def _spend_kills(self) -> int:
        """Each kill explains one interrupted attempt; when they do not suffice, every candidate is named."""
        if self.allowed.in_flight:
            self.to_explain["completed_without_effect"].clear()  # its end may be a moment away
        needed = sum(len(tasks) for tasks in self.to_explain.values())
        if needed <= self.allowed.kills:
            return needed
        for kind, tasks in self.to_explain.items():
            for task in sorted(set(tasks)):
                self.verdict.add(kind, task)
        return 0


def _is_waiting_place(key: str) -> bool:
    """Lists of ready jobs and the registries of later ones; `:intermediate` and wip belong to a running job."""
    return (":queue:" in key and not key.endswith(":intermediate")) or ":scheduled:" in key or ":deferred:" in key


@dataclass(frozen=True)
class Evidence:
    """Where everything is that `look` reads. redis_url None: Redis is not read."""

    accepted: tuple[Path, ...]
    effects: tuple[Path, ...]
    db_url: str
    facts: TableFacts = field(default_factory=TableFacts)
    seeded: tuple[Path, ...] = ()
    redis_url: str | None = None
    redis_prefix: str = "rq"


def look(evidence: Evidence, allowed: Allowances | None = None) -> Verdict:
    """Judge the system as it stands now: promises first, then the stores, effects last.

    In this order a moving system cannot make a task look lost or its effect missing.
    """
    promised = read_acceptance(evidence.accepted, evidence.seeded)
    homes = None if evidence.redis_url is None else places(evidence.redis_url, evidence.redis_prefix)
    table = list(rows(evidence.db_url, evidence.facts))
    return judge(promised, read_effects(evidence.effects), table, evidence.facts, homes, allowed)


def look_until_settled(evidence: Evidence, allowed: Allowances, seconds: float) -> Verdict:
    """Wait until every row is terminal or held, then judge; a verdict that is not clean is looked at again until it
    is or the deadline has passed, because the last effects may still be on their way to the file."""
    deadline = time.monotonic() + seconds
    while unfinished(evidence.db_url, evidence.facts) and time.monotonic() < deadline:
        time.sleep(0.5)
    settle = min(deadline, time.monotonic() + 5)
    verdict = look(evidence, allowed)
    while not verdict.clean and time.monotonic() < settle:
        time.sleep(0.5)
        verdict = look(evidence, allowed)
    return verdict


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="oracle.judge", description="Compare promises, effects and stores by id.")
    parser.add_argument("--accepted", type=Path, action="append", default=[], help="accepted log or prober log")
    parser.add_argument("--seeded", type=Path, action="append", default=[], help="list of ids, one a line")
    parser.add_argument(
        "--effects",
        type=Path,
        action="append",
        default=[],
        help="effects file, or a directory of them; default: SLUICE_LAB_EFFECTS_FILE",
    )
    parser.add_argument("--db-url", default=os.environ.get("SLUICE_LAB_DB_URL"), help="default: SLUICE_LAB_DB_URL")
    parser.add_argument("--redis-url", default=None, help="read Redis too; `env` takes SLUICE_LAB_REDIS_URL")
    parser.add_argument("--redis-prefix", default="rq")
    parser.add_argument("--table", default="caption_tasks")
    parser.add_argument("--kills", type=int, default=0, help="workers killed in mid-task")
    parser.add_argument("--attempts", type=int, default=1, help="starts allowed to a task whose work fails")
    parser.add_argument("--allow-held", action="store_true")
    parser.add_argument("--allow-failed", action="store_true")
    parser.add_argument("--in-flight", action="store_true", help="judge a moving system")
    parser.add_argument("--canary-users", default=None, metavar="FIRST-LAST", help="users whose tasks others submit")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait until all are terminal")
    parser.add_argument("--json", action="store_true", help="print figures and violations as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: clean; 1: violations; 2: no verdict (wrong arguments, or evidence that cannot be read)."""
    parser = _arguments()
    options = parser.parse_args(argv)
    redis_url = os.environ.get("SLUICE_LAB_REDIS_URL") if options.redis_url == "env" else options.redis_url
    if not options.db_url:
        parser.error("no database: give --db-url or set SLUICE_LAB_DB_URL")
    if options.redis_url == "env" and not redis_url:
        parser.error("--redis-url env, but SLUICE_LAB_REDIS_URL is not set")
    if not options.accepted and not options.seeded:
        parser.error("nothing was promised: give --accepted or --seeded")
    if not options.effects:
        if "SLUICE_LAB_EFFECTS_FILE" not in os.environ:
            parser.error("no effects: give --effects or set SLUICE_LAB_EFFECTS_FILE")
        options.effects = [Path(os.environ["SLUICE_LAB_EFFECTS_FILE"])]
    canaries = None
    if options.canary_users:
        first, _, last = options.canary_users.partition("-")
        if not (first.isdigit() and last.isdigit()):
            parser.error("--canary-users reads FIRST-LAST, for example 9000000-9000999")
        canaries = (int(first), int(last))
    evidence = Evidence(
        accepted=tuple(options.accepted),
        effects=tuple(options.effects),
        db_url=options.db_url,
        facts=TableFacts(table=options.table),
        seeded=tuple(options.seeded),
        redis_url=redis_url,
        redis_prefix=options.redis_prefix,
    )
    allowed = Allowances(
        kills=options.kills,
        attempts=options.attempts,
        held=options.allow_held,
        failed=options.allow_failed,
        in_flight=options.in_flight,
        canary_users=canaries,
    )
    try:
        verdict = look_until_settled(evidence, allowed, options.wait) if options.wait else look(evidence, allowed)
    except (OSError, ValueError, pymysql.Error, redis.RedisError) as error:
        print(f"oracle.judge: no verdict, the evidence cannot be read: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"clean": verdict.clean, "figures": verdict.figures, "violations": verdict.violations}))
    else:
        print(verdict.table())
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
