"""Time the stages of another library's pipeline by wrapping the methods that it calls."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any


class Clock:
    """Seconds of each call, by stage. Work must be complete when the method returns, as on a CPU."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def watch(self, owner: Any, method: str, stage: str) -> None:
        """Time a method of an object from now on."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self.seconds.setdefault(stage, []).append(perf_counter() - start)

        setattr(owner, method, timed)

    def clear(self) -> None:
        """Discard all samples."""
        self.seconds.clear()

    def calls(self, stage: str) -> tuple[float, ...]:
        """Seconds of each call of a stage. Raises `ValueError` for no calls, as the figures would be wrong."""
        if not self.seconds.get(stage):
            raise ValueError(f"{stage} was never called: this version of the library works differently.")
        return tuple(self.seconds[stage])
