"""TCD: few-step sampling of a model distilled for trajectories (Zheng et al., arXiv:2402.19159).

As diffusers' `TCDScheduler`, where `eta` is the paper's gamma, and the last step ends at timestep 0, not at no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .arrays import mixed
from .betas import alphas_cumprod
from .lcm import distilled_timesteps
from .prediction import noise_in, original, refuse_lost_signal

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings


@dataclass(frozen=True)
class Tcd:
    """A walk that goes below the next timestep, by as much as eta says, and adds noise up to it; no history."""

    timesteps: Array
    table: Array
    settings: Settings
    init_noise_sigma: float = 1.0

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample itself: it has unit variance throughout."""
        del index
        return sample

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        before = self._kept(int(self.timesteps[index])) if index < len(self.timesteps) else 1.0
        return math.sqrt(before), math.sqrt(1 - before)

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Jump along the trajectory by formula 5 of the paper, and add noise by formula 6."""
        is_last = index + 1 == len(self.timesteps)
        following = 0 if is_last else int(self.timesteps[index + 1])
        before, after = self._kept(int(self.timesteps[index])), self._kept(following)
        below = self._kept(math.floor(np.float32(1 - self.settings.eta) * np.float32(following)))
        alpha, sigma = math.sqrt(before), math.sqrt(1 - before)
        prediction = self.settings.prediction_type
        start = original(prediction, output, sample, alpha, sigma)
        jumped = mixed(
            (math.sqrt(below), start),
            (math.sqrt(1 - below), noise_in(prediction, output, sample, alpha, sigma)),
        )
        if self.settings.eta == 0 or is_last:
            return jumped
        return mixed((math.sqrt(after / below), jumped), (math.sqrt(1 - after / below), noise()))

    def _kept(self, timestep: int) -> float:
        return float(self.table[timestep])


def tcd(settings: Settings, steps: int) -> Tcd:
    """Return TCD's schedule: some of the timesteps that the model was distilled on."""
    timesteps = distilled_timesteps(settings, steps)
    table = alphas_cumprod(settings)
    refuse_lost_signal(settings.prediction_type, table[timesteps].tolist())
    return Tcd(timesteps.astype(np.float32), table, settings)
