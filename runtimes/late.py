"""A denoiser of two models: one for noisy latents, and an exact one for the last calls of a walk."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.engine import Engine, Run
from ..core.tensors import Array
from ..core.wires import TIMESTEP


class ByTimestep:
    """Calls `late` at timesteps below `below`, and `early` at all others; implements `Engine`."""

    def __init__(self, early: Engine, late: Engine, below: float) -> None:
        self._early, self._late, self._below = early, late, below

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Engine.run`."""
        return (self._late if self._is_late(feeds) else self._early).run(feeds)

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        """See `Engine.bind`. The arrays are copied once for each model."""
        early, late = self._early.bind(feeds), self._late.bind(feeds)
        if TIMESTEP in feeds:
            return late if self._is_late(feeds) else early
        return lambda others: (late if self._is_late(others) else early)(others)

    def _is_late(self, feeds: Mapping[str, Array]) -> bool:
        timestep = feeds.get(TIMESTEP)
        return timestep is not None and timestep.size == 1 and timestep.item() < self._below

    def close(self) -> None:
        """See `Engine.close`."""
        try:
            self._early.close()
        finally:
            self._late.close()
