"""Heun's second-order method (Karras et al., arXiv:2206.00364, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import RequestError
from .arrays import mixed
from .grid import graded
from .prediction import init_noise_sigma, scaled, slope
from .sigmas import ended, training_sigmas

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings


@dataclass
class Heun:
    """A walk of two calls per step, except one for the last; it keeps each step's start and slope."""

    timesteps: Array
    sigmas: list[float]
    """One per step, and zero at the end."""
    init_noise_sigma: float
    settings: Settings
    began: tuple[Array, Array] | None = None

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample at unit variance."""
        return scaled(sample, self.sigmas[(index + 1) // 2])

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return 1.0, self.sigmas[(index + 1) // 2]

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Follow the tangent, then repeat the step from its start with the mean of the slopes at both ends."""
        del noise
        level = self.sigmas[(index + 1) // 2]
        tangent = slope(self.settings.prediction_type, output, sample, level, self.settings.clip)
        width = self.sigmas[index // 2 + 1] - self.sigmas[index // 2]
        if index % 2 == 0:
            self.began = sample, tangent
            return mixed((1, sample), (width, tangent))
        if self.began is None:
            raise RequestError(f"Heun cannot start at call {index}, the second of a step. Start at an even call.")
        began, first = self.began
        return mixed((1, began), (width / 2, first), (width / 2, tangent))


def heun(settings: Settings, steps: int) -> Heun:
    """Return Heun's schedule, of `2 * steps - 1` calls."""
    sigmas, timesteps = graded(settings, steps, training_sigmas(settings))
    levels = ended(sigmas, 0.0)
    first = init_noise_sigma(settings.timestep_spacing, levels[0])
    return Heun(np.repeat(timesteps, 2)[1:].astype(np.float32), levels, first, settings)
