#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_evidence
short_description: Bundle what is known before a way back undoes anything
description:
  - Writes where the run stood, its verdicts and events, both stores' counts, the held ids, the digests of the
    configuration and where the logs lie into one file, and reads it back.
  - In an emergency a file that cannot be written does not stop the way back.
options:
  directory:
    description:
      - Folder for the bundle, on the host where the module runs; the run's id is added.
    type: path
    required: true
  reason:
    description:
      - Why the run goes back.
    type: str
    default: ""
  configuration:
    description:
      - Digests of the configuration, by host or file.
    type: dict
    default: {}
  logs:
    description:
      - Where the logs lie, as host and path.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Bundle what is known before a way back undoes anything
  queue_evidence:
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
  sample: [{"name": "evidence", "verdict": "passed", "reading": "evidence.json", "next_step": ""}]
file:
  description: The bundle.
  returned: always
  type: str
  sample: /var/backups/sluice/captions-20250102-101500-1a2b/evidence.json
sha256:
  description: The bundle's digest; empty when it could not be written.
  returned: always
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   evidence  evidence.json, sha256 9f86d081884c7d65"]
"""

from ansible.module_utils.sluice.shell import arguments, stores
from ansible.module_utils.sluice.shell.steps import back

ARGUMENT_SPEC = {
    **arguments.STORES,
    **arguments.OWNER,
    "directory": {"type": "path", "required": True},
    "reason": {"type": "str", "default": ""},
    "configuration": {"type": "dict", "default": {}},
    "logs": {"type": "list", "elements": "str", "default": []},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "file": "", "sha256": "", "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, back.evidence, RETURNS)


if __name__ == "__main__":
    main()
