#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_route
short_description: Choose the side that gets new submissions
description:
  - Sets the share of users whose submissions go to the target, behind a barrier, and whether legacy polling is on.
options:
  share:
    description:
      - Percentage of users that go to the target; left as it is when not given.
    type: int
  polling:
    description:
      - Whether legacy workers may claim; left as it is when not given.
    type: bool
  emergency:
    description:
      - Whether every submission goes to the source, whatever the share says; left as it is when not given. It is set
        in the database, so the application need not answer. A mapping without such a column is left alone.
    type: bool
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.differs
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Choose the side that gets new submissions
  queue_route:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    share: 100
"""

RETURN = r"""
before:
  description: Share and polling before.
  returned: always
  type: dict
  sample: {"share": 0, "polling": true}
after:
  description: Share and polling after.
  returned: always
  type: dict
  sample: {"share": 100, "polling": true}
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
    "share": {"type": "int"},
    "emergency": {"type": "bool"},
    "polling": {"type": "bool"},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"before": {}, "after": {}, "verdict": "", "checks": [], "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, movement.route, RETURNS)


if __name__ == "__main__":
    main()
