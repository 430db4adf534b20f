#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_fence
short_description: Lock the workers of the side that is left out of its stores
description:
  - Locks the claimers' accounts, ends their connections, proves it, and holds the tasks whose state nobody can
    know. A run that goes back leaves the target, and locks out its workers.
options:
  state:
    description:
      - V(closed) locks the workers of the side that is left out; V(lifted) lets the source's workers in again.
    type: str
    default: closed
    choices: [closed, lifted]
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.target_side
  - queue_options.owner
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Lock the source's workers out of the store
  queue_fence:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
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
held:
  description: Tasks taken out of circulation because nobody can know whether they ran.
  returned: always
  type: int
  sample: 0
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
    "state": {"type": "str", "default": "closed", "choices": ["closed", "lifted"]},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "held": 0, "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, movement.fence, RETURNS)


if __name__ == "__main__":
    main()
