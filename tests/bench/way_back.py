"""The rate of the way back against the way there: the same tasks, the same stores, one after the other."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

from ansible.module_utils.sluice.adapters.rq_source import RqSource
from ansible.module_utils.sluice.adapters.sql_home import SqlHome, SqlJournal
from ansible.module_utils.sluice.core.phases import Direction
from ansible.module_utils.sluice.services.transfer import Moved

from bench.figures import Figure
from bench.stores import LEASE_SECONDS, Ends, Stores, move_all, open_ends

AIM = 0.8


def measure(stores: Stores, tasks: int, repeat: int, say: Callable[[str], None]) -> list[Figure]:
    """Rates in tasks per second, medians of ``repeat`` rounds; each ratio is taken within a round.

    ``queues``: what RQ holds is brought home. ``rows``: Redis is empty, and the rows alone bring it home.
    """
    rates: dict[str, list[float]] = {"forward": [], "queues": [], "rows": []}
    cpu: list[dict[str, float]] = []
    for number in range(1, repeat + 1):
        for kind in ("queues", "rows"):
            with stores.backlog(tasks) as where:
                ends = open_ends(where)
                moved = ends.transfer_all()
                if kind == "queues":
                    rates["forward"].append(tasks / moved.seconds)
                else:
                    with stores.redis.client() as client:
                        client.flushall()
                before = stores.cpu_seconds()
                home = _back(ends, rows=kind == "rows")
                after = stores.cpu_seconds()
                if home.moved != tasks:
                    raise RuntimeError(f"{home.moved} of {tasks} tasks came home: such a rate means nothing")
                rates[kind].append(tasks / home.seconds)
                if kind == "queues":
                    cpu.append({name: after[name] - before[name] for name in after})
                ends.source.engine.dispose()
        say(f"back: round {number} of {repeat}: " + ", ".join(f"{n} {r[-1]:,.0f}/s" for n, r in rates.items()))
    used = ", ".join(f"{name} {statistics.median(row[name] for row in cpu):.2f} s" for name in cpu[0])

    def ratio(kind: str) -> float:
        return statistics.median(back / there for back, there in zip(rates[kind], rates["forward"], strict=True))

    return [
        Figure("back.ratio_vs_forward", ratio("queues"), "x", (">=", AIM)),
        Figure("back.rows_ratio_vs_forward", ratio("rows"), "x", (">=", AIM), "with an empty Redis"),
        Figure("back.forward_tasks_per_second", statistics.median(rates["forward"]), "/s", note=f"{tasks:,} tasks"),
        Figure("back.tasks_per_second", statistics.median(rates["queues"]), "/s", note=f"CPU: {used}"),
        Figure("back.rows_tasks_per_second", statistics.median(rates["rows"]), "/s"),
    ]


def _back(ends: Ends, *, rows: bool) -> Moved:
    """Bring everything home in a run of its own."""
    run = replace(ends.run, id="bench-back", direction=Direction.BACK, generation="stamp-back")
    ends.ledger.take_over(run, ends.run)
    lease = ends.ledger.take_lease(run, "bench", LEASE_SECONDS)
    home = SqlHome(ends.source.engine, ends.mapping)
    leaving = RqSource(ends.target, home, ends.mapping)
    leaving.adopt(lease, [ends.run.generation])
    return move_all(SqlJournal(home) if rows else leaving, home, ends.ledger, lease)
