"""What draws: a loaded engine, and how it is called. Every floor above speaks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from .tensors import Array

Run = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Computes outputs from inputs, both by name."""


class Engine(Protocol):
    """A loaded artifact. Safe to call from several threads; calls may wait for one another."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output from all inputs. f32 and int64 arrays in, f32 arrays out that the caller owns.

        Raises `ShapeError` where a feed is missing, unknown, or has a type or a shape the engine wasn't built for,
        and `RuntimeMissing` after `close`.
        """
        ...

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        """Fix some inputs as they are now, on the device where that pays; the function returned takes the others."""
        ...

    def close(self) -> None:
        """Give back memory. The engine can't be used after."""
        ...


EngineOf = Callable[[str, Mapping[str, tuple[int, ...]]], Engine]
"""The engine of a part for its inputs' shapes."""
