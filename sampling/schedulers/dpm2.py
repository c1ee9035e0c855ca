"""Second order in single steps: DPM2, plain and ancestral, and ancestral DPM++ 2S.

Karras et al., arXiv:2206.00364 (algorithm 2); Lu et al., arXiv:2211.01095; k-diffusion's `sample_dpm_2_ancestral` and
`sample_dpmpp_2s_ancestral`. diffusers has the first two (`KDPM2DiscreteScheduler`, `KDPM2AncestralDiscreteScheduler`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import RequestError
from .arrays import mixed
from .grid import graded
from .prediction import denoised, init_noise_sigma, scaled
from .sigmas import ended, timesteps_of, training_sigmas

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings


@dataclass
class Dpm2:
    """A walk of two calls per step, except one for the last; it keeps each step's start.

    The second call is at the geometric middle of the step. An ancestral step goes below the next noise level and adds
    noise up to it.
    """

    timesteps: Array
    sigmas: list[float]
    """One per step, and zero at the end."""
    init_noise_sigma: float
    settings: Settings
    ancestral: bool = False
    from_original: bool = False
    """Whether a step uses the original that the second call predicts (DPM++), or its slope."""
    began: Array | None = None

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample at unit variance."""
        return scaled(sample, self._level(index))

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return 1.0, self._level(index) if index < len(self.timesteps) else 0.0

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Go to the step's middle, then from its start to its end with what is predicted there."""
        before, level = self.sigmas[index // 2], self._level(index)
        down, up = ends(self.sigmas, index // 2, self.ancestral)
        start = denoised(self.settings.prediction_type, output, sample, level)
        if index % 2 == 0:
            self.began = sample
            return _toward(sample, start, math.sqrt(before * down) / before)
        if self.began is None:
            raise RequestError(f"DPM2 cannot start at call {index}, the second of its step. Start at an even call.")
        if self.from_original:
            moved = _toward(self.began, start, down / before)
        else:
            moved = mixed((1, self.began), ((down - before) / level, sample - start))
        return mixed((1, moved), (up, noise())) if up > 0 else moved

    def _level(self, index: int) -> float:
        before = self.sigmas[index // 2]
        return before if index % 2 == 0 else math.sqrt(before * ends(self.sigmas, index // 2, self.ancestral)[0])


def ends(sigmas: list[float], step: int, is_ancestral: bool) -> tuple[float, float]:
    """Return the noise level to which a step goes, and the noise that it then adds."""
    before, after = sigmas[step : step + 2]
    # `euler.ancestral`, without the rounding that is as large as the level itself where a step spans many levels.
    return (after**2 / before, after * math.sqrt(1 - (after / before) ** 2)) if is_ancestral else (after, 0.0)


def dpm2(settings: Settings, steps: int) -> Dpm2:
    """Return DPM2's schedule, of `2 * steps - 1` calls."""
    return _walk(settings, steps)


def dpm2_ancestral(settings: Settings, steps: int) -> Dpm2:
    """Return ancestral DPM2's schedule, of `2 * steps - 1` calls."""
    return _walk(settings, steps, is_ancestral=True)


def dpm_2s_ancestral(settings: Settings, steps: int) -> Dpm2:
    """Return the schedule of ancestral DPM++ 2S, of `2 * steps - 1` calls."""
    return _walk(settings, steps, is_ancestral=True, from_original=True)


def _walk(settings: Settings, steps: int, *, is_ancestral: bool = False, from_original: bool = False) -> Dpm2:
    table = training_sigmas(settings)
    sigmas, timesteps = graded(settings, steps, table)
    if settings.ramp == "karras" and not from_original:
        timesteps = np.round(timesteps)  # as in diffusers
    levels = ended(sigmas, 0.0)
    calls = np.repeat(timesteps, 2)[1:].astype(np.float64)
    downs = np.array([ends(levels, step, is_ancestral)[0] for step in range(steps - 1)])
    calls[1::2] = timesteps_of(np.sqrt(np.asarray(levels[: steps - 1]) * downs), table)
    first = init_noise_sigma(settings.timestep_spacing, levels[0])
    return Dpm2(calls.astype(np.float32), levels, first, settings, is_ancestral, from_original)


def _toward(sample: Array, start: Array, kept: float) -> Array:
    return mixed((kept, sample), (1 - kept, start))
