"""Classifier-free guidance, its rescaling, and guidance as an input of the model."""

from __future__ import annotations

import numpy as np

from ..core.tensors import Array


def frame_scales(first: float, last: float, frames: int) -> Array:
    """A guidance scale for each frame, from the first's to the last's in equal steps: float32 [1, frames, 1, 1, 1].

    Source: diffusers' StableVideoDiffusionPipeline.
    """
    return np.linspace(first, last, frames, dtype=np.float32).reshape(1, frames, 1, 1, 1)


def guide(output: Array, guidance: float | Array, rescale: float, image_guidance: float | None = None) -> Array:
    """Combine the denoiser's output for [negative, positive] rows, float32 [2 * count, ...], into [count, ...].

    `guidance` is one scale, or an array of scales that fits the output. With `image_guidance`, the scale of an image
    that the denoiser sees, there are three rows for each image, [3 * count, ...]: neither the image nor the prompt (but
    the negative one), the image alone, and both.

    Source: Ho and Salimans, arXiv:2207.12598; the scale is Imagen's w (arXiv:2205.11487). Of the image's scale: Brooks
    et al., arXiv:2211.09800, section 3.2.1.
    """
    *without, negative, positive = np.split(output, 2 if image_guidance is None else 3)
    combined = np.asarray(guidance, np.float32) * (positive - negative)
    if image_guidance is None:
        combined = negative + combined
    else:
        combined = without[0] + combined + np.float32(image_guidance) * (negative - without[0])
    return rescaled(combined, positive, rescale) if rescale > 0 else combined


def rescaled(combined: Array, positive: Array, rescale: float) -> Array:
    """Rescale each image's standard deviation towards that of the output for the positive prompt alone.

    `rescale` is phi in section 3.4 of Lin et al., arXiv:2305.08891: 0 keeps `combined`, 1 takes the
    standard deviation of `positive`. An output without any deviation is kept.
    """
    wanted, found = _deviation(positive), _deviation(combined)
    factor = np.divide(wanted, found, out=np.ones_like(found), where=found > 0).astype(np.float32)
    return np.float32(rescale) * (combined * factor) + np.float32(1 - rescale) * combined


def guidance_embedding(guidance: float, width: int, rows: int) -> Array:
    """The guidance scale as a sinusoidal embedding, float32 [rows, width], for models distilled with it as an input.

    The embedded value is (guidance - 1) * 1000. Source: latent consistency models, arXiv:2310.04378.
    """
    half = width // 2
    # All in float32, as in diffusers: angles reach thousands of radians, where every rounding matters.
    decay = np.log(np.float32(10000.0)) / np.float32(half - 1)
    angles = np.float32(guidance - 1.0) * np.float32(1000.0) * np.exp(np.arange(half, dtype=np.float32) * -decay)
    row = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2, np.float32)])
    return np.tile(row, (rows, 1))


def _deviation(values: Array) -> Array:
    """Unbiased standard deviation of each image, [count, 1, 1, 1]."""
    axes = tuple(range(1, values.ndim))
    return np.std(values, axis=axes, dtype=np.float64, ddof=1, keepdims=True)
