"""Figures as an operator reads them."""

from __future__ import annotations


def size(number: int) -> str:
    """Bytes in the largest unit that leaves a figure above one, e.g. ``9.7 MB``."""
    amount = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
