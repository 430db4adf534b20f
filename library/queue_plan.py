#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_plan
short_description: Say what a run would do, without writing anything
description:
  - Counts the tasks, judges both stores, looks for strangers, and lists every step with its effect, time and undo.
  - Reads only. Give it the account that may only read.
options:
  known_accounts:
    description:
      - SQL accounts that may be connected besides those of the mapping.
    type: list
    elements: str
    default: []
  worker_hosts:
    description:
      - Host names on which RQ workers may run.
    type: list
    elements: str
    default: []
  watch_seconds:
    description:
      - How long to look for strangers, in seconds; longer than every poll interval.
    type: int
    default: 5
  backup_dir:
    description:
      - Where backups would go, for the space they need.
    type: path
    default: ""
  canary:
    description:
      - How the application is asked for canary tasks; empty without them.
    type: dict
    default: {}
  rate:
    description:
      - Tasks per second at most; 0 for no limit.
    type: int
    default: 0
  hosts:
    description:
      - The hosts of each group, to be named.
    type: dict
    default: {}
  answers:
    description:
      - Whether each host answered when it was asked; empty when none was asked.
    type: dict
    default: {}
  mover:
    description:
      - The account that would move the tasks, whose rights are judged; that of the URL by default.
    type: str
    default: ""
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.target_side
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Say what a run would do, without writing anything
  queue_plan:
    db_url: "{{ queue_db_read_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    watch_seconds: 10
"""

RETURN = r"""
verdict:
  description: C(passed) when nothing blocks.
  returned: always
  type: str
  sample: passed
checks:
  description: Every check with name, verdict, reading and next_step.
  returned: always
  type: list
  elements: dict
  sample: []
steps:
  description: The steps, each with step, effect, count, seconds and undo.
  returned: always
  type: list
  elements: dict
  sample: [{"step": "transfer", "effect": "20,000 tasks", "count": 20000, "seconds": 12, "undo": "none"}]
counts:
  description: Tasks by queue and place.
  returned: always
  type: dict
  sample: {"high": {"ready": 120}}
bytes:
  description: What the tasks will take in Redis, in bytes.
  returned: always
  type: int
  sample: 40000000
blocking:
  description: What keeps the run from starting.
  returned: always
  type: list
  elements: str
  sample: []
plan_digest:
  description: Digest of this plan, for C(queue_plan_digest).
  returned: always
  type: str
  sample: 9f86d081884c7d65
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import arguments, stores
from ansible.module_utils.sluice.shell.steps import plan

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.TARGET_SIDE,
    "known_accounts": {"type": "list", "elements": "str", "default": []},
    "worker_hosts": {"type": "list", "elements": "str", "default": []},
    "watch_seconds": {"type": "int", "default": 5},
    "backup_dir": {"type": "path", "default": ""},
    "canary": {"type": "dict", "default": {}},
    "rate": {"type": "int", "default": 0},
    "mover": {"type": "str", "default": ""},
    "hosts": {"type": "dict", "default": {}},
    "answers": {"type": "dict", "default": {}},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {
    "verdict": "",
    "checks": [],
    "steps": [],
    "counts": {},
    "bytes": 0,
    "blocking": [],
    "plan_digest": "",
    "lines": [],
}


def main() -> None:
    stores.run(ARGUMENT_SPEC, plan.plan, RETURNS)


if __name__ == "__main__":
    main()
