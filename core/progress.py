"""Progress callbacks. The packages below `cli/` never print."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""Called with the name of the current step, and its finished share (0 to 1; None: unknown)."""

WAITING = "waiting for another process that is building it"
"""Part of a step's name that marks waiting; such a step is always shown at once."""


def quiet(_what: str, _share: float | None = None) -> None:
    """Ignore progress."""
