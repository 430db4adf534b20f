"""What was done: the append-only effects file, one line as a worker starts a task and one as its effect is complete."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from oracle.journal import Damage, read_records


@dataclass(frozen=True, slots=True)
class Mark:
    """One line: when (epoch seconds) and who (`side/worker/pid`)."""

    at: float
    runner: str


@dataclass(slots=True)
class History:
    """All marks of one task, in the order of the file."""

    starts: list[Mark] = field(default_factory=list)
    ends: list[Mark] = field(default_factory=list)

    def side(self) -> str:
        """The side of the first completed effect, else of the last start."""
        mark = self.ends[0] if self.ends else self.starts[-1]
        return mark.runner.split("/", 1)[0]

    def interrupted(self) -> int:
        """Starts that another start followed and that never ended: each needs a kill to explain it."""
        return sum(1 for start in self._repeated() if not self._closed(start))

    def repeated_after_effect(self) -> bool:
        """Whether a start that did end was followed by another start: nothing explains that."""
        return any(self._closed(start) for start in self._repeated())

    def unmatched_ends(self) -> int:
        """Ends of a runner that had not started this task."""
        open_starts: dict[str, int] = {}
        for start in self.starts:
            open_starts[start.runner] = open_starts.get(start.runner, 0) + 1
        unmatched = 0
        for end in self.ends:
            if open_starts.get(end.runner, 0) > 0:
                open_starts[end.runner] -= 1
            else:
                unmatched += 1
        return unmatched

    def _repeated(self) -> list[Mark]:
        return sorted(self.starts, key=lambda mark: mark.at)[:-1]

    def _closed(self, start: Mark) -> bool:
        starts = sorted(mark.at for mark in self.starts if mark.runner == start.runner and mark.at > start.at)
        following = starts[0] if starts else float("inf")
        return any(end.runner == start.runner and start.at <= end.at < following for end in self.ends)


@dataclass
class Effects:
    """The histories by task id, and what could not be read. Memory grows with the number of ids, not with the file."""

    tasks: dict[str, History] = field(default_factory=dict)
    damage: Damage = field(default_factory=lambda: Damage(0, []))

    @property
    def starts(self) -> int:
        """Number of started attempts."""
        return sum(len(history.starts) for history in self.tasks.values())

    @property
    def ends(self) -> int:
        """Number of completed effects."""
        return sum(len(history.ends) for history in self.tasks.values())


def read_effects(paths: Iterable[Path]) -> Effects:
    """Read one or several effects files; a directory stands for the files in it."""
    effects = Effects()
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            for number, record in enumerate(read_records(file, effects.damage), 1):
                try:
                    runner = sys.intern(f"{record['side']}/{record.get('worker', '')}/{record['pid']}")
                    mark = Mark(float(record["at"]), runner)
                    event, task = record["event"], str(record["task"])
                except (KeyError, TypeError, ValueError):
                    effects.damage.malformed.append(f"{file.name}: record {number}")
                    continue
                history = effects.tasks.setdefault(task, History())
                if event == "start":
                    history.starts.append(mark)
                elif event == "end":
                    history.ends.append(mark)
                else:
                    effects.damage.malformed.append(f"{file.name}: record {number}")
    return effects
