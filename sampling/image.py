"""From the image of a request to the inputs of the image encoder and the VAE's encoder, as diffusers prepares them.

The VAE reads the image resized by Pillow (Lanczos), plus noise. CLIP reads the unresized image, blurred and then
sampled to a square: both are linear in rows and in columns, so that each side is one matrix.
Source: diffusers' `VideoProcessor`, and `_resize_with_antialiasing` of `pipeline_stable_video_diffusion.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.model import ImageReader, Model, Role
from ..core.tensors import Array, check_finite
from ..core.wires import MODE
from .prompt import Call

Pixels = NDArray[np.uint8]
"""An image, [height, width, 3], sRGB."""

CUBIC = -0.75
"""The cubic kernel's parameter in PyTorch's `interpolate`."""


def resized(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The image, or a mask, resized to width and height in pixels."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def fitted(image: Pixels, width: int, height: int) -> NDArray[np.float32]:
    """The image resized to width and height in pixels, in [-1, 1]: [1, 3, height, width]."""
    shares = resized(image, width, height).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(np.moveaxis(np.float32(2) * shares - np.float32(1), -1, 0)[None])


def for_encoder(image: Pixels, reader: ImageReader) -> NDArray[np.float32]:
    """The image as the image encoder reads it, [1, 3, size, size]: resized by the reader's method, and normalized."""
    if reader.method == "crop":
        shares = np.moveaxis(cropped(image, reader.size).astype(np.float64) / 255, -1, 0)
        return _normalized(shares, reader)
    size = (reader.size, reader.size)
    colours = (image[..., index] for index in range(3))  # one at a time, as an image may have 50 million pixels
    shares = np.stack([(antialiased(one.astype(np.float64) / 255 * 2 - 1, size) + 1) / 2 for one in colours])
    return _normalized(shares, reader)


def _normalized(shares: NDArray[np.float64], reader: ImageReader) -> NDArray[np.float32]:
    """An image from 0 to 1, [3, size, size], less the mean and divided by the deviation, [1, 3, size, size]."""
    mean, std = (np.array(one, np.float64)[:, None, None] for one in (reader.mean, reader.std))
    return ((shares - mean) / std).astype(np.float32)[None]


def cropped(image: Pixels, side: int) -> Pixels:
    """The square in the middle of an image whose shorter side was resized to `side` pixels: [side, side, 3].

    Source: transformers' `CLIPImageProcessor`, which resizes by Pillow (bicubic).
    """
    height, width = image.shape[:2]
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    found = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) if short != side else image
    top, left = ((has - side) // 2 for has in found.shape[:2])
    return found[top : top + side, left : left + side]


def antialiased(image: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Resize [..., height, width] to `size` (height, width): a Gaussian blur, then cubic sampling between the corners.

    A side that grows is blurred too, by a kernel that is nearly a point.
    """
    high, wide = (_resizing(has, wanted) for has, wanted in zip(image.shape[-2:], size, strict=True))
    return high @ image @ wide.T


def _resizing(has: int, wanted: int) -> NDArray[np.float64]:
    """The matrix that blurs a side of `has` pixels and samples it at `wanted` places, [wanted, has]."""
    sigma = max((has / wanted - 1) / 2, 0.001)
    width = int(max(4 * sigma, 3))
    width += 1 - width % 2
    offsets = np.arange(width) - width // 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    # In float32, as in PyTorch: at 500 pixels a place is rounded by 3e-5, which is seen in the result.
    places = np.arange(wanted, dtype=np.float32) * (np.float32(has - 1) / np.float32(max(wanted - 1, 1)))
    first = np.floor(places).astype(int)
    beyond = places - first.astype(np.float32)
    made = np.zeros((wanted, has))
    rows = np.arange(wanted)
    for tap in range(-1, 3):
        weights = _cubic(np.abs(beyond.astype(np.float64) - tap))
        columns = np.clip(first + tap, 0, has - 1)
        for offset, share in zip(offsets, kernel, strict=True):
            np.add.at(made, (rows, _reflected(columns + offset, has)), weights * share)
    return made


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic convolution kernel at these distances in pixels, up to two."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _reflected(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Indices beyond the borders, reflected without repeating the border."""
    if size == 1:
        return np.zeros_like(index)
    index = np.abs(index) % (2 * size - 2)
    return np.minimum(index, 2 * size - 2 - index)


def sampled(parameters: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
    """Latents from the distribution that the VAE's encoder returns, [1, 2 * channels, ...]; a row for each of `noise`.

    Source: diffusers' `DiagonalGaussianDistribution`, which bounds the logarithm of the variance.
    """
    mean, logarithm = np.split(parameters, 2, axis=1)
    deviation = np.exp(np.float32(0.5) * np.clip(logarithm, -30, 20))
    return mean + deviation * noise


def encode_image(
    model: Model, roles: Mapping[str, Role], image: Pixels, fitted: NDArray[np.float32], call: Call,
    engines: Mapping[str, str] = {},
) -> dict[str, dict[str, Array]]:  # fmt: skip
    """Run the parts that read the image and that wires read; returns their outputs by part and name, with a row each.

    `fitted` holds the VAE encoder's input with the noise added, [count, 3, height, width], one image at a time is run.
    `mode` is the mean of the latents' distribution, not scaled. Raises `NotFiniteError`.
    """
    made: dict[str, dict[str, Array]] = {}
    for part in dict.fromkeys(wire.owner for wire in model.wires if wire.of_part):
        if roles[part] == "image_encoder" and model.image_reader is not None:
            outputs = call(part, {"pixel_values": for_encoder(image, model.image_reader)})
            made[part] = {name: np.repeat(outputs[name], len(fitted), axis=0) for name in model.read_of(part)}
        elif roles[part] == "encoder":
            moments = [call(part, {"sample": one[None]})["latent_parameters"] for one in fitted]
            made[part] = {MODE: np.concatenate([np.split(one, 2, axis=1)[0] for one in moments])}
        for name, array in made.get(part, {}).items():
            check_finite(array, f"The image's {name}", part, engines.get(part, "its engine"))
    return made
