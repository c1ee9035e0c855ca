"""A denoiser that computes one row of its batch at a time, for models whose values of all rows don't fit in memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core.engine import Engine, Run
from ..core.manifest import TensorInfo
from ..core.tensors import Array

ROWS = "batch"
"""The axis of the rows, the first of each input that has it."""


class RowByRow:
    """Stands for an engine of free sizes, and calls it for each row; what it computes differs by rounding only."""

    def __init__(self, engine: Engine, inputs: tuple[TensorInfo, ...]) -> None:
        self._engine = engine
        self._split = frozenset(one.name for one in inputs if one.shape and one.shape[0] == ROWS)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output from all inputs, as the engine does."""
        rows = next((len(feeds[name]) for name in feeds if name in self._split), 1)
        made = [
            self._engine.run({name: one[row : row + 1] if name in self._split else one for name, one in feeds.items()})
            for row in range(rows)
        ]
        return {name: np.concatenate([one[name] for one in made]) for name in made[0]}

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        """Fix the values of some inputs."""
        return lambda others: self.run({**feeds, **others})

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()
