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


def pasted(images: NDArray[np.uint8], original: Pixels, area: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Images with the original's pixels outside of `area`, and a soft edge inside of it."""
    blurred = Image.fromarray(area.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(FEATHER))
    # Relative to the most nearby, so that a line thinner than the edge doesn't fade: its middle counts as inside.
    nearby = np.asarray(blurred.filter(ImageFilter.MaxFilter(4 * FEATHER + 1)), np.float32)
    inner = np.asarray(blurred, np.float32) / np.maximum(nearby, 1)  # one half at a straight edge
    shares = np.where(area, np.clip(2 * inner - 1, 0, 1), 0).astype(np.float32)[..., None]
    mixed = original + shares * (images.astype(np.float32) - original)
    return mixed.round().astype(np.uint8)
