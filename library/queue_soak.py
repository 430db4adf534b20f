#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_soak
short_description: Watch both sides work under a share
description:
  - "Submits canaries and follows them: they finish on both sides, within the time."
  - Compares what real traffic shows meanwhile on both sides, where a row says whose it is. The target must not fail
    more often than the source, and must not let tasks grow older.
  - Keeps the verdict as the gate C(soak).
options:
  share:
    description:
      - The share under which both sides work, in percent.
    type: int
    required: true
  canary:
    description:
      - How the application is asked for canary tasks.
    type: dict
    required: true
  seconds:
    description:
      - How long to watch, in seconds.
    type: int
    required: true
  sample_min:
    description:
      - Fewest canaries that must finish.
    type: int
    required: true
  oldest_seconds:
    description:
      - How long the target may let a task wait, or let the oldest one grow older, in seconds. Twice what the source
        does is always allowed.
    type: int
    default: 60
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.slices
  - queue_options.measures
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Watch both sides work under a share
  queue_soak:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    share: 10
    canary: "{{ queue_canary }}"
    seconds: 600
    sample_min: 20
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
from ansible.module_utils.sluice.shell.steps import validate

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.OWNER,
    **arguments.SLICES,
    "share": {"type": "int", "required": True},
    "canary": {"type": "dict", "required": True},
    "seconds": {"type": "int", "required": True},
    "sample_min": {"type": "int", "required": True},
    "oldest_seconds": {"type": "int", "default": 60},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, validate.soak, RETURNS)


if __name__ == "__main__":
    main()
