"""The kinds of tasks there are: what each does, in which queue it waits, and how it is retried.

A module of one's own registers its types; the setting ``TASK_MODULES`` names it, and every process imports it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from captions.payload import PayloadError
from captions.retries import RetryPolicy
from captions.settings import Settings, SettingsError

PRIORITIES = ("urgent", "high", "normal", "low")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Attempt:
    """What a task's work is given. ``number`` counts from 1; ``report(percent, note)`` tells its user how far it is."""

    task_id: str
    number: int
    payload: Mapping[str, Any]
    settings: Settings
    report: Callable[[int, str], None]


def _anything(payload: Mapping[str, Any]) -> None:
    """Takes every payload."""


@dataclass(frozen=True)
class TaskType:
    """A kind of task. ``work`` returns the result as text; ``check`` raises ValueError for a payload it cannot take.

    Without a ``queue`` of its own a task waits in one of the four by its priority; without a policy the settings say.
    """

    name: str
    work: Callable[[Attempt], str]
    check: Callable[[Mapping[str, Any]], None] = _anything
    queue: str | None = None
    timeout_seconds: int = 300
    retry: RetryPolicy | None = None


_types: dict[str, TaskType] = {}


def register(task_type: TaskType) -> None:
    """Make a type known to this process. ValueError when its name or queue cannot be used or is taken."""
    for name in (task_type.name, task_type.queue or "ok"):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name; write a small letter, then small letters, digits and underscores")
    if task_type.name in _types:
        raise ValueError(f"there are two task types named {task_type.name!r}")
    if task_type.queue in queues():
        raise ValueError(f"the queue {task_type.queue!r} of {task_type.name!r} belongs to others already")
    _types[task_type.name] = task_type


def task_type(name: str) -> TaskType:
    """The type with this name; PayloadError when this process knows none."""
    if name not in _types:
        raise PayloadError(f"there is no task type {name!r} in this process; see the setting TASK_MODULES")
    return _types[name]


def names() -> list[str]:
    """The names of all types."""
    return sorted(_types)


def queues() -> tuple[str, ...]:
    """Every queue, in the order in which workers look into them: the four priorities, then those of single types."""
    return (*PRIORITIES, *(kind.queue for kind in _types.values() if kind.queue))


def timeouts() -> dict[str, int]:
    """Seconds that a task of a single type's own queue may take, by queue."""
    return {kind.queue: kind.timeout_seconds for kind in _types.values() if kind.queue}


def load(settings: Settings) -> None:
    """Import captions' own type and the modules that ``TASK_MODULES`` names. SettingsError when one does not import."""
    importlib.import_module("captions.work")
    for name in settings.task_modules:
        try:
            importlib.import_module(name)
        except (ImportError, ValueError) as error:
            raise SettingsError(f"{settings.source}: TASK_MODULES names {name!r}, which fails: {error}") from error
