"""Ranges of free sizes, for compilers that require them."""

from __future__ import annotations

from ..core.manifest import TensorInfo
from ..core.shapes import shape_of

RANGES: dict[str, tuple[int, int, int]] = {
    "batch": (1, 2, 8),
    "frames": (1, 8, 25),
    "height": (8, 64, 128),
    "width": (8, 64, 128),
}
CHUNKS = (1, 1, 4)
"""Smallest, typical and largest value of each free size, with sides in latents: up to 1024 pixels, four images with
guidance, four chunks of a prompt, and 25 frames that are decoded together.
"""

OUTSIDE = "up to 1024 pixels, eight rows (four images with guidance), and prompts of four chunks"


def bounds(tensor: TensorInfo, lengths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """An input's smallest, typical and largest shape; `lengths` are those of prompt embeddings of `CHUNKS` chunks."""
    made: list[tuple[int, ...]] = []
    for place in range(3):
        sizes = {name: RANGES[name][place] for name in RANGES} | {"length": lengths[place]}
        made.append(shape_of(tensor.shape, sizes))
    return tuple(made)
