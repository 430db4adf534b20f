"""Documentation that several modules share; the options themselves are in shell/arguments.py."""

from __future__ import annotations


class ModuleDocFragment:
    """One attribute for each shared dictionary of options."""

    STORES = r"""
options:
  db_url:
    description:
      - SQLAlchemy URL of the application's database, with the account of the mover.
      - Holds a password and is never logged.
    type: str
    required: true
  redis_url:
    description:
      - URL of the Redis that holds the queues, C(redis://user:password@host:port/database).
      - Holds a password and is never logged.
    type: str
    required: true
  mapping:
    description:
      - File that describes the application's tasks, on the host where the module runs.
    type: path
    required: true
"""

    OWNER = r"""
options:
  owner:
    description:
      - Owner of the lease, as the first play got it from M(queue_run). A step with another owner writes nothing.
    type: str
    required: true
"""

    TARGET_SIDE = r"""
options:
  target_sql_accounts:
    description:
      - SQL accounts (C(user@host)) of the target's workers, for its fence.
    type: list
    elements: str
    default: []
  target_redis_users:
    description:
      - Redis ACL users of the target's workers, for its fence.
    type: list
    elements: str
    default: []
  producer_redis_users:
    description:
      - Redis ACL users of the producers. One that the workers share cannot be fenced.
    type: list
    elements: str
    default: []
"""

    SLICES = r"""
options:
  sliced:
    description:
      - Set by the action plugin alone. It calls the module again until the step is done, showing a line in between.
    type: bool
    default: false
  cursor:
    description:
      - Where the slice before this one ended. Set by the action plugin alone.
    type: dict
    default: {}
"""

    PROGRESS = r"""
options:
  progress_file:
    description:
      - Where the module says now and then how far it is, while it works; removed at its end.
      - Set by the action plugin alone, which shows the newest line. Without it nothing is written.
    type: path
    default: ""
"""

    SUPERVISOR = r"""
options:
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
  group:
    description:
      - Name of the group of processes.
    type: str
    required: true
  host_label:
    description:
      - How this host is called in lines and messages.
    type: str
    default: localhost
"""

    STEADY = r"""
attributes:
  check_mode:
    description: Runs in check mode without a change to either store.
    support: full
  diff_mode:
    description: Shows what it would change, or changed, with C(--diff).
    support: none
  idempotent:
    description: A second call with the same options changes nothing more.
    support: full
"""

    DIFFERS = r"""
attributes:
  check_mode:
    description: Runs in check mode without a change to either store.
    support: full
  diff_mode:
    description: Shows what it would change, or changed, with C(--diff).
    support: full
  idempotent:
    description: A second call with the same options changes nothing more.
    support: full
"""

    MEASURES = r"""
attributes:
  check_mode:
    description: Runs in check mode without a change to either store.
    support: full
  diff_mode:
    description: Shows what it would change, or changed, with C(--diff).
    support: none
  idempotent:
    description: A second call with the same options changes nothing more.
    support: partial
    details: Every call measures anew and keeps its verdict in the ledger.
"""
