"""LMS: the Adams-Bashforth linear multistep method on uneven noise levels (k-diffusion's `sample_lms`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .arrays import mixed
from .grid import graded
from .prediction import init_noise_sigma, scaled, slope
from .settings import refuse_karras_bounds
from .sigmas import ended, training_sigmas

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings

ORDER = 4


@dataclass
class Lms:
    """A walk that keeps the slopes of the last four steps."""

    timesteps: Array
    sigmas: list[float]
    init_noise_sigma: float
    settings: Settings
    slopes: list[Array] = field(default_factory=list["Array"])

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample at unit variance."""
        return scaled(sample, self.sigmas[index])

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return 1.0, self.sigmas[index] if index < len(self.timesteps) else 0.0

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Integrate the polynomial through the slopes so far over the step."""
        del noise
        latest = slope(self.settings.prediction_type, output, sample, self.sigmas[index])
        self.slopes = [*self.slopes[1 - ORDER :], latest]
        # All slopes so far: fewer than the index suggests if the walk started in the middle.
        known = self.sigmas[index + 1 - len(self.slopes) : index + 1]
        weights = lagrange_integrals(known, self.sigmas[index + 1])
        return mixed((1, sample), *zip(weights, self.slopes, strict=True))


def lagrange_integrals(nodes: list[float], stop: float) -> list[float]:
    """Return the integrals of the nodes' Lagrange polynomials from the last node to `stop`."""
    start = nodes[-1]
    answer: list[float] = []
    for here, node in enumerate(nodes):
        others = nodes[:here] + nodes[here + 1 :]

        def polynomial(at: float, node: float = node, others: list[float] = others) -> float:
            return float(np.prod([(at - other) / (node - other) for other in others]))

        # Simpson's rule, exact up to the third degree, which four nodes don't exceed.
        ends, middle = polynomial(start) + polynomial(stop), polynomial((start + stop) / 2)
        answer.append((stop - start) / 6 * (ends + 4 * middle))
    return answer


def lms(settings: Settings, steps: int) -> Lms:
    """Return LMS's schedule."""
    refuse_karras_bounds(settings)
    sigmas, timesteps = graded(settings, steps, training_sigmas(settings))
    levels = ended(sigmas, 0.0)
    first = init_noise_sigma(settings.timestep_spacing, levels[0])
    return Lms(timesteps.astype(np.float32), levels, first, settings)
