"""The loop: from noise to latents, one denoiser call after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..core.bundle import Model
from ..core.engine import Run
from ..core.errors import CancelledError
from ..core.request import Request, Step
from ..core.tensors import Array
from .condition import condition
from .finite import check_finite
from .guidance import guidance_embedding, guide
from .schedulers import Noise, Schedule

DENOISER = "unet"

OnStep = Callable[[Step], bool | None]
"""Told of each finished denoiser call; returning False cancels."""


@dataclass(frozen=True)
class Walk:
    """What the loop needs beside the denoiser: all of it belongs to one request."""

    schedule: Schedule
    latents: NDArray[np.float32]
    """Standard normal values, [count, channels, height / 8, width / 8]."""
    noise: Noise
    guidance: float | None
    """Scale at which the answers to negative and positive rows are combined; None where rows are positive only."""
    guidance_rescale: float
    engine: str
    """What runs the denoiser, for errors."""


def is_guided(model: Model, request: Request) -> bool:
    """Whether the denoiser sees negative and positive rows; not where the model takes guidance as an input."""
    return request.guided and model.guidance_embedding is None


def constants(
    model: Model, encoded: Mapping[str, Mapping[str, Array]], request: Request, size: tuple[int, int]
) -> dict[str, Array]:
    """The denoiser's inputs that stay the same from call to call, by name.

    `encoded` is what each text encoder answered, by part and output, a row for each prompt; `size` is
    (height, width) in pixels. Each row is repeated for every image: [negative] * count + [positive] * count.
    """
    fixed = condition(model, encoded, size)
    if model.guidance_embedding is not None:
        fixed["timestep_cond"] = guidance_embedding(request.guidance, model.guidance_embedding, 1)
    return {name: np.repeat(array, request.count, axis=0) for name, array in fixed.items()}


def denoise(run: Run, walk: Walk, on_step: OnStep | None = None) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """Walk from noise to latents; returns them and the wall seconds of each denoiser call.

    `run` takes `sample` [rows, channels, height / 8, width / 8] and `timestep` [1], both float32, and
    answers `out_sample` of the sample's shape; the constants are bound to it.

    Raises `CancelledError` as soon as `on_step` returns False, and `NotFiniteError` naming the call
    after which the latents hold NaN or infinity.
    """
    timesteps = walk.schedule.timesteps
    total = len(timesteps)
    latents = walk.latents * np.float32(walk.schedule.init_noise_sigma)
    seconds: list[float] = []
    for index in range(total):
        scaled = walk.schedule.scale(latents, index)
        sample = scaled if walk.guidance is None else np.concatenate([scaled, scaled])
        feeds: dict[str, Array] = {"sample": sample, "timestep": np.array([timesteps[index]], np.float32)}
        started = perf_counter()
        output = run(feeds)["out_sample"]
        seconds.append(perf_counter() - started)
        # Overflow is told below, in words, and not by numpy's warnings.
        with np.errstate(over="ignore", invalid="ignore"):
            if walk.guidance is not None:
                output = guide(output, walk.guidance, walk.guidance_rescale)
            latents = walk.schedule.step(output, index, latents, walk.noise)
        check_finite(latents, f"The latents after denoiser call {index + 1} of {total}", DENOISER, walk.engine)
        if on_step is not None:
            _tell(on_step, Step(index=index + 1, total=total, latents=_frozen(latents)))
    return latents, tuple(seconds)


def _tell(on_step: OnStep, step: Step) -> None:
    answer = on_step(step)
    if answer is not None and not answer:
        raise CancelledError(
            f"Stopped after denoiser call {step.index} of {step.total}, as on_step asked by returning False. "
            "Draw the request again to have the picture; the same seed gives the same one."
        )


def _frozen(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same values, which the one who is told can't change."""
    view = latents.view()
    view.flags.writeable = False
    return view
