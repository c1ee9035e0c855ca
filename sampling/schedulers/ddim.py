"""DDIM: deterministic, or as random as `eta` says (Song et al., arXiv:2010.02502)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .arrays import mixed
from .betas import alphas_cumprod
from .prediction import noise_in, original, refuse_lost_signal
from .spacing import rounded

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings


@dataclass(frozen=True)
class Ddim:
    """A walk along DDIM's non-Markovian chain; it keeps no history."""

    timesteps: Array
    kept: tuple[tuple[float, float], ...]
    """Signal power left before and after each step."""
    settings: Settings
    init_noise_sigma: float = 1.0

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample itself: it has unit variance throughout."""
        del index
        return sample

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        before = self.kept[index][0] if index < len(self.kept) else 1.0
        return math.sqrt(before), math.sqrt(1 - before)

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Take one step by formula 12 of the paper, with the variance of formula 16."""
        before, after = self.kept[index]
        alpha, sigma = math.sqrt(before), math.sqrt(1 - before)
        prediction = self.settings.prediction_type
        start = original(prediction, output, sample, alpha, sigma, self.settings.clip)
        variance = self.settings.eta**2 * (1 - after) / (1 - before) * (1 - before / after)
        # The noise is that of the unclipped original.
        direction = noise_in(prediction, output, sample, alpha, sigma)
        terms = [(math.sqrt(after), start), (math.sqrt(max(1 - after - variance, 0)), direction)]
        if variance > 0:
            terms.append((math.sqrt(variance), noise()))
        return mixed(*terms)


def ddim(settings: Settings, steps: int) -> Ddim:
    """Return DDIM's schedule; an `eta` of 1 is as random as DDPM."""
    table = alphas_cumprod(settings)
    final = 1.0 if settings.set_alpha_to_one else float(table[0])
    timesteps = rounded(settings, steps)
    # The chain has evenly spaced timesteps, even where rounding has changed the spacing.
    stride = settings.num_train_timesteps // steps
    kept = tuple(
        (float(table[timestep]), float(table[timestep - stride]) if timestep >= stride else final)
        for timestep in timesteps
    )
    refuse_lost_signal(settings.prediction_type, (before for before, _ in kept))
    return Ddim(np.asarray(timesteps, np.float32), kept, settings)
