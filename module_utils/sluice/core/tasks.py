"""What a task is, and the words for where one can be."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: What RQ takes as a job id (RQ 2.8 and later; others kill its workers).
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,180}\Z")
_JOB_ID_BYTES = re.compile(rb"[A-Za-z0-9_-]{1,180}\Z")
#: How the name of an id ends that is not its own name.
_NAMED = re.compile(r"~[0-9a-f]{40}\Z")
#: Characters of an id that the ledger's column takes.
LONGEST_ID = 190


def job_id_for(system: str, task_id: str) -> str:
    """The id under which the target stores a task: its own where the target takes it, else a derived one.

    The same id always gives the same job id, so that staging twice is staging once.
    """
    if _JOB_ID.match(task_id):
        return task_id
    return f"{system}-{hashlib.sha1(task_id.encode(), usedforsecurity=False).hexdigest()}"


def job_name(raw: bytes) -> str:
    """The id of a job as text that every store, log and screen takes; two ids never have one name.

    It is the id itself, unless that is no UTF-8, cannot be printed, ends in a space (which SQL does not see) or is
    longer than the ledger's column. Such an id, which no task and no valid job has, is named by what of it can be
    shown, and its digest.
    """
    if _JOB_ID_BYTES.match(raw):
        return raw.decode()
    text = raw.decode("utf-8", "backslashreplace")
    fits = 0 < len(text) <= LONGEST_ID and text.isprintable() and text[-1] != " " and not _NAMED.search(text)
    if fits and text.encode() == raw:
        return text
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:120])[:120]
    return f"{shown}~{hashlib.sha1(raw, usedforsecurity=False).hexdigest()}"


class Place(enum.StrEnum):
    """Where the source's own words put a task."""

    READY = "ready"
    DELAYED = "delayed"
    LEASED = "leased"
    CLAIMED = "claimed"  # taken out of circulation by a run, on its way
    MOVED = "moved"  # the target owns it and it has not started
    RUNNING = "running"  # started by the target
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  # no predicate of the mapping, or more than one, holds


class Home(enum.StrEnum):
    """Where the target keeps a job. A job in good order has exactly one."""

    STAGED = "staged"  # hash with status created, in no queue or registry
    QUEUED = "queued"
    INTERMEDIATE = "intermediate"
    SCHEDULED = "scheduled"
    DEFERRED = "deferred"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ORPHAN = "orphan"  # a hash that lives nowhere
    BODILESS = "bodiless"  # an entry without a hash


class Mark(enum.StrEnum):
    """What the ledger says of a task."""

    CLAIMED = "claimed"  # companion hold of a run in progress
    MOVED = "moved"  # released by the source; custody passed
    RETURNED = "returned"  # brought home by a rollback: the row's own words count again
    HELD = "held"  # given to nobody until an operator decides
    SETTLED = "settled"  # decided by an operator, or ended at the source while claimed


#: The reason of a settled mark: a user cancelled, or the row ended otherwise, while a run had claimed it.
ENDED_MEANWHILE = "ended at the source while it was claimed"


class Task(NamedTuple):
    """One task on its way. A NamedTuple, since millions are made on the hot path.

    ``job_id`` is the id under which the target stores it; ``eta`` is epoch seconds (UTC) or None when due;
    ``args`` are the values the target's function is called with, carried and never interpreted.
    """

    id: str
    job_id: str
    queue: str
    args: tuple[object, ...]
    created: float
    eta: float | None
    attempts_used: int
    attempts_allowed: int
    meta: tuple[tuple[str, str], ...] = ()


class Refused(NamedTuple):
    """A row that cannot be carried, with the reason an operator reads."""

    id: str
    reason: str


class Sighting(NamedTuple):
    """A task id seen in a store. ``where`` names the list, registry or table."""

    id: str
    place: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write for one run: the token rises with every taking."""

    system: str
    run_id: str
    owner: str
    token: int
    generation: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch taken out of circulation: what can go on, and what must be held with its reason."""

    tasks: Sequence[Task]
    refused: Sequence[Refused]


@dataclass(frozen=True, slots=True)
class Staged:
    """The target's answer to a staged batch, by job id.

    ``digests`` are of what the target re-read from itself; ``foreign`` job ids existed before and are not ours;
    ``marked`` were activated by an earlier attempt of the same run; ``over`` need nothing any more, since the target
    knows them as ended or as its own already; ``refused`` (by task id) must be held, with the reason.
    """

    digests: dict[str, str]
    foreign: Sequence[str] = ()
    marked: Sequence[str] = ()
    over: Sequence[str] = ()
    refused: Sequence[Refused] = ()


@dataclass(frozen=True, slots=True)
class Released:
    """What the source gave away at the commit, and what was no longer ours to give (cancelled meanwhile)."""

    moved: Sequence[Task]
    lost: Sequence[Task]
