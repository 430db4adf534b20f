"""The balance of a run: every id that was ever known, in exactly one place, by identity.

On live traffic the stores are read target, source, target; an id that does not come out in one term is then looked at
alone, and is a violation only when three looks two seconds apart agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from ..core.balance import Account, Balance, Evidence, Rules, Term, account, homes_of
from ..core.mapping import TaskMapping
from ..core.tasks import Mark, Place, Sighting, job_id_for
from ..core.verdicts import Check, Gate
from ..ports.ledger import Ledger
from ..ports.preparation import Progress, unheard
from ..ports.surroundings import Clock
from .streams import Seen, grouped, sorted_stream

LOOKS = 3
SECONDS_BETWEEN_LOOKS = 2.0
#: More suspicious ids than this are not looked at one by one: the stores disagree at large.
MOST_LOOKED_AT = 2000
_CAP = 50
#: Observations between two heartbeats; on slow stores too they must not be ten seconds apart.
HEARTBEAT = 2_000


class LookingSource(Protocol):
    """A source that can be read as a whole and asked for single ids."""

    def census(self) -> Iterator[Sighting]:
        """Every row with its place."""

    def look(self, ids: Sequence[str]) -> dict[str, Sighting]:
        """The rows of these ids now; a missing row is left out."""


class LookingTarget(Protocol):
    """A target that can be read as a whole and asked for single ids."""

    def census(self) -> Iterator[Sighting]:
        """Every home of every job, and every hash."""

    def look(self, job_id: str) -> list[Sighting]:
        """Every sighting of one job now."""

    def marked(self, job_ids: Sequence[str]) -> Sequence[bool]:
        """Whether each was activated by us."""


@dataclass(frozen=True, slots=True)
class Expected:
    """How many observations there will be, roughly and in the order of reading; for the time left and nothing else."""

    target: int = 0
    rows: int = 0
    marks: int = 0
    baseline: int = 0


@dataclass(frozen=True, slots=True)
class Verified:
    """The balance, and how many ids needed a second look."""

    balance: Balance
    looked_at: int


def rules_of(mapping: TaskMapping) -> Rules:
    """What the balance may rely on for this mapping."""
    return Rules(
        custody_in_row=Place.MOVED in mapping.source.places,
        journal=mapping.source.journal,
        forgets=not mapping.source.journal,
    )


class Verification:
    """Takes the balance of one run."""

    def __init__(
        self,
        source: LookingSource,
        target: LookingTarget,
        ledger: Ledger,
        clock: Clock,
        mapping: TaskMapping,
        run_id: str,
        *,
        heartbeat: Callable[[], None] = lambda: None,
        progress: Progress = unheard,
        stage: Callable[[str], None] = lambda _: None,
        expected: Expected | None = None,
    ) -> None:
        """``heartbeat`` is called now and then while the stores are read: to renew a lease.

        :param progress: told as often, in observations (in looks, while single ids are looked at)
        :param expected: what the total of a reading is estimated from; without it the total is 0
        :param stage: told ``reading``, ``comparing`` or ``looking again`` before each is counted anew
        """
        self.source = source
        self.target = target
        self.ledger = ledger
        self.clock = clock
        self.mapping = mapping
        self.run_id = run_id
        self.heartbeat = heartbeat
        self.progress = progress
        self.stage = stage
        self.expected = expected
        self._observed = 0
        self.rules = rules_of(mapping)

    def balance(self) -> Verified:
        """Read everything and account for each id. Memory does not grow with the number of tasks."""
        counts = dict.fromkeys(Term, 0)
        suspects: list[Evidence] = []
        overflow = 0
        known = 0
        for seen in self.evidence():
            entry = account(seen, self.rules)
            known += 1
            if entry.term is not None:
                counts[entry.term] += 1
            elif len(suspects) < MOST_LOOKED_AT:
                suspects.append(seen)
            else:
                overflow += 1
        settled, faults = self._look_again(suspects)
        for term in settled:
            counts[term] += 1
        balance = Balance(known, counts, len(faults) + overflow, tuple(faults[:_CAP]))
        return Verified(balance, len(suspects))

    def evidence(self) -> Iterator[Evidence]:
        """All that is seen of each known id in one reading of the stores, in the order of the ids."""
        compared = told = 0
        for _, group in grouped(sorted_stream(self._observations())):
            if not compared:
                self.stage("comparing")  # sorting has read everything before it gives the first
            if not compared or compared - told >= HEARTBEAT:
                self._tell(compared, self._observed)
                told = compared
            compared += len(group)
            yield self._evidence(group)

    def _observations(self) -> Iterator[Seen]:
        """Target, source, target: a job that moves on while we read is seen at one of its places or at both."""

        def key(task_id: str) -> str:
            return job_id_for(self.mapping.system, task_id)

        before = (("t1", s) for s in self.target.census())
        rows = (("s", Sighting(key(s.id), s.place, f"{s.where}:{s.id}")) for s in self.source.census())
        after = (("t2", s) for s in self.target.census())
        marks = (("m", Sighting(s.where or key(s.id), s.place)) for s in self.ledger.marks())
        baseline = (("b", Sighting(key(s.id), s.place, s.id)) for s in self.ledger.baseline(self.run_id))
        guess = self.expected or Expected()
        to_come = {"t1": guess.target, "s": guess.rows, "t2": guess.target, "m": guess.marks, "b": guess.baseline}
        reading, past, number = "t1", 0, -1
        self.stage("reading")
        for number, (kind, seen) in enumerate(chain(before, rows, after, marks, baseline)):
            if kind != reading:
                if reading == "t1":
                    to_come["t2"] = number
                while next(iter(to_come)) != kind:
                    del to_come[next(iter(to_come))]
                reading, past = kind, number
            if number % HEARTBEAT == 0:
                later = sum(to_come.values()) - to_come[kind]
                self._tell(number, max(number, past + to_come[kind]) + later if self.expected else 0)
            yield (seen.id, kind, str(seen.place), seen.where)
        self._observed = number + 1

    def _tell(self, done: int, total: int) -> None:
        self.heartbeat()
        self.progress(done, total)

    def _evidence(self, group: Iterable[Seen]) -> Evidence:
        first: list[tuple[str, str]] = []
        second: list[tuple[str, str]] = []
        place: Place | None = None
        baseline = False
        pending = task_id = ""
        mark: Mark | None = None
        key = ""
        for key, kind, word, where in group:  # noqa: B007
            match kind:
                case "t1":
                    first.append((word, where))
                case "t2":
                    second.append((word, where))
                case "s":
                    place = Place(word)
                    pending, _, task_id = where.partition(":")
                case "m":
                    mark = Mark(word)
                case _:
                    baseline, task_id = True, where
        homes = homes_of(second) or homes_of(first)
        marked = False
        if not homes and mark is Mark.MOVED and self.rules.forgets:
            marked = bool(self.target.marked([key])[0])
        return Evidence(key, place, pending == "pending", mark, homes, baseline, marked, task_id or key)

    def _look_again(self, suspects: Sequence[Evidence]) -> tuple[list[Term], list[Account]]:
        """Up to three looks at each suspicious id; settled as soon as one look puts it in exactly one term."""
        settled: list[Term] = []
        faulty = [(seen, account(seen, self.rules)) for seen in suspects]
        for look in range(LOOKS):
            if not faulty:
                break
            if look:
                self.clock.wait(SECONDS_BETWEEN_LOOKS)
            self.stage("looking again")
            still = []
            rows = self.source.look([seen.task_id for seen, _ in faulty])
            for number, (seen, _) in enumerate(faulty):
                self._tell(number, len(faulty))
                now = self._now(seen, rows)
                entry = account(now, self.rules)
                if entry.term is None:
                    still.append((now, entry))
                else:
                    settled.append(entry.term)
            faulty = still
        return settled, [entry for _, entry in faulty]

    def _now(self, seen: Evidence, rows: dict[str, Sighting]) -> Evidence:
        row = rows.get(seen.task_id)
        homes = homes_of((s.place, s.where) for s in self.target.look(seen.id))
        marked = bool(self.target.marked([seen.id])[0]) if not homes and self.rules.forgets else False
        return Evidence(
            seen.id,
            None if row is None else Place(row.place),
            row is not None and row.where == "pending",
            seen.mark,
            homes,
            seen.baseline,
            marked,
            seen.task_id,
        )


def balance_gate(verified: Verified, *, left_at_source: int) -> Gate:
    """The gate 'balance': nothing at fault, nothing left ready or delayed at the side that was left."""
    balance = verified.balance
    faults = "; ".join(f"{entry.id}: {entry.fault}" for entry in balance.faults[:5])
    more = f" and {balance.fault_count - 5} more" if balance.fault_count > 5 else ""
    return Gate(
        "balance",
        (
            Check.of(
                "every id in exactly one place",
                balance.holds,
                f"{balance.known} known, {balance.fault_count} at fault" + (f": {faults}{more}" if faults else ""),
                "if Redis lost jobs, or gave one to a worker whose host was gone, run playbooks/recover.yml: it places "
                "again what has not started; else look at the ids named here before going on.",
            ),
            Check.of(
                "nothing left at the source",
                left_at_source == 0,
                f"{left_at_source} ready or delayed at the source",
                "run playbooks/migrate.yml again: it moves stragglers.",
            ),
        ),
    )
