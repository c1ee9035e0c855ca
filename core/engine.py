"""The interface of a loaded engine, used by every layer above."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
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


class Chain(Protocol):
    """Calls of one engine in which some inputs are outputs of the call before, and stay on the device."""

    def step(self, feeds: Mapping[str, Array]) -> None:
        """Make the next call. `feeds` are inputs that change; the others keep their values."""
        ...

    def read(self, name: str) -> Array:
        """A copy of an output of the last call."""
        ...


@runtime_checkable
class Chains(Protocol):
    """An engine whose outputs can be inputs of its next call, on the device."""

    def chain(self, feeds: Mapping[str, Array], back: Mapping[str, str]) -> AbstractContextManager[Chain]:
        """Begin with all inputs; `back` names the inputs that are outputs of the call before, each with its output of
        the same shape. Raises `ShapeError` and `RuntimeMissing` as `Engine.run` does.
        """
        ...


@runtime_checkable
class Loops(Protocol):
    """A denoiser's engine that also takes the scheduler's step: see `core.looped`."""

    def loop(self, feeds: Mapping[str, Array]) -> AbstractContextManager[Chain]:
        """Begin with all inputs of the first call, those of `core.looped` among them. Raises as `Chains.chain`."""
        ...


EngineOf = Callable[[str, Mapping[str, tuple[int, ...]]], Engine]
"""Returns the engine of a part for given input shapes."""
