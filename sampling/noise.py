"""Noise drawn from the seed, the same on every runtime, device and precision.

Each image has three streams of its own, for the initial latents, for the noise that a stochastic
scheduler adds, and for the noise with which the request's image is encoded: image k of a request with seed
s is image 0 of a request with seed s + k, whatever the count, and passing in latents does not change
the other streams.

Values come from numpy's PCG64 and its ziggurat in float32. numpy guarantees the bits of the former
but not of the latter, so a test checks the first values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RequestError
from ..core.tensors import Array
from .schedulers import Noise

_INITIAL, _ADDED, _IMAGE = 0, 1, 2


def initial_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal float32 values of `shape`, [count, channels, height, width]; image k is drawn from seed + k."""
    return np.stack([_draw(_stream(seed + image, _INITIAL), shape[1:]) for image in range(shape[0])])


def image_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal float32 values of `shape` for the request's image; see `image_shape` and `initial_noise`."""
    return np.stack([_draw(_stream(seed + image, _IMAGE), shape[1:]) for image in range(shape[0])])


def added_noise(seed: int, shape: tuple[int, ...]) -> Noise:
    """A function that returns the next standard normal float32 values of `shape` each time it is called."""
    streams = [_stream(seed + image, _ADDED) for image in range(shape[0])]
    return lambda: np.stack([_draw(stream, shape[1:]) for stream in streams])


def checked_latents(latents: Array, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The initial latents that a caller passed in; raises `RequestError` for a wrong shape or dtype, or NaN."""
    if latents.shape != shape or latents.dtype != np.float32:
        raise RequestError(
            f"The latents passed in are {latents.dtype} {list(latents.shape)}; this request needs float32 "
            f"{list(shape)}: [count, channels, height / 8, width / 8]. Pass latents of that shape, or none."
        )
    if not np.isfinite(latents).all():
        raise RequestError("The latents passed in contain NaN or infinity. Pass standard normal values, or none.")
    return latents


def checked_image_noise(noise: Array, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The noise for the image that a caller passed in; raises `RequestError` for a wrong shape or dtype, or NaN."""
    if noise.shape != shape or noise.dtype != np.float32 or not np.isfinite(noise).all():
        raise RequestError(
            f"The image noise passed in is {noise.dtype} {list(noise.shape)}; this request needs finite float32 "
            f"{list(shape)}. Pass values of that shape, or none."
        )
    return noise


def checked_noise(noise: Noise, shape: tuple[int, ...]) -> Noise:
    """The caller's noise function, wrapped to raise `RequestError` if it returns a wrong shape or dtype."""

    def draw() -> NDArray[np.float32]:
        drawn = noise()
        if drawn.shape != shape or drawn.dtype != np.float32:
            raise RequestError(
                f"The noise function passed in returned {drawn.dtype} {list(drawn.shape)}; float32 {list(shape)} was "
                "expected. Return standard normal values of that shape."
            )
        return drawn

    return draw


def _stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(purpose,))))


def _draw(stream: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return stream.standard_normal(shape, dtype=np.float32)
