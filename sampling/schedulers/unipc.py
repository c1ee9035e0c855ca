"""UniPC: a multistep predictor whose every step corrects the one before (Zhao et al., arXiv:2302.04867)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ProfileError
from .arrays import mixed
from .dpmsolver import alpha_sigma, log_snr
from .grid import above_end
from .prediction import noise_in, original
from .sigmas import ended, training_sigmas

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings


@dataclass
class UniPc:
    """A walk that keeps the last predictions and the sample and order of the last step."""

    timesteps: Array
    sigmas: list[float]
    settings: Settings
    init_noise_sigma: float = 1.0
    predictions: list[Array] = field(default_factory=list["Array"])
    last: tuple[Array, int] | None = None

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample itself: it has unit variance throughout."""
        del index
        return sample

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return alpha_sigma(self.sigmas[index], self.settings) if index < len(self.timesteps) else (1.0, 0.0)

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Correct the last step by the denoiser's output at its end, then predict the next."""
        del noise
        order = self.settings.solver_order
        alpha, sigma = alpha_sigma(self.sigmas[index], self.settings)
        predict = original if self.settings.predict_x0 else noise_in
        predicted = predict(self.settings.prediction_type, output, sample, alpha, sigma)
        if self.last is not None and index - 1 not in self.settings.disable_corrector:
            began, last_order = self.last
            levels = self.sigmas[index - last_order : index + 1]
            sample = _moved(self.settings, began, [*self.predictions[-last_order:], predicted], levels)
        self.predictions = [*self.predictions, predicted][-order:]
        if self.settings.lower_order_final:
            order = min(order, len(self.timesteps) - index)
        order = min(order, len(self.predictions))
        self.last = sample, order
        levels = self.sigmas[index + 1 - order : index + 2]
        return _moved(self.settings, sample, self.predictions[-order:], levels)


def _moved(settings: Settings, sample: Array, predictions: list[Array], levels: list[float]) -> Array:
    """Return the sample after a step from `levels[-2]` to `levels[-1]`.

    Predictions are those at all levels but the last, or at all of them when the step is corrected.
    """
    before, after = levels[-2:]
    (alpha, sigma), (alpha_after, sigma_after) = alpha_sigma(before, settings), alpha_sigma(after, settings)
    width = log_snr(after, settings) - log_snr(before, settings)
    if settings.predict_x0:
        kept, scale, h = sigma_after / sigma, alpha_after, -width
    else:
        kept, scale, h = alpha_after / alpha, sigma_after, width
    here = len(levels) - 2
    latest = predictions[here]
    terms = [(kept, sample), (-scale * math.expm1(h), latest)]
    others = [i for i in range(len(predictions)) if i != here]
    if not others or h == 0:
        return mixed(*terms)
    # Distance of each other prediction from the start of the step, in units of the step.
    offsets = [(log_snr(levels[i], settings) - log_snr(before, settings)) / width for i in others]
    bound = h if settings.solver_type == "bh1" else math.expm1(h)
    for weight, offset, i in zip(weights(offsets, h, bound), offsets, others, strict=True):
        terms.append((-scale * bound * weight / offset, predictions[i] - latest))
    return mixed(*terms)


def weights(offsets: list[float], h: float, bound: float) -> list[float]:
    """Return the weights of the differences at these offsets (theorem 3.1 of the paper).

    `bound` is the paper's B(h). A single difference weighs one half, by the paper's remark that
    order 2 holds for any B(h).
    """
    if len(offsets) == 1:
        return [0.5]
    phi = (math.expm1(h) - h) / h
    wanted: list[float] = []
    for order in range(1, len(offsets) + 1):
        wanted.append(math.factorial(order) * phi / bound)
        phi = phi / h - 1 / math.factorial(order + 1)
    powers = [[offset**order for offset in offsets] for order in range(len(offsets))]
    return [float(weight) for weight in np.linalg.solve(powers, wanted)]


def unipc(settings: Settings, steps: int) -> UniPc:
    """Return UniPC's schedule."""
    _check(settings)
    table = training_sigmas(settings)
    sigmas, timesteps, lowest = above_end(settings, steps, table)
    levels = ended(sigmas, lowest if settings.final_sigmas_type == "sigma_min" else 0.0)
    return UniPc(timesteps.astype(np.float32), levels, settings)


def _check(settings: Settings) -> None:
    if settings.final_sigmas_type == "zero" and not settings.predict_x0:
        raise ProfileError(
            "The scheduler config pairs predict_x0 = false with final_sigmas_type 'zero', where no noise "
            "is left to predict. Set 'sigma_min', or predict_x0."
        )
    if settings.final_sigmas_type == "zero" and not settings.lower_order_final and settings.solver_order > 1:
        raise ProfileError(
            "The scheduler config pairs lower_order_final = false with final_sigmas_type 'zero', where the "
            "log-SNR is infinite and only order 1 is defined. Set 'sigma_min', or lower_order_final."
        )
