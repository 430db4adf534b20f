#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_backup
short_description: Back up what a run will touch, and verify it
description:
  - Dumps the mapped tables and what their keys need, takes a Redis snapshot, copies configuration files; all
    verified by reading back.
  - A backup of this run that is still whole is used again.
options:
  directory:
    description:
      - Folder for backups, on the host where the module runs.
    type: path
    required: true
  files:
    description:
      - Configuration files to keep, on the host where the module runs.
    type: list
    elements: path
    default: []
  whole_database:
    description:
      - Dump the whole database, not only the mapped tables.
    type: bool
    default: false
  attested:
    description:
      - Backups made elsewhere, by part (C(sql), C(redis)), each with C(reference) and C(age_hours).
    type: dict
    default: {}
  max_age_hours:
    description:
      - How old an attested backup may be, in hours.
    type: float
    default: 24.0
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.slices
  - queue_options.progress
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Back up what a run will touch, and verify it
  queue_backup:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    directory: /var/backups/sluice
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
folder:
  description: Where the backup lies.
  returned: always
  type: str
  sample: /var/backups/sluice/captions-20250102-101500-1a2b
artefacts:
  description: Its files, each with name, what, bytes and sha256.
  returned: always
  type: list
  elements: dict
  sample: []
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import arguments, progress, stores
from ansible.module_utils.sluice.shell.steps import prepare

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.OWNER,
    **arguments.SLICES,
    **progress.OPTION,
    "directory": {"type": "path", "required": True},
    "files": {"type": "list", "elements": "path", "default": []},
    "whole_database": {"type": "bool", "default": False},
    "attested": {"type": "dict", "default": {}},
    "max_age_hours": {"type": "float", "default": 24.0},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "folder": "", "artefacts": [], "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, prepare.backup, RETURNS)


if __name__ == "__main__":
    main()
