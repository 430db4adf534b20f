"""Measures Sluice: transfer rate, peak memory, price of the gates, and what submissions feel of a transfer.

The package is found as `ansible.module_utils.sluice` here as on a host, so that a class exists once.
"""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[2]

_package_home = str(ROOT / "module_utils")
if _package_home not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_package_home)
