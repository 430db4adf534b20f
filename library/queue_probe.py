#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_probe
short_description: Prove that RQ runs a job here
description:
  - Enqueues one job on a queue of its own, has a real RQ worker run it, and removes every trace.
  - Then proves the way back. A copy of one row, in a table of its own, goes to RQ under a key prefix of its own and
    comes home through the code that will move the rest; nothing of it is left behind.
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.measures
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Prove that RQ runs a job here
  queue_probe:
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
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import arguments, stores
from ansible.module_utils.sluice.shell.steps import prepare

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.OWNER,
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, prepare.probe, RETURNS)


if __name__ == "__main__":
    main()
