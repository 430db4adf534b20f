"""Faults in the middle of a transfer: killed and frozen movers, lost stores, late producers, live traffic.

The processes that these tests start find the package under the name that Ansible gives it, as `tests/conftest.py` does.
"""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent

_package_home = str(ROOT / "module_utils")
if _package_home not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_package_home)
