#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_config
short_description: Keep the managed keys of an application's settings file
description:
  - Holds each managed key exactly once and leaves everything else byte for byte, with a backup copy. Mode 0600, or 0640
    where its group could read it.
  - Refuses to change a file that others may read. The application may read it by that right, so that taking it away
    could stop the application; leaving it would show everybody a password.
  - Runs on the application's hosts and needs no store.
options:
  path:
    description:
      - The file with C(KEY=VALUE) lines.
    type: path
    required: true
  values:
    description:
      - Keys and values that may be shown.
    type: dict
    default: {}
  secrets:
    description:
      - Keys and values that are never shown.
    type: dict
    default: {}
  run_id:
    description:
      - The run, for the name of the backup copy.
    type: str
    required: true
  state:
    description:
      - Whether the keys are set or taken out.
    type: str
    default: present
    choices: [present, absent]
extends_documentation_fragment:
  - queue_options.differs
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Keep the managed keys of an application's settings file
  queue_config:
    path: /srv/captions/.env
    values:
      RQ_ENABLED: "true"
    secrets:
      RQ_REDIS_URL: "{{ captions_redis_url }}"
    run_id: "{{ queue_run_id }}"
"""

RETURN = r"""
diff:
  description: Our keys before and after, secrets masked.
  returned: always
  type: dict
  sample: {}
backup_file:
  description: The copy of the file before the change; empty when nothing was changed.
  returned: always
  type: str
  sample: /srv/captions/.env.captions-20250102-101500-1a2b.bak
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["passed   source is empty  0 ready or delayed"]
"""

from ansible.module_utils.sluice.shell import runner
from ansible.module_utils.sluice.shell.steps import settings

ARGUMENT_SPEC = {
    "path": {"type": "path", "required": True},
    "values": {"type": "dict", "default": {}},
    "secrets": {"type": "dict", "default": {}, "no_log": True},
    "run_id": {"type": "str", "required": True},
    "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"diff": {}, "backup_file": "", "lines": []}


def main() -> None:
    runner.run(ARGUMENT_SPEC, settings.config, RETURNS)


if __name__ == "__main__":
    main()
