"""Synthetic images and masks, which references are generated from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def synthetic_image(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image, [height, width, 3]: smooth colours, edges and a little noise."""
    height, width = size
    down, across = np.mgrid[0:height, 0:width]
    waves = random.uniform(2, 9, (3, 2)) / 100
    phase = random.uniform(0, 6, 3)
    smooth = np.stack([np.sin(down * a + across * b + c) for (a, b), c in zip(waves, phase, strict=True)], axis=-1)
    edges = ((down // 17 + across // 23) % 2)[..., None] * 60
    noise = random.uniform(-12, 12, (height, width, 3))
    return np.clip(120 + 80 * smooth + edges - 30 + noise, 0, 255).astype(np.uint8)


def synthetic_mask(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask of about half of an image, [height, width]: a blob with a soft edge, and a corner."""
    height, width = size
    down, across = np.mgrid[0:height, 0:width]
    centre = random.uniform(0.4, 0.6, 2)
    away = np.hypot(down / height - centre[0], across / width - centre[1])
    blob = np.clip((0.4 - away) * 2000, 0, 255)
    corner = ((down < height / 4) & (across < width / 3)) * 255
    return np.maximum(blob, corner).astype(np.uint8)
