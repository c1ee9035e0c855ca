"""Format quantities for messages."""

from __future__ import annotations

from collections.abc import Iterable


def sized(count: float) -> str:
    """Format a number of bytes, in kB, MB or GB of 10^3, 10^6 and 10^9 bytes."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def counted(count: int, what: str) -> str:
    """Format a count with its noun, such as `1 core` and `2 cores`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def listed(names: Iterable[str]) -> str:
    """Format one or more names, such as `a`, `a and b`, and `a, b and c`."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
