"""Euler's method on the straight paths of flow matching (Lipman et al., arXiv:2210.02747; Esser et al., 2403.03206).

A sample is `(1 - level) * original + level * noise`, and the denoiser predicts its velocity, `noise - original`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ProfileError, RequestError
from .arrays import mixed
from .sigmas import ended, ramped

if TYPE_CHECKING:
    from .arrays import Array, Table
    from .protocol import Noise
    from .settings import Settings

FLOW = "flow_prediction"
"""`prediction_type` of denoisers that predict velocities of flow matching."""

MAX_EXPONENT = 700.0
"""Above it, the exponential of a float is infinite."""


@dataclass(frozen=True)
class FlowEuler:
    """A walk along the predicted velocities; it keeps no history."""

    timesteps: Array
    sigmas: list[float]
    settings: Settings
    init_noise_sigma: float = 1.0

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample itself: denoisers take it unscaled."""
        del index
        return sample

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return (1 - self.sigmas[index], self.sigmas[index]) if index < len(self.timesteps) else (1.0, 0.0)

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Follow the velocity to the next noise level."""
        del noise
        before, after = np.float32(self.sigmas[index]), np.float32(self.sigmas[index + 1])
        return mixed((1, sample), (float(after - before), output))


def flow_euler(settings: Settings, steps: int) -> FlowEuler:
    """Return Euler's schedule of flow matching."""
    count = settings.num_train_timesteps
    ends = np.array([1, 1 / np.float32(count)], np.float32)
    if not settings.use_dynamic_shifting:  # as in diffusers, whose levels are then shifted twice at the end
        ends = np.float32(settings.shift) * ends / (1 + (np.float32(settings.shift) - 1) * ends)
    spaced = np.linspace(float(ends[0]) * count, float(ends[1]) * count, steps) / count
    if settings.sigmas is not None:
        spaced = np.asarray(settings.sigmas[:-1], np.float32).astype(np.float64)
    levels = shifted(spaced, settings.shift)
    ramp = ramped(settings, float(levels[0]), float(levels[-1]), steps)
    sigmas = ended(levels if ramp is None else ramp, 0.0)
    timesteps = np.asarray(sigmas[:-1], np.float32) * np.float32(count)
    return FlowEuler(timesteps, sigmas, settings)


def shifted(levels: Table, shift: float) -> Table:
    """Noise levels moved towards one by a factor (section 5.3.2 of arXiv:2403.03206)."""
    return shift * levels / (1 + (shift - 1) * levels)


def shift_at(settings: Settings, tokens: int) -> float:
    """The shift for an image of this many tokens, by a config with `use_dynamic_shifting`.

    Raises `ProfileError` for a config that gives no shift, and `RequestError` for an image for which it gives none.
    """
    span = settings.max_image_seq_len - settings.base_image_seq_len
    if span == 0:
        raise ProfileError(
            f"The scheduler config has base_image_seq_len = max_image_seq_len = {settings.max_image_seq_len}, but "
            "use_dynamic_shifting needs two different numbers of tokens. Correct them."
        )
    rise = (settings.max_shift - settings.base_shift) / span
    found = settings.base_shift + rise * (tokens - settings.base_image_seq_len)
    if settings.time_shift_type == "exponential":
        found = math.exp(found) if found < MAX_EXPONENT else math.inf
    if not 0 < found < math.inf:
        raise RequestError(
            f"The scheduler config's use_dynamic_shifting gives an image of {tokens:,} tokens a shift of {found:g}, "
            "but a positive number was expected. Use another size."
        )
    return found
