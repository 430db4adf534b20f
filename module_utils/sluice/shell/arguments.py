"""Options that several modules share. Each module's ARGUMENT_SPEC picks what it needs."""

from __future__ import annotations

from typing import Any

#: Where the stores are and what lies in them.
STORES: dict[str, Any] = {
    "db_url": {"type": "str", "required": True, "no_log": True},
    "redis_url": {"type": "str", "required": True, "no_log": True},
    "mapping": {"type": "path", "required": True},
}

#: The account and user names of the target's workers, for fences.
TARGET_SIDE: dict[str, Any] = {
    "target_sql_accounts": {"type": "list", "elements": "str", "default": []},
    "target_redis_users": {"type": "list", "elements": "str", "default": []},
    "producer_redis_users": {"type": "list", "elements": "str", "default": []},
}

#: The lease's owner, as `queue_run` gave it; every step that writes needs it.
OWNER: dict[str, Any] = {"owner": {"type": "str", "required": True}}

#: Only the action plugin sets this: it calls the module slice by slice and shows a line in between.
SLICES: dict[str, Any] = {
    "sliced": {"type": "bool", "default": False},
    "cursor": {"type": "dict", "default": {}},
}

#: Which supervisor keeps the worker processes of a host.
SUPERVISOR: dict[str, Any] = {
    "supervisor": {"type": "str", "choices": ["supervisord", "systemd"], "default": "systemd"},
    "socket": {"type": "path", "default": ""},
    "units": {"type": "list", "elements": "str", "default": []},
    "group": {"type": "str", "required": True},
    "host_label": {"type": "str", "default": "localhost"},
}
