"""Runs a queue_* module, slice by slice where it works in slices, and shows its lines as they come.

Every other plugin of this folder is a symbolic link to this file: Ansible finds an action by the module's name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

#: The modules that take the options `sliced` and `cursor`.
SLICED = frozenset(
    {
        "queue_backup",
        "queue_drain",
        "queue_recover",
        "queue_run",
        "queue_soak",
        "queue_transfer",
        "queue_validate",
        "queue_workers",
    }
)
#: At most one line in so many seconds, unless the step says something new only then.
LINE_SECONDS = 5.0
#: What a failed task shows without -v: its message names each check that keeps the gate closed.
SHOWN_ON_FAILURE = frozenset({"changed", "failed", "msg", "verdict"})


class ActionModule(ActionBase):
    """The action of every queue_* module."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the module until it returns no cursor; its last result is the task's."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if self._task.action in SLICED:
            arguments["sliced"] = True
        shown = 0.0
        playbook = os.getppid()
        while True:
            result = self._execute_module(module_args=arguments, task_vars=task_vars)
            cursor = result.pop("cursor", None)
            if not cursor or result.get("failed"):
                return self._last(result)
            if time.monotonic() - shown >= LINE_SECONDS:
                self._show(result.get("lines", [])[:1])
                shown = time.monotonic()
            if os.getppid() != playbook:
                # A kill leaves this process behind; going on would keep the lease from the same command typed again.
                raise AnsibleError("ansible-playbook is gone. Next: run the same command again.")
            arguments["cursor"] = cursor

    def _last(self, result: dict[str, Any]) -> dict[str, Any]:
        """Show the lines; keep what a playbook uses, and leave walls of data to -v."""
        self._show(result.get("lines", []))
        if self._display.verbosity:
            return result
        if result.get("failed"):
            return {key: value for key, value in result.items() if key in SHOWN_ON_FAILURE or key.startswith("_")}
        return {key: value for key, value in result.items() if key != "lines"}

    def _show(self, lines: list[str]) -> None:
        host = self._host()
        for line in lines:
            self._display.display(f"  {host}{line}".rstrip())

    def _host(self) -> str:
        """The host's name before each line, when the play has more than one."""
        variables: Mapping[str, Any] = self._templar.available_variables
        several = len(variables.get("ansible_play_hosts_all") or ()) > 1
        return f"{variables['inventory_hostname']}: " if several else ""
