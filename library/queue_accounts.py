#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_accounts
short_description: Make the accounts of the target's side
description:
  - Makes SQL accounts and Redis ACL users, or brings existing ones to the given password and rights, and reads them
    again.
  - "Never unlocks an account: a lock may be a fence."
options:
  sql_accounts:
    description:
      - SQL accounts to make.
    type: list
    elements: dict
    default: []
    suboptions:
      account:
        description:
          - The account as C(user@host).
        type: str
        required: true
      password:
        description:
          - Its password.
        type: str
        required: true
      grants:
        description:
          - Its rights, as C(SELECT, UPDATE ON database.table).
        type: list
        elements: str
        required: true
  redis_users:
    description:
      - Redis ACL users to make.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the user.
        type: str
        required: true
      password:
        description:
          - Its password.
        type: str
        required: true
      role:
        description:
          - "What it may do: V(producer) enqueues, V(worker) works."
        type: str
        required: true
        choices: [producer, worker]
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.owner
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Make the accounts of the target's side
  queue_accounts:
    db_url: "{{ queue_db_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    owner: "{{ queue_run_owner }}"
    sql_accounts:
      - account: captions_rq@10.0.0.%
        password: "{{ captions_rq_password }}"
        grants:
          - SELECT, UPDATE ON captions.caption_tasks
    redis_users:
      - name: captions_rq
        password: "{{ captions_rq_redis_password }}"
        role: worker
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
    "sql_accounts": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "account": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "grants": {"type": "list", "elements": "str", "required": True},
        },
    },
    "redis_users": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "role": {"type": "str", "required": True, "choices": ["producer", "worker"]},
        },
    },
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"verdict": "", "checks": [], "lines": []}


def main() -> None:
    stores.run(ARGUMENT_SPEC, prepare.accounts, RETURNS)


if __name__ == "__main__":
    main()
