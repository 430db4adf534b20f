#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_transfer
short_description: Move the tasks in batches that can be resumed
description:
  - Claims, stages, confirms, releases and activates batch by batch. Proves lease, phase and fence in every slice.
  - The first release is the point of no return.
options:
  batch:
    description:
      - Tasks per batch.
    type: int
    default: 1000
  rate:
    description:
      - Tasks per second at most; 0 for no limit.
    type: int
    default: 0
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.target_side
  - queue_options.owner
  - queue_options.slices
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Move the tasks in batches that can be resumed
  queue_transfer:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    batch: 1000
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
moved:
  description: Tasks moved by this call.
  returned: always
  type: int
  sample: 20000
held:
  description: Tasks held by this call.
  returned: always
  type: int
  sample: 0
lost:
  description: Tasks that were cancelled or changed by the application meanwhile, and so not moved.
  returned: always
  type: int
  sample: 0
seconds:
  description: Time at work, in seconds.
  returned: always
  type: float
  sample: 9.5
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import arguments, stores
from ansible.module_utils.sluice.shell.steps import movement

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.TARGET_SIDE,
    **arguments.OWNER,
    **arguments.SLICES,
    "batch": {"type": "int", "default": 1000},
    "rate": {"type": "int", "default": 0},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {
    "verdict": "",
    "checks": [],
    "moved": 0,
    "held": 0,
    "lost": 0,
    "seconds": 0.0,
    "lines": [],
}


def main() -> None:
    stores.run(ARGUMENT_SPEC, movement.transfer, RETURNS)


if __name__ == "__main__":
    main()
