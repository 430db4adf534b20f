#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_workers
short_description: Start, drain, reload or list a host's worker processes
description:
  - Works through supervisord or systemd on the host where it runs and needs no store.
  - V(drained) lets each process end its task, to a deadline, and says which had to be killed.
  - V(killed) gives no time.
  - V(reloaded) has the processes read their settings, and waits until the application says that they did.
  - What workers killed by somebody else left running, such as the process of a job, is found, waited for and ended too.
options:
  state:
    description:
      - What the processes shall be.
    type: str
    default: listed
    choices: [listed, started, drained, reloaded, killed]
  deadline:
    description:
      - How long a draining process may take, in seconds; then it is killed.
    type: int
    default: 300
  health_url:
    description:
      - With C(state=reloaded), where the application says as JSON what it was started with; empty when it does not.
    type: str
    default: ""
  expect:
    description:
      - With C(state=reloaded), what that JSON must say.
    type: dict
    default: {}
  answers:
    description:
      - How many answers in a row must say so; more than there are processes that may answer.
    type: int
    default: 3
  patience:
    description:
      - How long they may take until then, in seconds.
    type: int
    default: 60
extends_documentation_fragment:
  - queue_options.supervisor
  - queue_options.slices
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Start, drain, reload or list a host's worker processes
  queue_workers:
    supervisor: systemd
    group: legacy
    units: [captions-legacy@1.service, captions-legacy@2.service]
    state: drained
    deadline: 300
"""

RETURN = r"""
processes:
  description:
    - The processes, each with name, host, pid, state and exit.
    - With C(state=listed) those that run also have C(memory_mb), what the largest process of each holds.
  returned: always
  type: list
  elements: dict
  sample: [{"name": "rq_0", "host": "app1", "pid": 4711, "state": "RUNNING", "exit": null}]
killed:
  description: Processes that had to be killed.
  returned: always
  type: list
  elements: dict
  sample: []
leftovers:
  description:
    - What dead workers left running and still runs.
    - One in state C(UNREADABLE) may be another program's and is not touched.
  returned: always
  type: list
  elements: dict
  sample: [{"name": "rq_0/4712", "host": "app1", "pid": 4712, "state": "LEFTOVER", "exit": null}]
unproved:
  description: Processes of which nobody knows how they ended, or whether they are the group's.
  returned: always
  type: list
  elements: dict
  sample: []
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import arguments, runner
from ansible.module_utils.sluice.shell.steps import processes

ARGUMENT_SPEC = {
    **arguments.SUPERVISOR,
    **arguments.SLICES,
    "state": {"type": "str", "default": "listed", "choices": ["listed", "started", "drained", "reloaded", "killed"]},
    "deadline": {"type": "int", "default": 300},
    "health_url": {"type": "str", "default": "", "no_log": False},
    "expect": {"type": "dict", "default": {}},
    "answers": {"type": "int", "default": 3},
    "patience": {"type": "int", "default": 60},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"processes": [], "leftovers": [], "killed": [], "unproved": [], "lines": []}


def main() -> None:
    runner.run(ARGUMENT_SPEC, processes.workers, RETURNS)


if __name__ == "__main__":
    main()
