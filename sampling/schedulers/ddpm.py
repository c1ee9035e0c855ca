"""DDPM: ancestral sampling of the diffusion's own posterior (Ho et al., arXiv:2006.11239)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .arrays import mixed
from .betas import alphas_cumprod
from .prediction import original, refuse_lost_signal
from .spacing import rounded

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings


@dataclass(frozen=True)
class Ddpm:
    """A walk along the reverse Markov chain; it keeps no history."""

    timesteps: Array
    kept: tuple[float, ...]
    """Signal power left before each step, and after the last."""
    settings: Settings
    init_noise_sigma: float = 1.0

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample itself: it has unit variance throughout."""
        del index
        return sample

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        before = self.kept[index]
        return math.sqrt(before), math.sqrt(1 - before)

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Draw from the posterior of formula 7, given the original predicted by formula 15."""
        before, after = self.kept[index], self.kept[index + 1]
        alpha, beta = before / after, 1 - before / after
        start = original(
            self.settings.prediction_type,
            output,
            sample,
            math.sqrt(before),
            math.sqrt(1 - before),
            self.settings.clip,
        )
        toward_start = math.sqrt(after) * beta / (1 - before)
        toward_sample = math.sqrt(alpha) * (1 - after) / (1 - before)
        terms = [(toward_start, start), (toward_sample, sample)]
        # The two small ones are equal: diffusers computes the second through its logarithm.
        large = self.settings.variance_type == "fixed_large"
        variance = beta if large else (1 - after) / (1 - before) * beta
        if self.timesteps[index] > 0 and variance > 0:
            terms.append((math.sqrt(variance), noise()))
        return mixed(*terms)


def ddpm(settings: Settings, steps: int) -> Ddpm:
    """Return DDPM's schedule."""
    table = alphas_cumprod(settings)
    timesteps = rounded(settings, steps)
    kept = (*(float(table[timestep]) for timestep in timesteps), 1.0)
    refuse_lost_signal(settings.prediction_type, kept)
    return Ddpm(np.asarray(timesteps, np.float32), kept, settings)
