"""Between the scale of the VAE's latents and that of the denoiser's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..core.model import Model
from ..core.request import TINY


def unscaled(model: Model, latents: NDArray[np.float32], decoder: str | None = None) -> NDArray[np.float32]:
    """Latents scaled for the decoder of a request. Source: diffusers' pipelines, with their order of operations.

    The tiny decoder takes them as they are.
    """
    if decoder == TINY:
        return latents
    if model.latents_mean is None or model.latents_std is None:
        plain = latents / np.float32(model.scaling_factor)
        return plain + np.float32(model.shift_factor) if model.shift_factor else plain
    mean, std = (np.array(one, np.float32)[:, None, None] for one in (model.latents_mean, model.latents_std))
    return latents * std / np.float32(model.scaling_factor) + mean


def scaled(model: Model, latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the VAE's encoder returns, in the denoiser's scale: the inverse of `unscaled`."""
    if model.latents_mean is None or model.latents_std is None:
        return (latents - np.float32(model.shift_factor)) * np.float32(model.scaling_factor)
    mean, std = (np.array(one, np.float32)[:, None, None] for one in (model.latents_mean, model.latents_std))
    return (latents - mean) * np.float32(model.scaling_factor) / std
