"""DPM++ SDE: single-step, second order, stochastic.

Lu et al., arXiv:2211.01095; k-diffusion's `sample_dpmpp_sde`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import RequestError
from .arrays import mixed
from .euler import ancestral
from .grid import graded
from .prediction import denoised, init_noise_sigma, scaled
from .settings import refuse_karras_bounds
from .sigmas import ended, timesteps_of, training_sigmas

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings


@dataclass
class DpmSde:
    """A walk of two calls per step, except one for the last; it keeps each step's start and noise.

    The noise of a step is one Brownian path over its noise levels: the noise that the second call adds
    includes what the first has added.
    """

    timesteps: Array
    sigmas: list[float]
    """One per step, and zero at the end."""
    init_noise_sigma: float
    settings: Settings
    began: tuple[Array, Array] | None = None

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample at unit variance."""
        return scaled(sample, self._level(index))

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return 1.0, self._level(index) if index < len(self.timesteps) else 0.0

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Go to the step's geometric middle, then from its start to its end with the original predicted there."""
        before, after = self.sigmas[index // 2], self.sigmas[index // 2 + 1]
        start = denoised(self.settings.prediction_type, output, sample, self._level(index))
        if after == 0:
            return start
        middle = math.sqrt(before * after)
        if index % 2 == 0:
            first = noise()
            self.began = sample, first
            return _moved(sample, start, before, middle, first)
        if self.began is None:
            raise RequestError(
                f"DPM++ SDE cannot start at call {index}, the second of its step. Start at an even call."
            )
        began, first = self.began
        shared = (before - middle) / (before - after)
        path = mixed((math.sqrt(shared), first), (math.sqrt(1 - shared), noise()))
        return _moved(began, start, before, after, path)

    def _level(self, index: int) -> float:
        before, after = self.sigmas[index // 2], self.sigmas[index // 2 + 1]
        return before if index % 2 == 0 else math.sqrt(before * after)


def _moved(sample: Array, start: Array, before: float, after: float, noise: Array) -> Array:
    down, up = ancestral(before, after)
    return mixed((down / before, sample), (1 - down / before, start), (up, noise))


def dpm_sde(settings: Settings, steps: int) -> DpmSde:
    """Return DPM++ SDE's schedule, of `2 * steps - 1` calls."""
    refuse_karras_bounds(settings)
    table = training_sigmas(settings)
    sigmas, timesteps = graded(settings, steps, table)
    calls = np.repeat(timesteps, 2)[1:]
    calls[1::2] = timesteps_of(np.sqrt(sigmas[:-1] * sigmas[1:]), table)
    levels = ended(sigmas, 0.0)
    first = init_noise_sigma(settings.timestep_spacing, levels[0])
    return DpmSde(calls.astype(np.float32), levels, first, settings)
