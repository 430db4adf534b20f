#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_workers_prove
short_description: Prove that the target has living workers on every queue
description:
  - Reads the workers that are registered and heard of in Redis, and waits for those that are on their way up.
  - Keeps the verdict as the gate C(workers).
options:
  workers_min:
    description:
      - How many living workers each queue needs.
    type: int
    default: 1
  deadline:
    description:
      - How long workers that were started may take until they are heard of, in seconds.
    type: int
    default: 60
  worker_hosts:
    description:
      - Host names of the RQ workers. One without a living worker, or a living worker elsewhere, keeps the gate closed.
      - Without it nobody looks.
    type: list
    elements: str
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.slices
  - queue_options.measures
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Prove that the target has living workers on every queue
  queue_workers_prove:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    workers_min: 1
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
    **arguments.OWNER,
    **arguments.SLICES,
    "workers_min": {"type": "int", "default": 1},
    "deadline": {"type": "int", "default": 60},
    "worker_hosts": {"type": "list", "elements": "str"},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, movement.workers_gate, RETURNS)


if __name__ == "__main__":
    main()
