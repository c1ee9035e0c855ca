"""DEIS: a multistep exponential integrator with polynomials in log-SNR (Zhang and Chen, arXiv:2204.13902).

The variant `logrho`, the only one of diffusers' `DEISMultistepScheduler`. It predicts noise, and so ends at the lowest
noise level of the training schedule, not at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ProfileError
from .arrays import mixed
from .dpmsolver import alpha_sigma, lowered_order
from .grid import above_end
from .integrals import weights
from .prediction import noise_in
from .sigmas import ended, training_sigmas

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings


@dataclass
class Deis:
    """A walk that keeps as many of the last predictions as the solver's order."""

    timesteps: Array
    sigmas: list[float]
    settings: Settings
    init_noise_sigma: float = 1.0
    predictions: list[Array] = field(default_factory=list["Array"])

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample itself: it has unit variance throughout."""
        del index
        return sample

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return alpha_sigma(self.sigmas[index], self.settings) if index < len(self.timesteps) else (1.0, 0.0)

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Integrate the polynomial through the predicted noises so far, in log-SNR, over the step."""
        del noise
        before, after = self.sigmas[index : index + 2]
        alpha, sigma = alpha_sigma(before, self.settings)
        predicted = noise_in(self.settings.prediction_type, output, sample, alpha, sigma)
        self.predictions = [*self.predictions, predicted][-self.settings.solver_order :]
        order = min(
            lowered_order(self.settings, len(self.timesteps) - index, len(self.timesteps)), len(self.predictions)
        )
        nodes = [math.log(before / level) for level in self.sigmas[index + 1 - order : index + 1]]
        alpha_after, _ = alpha_sigma(after, self.settings)
        known = [-before * alpha_after * one for one in weights(nodes, math.log(before / after), -1.0)]
        return mixed((alpha_after / alpha, sample), *zip(known, self.predictions[-order:], strict=True))


def deis(settings: Settings, steps: int) -> Deis:
    """Return the schedule of DEIS."""
    if settings.solver_order > 3:
        raise ProfileError(
            f"The scheduler config has solver_order = {settings.solver_order}, but DEIS has orders 1 to 3. Set 2."
        )
    table = training_sigmas(settings)
    sigmas, timesteps, lowest = above_end(settings, steps, table)
    return Deis(timesteps.astype(np.float32), ended(sigmas, lowest), settings)
