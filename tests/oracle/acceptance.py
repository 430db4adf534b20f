"""What the application promised: the accepted log of the load generator, the prober's log, and seeded ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from oracle.journal import Damage, read_records


@dataclass
class Acceptance:
    """Promises by identity.

    tasks: ids answered with 201, and ids seeded into the table; each must have its one effect.
    ambiguous_users: users whose submission got no answer; their task may exist, and if it does it counts as promised.
    cancelled: id -> time (epoch seconds) at which the application confirmed the cancellation.
    perhaps_cancelled: ids whose cancellation got no clear answer.
    twice: ids handed out for two submissions.
    turned_away: submissions answered with a refusal.
    """

    tasks: set[str] = field(default_factory=set)
    ambiguous_users: set[int] = field(default_factory=set)
    cancelled: dict[str, float] = field(default_factory=dict)
    perhaps_cancelled: set[str] = field(default_factory=set)
    twice: set[str] = field(default_factory=set)
    turned_away: int = 0
    damage: Damage = field(default_factory=lambda: Damage(0, []))


def read_acceptance(logs: Iterable[Path], seeded: Iterable[Path] = ()) -> Acceptance:
    """Read accepted logs, prober logs (both are JSON lines) and plain lists of seeded ids, one a line."""
    promised = Acceptance()
    for log in logs:
        for record in read_records(log, promised.damage):
            if "cancel" in record:
                _note_cancellation(promised, str(record["cancel"]), int(record["status"]), float(record["at"]))
            elif "ambiguous" in record:
                promised.ambiguous_users.add(int(record["ambiguous"]))
            elif record.get("task") is not None:
                task = str(record["task"])
                if task in promised.tasks:
                    promised.twice.add(task)
                promised.tasks.add(task)
            else:
                promised.turned_away += 1
    for listing in seeded:
        with listing.open(encoding="ascii") as lines:
            promised.tasks.update(task for task in map(str.strip, lines) if task)
    return promised


def _note_cancellation(promised: Acceptance, task: str, status: int, at: float) -> None:
    if status == 200:
        promised.cancelled[task] = at
    elif status == 202 or status == 0 or status >= 500:
        promised.perhaps_cancelled.add(task)


def next_user(log: Path, first: int) -> int:
    """The first user number not used in an existing log, never below `first`: a second session needs fresh users."""
    if not log.exists():
        return first
    used = first - 1
    for record in read_records(log, Damage(0, [])):
        for key in ("user", "ambiguous", "refused"):
            if isinstance(record.get(key), int):
                used = max(used, record[key])
    return used + 1
