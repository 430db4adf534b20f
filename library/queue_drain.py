#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_drain
short_description: Wait until no task runs at the source
description:
  - Waits to a deadline until no row is leased. What is left is named and will be held after the fence.
options:
  deadline:
    description:
      - How long to wait, in seconds.
    type: int
    default: 300
  unproved:
    description:
      - Processes of all hosts of which nobody knows how they ended, as M(queue_workers) returned them.
    type: list
    elements: dict
    default: []
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.slices
  - queue_options.measures
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Wait until no task runs at the source
  queue_drain:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    deadline: 300
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
leased:
  description: Rows still leased.
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
    **arguments.OWNER,
    **arguments.SLICES,
    "deadline": {"type": "int", "default": 300},
    "unproved": {"type": "list", "elements": "dict", "default": []},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "leased": 0, "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, movement.drain, RETURNS)


if __name__ == "__main__":
    main()
