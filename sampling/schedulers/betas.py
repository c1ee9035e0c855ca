"""The training schedule: the share of the signal that is left after each timestep.

Tables are float32 and rounded where diffusers rounds them, because some samplers invert them and
truncate the timesteps: an error of one unit in the last place could change such a timestep by one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ProfileError

if TYPE_CHECKING:
    from .arrays import Array
    from .settings import Settings


def alphas_cumprod(settings: Settings) -> Array:
    """Return the share of signal power left at each training timestep, (timesteps,), falling.

    With `rescale_betas_zero_snr` the last is exactly zero (algorithm 1 of arXiv:2305.08891).
    """
    kept = _product(np.float32(1) - _betas(settings))
    return _without_terminal_signal(kept) if settings.rescale_betas_zero_snr else kept


def linspace(start: float, stop: float, count: int) -> Array:
    """Return `count` evenly spaced float32 numbers, rounded once each and exact at both ends."""
    first, last = np.float32(start), np.float32(stop)
    step = float((last - first) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    rising, falling = float(first) + step * index, float(last) - step * (count - 1 - index)
    return np.where(index < count // 2, rising, falling).astype(np.float32)


def _betas(settings: Settings) -> Array:
    count = settings.num_train_timesteps
    if settings.trained_betas is not None:
        if len(settings.trained_betas) != count:
            raise ProfileError(
                f"The scheduler config has {len(settings.trained_betas)} trained_betas for {count} timesteps, but one "
                "for each was expected. Correct trained_betas or num_train_timesteps."
            )
        return np.asarray(settings.trained_betas, dtype=np.float32)
    match settings.beta_schedule:
        case "linear":
            return linspace(settings.beta_start, settings.beta_end, count)
        case "scaled_linear":
            roots = linspace(math.sqrt(settings.beta_start), math.sqrt(settings.beta_end), count)
            squares: Array = roots * roots
            return squares
        case "squaredcos_cap_v2":  # arXiv:2102.09672
            times = np.arange(count + 1) / count
            kept = np.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
            betas: Array = np.minimum(1 - kept[1:] / kept[:-1], 0.999).astype(np.float32)
            return betas


def _product(alphas: Array) -> Array:
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _without_terminal_signal(kept: Array) -> Array:
    amplitude = np.sqrt(kept)
    first, last = amplitude[0], amplitude[-1]
    amplitude = (amplitude - last) * (first / (first - last))
    kept = amplitude**2
    betas = np.float32(1) - np.concatenate([kept[:1], kept[1:] / kept[:-1]])
    return _product(np.float32(1) - betas)
