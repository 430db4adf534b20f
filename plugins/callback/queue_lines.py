"""The terminal's output: Ansible's own, without what an operator never needs to read."""

from __future__ import annotations

from typing import Any

from ansible import constants
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = r"""
name: queue_lines
type: stdout
short_description: Ansible's default output without the checks of role arguments that passed
description:
  - Every role validates its arguments before its first task. That is shown only when it fails.
  - A module's failure is shown once, as its message; where it happened is shown with C(-v).
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

_VALIDATION = "validate_argument_spec"
#: Actions that fail with a message for the operator. Where in our YAML they stand is no help to anybody but us.
_MESSAGES = ("ansible.builtin.assert", "ansible.builtin.fail")
#: What Ansible puts in place of a traceback when a module failed in words.
_NO_TRACEBACK = "(traceback unavailable)"


class CallbackModule(Default):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "queue_lines"

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Print the banner of a step at once, before its lines; that of a validation only if it fails."""
        if _validates(task):
            self._task_type_cache[task._uuid] = "TASK"
            self._last_task_name = task.get_name().strip()
            return
        super().v2_playbook_on_task_start(task, is_conditional)
        if _ours(task) and self._last_task_banner != task._uuid:
            self._print_task_banner(task)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Leave out validations that passed."""
        if not _validates(result.task) or self._display.verbosity:
            super().v2_runner_on_ok(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Leave out validations of a role that is skipped; say it of a step whose banner is already there."""
        if _ours(result.task) and not self.get_option("display_skipped_hosts"):
            self._display.display(f"skipping: [{result.host.get_name()}]", color=constants.COLOR_SKIP)
        elif not _validates(result.task) or self._display.verbosity:
            super().v2_runner_on_skipped(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Show a refusal as its message alone; a crash, and everything under -v, as Ansible does."""
        if not self._show_message(result):
            super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """The same for one item of a loop."""
        if not self._show_message(result):
            super().v2_runner_item_on_failed(result)

    def _show_message(self, result: Any) -> bool:
        """Show the message of a failure that was told in words; False when there is more to show."""
        found = result.result
        told = (_ours(result.task) or result.task.action in _MESSAGES) and "msg" in found and "results" not in found
        if self._display.verbosity or not told or found.get("exception", _NO_TRACEBACK) != _NO_TRACEBACK:
            return False
        if self._last_task_banner != result.task._uuid:
            self._print_task_banner(result.task)
        text = f"fatal: [{self.host_label(result)}]: {found['msg']}"
        self._display.display(text, color=constants.COLOR_ERROR, stderr=self.get_option("display_failed_stderr"))
        return True


def _validates(task: Any) -> bool:
    return str(task.action).rpartition(".")[2] == _VALIDATION


def _ours(task: Any) -> bool:
    return str(task.action).startswith("queue_")
