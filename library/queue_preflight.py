#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_preflight
short_description: Judge both stores before anything is prepared
description:
  - Checks the mapping against the schema, the safety of both stores, strangers, and whether the source can be
    fenced.
  - Keeps the verdict in the ledger as the gate C(preflight).
options:
  known_accounts:
    description:
      - SQL accounts that may be connected besides those of the mapping.
    type: list
    elements: str
    default: []
  worker_hosts:
    description:
      - Host names on which RQ workers may run.
    type: list
    elements: str
    default: []
  watch_seconds:
    description:
      - How long to look for strangers, in seconds; longer than every poll interval.
    type: int
    default: 5
  attest:
    description:
      - Checks that cannot be read here and for which the operator stands, each with the reason.
    type: dict
    default: {}
  shared_redis_note:
    description:
      - Why other keys may be in the same Redis database; empty when they may not.
    type: str
    default: ""
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.target_side
  - queue_options.measures
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Judge both stores before anything is prepared
  queue_preflight:
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
    **arguments.TARGET_SIDE,
    "known_accounts": {"type": "list", "elements": "str", "default": []},
    "worker_hosts": {"type": "list", "elements": "str", "default": []},
    "watch_seconds": {"type": "int", "default": 5},
    "attest": {"type": "dict", "default": {}},
    "shared_redis_note": {"type": "str", "default": ""},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, prepare.preflight, RETURNS)


if __name__ == "__main__":
    main()
