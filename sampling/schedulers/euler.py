"""Euler's method, plain and ancestral (Karras et al., arXiv:2206.00364; k-diffusion)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .arrays import mixed
from .grid import graded
from .prediction import init_noise_sigma, scaled, slope
from .sigmas import ended, training_sigmas

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings


@dataclass(frozen=True)
class Euler:
    """A walk along the tangents of the probability flow; it keeps no history."""

    timesteps: Array
    sigmas: list[float]
    init_noise_sigma: float
    settings: Settings

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample at unit variance."""
        return scaled(sample, self.sigmas[index])

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return 1.0, self.sigmas[index] if index < len(self.timesteps) else 0.0

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Follow the tangent to the next noise level."""
        del noise
        before, after = self.sigmas[index], self.sigmas[index + 1]
        tangent = slope(self.settings.prediction_type, output, sample, before)
        return mixed((1, sample), (after - before, tangent))


@dataclass(frozen=True)
class EulerAncestral:
    """A walk that goes below the next noise level and adds noise up to it; it keeps no history."""

    timesteps: Array
    sigmas: list[float]
    init_noise_sigma: float
    settings: Settings

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample at unit variance."""
        return scaled(sample, self.sigmas[index])

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return 1.0, self.sigmas[index] if index < len(self.timesteps) else 0.0

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Follow the tangent below the next level, then add noise up to it."""
        before, after = self.sigmas[index], self.sigmas[index + 1]
        tangent = slope(self.settings.prediction_type, output, sample, before)
        down, up = ancestral(before, after)
        terms = [(1.0, sample), (down - before, tangent)]
        if up > 0:
            terms.append((up, noise()))
        return mixed(*terms)


def ancestral(before: float, after: float) -> tuple[float, float]:
    """Return the level to step down to and the noise to add there, which make up the level `after`."""
    # In float32, as in diffusers: where the levels are far apart, as after a start without signal,
    # their difference has few significant digits, and the samples depend on its rounding.
    high, low = np.float32(before), np.float32(after)
    up = min(low, np.sqrt(low**2 * (high**2 - low**2) / high**2))
    return float(np.sqrt(low**2 - up**2)), float(up)


def euler(settings: Settings, steps: int) -> Euler:
    """Return Euler's schedule."""
    table = training_sigmas(settings)
    sigmas, timesteps = graded(settings, steps, table)
    lowest = settings.final_sigmas_type == "sigma_min" and settings.sigmas is None  # chosen ones end at zero
    levels = ended(sigmas, float(table[0]) if lowest else 0.0)
    if settings.timestep_type == "continuous" and settings.prediction_type == "v_prediction":
        timesteps = 0.25 * np.log(np.asarray(levels[:-1]))  # EDM's conditioning
    first = init_noise_sigma(settings.timestep_spacing, levels[0])
    return Euler(timesteps.astype(np.float32), levels, first, settings)


def euler_ancestral(settings: Settings, steps: int) -> EulerAncestral:
    """Return ancestral Euler's schedule."""
    sigmas, timesteps = graded(settings, steps, training_sigmas(settings))
    levels = ended(sigmas, 0.0)
    first = init_noise_sigma(settings.timestep_spacing, levels[0])
    return EulerAncestral(timesteps.astype(np.float32), levels, first, settings)
