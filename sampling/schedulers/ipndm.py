"""IPNDM: Adams-Bashforth with fixed weights, in noise levels (Zhang and Chen, arXiv:2204.13902).

As ComfyUI's `sample_ipndm`, on the model's own training schedule. diffusers' `IPNDMScheduler` averages the predicted
noise with the same weights, but on a schedule of its own, of timesteps from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .arrays import mixed
from .grid import graded
from .pndm import ADAMS_BASHFORTH
from .prediction import denoised, init_noise_sigma, scaled
from .sigmas import ended, training_sigmas

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings


@dataclass
class Ipndm:
    """A walk that keeps the slopes of the last four steps."""

    timesteps: Array
    sigmas: list[float]
    init_noise_sigma: float
    settings: Settings
    slopes: list[Array] = field(default_factory=list["Array"])

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample at unit variance."""
        return scaled(sample, self.sigmas[index])

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return 1.0, self.sigmas[index] if index < len(self.timesteps) else 0.0

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Follow the weighted mean of the slopes so far; the last step goes to the predicted original."""
        del noise
        before, after = self.sigmas[index : index + 2]
        start = denoised(self.settings.prediction_type, output, sample, before)
        if after == 0:
            return start
        self.slopes = [*self.slopes[-3:], (sample - start) / np.float32(before)]
        weights = ADAMS_BASHFORTH[len(self.slopes)]
        moves = ((after - before) * weight for weight in weights)
        return mixed((1, sample), *zip(moves, reversed(self.slopes), strict=True))


def ipndm(settings: Settings, steps: int) -> Ipndm:
    """Return IPNDM's schedule."""
    sigmas, timesteps = graded(settings, steps, training_sigmas(settings))
    levels = ended(sigmas, 0.0)
    first = init_noise_sigma(settings.timestep_spacing, levels[0])
    return Ipndm(timesteps.astype(np.float32), levels, first, settings)
