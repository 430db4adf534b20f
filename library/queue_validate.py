#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_validate
short_description: Give every success criterion a value
description:
  - Canaries of every priority finish, submissions are as fast as before, one user has one active task, nothing
    grows while observed.
options:
  canary:
    description:
      - How the application is asked for canary tasks.
    type: dict
    default: {}
  observation_seconds:
    description:
      - How long to observe after the canaries, in seconds.
    type: int
    default: 0
  latency_factor:
    description:
      - How many times the baseline's p95 the latency of submissions may be.
    type: float
    default: 2.0
  latency_floor_ms:
    description:
      - Latency that is always good enough, in milliseconds.
    type: int
    default: 50
  pickup_seconds:
    description:
      - How long a canary may wait for a worker, in seconds. Behind a backlog it is measured and not gated.
    type: float
    default: 5.0
  workers_min:
    description:
      - How many workers must serve each queue of the target.
    type: int
    default: 1
  tasks_per_minute:
    description:
      - How many tasks a minute the target must get done while more than so many are due and wait.
    type: float
    default: 100.0
  processes:
    description:
      - The target's workers as M(queue_workers) lists them on their hosts. Without it nobody looks at their memory.
    type: list
    elements: dict
  worker_memory_mb:
    description:
      - How much memory a worker may hold, in MB.
    type: int
    default: 500
  results_hours:
    description:
      - How long the target must keep results where the rows do not, in hours.
    type: float
    default: 24.0
  deadline:
    description:
      - How long the canaries may take, in seconds.
    type: int
    default: 120
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.slices
  - queue_options.measures
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Give every success criterion a value
  queue_validate:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    canary: "{{ queue_canary }}"
    observation_seconds: 600
"""

RETURN = r"""
verdict:
  description: The gate's verdict.
  returned: always
  type: str
  sample: passed
checks:
  description: The gate's checks, each with name, verdict, reading and next_step.
  returned: always
  type: list
  elements: dict
  sample: [{"name": "source is empty", "verdict": "passed", "reading": "0 ready or delayed", "next_step": ""}]
criteria:
  description: The success criteria, each with name, value and verdict.
  returned: always
  type: list
  elements: dict
  sample: [{"name": "canaries finish", "value": "20 of 20 finished in 1.2 s, 0 refused", "verdict": "passed"}]
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import arguments, stores
from ansible.module_utils.sluice.shell.steps import validate

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.OWNER,
    **arguments.SLICES,
    "canary": {"type": "dict", "default": {}},
    "observation_seconds": {"type": "int", "default": 0},
    "latency_factor": {"type": "float", "default": 2.0},
    "latency_floor_ms": {"type": "int", "default": 50},
    "pickup_seconds": {"type": "float", "default": 5.0},
    "workers_min": {"type": "int", "default": 1},
    "tasks_per_minute": {"type": "float", "default": 100.0},
    "processes": {"type": "list", "elements": "dict"},
    "worker_memory_mb": {"type": "int", "default": 500},
    "results_hours": {"type": "float", "default": 24.0},
    "deadline": {"type": "int", "default": 120},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "criteria": [], "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, validate.validate, RETURNS)


if __name__ == "__main__":
    main()
