"""What a schedule is to its caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .arrays import Array

Noise = Callable[[], Array]
"""Draws a standard normal of the sample's shape; called only when a draw changes the sample."""


class Schedule(Protocol):
    """One request's walk from noise to latents; it owns its history and is never shared.

    The caller starts from `noise * init_noise_sigma` and then, for each `index` of
    `timesteps` in order, feeds the denoiser `scale(sample, index)` and `timesteps[index]`
    and passes what it answers to `step`. A walk may begin at a later index (image to image), at
    an even one where a step takes two calls (Heun, DPM++ SDE).
    """

    @property
    def timesteps(self) -> Array:
        """What the denoiser is fed, one per call: Heun, PNDM and DPM++ SDE make more calls than steps."""
        ...

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial latents."""
        ...

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample as the denoiser wants it at call `index`."""
        ...

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Return the sample after call `index`, given what the denoiser answered to it."""
        ...
