"""ControlNets: their images, and the factors of their residuals at each call of the denoiser.

Source: diffusers' `StableDiffusionControlNetPipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..core.manifest import Model
from ..core.request import Request
from ..core.tensors import Array
from ..core.wires import CONTROL, CONTROL_SCALE
from .image import Pixels, resized

LEAST_GUESS = 0.1
"""Factor of the first residual in guess mode; that of the last is 1."""


def control_images(model: Model, images: Sequence[Pixels], request: Request) -> dict[str, Array]:
    """The images of the ControlNets by the name of their source: resized, from 0 to 1, f32 [1, 3, height, width].

    Without images, they are black; `residual_factors` are then zero.
    """
    width, height = request.width, request.height
    assert width is not None
    assert height is not None
    shown = images or [np.zeros((height, width, 3), np.uint8)] * len(model.controls)
    shares = (resized(one, width, height).astype(np.float32) / np.float32(255) for one in shown)
    start = CONTROL.partition(".")[2]
    return {
        f"{start}{number}": np.ascontiguousarray(np.moveaxis(one, -1, 0)[None]) for number, one in enumerate(shares, 1)
    }


def residual_factors(model: Model, request: Request, *, calls: int, guided: bool) -> dict[str, NDArray[np.float32]]:
    """The factors of the residuals at each call, by the denoiser's input: f32 [calls, rows, residuals].

    `calls` is the number of calls that are made, `guided` whether negative rows come first. A ControlNet has no effect
    before its start and after its end. In guess mode it affects positive rows only, and early residuals less. All are
    zero if the request has no images for ControlNets.
    """
    rows = request.count * (2 if guided else 1)
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
