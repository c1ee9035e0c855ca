"""The interface of a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .arrays import Array

if TYPE_CHECKING:
    from .settings import Settings

Noise = Callable[[], Array]
"""Returns standard normal values of the sample's shape; called only when they change the sample."""


class Schedule(Protocol):
    """One request's walk from noise to latents. It keeps its own history and must not be shared.

    The caller starts from `noise * init_noise_sigma`. Then, for each `index` of `timesteps` in
    order, it feeds the denoiser `scale(sample, index)` and `timesteps[index]`, and passes the
    output to `step`. A walk may start at a later index (image to image), from an original and noise mixed
    as `level(index)` says; at an even one if a step takes two calls (Heun, DPM++ SDE).
    """

    @property
    def timesteps(self) -> Array:
        """The denoiser's timesteps, one per call: Heun, PNDM and DPM++ SDE make more calls than steps."""
        ...

    @property
    def settings(self) -> Settings:
        """The configuration, checked."""
        ...

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial latents."""
        ...

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample, scaled for the denoiser at call `index`."""
        ...

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before call `index`; after the last call, (1, 0)."""
        ...

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Return the sample after call `index`, given the denoiser's output for it."""
        ...
