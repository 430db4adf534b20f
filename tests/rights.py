"""What docs/mapping.md tells an operator to grant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "mapping.md"


def documented(language: str, first_line: str, places: Mapping[str, str]) -> list[str]:
    """The lines of the page's block that begins so, with ``<name>`` filled in from ``places``."""
    block: str
    page = _PAGE.read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if b.startswith(first_line)]
    for name, value in places.items():
        block = block.replace(f"<{name}>", value)
    return block.splitlines()
