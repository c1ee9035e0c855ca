"""Ranges of the free sizes, for compilers that must be told them."""

from __future__ import annotations

from ..core.bundle import TensorInfo
from ..core.shapes import shape_of

RANGES: dict[str, tuple[int, int, int]] = {"batch": (1, 2, 8), "height": (8, 64, 128), "width": (8, 64, 128)}
CHUNKS = (1, 1, 4)
"""Least, usual and largest value of each free size: to 1024 pixels, four pictures with guidance, four chunks."""

PIXELS = 8
"""A VAE encoder's sizes are pixels: so many to each of the latents'."""

OUTSIDE = "up to 1024 pixels, four pictures with guidance, four chunks of a prompt"


def bounds(part: str, tensor: TensorInfo, length: int) -> tuple[tuple[int, ...], ...]:
    """An input's least, usual and largest shape; `length` is that of a prompt's chunk."""
    scale = PIXELS if part == "vae_encoder" else 1
    made: list[tuple[int, ...]] = []
    for place in range(3):
        sizes = {name: RANGES[name][place] * (scale if name in ("height", "width") else 1) for name in RANGES}
        sizes["length"] = CHUNKS[place] * length
        made.append(shape_of(tensor.shape, sizes))
    return tuple(made)
