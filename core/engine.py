"""The interface of a loaded engine, used by every layer above."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


@dataclass
class DeviceUse:
    """Time and number of the calls of one engine on its device, since it was loaded."""

    seconds: float = 0.0
    """Time by the device's own clock, without copies of inputs and outputs."""
    calls: int = 0
    replays: int = 0
    """Calls that replayed a recorded graph, instead of launching each kernel."""


@runtime_checkable
class Clocked(Protocol):
    """An engine whose device measures the time of its calls."""

    @property
    def device_use(self) -> DeviceUse | None:
        """Grows with each call; None where the device's clock is not read."""
        ...


EngineOf = Callable[[str, Mapping[str, tuple[int, ...]]], Engine]
"""Returns the engine of a part for given input shapes."""
