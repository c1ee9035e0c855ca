"""DPM-Solver and DPM-Solver++, multistep: DPM++ 2M, DPM++ 2M SDE and DPM++ 3M SDE.

Lu et al., arXiv:2206.00927 (which predicts noise) and arXiv:2211.01095 (`++`, the original).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ProfileError
from .arrays import mixed
from .flow import FLOW, shifted
from .grid import above_end
from .prediction import noise_in, original
from .sigmas import ended, training_sigmas

if TYPE_CHECKING:
    from .arrays import Array
    from .protocol import Noise
    from .settings import Ramp, Settings

FEW_STEPS = 15  # with fewer, the last steps have a lower order if the config says lower_order_final


@dataclass
class DpmSolver:
    """A walk that keeps as many of the last predictions as the solver's order."""

    timesteps: Array
    sigmas: list[float]
    settings: Settings
    init_noise_sigma: float = 1.0
    predictions: list[Array] = field(default_factory=list["Array"])

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample itself: it has unit variance throughout."""
        del index
        return sample

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        return alpha_sigma(self.sigmas[index], self.settings) if index < len(self.timesteps) else (1.0, 0.0)

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Integrate the polynomial through the predictions so far, in log-SNR, over the step."""
        alpha, sigma = alpha_sigma(self.sigmas[index], self.settings)
        predict = original if predicts_original(self.settings) else noise_in
        predicted = predict(self.settings.prediction_type, output, sample, alpha, sigma)
        self.predictions = [*self.predictions, predicted][-self.settings.solver_order :]
        order = min(self._order(index), len(self.predictions))
        levels = self.sigmas[index + 1 - order : index + 2]
        kept, weights, spread = coefficients(self.settings, levels)
        known = differences(self.settings, self.predictions[-order:], levels)
        terms = [(kept, sample), *zip(weights, known, strict=True)]
        if spread > 0:
            terms.append((spread, noise()))
        return mixed(*terms)

    def _order(self, index: int) -> int:
        left = len(self.timesteps) - index
        if left == 1 and (self.settings.euler_at_final or self.sigmas[-1] == 0):
            return 1
        return lowered_order(self.settings, left, len(self.timesteps))


def lowered_order(settings: Settings, left: int, steps: int) -> int:
    """Return the order of a step of the config's solver, with this one and `left - 1` more of all steps to go."""
    lower = settings.lower_order_final and steps < FEW_STEPS
    return min(settings.solver_order, left) if lower else settings.solver_order


def predicts_original(settings: Settings) -> bool:
    """Return whether the solver integrates predictions of the original (the `++` ones) or of the noise."""
    return settings.algorithm_type not in ("dpmsolver", "sde-dpmsolver")


def alpha_sigma(level: float, settings: Settings) -> tuple[float, float]:
    """Return the parts of signal and noise in a sample at this noise level: of unit variance, or in flow matching."""
    if settings.use_flow_sigmas:
        return 1 - level, level
    alpha = 1 / math.sqrt(level**2 + 1)
    return alpha, level * alpha


def log_snr(level: float, settings: Settings) -> float:
    """Return half the logarithm of the signal-to-noise ratio at this noise level."""
    if settings.use_flow_sigmas and level > 0:
        return math.log((1 - level) / level)
    return -math.log(level) if level > 0 else math.inf


def differences(settings: Settings, predictions: list[Array], levels: list[float]) -> list[Array]:
    """Return the latest prediction and its first and second derivatives, in units of the step.

    `levels` are those of the predictions and of the step's end.
    """
    *known, stop = (log_snr(level, settings) for level in levels)
    width = stop - known[-1]
    if len(predictions) == 1:
        return predictions
    slopes: list[Array] = [
        np.float32(width / (after - before)) * (later - earlier)
        for (before, after), (earlier, later) in zip(pairwise(known), pairwise(predictions), strict=True)
    ]
    if len(predictions) == 2:
        return [predictions[-1], slopes[-1]]
    turn, span = slopes[1] - slopes[0], known[2] - known[0]
    return [
        predictions[-1],
        mixed((1, slopes[1]), ((known[2] - known[1]) / span, turn)),
        mixed((width / span, turn)),
    ]


def coefficients(settings: Settings, levels: list[float]) -> tuple[float, list[float], float]:
    """Return the weights of the sample, of each of `differences`, and of fresh noise in a step.

    The four algorithms are one formula in the exponent `h` of the step: its sign depends on what is
    predicted, and a stochastic step counts its width in log-SNR twice.
    """
    before, after = levels[-2:]
    width = log_snr(after, settings) - log_snr(before, settings)
    (alpha, sigma), (alpha_after, sigma_after) = alpha_sigma(before, settings), alpha_sigma(after, settings)
    stochastic = settings.algorithm_type.startswith("sde-")
    if predicts_original(settings):
        kept, scale, h = sigma_after / sigma, alpha_after, -width
        spread = 0.0
        if stochastic:
            kept, h = kept * math.exp(-width), -2 * width
            spread = sigma_after * math.sqrt(-math.expm1(h))
    else:
        kept, scale, h = alpha_after / alpha, sigma_after, width
        spread = 0.0
        if stochastic:
            scale = 2 * sigma_after
            spread = sigma_after * math.sqrt(math.expm1(2 * h))
    weights = [-scale * math.expm1(h)]
    if len(levels) == 3 and settings.solver_type != "heun":
        weights.append(weights[0] / 2)  # midpoint
    elif len(levels) > 2:
        weights.append(-scale * (math.expm1(h) / h - 1) if h else 0.0)
    if len(levels) > 3:
        weights.append(-scale * ((math.expm1(h) - h) / h**2 - 0.5) if h else 0.0)
    return kept, weights, spread


def dpm_solver(settings: Settings, steps: int) -> DpmSolver:
    """Return the schedule of the DPM-Solver variant that the config names."""
    _check(settings)
    return _walk(settings, steps)


def dpm_3m_sde(settings: Settings, steps: int) -> DpmSolver:
    """Return the schedule of DPM++ 3M SDE, as k-diffusion's `sample_dpmpp_3m_sde`."""
    return _walk(settings, steps)


def _walk(settings: Settings, steps: int) -> DpmSolver:
    if settings.use_flow_sigmas:
        falling = np.flip(1 - np.linspace(1, 1 / settings.num_train_timesteps, steps + 1))[:-1]
        flows = shifted(falling, settings.flow_shift)
        return DpmSolver(np.trunc(flows * settings.num_train_timesteps).astype(np.float32), ended(flows, 0), settings)
    table = training_sigmas(settings)
    rounded: tuple[Ramp, ...] = () if settings.beta_schedule == "squaredcos_cap_v2" else ("karras", "lu")
    sigmas, timesteps, _ = above_end(settings, steps, table, rounded)
    levels = ended(sigmas, float(table[0]) if settings.final_sigmas_type == "sigma_min" else 0.0)
    return DpmSolver(timesteps.astype(np.float32), levels, settings)


def _check(settings: Settings) -> None:
    if settings.algorithm_type in ("data_prediction", "noise_prediction"):
        raise ProfileError(
            f"The scheduler config has algorithm_type = {settings.algorithm_type!r}, which is SA-Solver's. Set "
            "'dpmsolver++', or the class SASolverScheduler."
        )
    if settings.solver_order > 3:
        raise ProfileError(
            f"The scheduler config has solver_order = {settings.solver_order}, but DPM-Solver has orders 1 to 3. Set 2."
        )
    if settings.algorithm_type.startswith("sde-") and settings.solver_order > 2:
        raise ProfileError(
            f"The scheduler config pairs {settings.algorithm_type} with solver_order = {settings.solver_order}, "
            "but the stochastic solvers have orders 1 and 2: the third of diffusers 0.42.1 has a wrong sign. Set 2, or "
            "use the scheduler 'dpm++3m-sde', which is k-diffusion's."
        )
    if settings.use_flow_sigmas != (settings.prediction_type == FLOW):
        raise ProfileError(
            f"The scheduler config pairs use_flow_sigmas = {settings.use_flow_sigmas} with prediction_type "
            f"{settings.prediction_type!r}, but they go together. Set both for flow matching, or neither."
        )
    unknown = [
        key
        for key, is_set in (
            ("algorithm_type", not predicts_original(settings)),
            ("final_sigmas_type", settings.final_sigmas_type != "zero"),
            ("a spacing of noise levels", settings.ramp is not None),
        )
        if is_set
    ]
    if settings.use_flow_sigmas and unknown:
        raise ProfileError(
            f"The scheduler config sets {' and '.join(unknown)}, which is not supported for flow matching. Leave it "
            "out."
        )
    if not predicts_original(settings) and settings.final_sigmas_type == "zero":
        raise ProfileError(
            f"The scheduler config pairs {settings.algorithm_type} with final_sigmas_type 'zero', where no noise "
            "is left to predict. Set 'sigma_min', or algorithm_type 'dpmsolver++'."
        )
