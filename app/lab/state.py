"""What a lab must remember between two commands: ports, passwords and options, in one file of mode 0600."""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.accounts import MADE_BY_THE_LAB
from lab.layout import Layout
from lab.stores import free_port, write_private


@dataclass(frozen=True)
class Options:
    """How the application is run. ``work_ms`` is the least time a task's work takes, ``mover``: with one."""

    legacy_kind: str = "guarded"
    legacy: int = 2
    rq: int = 2
    rq_simple: bool = False
    work_ms: int = 0
    mover: bool = True


@dataclass(frozen=True)
class State:
    """The lab's choices. Secrets are kept out of ``repr``."""

    db_port: int
    redis_port: int
    web_port: int
    redis_password: str = field(repr=False)
    admin_token: str = field(repr=False)
    db_passwords: dict[str, str] = field(repr=False)
    options: Options = Options()


def new_state(layout: Layout) -> State:
    """Choose free ports and random passwords."""
    db_port = free_port(layout.first_port)
    redis_port = free_port(db_port + 1)
    return State(
        db_port=db_port,
        redis_port=redis_port,
        web_port=free_port(redis_port + 1),
        redis_password=secrets.token_hex(20),
        admin_token=secrets.token_hex(20),
        db_passwords={user: secrets.token_hex(16) for user in MADE_BY_THE_LAB},
    )


def read_state(path: Path) -> State | None:
    """The remembered state, None when there is no lab yet."""
    if not path.exists():
        return None
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return State(**{**data, "options": Options(**data["options"])})


def write_state(path: Path, state: State) -> None:
    """Remember the state."""
    write_private(path, json.dumps(dataclasses.asdict(state), indent=1) + "\n")
