"""The loop: from noise to latents, one step after another. The compiler proves the same step that draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..core.engine import Run
from ..core.errors import CancelledError
from ..core.manifest import Model
from ..core.request import Request, Step
from ..core.tensors import Array, check_finite
from ..core.wires import TIMESTEP
from .guidance import guide
from .schedulers import Noise, Schedule

OnStep = Callable[[Step], bool | None]
"""Told of each finished denoiser call; returning False cancels."""


@dataclass(frozen=True)
class Walk:
    """What the loop needs beside the denoiser: all of it belongs to one request."""

    schedule: Schedule
    noise: Noise
    guidance: float | None
    """Scale at which the answers to negative and positive rows are combined; None where rows are positive only."""
    guidance_rescale: float
    latents: str
    """The denoiser's input that takes them."""
    part: str
    """The denoiser's name, for errors."""
    engine: str
    """What runs it, for errors."""


def is_guided(model: Model, request: Request) -> bool:
    """Whether the denoiser sees negative and positive rows; not where the model takes guidance as an input."""
    return request.guided and not model.takes_guidance


def feeds(walk: Walk, index: int, latents: NDArray[np.float32]) -> dict[str, Array]:
    """What the denoiser is fed at a step beside its constants.

    The latents are [rows, channels, height / 8, width / 8], twice where guided; `timestep` is [1].
    """
    scaled = walk.schedule.scale(latents, index)
    sample = scaled if walk.guidance is None else np.concatenate([scaled, scaled])
    return {walk.latents: sample, TIMESTEP: np.array([walk.schedule.timesteps[index]], np.float32)}


def step(run: Run, walk: Walk, index: int, latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """One step: feeds, the denoiser's call, guidance, the scheduler. Returns the next latents.

    `run` takes what `feeds` gives and has one answer of the latents' shape; the constants are bound to it.
    Raises `NotFiniteError` where the answer or the next latents hold NaN or infinity. The answer is checked by itself:
    clipping, and schedulers that predict the original, would turn an infinity into a finite number.
    """
    (output,) = run(feeds(walk, index, latents)).values()
    call = f"denoiser call {index + 1} of {len(walk.schedule.timesteps)}"
    check_finite(output, f"The output of {call}", walk.part, walk.engine)
    # An overflow is reported below, in words, and not by numpy's warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        if walk.guidance is not None:
            output = guide(output, walk.guidance, walk.guidance_rescale)
        following = walk.schedule.step(output, index, latents, walk.noise)
    check_finite(following, f"The latents after {call}", walk.part, walk.engine)
    return following


def denoise(
    run: Run, walk: Walk, start: NDArray[np.float32], on_step: OnStep | None = None
) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """Walk from noise to latents; returns them and the wall seconds of each denoiser call.

    `start` holds standard normal values, [count, channels, height / 8, width / 8]; `run` is as `step` takes it.

    Raises `CancelledError` as soon as `on_step` returns False, and `NotFiniteError` as `step` does.
    """
    total = len(walk.schedule.timesteps)
    latents = start * np.float32(walk.schedule.init_noise_sigma)
    seconds: list[float] = []

    def timed(given: Mapping[str, Array]) -> dict[str, Array]:
        started = perf_counter()
        answer = run(given)
        seconds.append(perf_counter() - started)
        return answer

    for index in range(total):
        latents = step(timed, walk, index, latents)
        if on_step is not None:
            _tell(on_step, Step(index=index + 1, total=total, latents=_frozen(latents)))
    return latents, tuple(seconds)


def _tell(on_step: OnStep, finished: Step) -> None:
    answer = on_step(finished)
    if answer is not None and not answer:
        raise CancelledError(
            f"Stopped after denoiser call {finished.index} of {finished.total}, as on_step asked by returning False. "
            "Draw the request again to have the picture; the same seed gives the same one."
        )


def _frozen(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same values, which `on_step` can't change."""
    view = latents.view()
    view.flags.writeable = False
    return view
