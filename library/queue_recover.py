#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_recover
short_description: Place tasks again after a store lost data
description:
  - Fences the target's workers, then places again the ids that the witness shows neither started nor finished; the
    others are held.
options:
  reason:
    description:
      - Why this is done, for the ledger.
    type: str
    required: true
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.target_side
  - queue_options.slices
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Place tasks again after a store lost data
  queue_recover:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    reason: Redis came back without its data
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
placed:
  description: Tasks placed again.
  returned: always
  type: int
  sample: 9800
held:
  description: Tasks held because nobody can know whether they ran.
  returned: always
  type: int
  sample: 2
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import arguments, stores
from ansible.module_utils.sluice.shell.steps import recover

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.OWNER,
    **arguments.TARGET_SIDE,
    **arguments.SLICES,
    "reason": {"type": "str", "required": True},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "placed": 0, "held": 0, "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, recover.recover, RETURNS)


if __name__ == "__main__":
    main()
