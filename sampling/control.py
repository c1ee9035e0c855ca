"""ControlNets and T2I-Adapters: their images, and the factors of their residuals at each call of the denoiser.

Source: diffusers' `StableDiffusionControlNetPipeline`, `StableDiffusion3ControlNetPipeline` and
`StableDiffusionAdapterPipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.model import ControlNet, Model
from ..core.request import Request
from ..core.tensors import Array
from ..core.wires import CONTROL, CONTROL_SCALE
from .image import Pixels, resized

LEAST_GUESS = 0.1
"""Factor of the first residual in guess mode; that of the last is 1."""


def control_images(
    model: Model,
    images: Sequence[Pixels],
    request: Request,
    means: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> dict[str, Array]:
    """What the ControlNets read by the name of their source: their images, resized, f32 [1, 3, height, width], or the
    latents of these, [1, channels, height / 8, width / 8].

    `means` runs the VAE's encoder, and returns the means of the latents: diffusers draws from their distribution
    instead, with noise that no seed determines. Without images, what is read is zero, and so are `residual_factors`.
    """
    width, height = request.width, request.height
    assert width is not None
    assert height is not None
    start = CONTROL.partition(".")[2]
    made: dict[str, Array] = {}
    for index, one in enumerate(model.controls):
        if not images:
            latents = model.latents(1, height // model.downscale, width // model.downscale)
            shape = (1, one.channels, height, width) if one.latent_shift is None else latents
            array = np.zeros(shape, np.float32)
        else:
            array = _coloured(images[index], one, width, height)
            if one.latent_shift is not None:
                array = (means(array) - np.float32(one.latent_shift)) * np.float32(model.scaling_factor)
        made[f"{start}{index + 1}"] = np.ascontiguousarray(array)
    return made


def _coloured(image: Pixels, control: ControlNet, width: int, height: int) -> NDArray[np.float32]:
    """The image at this size in pixels, [1, channels, height, width], from the values of black to those of white."""
    grey = control.channels == 1
    sized = resized(np.asarray(Image.fromarray(image).convert("L")) if grey else image, width, height)
    black, white = control.colours
    shares = np.moveaxis(np.atleast_3d(sized).astype(np.float32) / np.float32(255), -1, 0)[None]
    return shares if (black, white) == (0, 1) else shares * np.float32(white - black) + np.float32(black)


def residual_factors(model: Model, request: Request, *, calls: int, guided: bool) -> dict[str, NDArray[np.float32]]:
    """The factors of the residuals at each call, by the denoiser's input: f32 [calls, rows, residuals].

    `calls` is the number of calls that are made, `guided` whether negative rows come first. A ControlNet has no effect
    before its start and after its end. In guess mode it affects positive rows only, and early residuals less. All are
    zero if the request has no images for ControlNets.
    """
    rows = request.count * (model.guided_rows if guided else 1)
    guess = bool(request.guess_mode) or any(one.pooled for one in model.controls[:1])
    made: dict[str, NDArray[np.float32]] = {}
    for index, one in enumerate(model.controls):
        name = next(wire.input for wire in model.wires if wire.source == f"{CONTROL_SCALE}{index + 1}")
        factors = np.zeros((calls, rows, one.residuals), np.float32)
        if request.control_sha256 is not None:
            least = np.log10(LEAST_GUESS) if guess and not one.pooled else 0.0
            shares = np.logspace(least, 0, one.residuals, dtype=np.float32)
            kept = _kept(calls, _given(request.control_start)[index], _given(request.control_end)[index])
            scales = np.float32(_given(request.control_scale)[index]) * kept
            factors[:] = scales[:, None, None] * shares
            if guess and guided:
                factors[:, : request.count] = 0
        made[name] = factors
    return made


def _kept(calls: int, start: float, end: float) -> NDArray[np.float32]:
    """1 for each call that lies within these shares of all calls, else 0."""
    outside = [index / calls < start or (index + 1) / calls > end for index in range(calls)]
    return np.where(outside, np.float32(0), np.float32(1))


def _given(values: tuple[float, ...] | None) -> tuple[float, ...]:
    assert values is not None, "a completed request has one for each ControlNet"
    return values
