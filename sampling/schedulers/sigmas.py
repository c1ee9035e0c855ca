"""Noise levels: standard deviations of noise over a signal of unit scale, and their spacings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ProfileError, RequestError
from .betas import alphas_cumprod

if TYPE_CHECKING:
    from .arrays import Array, Table
    from .settings import Settings

RHO = 7.0  # table 1 of arXiv:2206.00364
BETA_SHAPE = 0.6  # arXiv:2407.12173
SMALLEST_SIGNAL = 2.0**-24  # stands for none, whose noise level would be infinite


def training_sigmas(settings: Settings) -> Array:
    """Return the noise level of each training timestep, (timesteps,), rising."""
    kept = alphas_cumprod(settings)
    if settings.rescale_betas_zero_snr:
        kept[-1] = SMALLEST_SIGNAL
    levels: Array = np.sqrt((np.float32(1) - kept) / kept)
    return levels


def sigmas_of(timesteps: Table | Array, table: Array) -> Table:
    """Return the noise levels at these timesteps, whole or not."""
    return np.interp(timesteps, np.arange(len(table)), table)


def timesteps_of(sigmas: Table, table: Array) -> Table:
    """Return the timesteps at which training had these noise levels, interpolated in their logarithm."""
    # Logarithms of the table stay float32: see betas.py.
    levels, wanted = np.log(table), np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(levels, wanted, side="right") - 1, 0, len(levels) - 2)
    weight = np.clip((levels[low] - wanted) / (levels[low] - levels[low + 1]), 0, 1)
    timesteps: Table = (1 - weight) * low + weight * (low + 1)
    return timesteps


def ramped(settings: Settings, highest: float, lowest: float, steps: int) -> Table | None:
    """Return `steps` noise levels as the config's ramp spaces them, falling, or None if it has none.

    They run between `highest` and `lowest`, or `sigma_max` and `sigma_min` where set.
    """
    high = highest if settings.sigma_max is None else settings.sigma_max
    low = lowest if settings.sigma_min is None else settings.sigma_min
    if low > high:
        raise ProfileError(
            f"The scheduler config has noise levels from {high:g} down to {low:g}, which is larger. Correct its "
            "sigma_max or sigma_min."
        )
    falling = np.linspace(0, 1, steps)
    match settings.ramp:
        case None:
            return None
        case "karras":
            roots: Table = high ** (1 / RHO) + falling * (low ** (1 / RHO) - high ** (1 / RHO))
            return np.power(roots, RHO)
        case "exponential":
            return np.exp(np.linspace(math.log(high), math.log(low), steps))
        case "beta":
            return low + _beta_quantile(1 - falling) * (high - low)
        case "lu":  # even in log-SNR; arXiv:2206.00927
            return np.exp(math.log(highest) + falling * (math.log(lowest) - math.log(highest)))


def ended(sigmas: Table, last: float) -> list[float]:
    """Return the levels with the one where sampling ends, as float32 holds them.

    Raises `RequestError` where two steps share a level: there are too many for the spacing.
    """
    levels = np.append(sigmas, last).astype(np.float32)
    if levels[-1] > levels[-2]:
        raise ProfileError(
            f"The scheduler config spaces noise levels down to {levels[-2]:g}, below the {levels[-1]:g} where its "
            "final_sigmas_type ends. Set sigma_min no lower, or final_sigmas_type 'zero'."
        )
    if np.any(np.diff(levels[:-1]) >= 0):
        raise RequestError(
            f"{len(sigmas)} steps are too many for this spacing of noise levels: each must lie below the one "
            "before. Use fewer."
        )
    return levels.tolist()


def _beta_quantile(shares: Table) -> Table:
    # The symmetric beta distribution, inverted by bisection on its lower half, where its power
    # series converges as 2 ** -k.
    order = np.arange(60)
    terms = np.cumprod(np.append(1.0, (order[1:] - BETA_SHAPE) / order[1:])) / (order + BETA_SHAPE)
    terms *= math.gamma(2 * BETA_SHAPE) / math.gamma(BETA_SHAPE) ** 2
    wanted = np.minimum(shares, 1 - shares)
    low, high = np.zeros_like(wanted), np.full_like(wanted, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        below = middle**BETA_SHAPE * (middle[:, None] ** order @ terms) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(shares < 0.5, low, 1 - low)
