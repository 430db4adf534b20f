"""What a target in service must show, with each reading good, bad and not there."""

from __future__ import annotations

import pytest
from ansible.module_utils.sluice.core.criteria import results_kept, throughput, worker_memory
from ansible.module_utils.sluice.core.verdicts import Verdict


@pytest.mark.parametrize(
    ("finished", "seconds", "waiting", "verdict", "said"),
    [
        (100, 60.0, 101, Verdict.PASSED, "100 tasks a minute, 101 waiting"),
        (99, 60.0, 101, Verdict.FAILED, "99 tasks a minute, 101 waiting; at least 100 a minute wanted"),
        (50, 20.0, 500, Verdict.PASSED, "150 tasks a minute"),
        (1, 60.0, 0, Verdict.PASSED, "1 tasks a minute, 0 waiting: the workers keep up"),
        # A quiet night: the few who submit wait for a moment, as everybody does.
        (20, 600.0, 1, Verdict.PASSED, "2 tasks a minute, 1 waiting: the workers keep up"),
        (20, 600.0, 100, Verdict.PASSED, "100 waiting: the workers keep up"),
        (0, 0.0, 101, Verdict.FAILED, "0 tasks a minute"),
    ],
)
def test_throughput_is_gated_while_more_than_a_minutes_work_waits(
    finished: int, seconds: float, waiting: int, verdict: Verdict, said: str
) -> None:
    check = throughput(finished, seconds, waiting, 100.0)
    assert check.verdict is verdict
    assert said in check.reading


def worker(name: str, **more: object) -> dict[str, object]:
    return {"host": "app1", "name": name, **more}


@pytest.mark.parametrize(
    ("processes", "verdict", "said"),
    [
        ([worker("a", memory_mb=80.4), worker("b", memory_mb=500.0)], Verdict.PASSED, "largest of 2: 500 MB (app1 b)"),
        ([worker("a", memory_mb=500.6)], Verdict.FAILED, "largest of 1: 501 MB (app1 a); limit 500 MB"),
        ([worker("a", memory_mb=80), worker("b", memory_mb=None)], Verdict.UNKNOWN, "cannot be read: app1 b"),
        ([worker("stopped")], Verdict.UNKNOWN, "no worker runs"),
        ([], Verdict.UNKNOWN, "no worker runs"),
    ],
)
def test_the_largest_worker_is_gated_and_one_unread_is_unknown(
    processes: list[dict[str, object]], verdict: Verdict, said: str
) -> None:
    check = worker_memory(processes, 500.0)
    assert check.verdict is verdict
    assert said in check.reading


@pytest.mark.parametrize(
    ("in_rows", "of", "shortest", "verdict", "said"),
    [
        (20, 20, 500.0, Verdict.PASSED, "in the rows of 20 canaries; the target's record expires in 500 s"),
        (20, 20, None, Verdict.PASSED, "the target keeps no record"),
        (19, 20, 500.0, Verdict.FAILED, "in the rows of 19 of 20 canaries; the target's record expires in 500 s, 24 h"),
        (0, 20, 86_400.0, Verdict.PASSED, "expires in 86400 s"),
        (0, 20, 86_399.0, Verdict.FAILED, "expires in 86399 s"),
        (0, 20, None, Verdict.FAILED, "keeps no record"),
        (0, 0, None, Verdict.UNKNOWN, "no canary finished"),
    ],
)
def test_results_are_kept_by_rows_or_for_a_day(
    in_rows: int, of: int, shortest: float | None, verdict: Verdict, said: str
) -> None:
    check = results_kept(in_rows, of, shortest, 24.0)
    assert check.verdict is verdict
    assert said in check.reading
