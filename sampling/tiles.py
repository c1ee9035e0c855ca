"""Decoding in tiles that overlap and are blended, for images whose activations don't fit in memory at once.

Source: diffusers' `AutoencoderKL.tiled_decode`, whose blending changes a tile before the next one is blended with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..core.engine import Run

PARTS = 4
"""A tile's overlap with the next is this part of its side, so that its side in latents must be a multiple."""

LEAST_TILE = 64
"""Smallest side of an image in pixels, and so of a tile: engines of free sizes take no less."""


def tiles(side: int, tile: int) -> tuple[range, ...]:
    """The tiles along a side, all in latents; those at the end may be smaller."""
    step = tile - tile // PARTS
    return tuple(range(first, min(first + tile, side)) for first in range(0, side, step))


def is_tiled(sides: Sequence[int], tile: int) -> bool:
    """Whether an image of these sides is larger than a tile, and so decoded in tiles; all in pixels, or in latents."""
    return max(sides) > tile


def smallest_side(sides: Sequence[int], tile: int, scale: int) -> int:
    """The smallest side of the tiles of an image; all in pixels, of which a latent has `scale`."""
    return min(len(tiles(side // scale, tile // scale)[-1]) * scale for side in sides)


def tile_shapes(latents: tuple[int, ...], tile: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of the tiles of one image's latents, [1, channels, height, width]; the largest first."""
    channels, height, width = latents[-3:]
    rows, columns = (dict.fromkeys(len(one) for one in tiles(side, tile)) for side in (height, width))
    return tuple((1, channels, row, column) for row in rows for column in columns)


def decode_tiles(run: Run, latents: NDArray[np.float32], tile: int) -> NDArray[np.float32]:
    """Decode the latents of one image, [1, channels, height, width], in tiles of `tile` latents a side.

    Returns [3, height, width] in pixels, in [-1, 1].
    """
    above: list[NDArray[np.float32]] = []
    made: list[NDArray[np.float32]] = []
    for top in tiles(latents.shape[-2], tile):
        row: list[NDArray[np.float32]] = []
        limit = 0
        for number, left in enumerate(tiles(latents.shape[-1], tile)):
            part = np.ascontiguousarray(latents[:, :, top.start : top.stop, left.start : left.stop])
            one = np.array(run({"latent_sample": part})["sample"][0])
            side = tile * one.shape[-1] // len(left)
            limit = side - side // PARTS
            if above:
                _blend(above[number], one, side // PARTS, axis=1)
            if row:
                _blend(row[-1], one, side // PARTS, axis=2)
            row.append(one)
        made.append(np.concatenate([one[:, :limit, :limit] for one in row], axis=2))
        above = row
    return np.concatenate(made, axis=1)


def _blend(before: NDArray[np.float32], after: NDArray[np.float32], extent: int, axis: int) -> None:
    """Fade from the end of one tile to the beginning of the next, which is changed in place."""
    extent = min(before.shape[axis], after.shape[axis], extent)
    shares = np.arange(extent) / extent
    shares = shares[:, None] if axis == 1 else shares
    begin = before.shape[axis] - extent
    last = before[:, begin:] if axis == 1 else before[:, :, begin:]
    first = after[:, :extent] if axis == 1 else after[:, :, :extent]
    first[...] = last * (1 - shares).astype(np.float32) + first * shares.astype(np.float32)
