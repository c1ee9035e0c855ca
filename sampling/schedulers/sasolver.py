"""SA-Solver: a stochastic multistep predictor whose every step is corrected by the next (Xue et al., arXiv:2309.05019).

As diffusers' `SASolverScheduler`, with its default `tau_func`: noise is added at timesteps 200 to 800.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ProfileError
from .arrays import mixed
from .dpmsolver import alpha_sigma, log_snr
from .grid import above_end
from .integrals import weights
from .prediction import noise_in, original
from .sigmas import ended, training_sigmas

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings

STOCHASTIC = (200, 800)
"""First and last timestep at which noise is added."""


@dataclass
class SaSolver:
    """A walk that keeps the last predictions, and the sample, noise and order of correction of the last step."""

    timesteps: Array
    sigmas: list[float]
    settings: Settings
    init_noise_sigma: float = 1.0
    predictions: list[Array] = field(default_factory=list["Array"])
    last: tuple[Array, Array, int] | None = None

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample itself: it has unit variance throughout."""
        del index
        return sample

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return alpha_sigma(self.sigmas[index], self.settings) if index < len(self.timesteps) else (1.0, 0.0)

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Correct the last step by the denoiser's output at its end, then predict the next.

        Noise is drawn at every step, as in diffusers, also where none is added: recorded noise then stays in step.
        """
        settings, left = self.settings, len(self.timesteps) - index
        alpha, sigma = alpha_sigma(self.sigmas[index], settings)
        predict = original if _predicts_original(settings) else noise_in
        predicted = predict(settings.prediction_type, output, sample, alpha, sigma)
        if self.last is not None:
            began, added, order = self.last
            sample = self._moved(index - 1, began, [*self.predictions, predicted][-order:], index, added)
        most = max(settings.predictor_order, settings.corrector_order - 1)
        self.predictions = [*self.predictions, predicted][-most:]
        orders = settings.predictor_order, settings.corrector_order
        if settings.lower_order_final:
            orders = min(orders[0], left), min(orders[1], left + 1)
        known = self.predictions[-orders[0] :]
        self.last = sample, noise(), min(orders[1], len(self.predictions) + 1)
        return self._moved(index, sample, known, index, self.last[1])

    def _moved(self, index: int, sample: Array, predictions: list[Array], latest: int, noise: Array) -> Array:
        """Return the sample after the step `index`, given the predictions of the calls up to `latest`."""
        settings, (before, after) = self.settings, self.sigmas[index : index + 2]
        (alpha, sigma), (alpha_after, sigma_after) = alpha_sigma(before, settings), alpha_sigma(after, settings)
        start = log_snr(before, settings)
        width = log_snr(after, settings) - start
        levels = self.sigmas[latest + 1 - len(predictions) : latest + 1]
        nodes = [log_snr(level, settings) - start for level in levels]
        rate = 2.0 if STOCHASTIC[0] <= self.timesteps[index] <= STOCHASTIC[1] else 1.0  # the paper's 1 + tau ** 2
        if _predicts_original(settings):
            scale = rate * alpha_after * math.exp(-rate * width)
            known = [scale * weight for weight in weights(nodes, width, rate)]
            if len(known) == 2:  # diffusers' correction, which makes the second order exact in another basis
                turn = width**2 / 2 - (width * rate + math.expm1(-rate * width)) / rate**2
                change = rate * alpha_after * turn / (nodes[1] - nodes[0])
                known = [known[0] - change, known[1] + change]
            kept = math.exp((1 - rate) * width) * sigma_after / sigma
            spread = sigma_after * math.sqrt(-math.expm1(2 * (1 - rate) * width))
        else:
            scale = -rate * alpha_after * math.exp(-start)
            known = [scale * weight for weight in weights(nodes, width, -1.0)]
            kept, spread = alpha_after / alpha, (rate - 1) * sigma_after * math.sqrt(math.expm1(2 * width))
        terms = [(kept, sample), *zip(known, predictions, strict=True)]
        return mixed(*terms, (spread, noise)) if spread > 0 else mixed(*terms)


def _predicts_original(settings: Settings) -> bool:
    return settings.algorithm_type == "data_prediction"


def sa_solver(settings: Settings, steps: int) -> SaSolver:
    """Return SA-Solver's schedule."""
    orders = {"predictor_order": settings.predictor_order, "corrector_order": settings.corrector_order}
    for key, order in orders.items():
        if order > 4:
            raise ProfileError(f"The scheduler config has {key} = {order}, but SA-Solver has orders 1 to 4. Set 2.")
    if settings.algorithm_type not in ("data_prediction", "noise_prediction"):
        raise ProfileError(
            f"The scheduler config has algorithm_type = {settings.algorithm_type!r}, but SA-Solver has "
            "'data_prediction' and 'noise_prediction'. Set one of them."
        )
    table = training_sigmas(settings)
    sigmas, timesteps, lowest = above_end(settings, steps, table)
    return SaSolver(timesteps.astype(np.float32), ended(sigmas, lowest), settings)
