"""Masks of inpainting: in pixels and in latents, before the denoiser and after the decoder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .image import Pixels, resized

FEATHER = 2
"""Deviation in pixels of the blur that softens the edge of what inpainting generates."""


def generated(mask: NDArray[np.uint8], width: int, height: int) -> NDArray[np.bool_]:
    """Where inpainting generates, [height, width]: where the resized mask, [height, width], is at least half white."""
    return resized(mask, width, height) >= 127.5


def latent_mask(area: NDArray[np.bool_], downscale: int) -> NDArray[np.float32]:
    """The mask of latents, [1, 1, height / 8, width / 8]: the first pixel of each, as in diffusers."""
    return area[::downscale, ::downscale].astype(np.float32)[None, None]


def softened(mask: NDArray[np.uint8], deviation: int) -> NDArray[np.uint8]:
    """The mask, [height, width], after a Gaussian blur of this deviation in pixels."""
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(deviation)))


def shares(mask: NDArray[np.uint8], width: int, height: int, deviation: int) -> NDArray[np.uint8]:
    """By how much, of 255, the pixels of an image are generated, [height, width], for a mask after `softened`.

    The resizing has no overshoot, so that what the blur doesn't reach stays 0.
    """
    if deviation == 0:
        return generated(mask, width, height).astype(np.uint8) * 255
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))


def pasted(
    images: NDArray[np.uint8], original: Pixels, area: NDArray[np.bool_], soft: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Images with the original's pixels outside of `area`, and a soft edge inside of it; or mixed with the original by
    `soft`, [height, width], where 255 is the images alone.
    """
    if soft is not None:
        return _mixed(images, original, np.divide(soft, 255, dtype=np.float32))
    blurred = Image.fromarray(area.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(FEATHER))
    # Relative to the most nearby, so that a line thinner than the edge doesn't fade: its middle counts as inside.
    nearby = np.asarray(blurred.filter(ImageFilter.MaxFilter(4 * FEATHER + 1)), np.float32)
    inner = np.asarray(blurred, np.float32) / np.maximum(nearby, 1)  # one half at a straight edge
    return _mixed(images, original, np.where(area, np.clip(2 * inner - 1, 0, 1), 0).astype(np.float32))


def _mixed(images: NDArray[np.uint8], original: Pixels, shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    mixed = original + shares[..., None] * (images.astype(np.float32) - original)
    return mixed.round().astype(np.uint8)


def filled(image: Pixels, area: NDArray[np.bool_]) -> Pixels:
    """The image with the colours around `area`, [height, width], continued into it, more blurred farther inside.

    The kept pixels are averaged over blocks of 2, 4, 8 ... pixels until each block has one, and drawn back.
    """
    kept = ~area[..., None]
    values = _continued(image.astype(np.float32) * kept, kept.astype(np.float32))
    return np.where(kept, image, values.round().clip(0, 255).astype(np.uint8))


def _continued(sums: NDArray[np.float32], counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of blocks from sums and counts of their kept pixels; blocks without any are drawn from larger ones."""
    means = (sums / np.maximum(counts, 1)).astype(np.float32)
    height, width = counts.shape[:2]
    if counts.all() or (height, width) == (1, 1):
        return means
    pairs = [np.pad(one, ((0, height % 2), (0, width % 2), (0, 0))) for one in (sums, counts)]
    halved = [one.reshape(-(-height // 2), 2, -(-width // 2), 2, -1).sum(axis=(1, 3)) for one in pairs]
    coarse = _continued(*halved)
    planes = (Image.fromarray(np.ascontiguousarray(coarse[..., index])) for index in range(coarse.shape[-1]))
    size = (2 * coarse.shape[1], 2 * coarse.shape[0])
    finer = np.stack([np.asarray(one.resize(size, Image.Resampling.BILINEAR)) for one in planes], axis=-1)
    return np.where(counts > 0, means, finer[:height, :width]).astype(np.float32)
