#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_verify
short_description: Take the balance of all tasks, by identity
description:
  - Finds each known id in exactly one place and names those that are not. Has what was activated written to disk.
  - Keeps the verdicts as the gates C(balance) and C(durable).
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.progress
  - queue_options.measures
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Take the balance of all tasks, by identity
  queue_verify:
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
known:
  description: Ids that must be somewhere.
  returned: always
  type: int
  sample: 20000
terms:
  description: Ids by the one place in which each is.
  returned: always
  type: dict
  sample: {"queued": 19998, "held": 2}
faults:
  description: Ids that break the balance, each with the fault; at most a few.
  returned: always
  type: list
  elements: dict
  sample: []
fault_count:
  description: How many ids break it.
  returned: always
  type: int
  sample: 0
seconds:
  description: Time it took, in seconds.
  returned: always
  type: float
  sample: 1.4
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import arguments, progress, stores
from ansible.module_utils.sluice.shell.steps import movement

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.OWNER,
    **progress.OPTION,
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {
    "verdict": "",
    "checks": [],
    "known": 0,
    "terms": {},
    "faults": [],
    "fault_count": 0,
    "seconds": 0.0,
    "lines": [],
}


def main() -> None:
    stores.run(ARGUMENT_SPEC, movement.verify, RETURNS)


if __name__ == "__main__":
    main()
