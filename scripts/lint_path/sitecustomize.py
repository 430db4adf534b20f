"""Let ansible-lint import our module_utils: it loads each module of library/ to check the arguments of tasks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# Python starts under this path for interpreters without Ansible too; those have nothing to extend.
if importlib.util.find_spec("ansible") is not None:
    import ansible.module_utils

    ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
