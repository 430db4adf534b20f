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
  - A run that goes V(back) takes the place of the forward run that is open.
options:
  state:
    description:
      - What to do. V(opened) opens or resumes, V(advanced) enters O(phase), V(undone) takes the run back,
        V(released) gives the lease up, V(stopping) asks the run at work to end between two batches (no lease needed).
        V(reopened) lets the source of a fenced forward run in again, so that both sides run.
    type: str
    default: opened
    choices: [opened, advanced, undone, released, stopping, reopened]
  direction:
    description:
      - Which way tasks move. V(back) suspends the open forward run; a forward run waits until one that goes back
        has ended.
    type: str
    default: forward
    choices: [forward, back]
  emergency:
    description:
      - With O(direction=back), do not wait for what is dead; a Redis that cannot be used is done without.
    type: bool
    default: false
  started:
    description:
      - With O(direction=back), what becomes of tasks that a worker of the target had begun when it was ended.
    type: str
    default: hold
    choices: [hold, requeue, fail]
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
      - Why the run is taken back, or why one goes back.
    type: str
    default: ""
  evidence_directory:
    description:
      - Folder for what is known before a run is taken back (counts, verdicts, events); empty for none. One that cannot
        be written does not keep the run from being taken back.
    type: path
    default: ""
  configuration:
    description:
      - Digests of the configuration, by host or file, for that bundle.
    type: dict
    default: {}
  logs:
    description:
      - Where the logs lie, as host and path, for that bundle.
    type: list
    elements: str
    default: []
  plan_digest:
    description:
      - Digest of the plan that was approved, for the ledger.
    type: str
    default: ""
  hosts:
    description:
      - The hosts of each group, with O(state=opened). A forward run that is prepared and not yet validated refuses one
        that it was not prepared with.
    type: dict
    default: {}
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.target_side
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
both:
  description: Whether both sides may run at once, since every row says whose it is.
  returned: always
  type: bool
  sample: true
target_usable:
  description: Whether this command works with the target's store; an emergency goes on without.
  returned: always
  type: bool
  sample: true
restores:
  description: The forward run whose archive of the application's files a way back restores; empty without a run.
  returned: always
  type: str
  sample: captions-20250102-101500-1a2b
held:
  description: How many tasks wait for an operator's decision.
  returned: always
  type: int
  sample: 0
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

from ansible.module_utils.sluice.shell import arguments, stores
from ansible.module_utils.sluice.shell.steps import run

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.TARGET_SIDE,
    **arguments.SLICES,
    "state": {
        "type": "str",
        "default": "opened",
        "choices": ["opened", "advanced", "undone", "released", "stopping", "reopened"],
    },
    "direction": {"type": "str", "default": "forward", "choices": ["forward", "back"]},
    "emergency": {"type": "bool", "default": False},
    "started": {"type": "str", "default": "hold", "choices": ["hold", "requeue", "fail"]},
    "operator": {"type": "str", "default": ""},
    "owner": {"type": "str", "default": ""},
    "phase": {
        "type": "str",
        "default": "",
        "choices": ["", "prepared", "hybrid", "routed", "fenced", "transferred", "verified", "validated", "cleaned"],
    },
    "override": {"type": "dict", "default": {}},
    "reason": {"type": "str", "default": ""},
    "evidence_directory": {"type": "path", "default": ""},
    "configuration": {"type": "dict", "default": {}},
    "logs": {"type": "list", "elements": "str", "default": []},
    "plan_digest": {"type": "str", "default": ""},
    "hosts": {"type": "dict", "default": {}},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {
    "run_id": "",
    "phase": "",
    "direction": "",
    "opened_at": "",
    "past_return": False,
    "todo": {},
    "both": False,
    "target_usable": True,
    "restores": "",
    "held": 0,
    "owner": "",
    "undone": False,
    "lines": [],
}


def main() -> None:
    stores.run(ARGUMENT_SPEC, run.act, RETURNS)


if __name__ == "__main__":
    main()
