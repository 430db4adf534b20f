#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_assess
short_description: Ask the questions before a rollback and recommend one action
description:
  - Asks both stores and the ledger side by side, each question with its own limit, and takes what the hosts said of
    themselves from M(queue_assess_host). A question without an answer is unknown, with its reason.
  - Recommends one action out of one complete table, with its reasons, and says the command to type next.
  - Reads only. Needs no run and no lease, and fails neither for a store that is down nor for one that hangs.
options:
  severity:
    description:
      - How much it hurts, in the operator's words. Raises what the readings say, never lowers it. Empty for the
        readings alone.
    type: str
    choices: ["", critical, high, medium, low]
    default: ""
  hosts:
    description:
      - What M(queue_assess_host) returned, by host name; what is empty or unreachable is unknown.
    type: dict
    default: {}
  application_hosts:
    description:
      - Which of these hosts serve the application.
    type: list
    elements: str
    default: []
  target_redis_users:
    description:
      - Redis users that only the target's workers log in with. Without a connection of theirs no worker lives.
    type: list
    elements: str
    default: []
  window:
    description:
      - How far back a failed job counts, in seconds.
    type: int
    default: 900
  failed_jobs:
    description:
      - From how many jobs that failed within the window on the target counts as unstable.
    type: int
    default: 20
  log_errors:
    description:
      - From how many errors in the newest log lines on the application counts as unstable.
    type: int
    default: 20
  oldest_degraded:
    description:
      - From how long a wait of the next job on the target counts as degraded, in seconds.
    type: int
    default: 300
  oldest_severe:
    description:
      - From how long a wait of the next job on the target counts as severely slow, in seconds.
    type: int
    default: 1800
  inventory:
    description:
      - Inventories that the command to type next has to name.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - queue_options.stores
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Ask the questions before a rollback and recommend one action
  queue_assess:
    db_url: "{{ queue_db_read_url }}"
    redis_url: "{{ queue_redis_url }}"
    mapping: "{{ queue_mapping }}"
    severity: high
"""

RETURN = r"""
action:
  description: The one action that is recommended.
  returned: always
  type: str
  sample: emergency rollback
next:
  description: The command to type next.
  returned: always
  type: str
  sample: ansible-playbook playbooks/emergency-rollback.yml
severity:
  description: C(critical), C(high), C(medium) or C(low).
  returned: always
  type: str
  sample: critical
function:
  description: C(works), C(partial) or C(none).
  returned: always
  type: str
  sample: none
integrity:
  description: C(intact), C(unknown) or C(compromised).
  returned: always
  type: str
  sample: unknown
performance:
  description: C(normal), C(degraded) or C(severe).
  returned: always
  type: str
  sample: normal
stability:
  description: C(stable) or C(unstable).
  returned: always
  type: str
  sample: stable
standing:
  description: Where the run stands, as far as it decides what can be done.
  returned: always
  type: str
  sample: in target
reasons:
  description: The sentences that say which axis and which standing decided.
  returned: always
  type: list
  elements: str
  sample: ["function is none: asks for an emergency rollback"]
answers:
  description: Every reading with question, name, verdict and reading.
  returned: always
  type: list
  elements: dict
  sample: [{"question": "system health", "name": "Redis", "verdict": "failed", "reading": "no answer"}]
seconds:
  description: How long the questions took.
  returned: always
  type: float
  sample: 3.1
lines:
  description: What was found, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["next: ansible-playbook playbooks/emergency-rollback.yml"]
"""

from ansible.module_utils.sluice.shell import arguments, stores
from ansible.module_utils.sluice.shell.steps import assess

ARGUMENT_SPEC = {
    **arguments.STORES,
    "severity": {"type": "str", "choices": ["", "critical", "high", "medium", "low"], "default": ""},
    "hosts": {"type": "dict", "default": {}},
    "application_hosts": {"type": "list", "elements": "str", "default": []},
    "target_redis_users": {"type": "list", "elements": "str", "default": []},
    "window": {"type": "int", "default": 900},
    "failed_jobs": {"type": "int", "default": 20},
    "log_errors": {"type": "int", "default": 20},
    "oldest_degraded": {"type": "int", "default": 300},
    "oldest_severe": {"type": "int", "default": 1800},
    "inventory": {"type": "list", "elements": "str", "default": []},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {
    "action": "",
    "next": "",
    "severity": "",
    "function": "",
    "integrity": "",
    "performance": "",
    "stability": "",
    "standing": "",
    "reasons": [],
    "answers": [],
    "seconds": 0.0,
    "lines": [],
}


def main() -> None:
    stores.run(ARGUMENT_SPEC, assess.assess, RETURNS)


if __name__ == "__main__":
    main()
