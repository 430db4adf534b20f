"""What a target in service must show: how much it gets done, how large its workers are, how long results stay. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .verdicts import Check


def throughput(finished: int, seconds: float, waiting: int, least: float) -> Check:
    """How many tasks were finished a minute. Workers who leave less than a minute's work waiting keep up.

    :param finished: tasks finished in ``seconds``
    :param waiting: tasks that are due and wait at the end of them
    :param least: tasks a minute wanted while more than so many wait
    """
    rate = 60 * finished / seconds if seconds > 0 else 0.0
    reading = f"{rate:,.0f} tasks a minute, {waiting} waiting"
    if waiting <= least:
        return Check.of("throughput", True, f"{reading}: the workers keep up")
    reading += f"; at least {least:g} a minute wanted"
    return Check.of("throughput", rate >= least, reading, "start more workers.")


def worker_memory(processes: Sequence[Mapping[str, object]], limit: float) -> Check:
    """The largest worker's resident memory.

    :param processes: each with ``host``, ``name`` and ``memory_mb`` (MB; None for one that runs and cannot be read);
        one that does not run has no ``memory_mb``
    :param limit: MB
    """
    sizes: list[tuple[float, str]] = []
    unread = []
    for process in processes:
        if "memory_mb" not in process:
            continue
        label = f"{process.get('host')} {process.get('name')}"
        size = process["memory_mb"]
        if isinstance(size, int | float):
            sizes.append((float(size), label))
        else:
            unread.append(label)
    advice = "see that the workers run, and that the account of Ansible may read /proc there."
    if unread:
        return Check.of("worker memory", None, f"cannot be read: {', '.join(unread[:3])}", advice)
    if not sizes:
        return Check.of("worker memory", None, "no worker runs on the hosts of the inventory", advice)
    largest, label = max(sizes)
    reading = f"largest of {len(sizes)}: {largest:.0f} MB ({label}); limit {limit:g} MB"
    return Check.of("worker memory", largest <= limit, reading, "recycle workers by their memory, or raise the limit.")


def results_kept(in_rows: int, of: int, shortest: float | None, hours: float) -> Check:
    """For how long the results of finished tasks can be read.

    :param in_rows: finished canaries whose row keeps the outcome
    :param of: canaries that finished
    :param shortest: seconds after which the target's own record of one of them expires; None when it has none
    :param hours: for how long results are to be kept where rows do not keep them
    """
    own = "the target keeps no record" if shortest is None else f"the target's record expires in {shortest:.0f} s"
    if of and in_rows == of:
        return Check.of("results kept", True, f"in the rows of {in_rows} canaries; {own}")
    if not of:
        return Check.of("results kept", None, "no canary finished", "look at the target's workers.")
    kept = shortest is not None and shortest >= hours * 3600
    reading = f"in the rows of {in_rows} of {of} canaries; {own}, {hours:g} h wanted"
    return Check.of("results kept", kept, reading, "raise 'target.result_ttl' of the mapping, and the application's.")
