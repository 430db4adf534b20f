#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_intake
short_description: Read, open or pause the application's intake
description:
  - A pause has a deadline inside the application, after which it reopens by itself.
  - Keeps the verdict as the gate C(intake).
options:
  state:
    description:
      - What intake shall be; V(read) leaves it as it is.
    type: str
    default: read
    choices: [read, open, paused]
  seconds:
    description:
      - Longest pause, in seconds.
    type: int
    default: 900
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.differs
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Read, open or pause the application's intake
  queue_intake:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    state: open
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
open:
  description: Whether submissions are accepted.
  returned: always
  type: bool
  sample: true
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
    "state": {"type": "str", "default": "read", "choices": ["read", "open", "paused"]},
    "seconds": {"type": "int", "default": 900},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "open": False, "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, validate.intake, RETURNS)


if __name__ == "__main__":
    main()
