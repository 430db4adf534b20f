#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_status
short_description: Say where a run stands and what may be run next
description:
  - Reads the ledger and both stores. Writes nothing.
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Say where a run stands and what may be run next
  queue_status:
    db_url: "{{ queue_db_read_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
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
next:
  description: The playbook to run next.
  returned: always
  type: str
  sample: playbooks/migrate.yml
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import arguments, stores
from ansible.module_utils.sluice.shell.steps import report

ARGUMENT_SPEC = {
    **arguments.STORES,
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"run_id": "", "phase": "", "next": "", "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, report.status, RETURNS)


if __name__ == "__main__":
    main()
