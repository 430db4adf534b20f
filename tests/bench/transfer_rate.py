"""Transfer rate against its rivals, on equal backlogs and servers, in turns so that drift hurts all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench.figures import Figure
from bench.rivals import bulk_limit, enqueue_loop, enqueue_many, record
from bench.stores import Addresses, Stores, open_ends

AIM_LOOP, AIM_MANY, AIM_LIMIT = 25.0, 4.0, 0.8
_LOOP_SAMPLE = 3_000
_MANY_SAMPLE = 20_000


def measure(stores: Stores, tasks: int, repeat: int, say: Callable[[str], None]) -> list[Figure]:
    """Rates in tasks per second, each the median of ``repeat`` rounds; ratios are taken within a round."""
    say(f"transfer: a first run of {tasks:,} tasks, not counted: its writes are recorded for the limit")
    with stores.backlog(tasks) as where:
        _transfer(stores, where, tasks)
        recording = record(stores, where)
    rates: dict[str, list[float]] = {"transfer": [], "loop": [], "enqueue_many": [], "limit": []}
    cpu: list[dict[str, float]] = []
    limit_cpu: list[dict[str, float]] = []
    parts: list[dict[str, float]] = []
    for number in range(1, repeat + 1):

        def transfer() -> float:
            with stores.backlog(tasks) as where:
                seconds, used = _transfer(stores, where, tasks)
                cpu.append(used)
                return tasks / seconds

        def limit() -> float:
            with stores.backlog(tasks) as where:
                before = stores.cpu_seconds()
                parts.append(bulk_limit(stores, where, recording))
                limit_cpu.append(_used(before, stores.cpu_seconds()))
                return tasks / sum(parts[-1].values())

        def loop() -> float:
            sample = min(tasks, _LOOP_SAMPLE)
            with stores.backlog(tasks) as where:
                return sample / enqueue_loop(stores, where, sample)

        def many() -> float:
            sample = min(tasks, _MANY_SAMPLE)
            with stores.backlog(tasks) as where:
                return sample / enqueue_many(stores, where, sample)

        turns = {"transfer": transfer, "limit": limit, "loop": loop, "enqueue_many": many}
        # Every other round backwards: what grows slower over a round hurts each once.
        for name in list(turns) if number % 2 else list(reversed(turns)):
            rates[name].append(turns[name]())
        say(f"transfer: round {number} of {repeat}: " + ", ".join(f"{n} {r[-1]:,.0f}/s" for n, r in rates.items()))
    rate = {name: statistics.median(values) for name, values in rates.items()}

    def ratio(name: str) -> float:
        return statistics.median(ours / theirs for ours, theirs in zip(rates["transfer"], rates[name], strict=True))

    def middle(rows: list[dict[str, float]]) -> str:
        return ", ".join(f"{name} {statistics.median(row[name] for row in rows):.2f} s" for name in rows[0])

    return [
        Figure("transfer.ratio_vs_loop", ratio("loop"), "x", (">=", AIM_LOOP)),
        Figure("transfer.ratio_vs_enqueue_many", ratio("enqueue_many"), "x", (">=", AIM_MANY)),
        Figure("transfer.ratio_vs_limit", ratio("limit"), "x", (">=", AIM_LIMIT)),
        Figure("transfer.tasks_per_second", rate["transfer"], "/s", note=f"{tasks:,} tasks; CPU: {middle(cpu)}"),
        Figure("transfer.loop_tasks_per_second", rate["loop"], "/s", note=f"{min(tasks, _LOOP_SAMPLE):,} of them"),
        Figure(
            "transfer.enqueue_many_tasks_per_second",
            rate["enqueue_many"],
            "/s",
            note=f"{min(tasks, _MANY_SAMPLE):,} of them",
        ),
        Figure(
            "transfer.limit_tasks_per_second", rate["limit"], "/s", note=f"{middle(parts)}; CPU: {middle(limit_cpu)}"
        ),
    ]


def _transfer(stores: Stores, where: Addresses, tasks: int) -> tuple[float, dict[str, float]]:
    """Seconds of one whole transfer, and the CPU each process used. RuntimeError when not every task arrived."""
    ends = open_ends(where)
    before = stores.cpu_seconds()
    moved = ends.transfer_all()
    after = stores.cpu_seconds()
    arrived = sum(ends.target.depths().values())
    ends.source.engine.dispose()
    if moved.moved != tasks or arrived != tasks:
        raise RuntimeError(f"{moved.moved} of {tasks} tasks moved and {arrived} arrived: such a rate means nothing")
    return moved.seconds, _used(before, after)


def _used(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}
