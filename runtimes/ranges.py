"""Ranges of the free sizes, for compilers that need them."""

from __future__ import annotations

from ..core.manifest import TensorInfo
from ..core.shapes import shape_of

RANGES: dict[str, tuple[int, int, int]] = {"batch": (1, 2, 8), "height": (8, 64, 128), "width": (8, 64, 128)}
CHUNKS = (1, 1, 4)
"""Least, usual and largest value of each free size, sides in latents: to 1024 pixels, four pictures with guidance, four
chunks.
"""

OUTSIDE = "up to 1024 pixels, four pictures with guidance, four chunks of a prompt"


def bounds(tensor: TensorInfo, length: int) -> tuple[tuple[int, ...], ...]:
    """An input's least, usual and largest shape; `length` is that of a prompt's chunk."""
    made: list[tuple[int, ...]] = []
    for place in range(3):
        sizes = {name: RANGES[name][place] for name in RANGES} | {"length": CHUNKS[place] * length}
        made.append(shape_of(tensor.shape, sizes))
    return tuple(made)
