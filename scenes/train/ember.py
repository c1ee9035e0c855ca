"""The style that the style LoRA learns: a soft print in five warm inks, from dark violet to cream."""

# scipy's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

INKS = np.array([(30, 26, 52), (112, 44, 70), (206, 96, 66), (244, 176, 96), (252, 238, 204)], np.float32)
"""sRGB, from dark to light."""

SOFTNESS = 0.5
"""Share of the way from one ink to the next over which they blend. Sharper edges are lost by the autoencoder."""

CONTRAST = 0.4
"""How much of the difference from the brightness nearby is added."""

CHROMA = 0.7
"""Share of the picture's own colour that remains, so that things can be told apart."""


def ember(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Print a picture, uint8 [h, w, 3], in the inks; brightness is scaled to its range in the picture."""
    pixels = picture.astype(np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    low, high = np.percentile(grey, (1, 99))
    tone = np.clip((grey - low) / (high - low + 1e-6), 0, 1)
    tone = np.clip(tone + CONTRAST * (tone - ndimage.gaussian_filter(tone, 20, mode="nearest")), 0, 1)
    place = np.clip(ndimage.gaussian_filter(tone, 0.5), 0, 1 - 1e-6) * (len(INKS) - 1)
    below = np.floor(place).astype(np.int64)
    share = np.clip((place - below - 0.5) / SOFTNESS + 0.5, 0, 1)[..., None]
    printed = INKS[below] * (1 - share) + INKS[below + 1] * share
    return np.clip(printed + CHROMA * (pixels - grey[..., None]) + 0.5, 0, 255).astype(np.uint8)
