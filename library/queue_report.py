#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_report
short_description: Write the balance of a run for the change ticket
description:
  - Says what was moved, held and turned away, what each phase took, and what the criteria showed. Reads the ledger.
  - Of a run that goes back it writes a filled-in incident report, with times, steps, verdicts and ids.
options:
  prober_log:
    description:
      - Log of a prober that submitted throughout; empty without one.
    type: path
    default: ""
  directory:
    description:
      - Folder for the report; empty for no file.
    type: path
    default: ""
  budgets:
    description:
      - Seconds that each phase may take, by its name, and C(service) for the time until a canary finishes again. They
        are set against what was measured.
    type: dict
    default: {}
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Write the balance of a run for the change ticket
  queue_report:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    directory: /var/backups/sluice
"""

RETURN = r"""
report_file:
  description: The report's file; empty when none was written.
  returned: always
  type: str
  sample: /var/backups/sluice/captions-20250102-101500-1a2b.txt
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
    "prober_log": {"type": "path", "default": ""},
    "directory": {"type": "path", "default": ""},
    "budgets": {"type": "dict", "default": {}},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"report_file": "", "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, report.report, RETURNS)


if __name__ == "__main__":
    main()
