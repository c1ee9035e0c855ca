"""The interface of a loaded engine, used by every layer above."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from .tensors import Array

Run = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Computes outputs from inputs, both keyed by name."""


class Engine(Protocol):
    """A loaded artifact. Thread-safe; concurrent calls may wait for each other."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output from all inputs. Inputs are f32 or int64; outputs are f32 and owned by the caller.

        Raises `ShapeError` if a feed is missing, unknown, or has a dtype or shape that the engine was not built for,
        and `RuntimeMissing` after `close`.
        """
        ...

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        """Fix the values of some inputs, on the device if that is faster; the returned function takes the others."""
        ...

    def close(self) -> None:
        """Free the engine's memory. It cannot be used afterwards."""
        ...


EngineOf = Callable[[str, Mapping[str, tuple[int, ...]]], Engine]
"""Returns the engine of a part for given input shapes."""
