#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: queue_revision
short_description: Keep an application's files as a run found them, and put them back
description:
  - Keeps settings files and the program of the legacy workers byte for byte, with mode, owner and time, and a digest.
  - Runs on the application's hosts and needs no store. An archive is made once in a run and is never overwritten.
  - V(restored) refuses before the first change when the archive is missing or is not what was archived.
  - Files that came into a kept directory later stay there. Extended attributes and C(__pycache__) are not kept.
options:
  files:
    description:
      - Files and directories, absolute. What does not exist is kept as absent, and taken away again by V(restored).
    type: list
    elements: path
    required: true
  archive_dir:
    description:
      - Directory of the archives of all runs, made with mode 0700.
    type: path
    required: true
  run_id:
    description:
      - The run whose archive it is.
    type: str
    required: true
  by:
    description:
      - The run that puts the files back, for the name of the folder that keeps what was there; O(run_id) when empty.
    type: str
    default: ""
  digest:
    description:
      - Digest that V(archived) returned, as the ledger has it. Another archive than that one is refused.
    type: str
    default: ""
  state:
    description:
      - Keep the files, put them back, or only say whether they are as they were and could be put back.
    type: str
    default: checked
    choices: [archived, restored, checked]
  settings:
    description:
      - Those of the files that have C(KEY=VALUE) lines. A diff shows which keys differ.
    type: list
    elements: path
    default: []
  shown:
    description:
      - Keys of settings files whose values may be shown in a diff. All others are masked.
    type: list
    elements: str
    default: []
  most:
    description:
      - Bytes that an archive may hold.
    type: int
    default: 1073741824
extends_documentation_fragment:
  - queue_options.differs
author:
  - Sluice contributors
"""

EXAMPLES = r"""
- name: Keep the settings and the program of the legacy workers
  queue_revision:
    files: [/srv/captions/.env, /srv/captions/app]
    archive_dir: /var/backups/captions
    run_id: "{{ queue_run_id }}"
    state: archived

- name: Put them back
  queue_revision:
    files: [/srv/captions/.env, /srv/captions/app]
    archive_dir: /var/backups/captions
    run_id: captions-20250102-101500-1a2b
    by: "{{ queue_run_id }}"
    state: restored
    settings: [/srv/captions/.env]
    shown: [RQ_ENABLED]
"""

RETURN = r"""
archive:
  description: The directory of this run's archive; empty when there is none.
  returned: always
  type: str
  sample: /var/backups/captions/captions-20250102-101500-1a2b
digest:
  description: SHA-256 of the archive's manifest, which holds the digest of each content.
  returned: always
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
paths:
  description: How many paths are kept.
  returned: always
  type: int
  sample: 214
bytes:
  description: Bytes of all kept files.
  returned: always
  type: int
  sample: 1834201
in_place:
  description: Whether every listed path is as it was kept, when the module ends.
  returned: always
  type: bool
  sample: true
differing:
  description: Paths that were not as they were kept, when the module began.
  returned: always
  type: list
  elements: str
  sample: [/srv/captions/.env]
replaced:
  description: Where what was there before V(restored) is kept; empty when nothing was put back.
  returned: always
  type: str
  sample: /var/backups/captions/captions-20250102-101500-1a2b/replaced-captions-20250103-090000-3c4d
diff:
  description: What differs, from what is there to what was kept. Values are masked but for O(shown).
  returned: always
  type: dict
  sample: {}
lines:
  description: What was done, as lines for people.
  returned: always
  type: list
  elements: str
  sample: ["214 paths, 1,834,201 bytes in /var/backups/captions/captions-20250102-101500-1a2b: are kept now"]
"""

from ansible.module_utils.sluice.shell import runner
from ansible.module_utils.sluice.shell.steps import revision

ARGUMENT_SPEC = {
    "files": {"type": "list", "elements": "path", "required": True},
    "archive_dir": {"type": "path", "required": True},
    "run_id": {"type": "str", "required": True},
    "by": {"type": "str", "default": ""},
    "digest": {"type": "str", "default": ""},
    "state": {"type": "str", "default": "checked", "choices": ["archived", "restored", "checked"]},
    "settings": {"type": "list", "elements": "path", "default": []},
    "shown": {"type": "list", "elements": "str", "default": []},
    "most": {"type": "int", "default": 1073741824},
}
#: Every key of RETURN with its empty value.
RETURNS: dict[str, object] = {
    "archive": "", "digest": "", "paths": 0, "bytes": 0, "in_place": False, "differing": [], "replaced": "",
    "diff": {}, "lines": [],
}  # fmt: skip


def main() -> None:
    runner.run(ARGUMENT_SPEC, revision.revision, RETURNS)


if __name__ == "__main__":
    main()
