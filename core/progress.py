"""How long work reports progress; the rooms below `cli/` never print."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""Called with the name of what is being done, and the share of it that is done (0 to 1; None: unknown)."""

WAITING = "waiting for another process, which builds it"
"""In the name of what only waits: it is shown at once, everywhere."""


def quiet(_what: str, _share: float | None = None) -> None:
    """Tell nobody."""
