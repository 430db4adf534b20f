#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_assess_host
short_description: Say what one host shows of itself before a rollback
description:
  - Asks the application for its health, counts the errors in the newest log lines, and counts the target's worker
    processes. Each has its own limit; what has no answer is returned with its reason. Reads only, touches no store.
options:
  log_files:
    description:
      - Log files, absolute paths that may hold wildcards. Known secrets are taken out of the lines that are shown.
    type: list
    elements: str
    default: []
  log_kilobytes:
    description:
      - How much of the end of each file is read.
    type: int
    default: 256
  log_minutes:
    description:
      - How old a line may be that carries a time.
    type: int
    default: 15
  health_url:
    description:
      - Where the application says how it is; empty when this host does not serve it.
    type: str
    default: ""
  group:
    description:
      - The group of the target's worker processes; empty when this host runs none.
    type: str
    default: ""
  supervisor:
    description:
      - What keeps the worker processes of this host.
    type: str
    choices: [supervisord, systemd]
    default: systemd
  socket:
    description:
      - Unix socket of supervisord; not used with systemd.
    type: path
    default: ""
  units:
    description:
      - Units of the group; not used with supervisord, which knows its groups itself.
    type: list
    elements: str
    default: []
  host_label:
    description:
      - How this host is called in lines and messages.
    type: str
    default: localhost
extends_documentation_fragment:
  - queue_options.steady
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Say what this host shows of itself
  queue_assess_host:
    log_files: [/srv/captions/log/*.log]
    health_url: http://127.0.0.1:8000/health
"""

RETURN = r"""
health:
  description: The application's answer with status (0 without one), latency in seconds, detail; empty when not asked.
  returned: always
  type: dict
  sample: {"status": 200, "latency": 0.01, "detail": "OK"}
logs:
  description: Each file with path, errors, the last three of them, and problem when it could not be read.
  returned: always
  type: list
  elements: dict
  sample: [{"path": "/srv/captions/log/web.log", "errors": 0, "last": [], "problem": ""}]
workers:
  description: How many worker processes are kept alive; -1 when not asked, or not known.
  returned: always
  type: int
  sample: 3
workers_problem:
  description: Why the worker processes are not known.
  returned: always
  type: str
  sample: ""
lines:
  description: What was found, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["health   HTTP 200"]
"""

from ansible.module_utils.sluice.shell import arguments, runner
from ansible.module_utils.sluice.shell.steps import signs

ARGUMENT_SPEC = {
    **arguments.SUPERVISOR,
    "group": {"type": "str", "default": ""},
    "log_files": {"type": "list", "elements": "str", "default": []},
    "log_kilobytes": {"type": "int", "default": 256},
    "log_minutes": {"type": "int", "default": 15},
    "health_url": {"type": "str", "default": "", "no_log": False},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {"health": {}, "logs": [], "workers": -1, "workers_problem": "", "lines": []}


def main() -> None:
    runner.run(ARGUMENT_SPEC, signs.host, RETURNS)


if __name__ == "__main__":
    main()
