"""The arrays that schedules compute with, and the weighted sum that every step takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
"""A sample, a denoiser's output, noise, or timesteps."""
Table = NDArray[np.float64]
"""Noise levels and timesteps while a schedule is computed."""


def mixed(*terms: tuple[float, Array]) -> Array:
    """Return the sum of arrays, each times its weight, in float32 and in this order."""
    weight, array = terms[0]
    total = np.float32(weight) * array
    for weight, array in terms[1:]:
        total = total + np.float32(weight) * array
    return total
