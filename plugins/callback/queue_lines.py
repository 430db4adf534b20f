"""The terminal's output: Ansible's own, without what an operator never needs to read."""

from __future__ import annotations

from typing import Any

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


class CallbackModule(Default):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "queue_lines"

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Print the banner, but for the validation of a role's arguments: that one only if it fails."""
        if _validates(task):
            self._task_type_cache[task._uuid] = "TASK"
            self._last_task_name = task.get_name().strip()
            return
        super().v2_playbook_on_task_start(task, is_conditional)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Leave out validations that passed."""
        if not _validates(result.task) or self._display.verbosity:
            super().v2_runner_on_ok(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Leave out validations of a role that is skipped."""
        if not _validates(result.task) or self._display.verbosity:
            super().v2_runner_on_skipped(result)

    def _handle_warnings_and_exception(self, result: Any) -> None:
        """A refusal of our own modules is no crash: its message follows at once, so the source excerpt is for -v."""
        if self._display.verbosity or not str(result.task.action).startswith("queue_"):
            super()._handle_warnings_and_exception(result)
        elif "exception" in result.result:
            self._handle_warnings(result.result)


def _validates(task: Any) -> bool:
    return str(task.action).rpartition(".")[2] == _VALIDATION
