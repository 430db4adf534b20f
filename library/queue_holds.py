#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_holds
short_description: List held tasks and decide them
description:
  - Lists the tasks that were taken out of circulation, exports them, gives them to a side, or fails them with a
    reason.
options:
  owner:
    description:
      - Owner of the lease, as M(queue_run) gave it; not needed to list.
    type: str
    default: ""
  state:
    description:
      - What to do with the tasks of O(ids).
    type: str
    default: listed
    choices: [listed, exported, released, failed]
  ids:
    description:
      - The tasks; all that are held when empty and O(state) is V(listed) or V(exported).
    type: list
    elements: str
    default: []
  to:
    description:
      - The side that gets released tasks.
    type: str
    default: target
    choices: [source, target]
  reason:
    description:
      - Why, for the ledger.
    type: str
    default: ""
  file:
    description:
      - Where to export.
    type: path
    default: ""
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: List held tasks and decide them
  queue_holds:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    state: listed
"""

RETURN = r"""
holds:
  description: The held tasks, each with id and reason.
  returned: always
  type: list
  elements: dict
  sample: []
count:
  description: How many are held.
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
    "owner": {"type": "str", "default": ""},
    "state": {"type": "str", "default": "listed", "choices": ["listed", "exported", "released", "failed"]},
    "ids": {"type": "list", "elements": "str", "default": []},
    "to": {"type": "str", "default": "target", "choices": ["source", "target"]},
    "reason": {"type": "str", "default": ""},
    "file": {"type": "path", "default": ""},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"holds": [], "count": 0, "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, recover.holds, RETURNS)


if __name__ == "__main__":
    main()
