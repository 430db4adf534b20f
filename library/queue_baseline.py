#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_baseline
short_description: Remember every task and the latency of submissions before the move
description:
  - Keeps every id with its place in the ledger, measures submissions with canaries, and stamps Redis with the run's
    generation.
options:
  canary:
    description:
      - How the application is asked for canary tasks; empty without them.
    type: dict
    default: {}
  samples:
    description:
      - How many canaries to submit.
    type: int
    default: 20
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.measures
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Remember every task and the latency of submissions before the move
  queue_baseline:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    canary: "{{ queue_canary }}"
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
  description: How many ids were remembered.
  returned: always
  type: int
  sample: 20000
latency:
  description: "Submission latency in milliseconds: samples, p50, p95, p99."
  returned: always
  type: dict
  sample: {"samples": 20, "p50": 6.1, "p95": 9.0, "p99": 9.8}
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
    "canary": {"type": "dict", "default": {}},
    "samples": {"type": "int", "default": 20},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "known": 0, "latency": {}, "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, prepare.baseline, RETURNS)


if __name__ == "__main__":
    main()
