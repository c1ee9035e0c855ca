"""From a denoiser's output to the original latents and the noise in them.

A denoiser predicts the noise (`epsilon`), the original (`sample`) or a mixture of both, the
velocity (`v_prediction`, arXiv:2202.00512; `flow_prediction`, arXiv:2210.02747).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ProfileError
from .arrays import mixed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .arrays import Array
    from .settings import Prediction


def original(
    prediction: Prediction, output: Array, sample: Array, alpha: float, sigma: float, clip: float | None = None
) -> Array:
    """Return the original in `sample = alpha * original + sigma * noise`, within ±`clip` if given."""
    match prediction:
        case "epsilon":
            answer = mixed((1, sample), (-sigma, output)) / np.float32(alpha)
        case "v_prediction":
            answer = mixed((alpha, sample), (-sigma, output))
        case "sample":
            answer = output
        case "flow_prediction":
            answer = mixed((1, sample), (-sigma, output))
    return answer if clip is None else np.clip(answer, -clip, clip)


def estimate(prediction: Prediction, output: Array, sample: Array, level: tuple[float, float]) -> Array:
    """Return the original in a sample with the parts `level` of original and noise, as a denoiser predicts it."""
    # Velocities of diffusion are defined for samples of unit variance, those of flow matching for the sample itself.
    unit = 1.0 if prediction == "flow_prediction" else math.hypot(*level)
    alpha, sigma = (part / unit for part in level)
    if prediction == "epsilon" and alpha == 0:
        return np.zeros_like(sample)  # nothing of the original is left to be estimated
    return original(prediction, output, sample / np.float32(unit), alpha, sigma)


def noise_in(prediction: Prediction, output: Array, sample: Array, alpha: float, sigma: float) -> Array:
    """Return the noise in `sample = alpha * original + sigma * noise`."""
    match prediction:
        case "epsilon":
            return output
        case "v_prediction":
            return mixed((alpha, output), (sigma, sample))
        case "sample":
            return mixed((1, sample), (-alpha, output)) / np.float32(sigma)
        case "flow_prediction":
            return mixed((1, sample), (alpha, output))


def denoised(prediction: Prediction, output: Array, sample: Array, sigma: float, clip: float | None = None) -> Array:
    """Return the original in `sample = original + sigma * noise`, within ±`clip` if given."""
    match prediction:
        case "epsilon":
            answer = mixed((1, sample), (-sigma, output))
        case "v_prediction":
            answer = mixed((-sigma / math.sqrt(sigma**2 + 1), output), (1 / (sigma**2 + 1), sample))
        case "sample":
            answer = output
        case "flow_prediction":
            raise ProfileError("This scheduler does not support flow matching. Choose 'euler' or 'dpm++2m'.")
    return answer if clip is None else np.clip(answer, -clip, clip)


def slope(prediction: Prediction, output: Array, sample: Array, sigma: float, clip: float | None = None) -> Array:
    """Return how the sample grows with its noise level: the noise in it, where nothing is clipped."""
    return (sample - denoised(prediction, output, sample, sigma, clip)) / np.float32(sigma)


def scaled(sample: Array, sigma: float) -> Array:
    """Return `original + sigma * noise` scaled to unit variance, as denoisers expect it."""
    return sample / np.float32(math.sqrt(sigma**2 + 1))


def init_noise_sigma(spacing: str, highest: float) -> float:
    """Return the scale of the initial sample, for samplers that add noise to an unscaled original."""
    return math.sqrt(highest**2 + 1) if spacing == "leading" else highest


def refuse_lost_signal(prediction: Prediction, kept: Iterable[float]) -> None:
    """Raise `ProfileError` if noise is predicted where no signal is left to subtract it from."""
    if prediction == "epsilon" and 0.0 in kept:
        raise ProfileError(
            "The scheduler config pairs rescale_betas_zero_snr with prediction_type 'epsilon', but this spacing "
            "starts where no signal is left, only noise. Set timestep_spacing 'leading', or use a 'v_prediction' "
            "model."
        )
