#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_cleanup
short_description: Archive a validated run and remove what it left
description:
  - Refuses before the stability time is over and while a hold is undecided. Archives the ledger's records, reads
    them back, then removes only what the manifest says.
  - Of a run that goes back it exports every job that RQ still keeps of ours, proves that the target's workers are still
    locked out, and removes those jobs.
options:
  stability_seconds:
    description:
      - How long the run must have stood as validated, in seconds.
    type: int
    default: 86400
  archive_dir:
    description:
      - Folder for the archive, on the host where the module runs.
    type: path
    required: true
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.target_side
  - queue_options.owner
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Archive a validated run and remove what it left
  queue_cleanup:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    archive_dir: /var/backups/sluice
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
removed:
  description: What was removed, by kind.
  returned: always
  type: list
  elements: str
  sample: ["3 keys of ours in Redis"]
archive:
  description: The archive's file.
  returned: always
  type: str
  sample: /var/backups/sluice/captions-20250102-101500-1a2b.json.gz
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
    **arguments.TARGET_SIDE,
    **arguments.OWNER,
    "stability_seconds": {"type": "int", "default": 86400},
    "archive_dir": {"type": "path", "required": True},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "removed": [], "archive": "", "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, recover.cleanup, RETURNS)


if __name__ == "__main__":
    main()
