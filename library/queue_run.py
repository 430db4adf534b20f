#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_run
short_description: Open, resume, advance, take back or leave a run
description:
  - Opens a run, or resumes the open one, and takes its lease.
  - Enters a phase when every gate before it stands as passed in the ledger; refuses otherwise.
  - "Takes a run back before its point of no return: route back, fences lifted, tasks put back."
options:
  state:
    description:
      - What to do. V(opened) opens or resumes, V(advanced) enters O(phase), V(undone) takes the run back,
        V(released) gives the lease up, V(stopping) asks the run at work to end between two batches (no lease needed).
    type: str
    default: opened
    choices: [opened, advanced, undone, released, stopping]
  direction:
    description:
      - Which way tasks move. A run in another direction must have ended first.
    type: str
    default: forward
  operator:
    description:
      - Who runs this, for the ledger; the account and host by default.
    type: str
    default: ""
  owner:
    description:
      - "Owner of the lease. Empty at V(opened): a new one is made and returned."
    type: str
    default: ""
  phase:
    description:
      - The phase to enter, with O(state=advanced).
    type: str
    default: ""
    choices: ["", prepared, hybrid, routed, fenced, transferred, verified, validated, cleaned]
  override:
    description:
      - Gates that may be passed although they failed or could not be read, each with the reason. The ledger keeps
        it.
    type: dict
    default: {}
  reason:
    description:
      - Why the run is taken back.
    type: str
    default: ""
  plan_digest:
    description:
      - Digest of the plan that was approved, for the ledger.
    type: str
    default: ""
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.slices
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Open, resume, advance, take back or leave a run
  queue_run:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    state: opened
"""

RETURN = r"""
run_id:
  description: The open run; empty when there is none.
  returned: always
  type: str
  sample: captions-20250102-101500-1a2b
phase:
  description: Where the run stands; C(none) without one.
  returned: always
  type: str
  sample: fenced
direction:
  description: Which way tasks move.
  returned: always
  type: str
  sample: forward
opened_at:
  description: When the run was opened, UTC.
  returned: always
  type: str
  sample: 2025-01-02T10:15:00+00:00
past_return:
  description: Whether the run has passed its point of no return.
  returned: always
  type: bool
  sample: false
todo:
  description: Each phase, and whether it is still to be reached.
  returned: always
  type: dict
  sample: {"prepared": false, "routed": true}
owner:
  description: Owner of the lease; every later step needs it.
  returned: always
  type: str
  sample: ops@control:9f86d081
undone:
  description: Whether the run was taken back.
  returned: always
  type: bool
  sample: false
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import arguments, runner
from ansible.module_utils.sluice.shell.steps import run

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.SLICES,
    "state": {"type": "str", "default": "opened", "choices": ["opened", "advanced", "undone", "released", "stopping"]},
    "direction": {"type": "str", "default": "forward"},
    "operator": {"type": "str", "default": ""},
    "owner": {"type": "str", "default": ""},
    "phase": {
        "type": "str",
        "default": "",
        "choices": ["", "prepared", "hybrid", "routed", "fenced", "transferred", "verified", "validated", "cleaned"],
    },
    "override": {"type": "dict", "default": {}},
    "reason": {"type": "str", "default": ""},
    "plan_digest": {"type": "str", "default": ""},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {
    "run_id": "",
    "phase": "",
    "direction": "",
    "opened_at": "",
    "past_return": False,
    "todo": {},
    "owner": "",
    "undone": False,
    "lines": [],
}


def main() -> None:
    runner.run(ARGUMENT_SPEC, run.act, RETURNS)


if __name__ == "__main__":
    main()
