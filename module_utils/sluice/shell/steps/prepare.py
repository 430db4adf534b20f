"""Preparation: preflight, accounts, backups, managed configuration, probe, baseline and the stamp."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ...adapters.redis_accounts import RedisAccounts, producer_rules, worker_rules
from ...adapters.redis_backup import RedisBackup
from ...adapters.redis_health import RedisServerHealth
from ...adapters.scratch import scratch
from ...adapters.sql_accounts import SqlAccounts
from ...adapters.sql_backup import SqlBackup
from ...adapters.sql_health import SqlServerHealth
from ...adapters.strangers import rq_strangers, sql_strangers
from ...core.phases import Phase
from ...core.tasks import Lease
from ...core.verdicts import Check, Gate
from ...ports.ledger import Run
from ...ports.preparation import Accounts, Attested
from ...services import backup as backups
from ...services import canary as canaries
from ...services import fence as fences
from ...services import run as runs
from ...services.accounts import Wish, ensure
from ...services.preflight import preflight as judge
from ...services.round_trip import round_trip
from ...services.verify import rules_of
from ..progress import BYTES, Reporter
from ..runner import Result, gate_lines, gate_result
from ..stores import Given
from .validate import application_of

#: Bytes one task takes in Redis with its hash, queue entry and marker (measured on RQ 3: 1.84 KB and our marker).
TASK_BYTES = 2_000


def preflight_gate(given: Given) -> Gate:
    """Everything that must be so before anything is prepared. Reads only."""
    system, params = given.system, given.params
    counts = system.source.counts()
    backlog = sum(p.get("ready", 0) + p.get("delayed", 0) for p in counts.values()) * TASK_BYTES
    tables = [system.mapping.source.table]
    prefixes = [f"{system.target.prefix}:", "sluice:"]
    health = judge(
        RedisServerHealth(system.redis),
        SqlServerHealth(system.engine, system.settings.mover),
        tables=tables,
        prefixes=prefixes,
        backlog_bytes=backlog,
        shared_note=params.get("shared_redis_note") or "",
        attested=params.get("attest") or {},
    )
    known = [*params["known_accounts"], *(c.account for c in system.mapping.source.claimers),
             *system.mapping.route.producer_accounts, *params["target_sql_accounts"]]  # fmt: skip
    checks = [
        *system.source.fit(),
        *health.checks,
        *sql_strangers(system.engine, known, tables=tables, seconds=float(params["watch_seconds"])),
        *rq_strangers(system.redis, params["worker_hosts"], prefix=system.target.prefix, queues=system.target.queues()),
        *fences.ability_of([system.source_fence()], "source").checks,
    ]
    return Gate("preflight", tuple(checks))


def _begin(given: Given, step: str) -> tuple[Run, Lease]:
    run, lease = given.resume()
    runs.require(run, Phase.OPENED, before=Phase.ROUTED, step=step)
    return run, lease


def preflight(given: Given) -> Result:
    """Judge both stores, strangers and fencing ability, and keep the verdict."""
    gate = preflight_gate(given)
    if given.check_mode:
        return {**gate_result(gate, changed=False), "failed_gate": False}
    _, lease = _begin(given, "preflight")
    runs.record_gate(given.system.ledger, lease, gate)
    return gate_result(gate, changed=False)


def accounts(given: Given) -> Result:
    """Make the accounts of the target's side: SQL accounts and Redis ACL users, saved and read again."""
    system, params = given.system, given.params
    lease = None if given.check_mode else _begin(given, "making accounts")[1]
    sql, acl = SqlAccounts(system.engine), RedisAccounts(system.redis)
    wishes: list[tuple[Accounts, Wish]] = [
        (sql, Wish(entry["account"], entry["password"], tuple(entry["grants"]))) for entry in params["sql_accounts"]
    ]
    for entry in params["redis_users"]:
        rules = (producer_rules if entry["role"] == "producer" else worker_rules)(system.target.prefix)
        wishes.append((acl, Wish(entry["name"], entry["password"], tuple(rules))))
    made = ensure(wishes, check_mode=given.check_mode)
    lines = [f"{change.account}: {', '.join(change.actions) or 'as wanted'}" for change in made.changes]
    if lease is None:
        return {"changed": made.changed, "verdict": "unknown", "checks": [], "lines": lines}
    runs.record_gate(system.ledger, lease, made.gate)
    return {**gate_result(made.gate, changed=made.changed), "lines": [*lines, *gate_lines(made.gate)]}


def backup(given: Given) -> Result:
    """Back up the mapped tables, Redis and the configuration, and verify all of it by reading it back."""
    system, params = given.system, given.params
    tables = [system.mapping.source.table]
    if system.mapping.route.table:
        tables.append(system.mapping.route.table)
    parts: list[Any] = [
        SqlBackup(system.engine, tables, whole_database=params["whole_database"]),
        RedisBackup(system.redis),
    ]
    if params["files"]:
        parts.append(backups.Files("configuration", [Path(p) for p in params["files"]]))
    attested = {
        name: Attested(str(word["reference"]), float(word["age_hours"])) for name, word in params["attested"].items()
    }
    directory = Path(params["directory"])
    if given.check_mode:
        gate = backups.estimate(parts, directory, attested=attested, max_age_hours=params["max_age_hours"])
        return {**gate_result(gate, changed=True), "failed_gate": False}
    run, lease = _begin(given, "the backup")
    beat = runs.heartbeat(system.ledger, lease, system.clock)
    with Reporter(params["progress_file"], system.clock, beat) as progress:
        made = backups.back_up(
            parts,
            directory,
            run.id,
            clock=system.clock,
            attested=attested,
            max_age_hours=params["max_age_hours"],
            progress=progress,
            begins=lambda part: progress.stage(f"backup, {part}", "files" if part == "configuration" else BYTES),
        )
    system.ledger.renew(lease, runs.LEASE_SECONDS)
    runs.record_gate(system.ledger, lease, made.gate)
    files = [a for entry in made.kept for a in entry.artefacts]
    lines = [f"{a.name:<28} {a.bytes:>12,} bytes  sha256 {a.sha256[:16]}" for a in files]
    return {
        **gate_result(made.gate, changed=made.changed),
        "folder": made.folder,
        "artefacts": [{"name": a.name, "what": a.what, "bytes": a.bytes, "sha256": a.sha256} for a in files],
        "lines": [f"backup in {made.folder}", *lines, *gate_lines(made.gate)],
    }


def probe(given: Given) -> Result:
    """A job on a queue of its own is run by a real RQ worker; a copied task goes to RQ and comes home."""
    system = given.system
    if given.check_mode:
        return {"changed": False, "verdict": "unknown", "checks": [], "lines": ["probe not reached"]}
    _, lease = _begin(given, "the probe")
    begun = time.monotonic()
    value = system.target.probe()
    reading = f"answered {value!r} in {(time.monotonic() - begun) * 1000:.0f} ms"
    gate = Gate("probe", (Check.of("RQ runs a job", value == 42, reading, "look at Redis and the installed RQ."),))
    runs.record_gate(system.ledger, lease, gate)
    custody = rules_of(system.mapping).custody_in_row
    with scratch(system.engine, system.redis, system.mapping) as tried:
        home = runs.record_gate(system.ledger, lease, round_trip(tried, system.clock, custody_in_row=custody))
    return gate_result(Gate("probe", (*gate.checks, *home.checks)), changed=False)


def baseline(given: Given) -> Result:
    """Remember every id with its place, the latency of submissions now, and stamp Redis with the run's generation."""
    system, params = given.system, given.params
    canary = application_of(given) if params["canary"] else None  # a wrong one is named before anything is written
    if given.check_mode:
        known = sum(sum(p.values()) for p in system.source.counts().values())
        return {
            "changed": True,
            "verdict": "unknown",
            "checks": [],
            "known": known,
            "lines": [f"{known:,} ids would be remembered"],
        }
    run, lease = _begin(given, "the baseline")
    known = system.ledger.save_baseline(lease)
    stamped = system.target.stamp(lease)
    counts = system.source.counts()
    system.ledger.record(lease, "measure", "counts at baseline", "", {"counts": counts})
    latency: dict[str, float] = {}
    checks = [
        Check.of("ids remembered", True, f"{known:,}"),
        Check.of(
            "stamp in Redis", system.target.read_stamp()[0] == run.generation, "written" if stamped else "was there"
        ),
    ]
    unknown = sum(p.get("unknown", 0) for p in counts.values())
    checks.append(
        Check.of("rows of unknown state", True, f"{unknown}; they will be held, not moved" if unknown else "0")
    )
    if canary is not None:
        application, form, first = canary
        answers, refused = canaries.submit(application, first, params["samples"], form.priorities)
        measured = canaries.latency_of([a.seconds for a in answers])
        reading = "nothing accepted: " + "; ".join(refused[:2])
        if measured is not None:
            latency = {"samples": measured.samples, "p50": measured.p50, "p95": measured.p95, "p99": measured.p99}
            system.ledger.record(lease, "measure", "latency baseline", "", latency)
            reading = f"p50 {measured.p50:.0f} p95 {measured.p95:.0f} p99 {measured.p99:.0f} ms over {measured.samples}"
        checks.append(Check.of("submission latency", measured is not None, reading, "look at the application."))
    gate = runs.record_gate(system.ledger, lease, Gate("baseline", tuple(checks)))
    return {**gate_result(gate, changed=True), "known": known, "latency": latency}
