"""The training timesteps of the steps (table 2 of arXiv:2305.08891)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import RequestError

if TYPE_CHECKING:
    from .arrays import Table
    from .settings import Settings


def spaced(settings: Settings, steps: int) -> Table:
    """Return `steps` timesteps, falling; those of `linspace` aren't rounded."""
    count = settings.num_train_timesteps
    match settings.timestep_spacing:
        case "linspace":
            return np.linspace(0, count - 1, steps)[::-1]
        case "leading":
            return np.arange(steps, dtype=np.float64)[::-1] * (count // steps) + settings.steps_offset
        case "trailing":
            return _trailing(count, count / steps, steps)


def rounded(settings: Settings, steps: int) -> list[int]:
    """Return `steps` whole timesteps, falling, each with an entry in the training schedule."""
    if settings.timesteps is not None:
        return list(settings.timesteps)
    whole = [int(timestep) for timestep in np.round(spaced(settings, steps))]
    if whole[0] >= settings.num_train_timesteps:
        raise RequestError(
            f"{steps} steps with a steps_offset of {settings.steps_offset} start at timestep {whole[0]}, but the "
            f"model's last is {settings.num_train_timesteps - 1}. Use fewer steps."
        )
    return whole


def spaced_above_end(settings: Settings, steps: int, count: int) -> Table:
    """Return `steps` whole timesteps below `count`, falling, with room for a last one at the end."""
    match settings.timestep_spacing:
        case "linspace":
            return np.round(np.linspace(0, count - 1, steps + 1))[:0:-1]
        case "leading":
            return np.arange(steps, 0, -1, dtype=np.float64) * (count // (steps + 1)) + settings.steps_offset
        case "trailing":
            return _trailing(count, settings.num_train_timesteps / steps, steps)


def _trailing(first: int, stride: float, steps: int) -> Table:
    # Truncated, because for some counts (61 of 1000) rounding in `arange` adds a timestep of -1, at
    # which diffusers takes one more step.
    return np.round(np.arange(first, 0, -stride))[:steps] - 1
