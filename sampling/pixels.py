"""From latents to pixels, one image at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..core.engine import Run
from ..core.tensors import check_finite
from .tiles import decode_tiles, is_tiled


def frame_chunks(frames: int, chunk: int | None) -> tuple[range, ...]:
    """The frames that are decoded together: `chunk` at a time, the last chunk may be shorter; None is all of them.

    Source: diffusers' `decode_chunk_size`, which however runs on through the videos of a batch.
    """
    return tuple(range(first, min(first + (chunk or frames), frames)) for first in range(0, frames, chunk or frames))


def decode(
    run: Run,
    latents: NDArray[np.float32],
    part: str,
    engine: str,
    chunk: int | None = None,
    tile: int | None = None,
) -> NDArray[np.uint8]:
    """Decode latents [count, channels, height / 8, width / 8] into sRGB [count, height, width, 3].

    Latents with frames, [count, frames, ...], give [count, frames, height, width, 3]. The decoder runs on one image at
    a time: its activations take far more memory than any other part's. `chunk` is the number of frames at a time,
    `tile` the side in latents of the tiles of a larger image (`tiles`).
    `part` and `engine` name the decoder and its engine, for errors.
    Raises `NotFiniteError` naming the image that contains NaN or infinity.
    """
    images: list[NDArray[np.uint8]] = []
    for index in range(len(latents)):
        one = latents[index : index + 1]
        if latents.ndim > 4:
            chunks = frame_chunks(one.shape[1], chunk)
            frames = [run({"latent_sample": one[:, each.start : each.stop]})["sample"][0] for each in chunks]
            image = np.concatenate(frames)
        elif tile is not None and is_tiled(one.shape[-2:], tile):
            image = decode_tiles(run, one, tile)
        else:
            image = run({"latent_sample": one})["sample"][0]
        check_finite(image, f"Image {index} of {len(latents)}, as decoded", part, engine)
        images.append(quantized(image))
    return np.stack(images)


def quantized(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """From [..., 3, height, width] in [-1, 1] to [..., height, width, 3] in 0 to 255, rounded half to even.

    Source: diffusers' `VaeImageProcessor`.
    """
    shares = np.clip(image / 2 + 0.5, 0.0, 1.0)
    return np.ascontiguousarray(np.moveaxis((shares * 255).round().astype(np.uint8), -3, -1))


def is_flat(image: NDArray[np.uint8]) -> bool:
    """Whether all pixels, of all frames, have the same colour."""
    pixels = image.reshape(-1, image.shape[-1])
    return bool((pixels == pixels[0]).all())


def preview(rows: Sequence[Sequence[float]], latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours of latents in the denoiser's scale: from [..., channels, height / 8, width / 8] to sRGB [..., height / 8,
    width / 8, 3]. `rows` are those of `Model.preview`. Values that aren't finite give some colour.
    """
    factors = np.array(rows, np.float32)
    finite = np.clip(np.nan_to_num(np.moveaxis(latents, -3, -1)), -1e4, 1e4)  # products of larger ones overflow
    shown = finite @ factors[:, :-1].T + factors[:, -1]
    return quantized(np.moveaxis(shown, -1, -3))
