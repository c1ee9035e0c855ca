"""The denoising loop: from noise to latents, step by step. The compiler proves engines with the same `step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..core.engine import Loops, Run
from ..core.errors import CancelledError
from ..core.looped import CARRIES, FACTORS, GUIDED, LATENTS, NEGATIVE, NEXT_LATENTS, POSITIVE
from ..core.model import Model
from ..core.request import Request, Step
from ..core.tensors import Array, check_finite
from ..core.wires import AXES, TIMESTEP
from .guidance import guide
from .schedulers import Noise, Schedule
from .schedulers.arrays import mixed
from .schedulers.prediction import estimate

OnStep = Callable[[Step], bool | None]
"""Called after each denoiser call; returning False cancels."""


@dataclass(frozen=True)
class Kept:
    """What inpainting keeps of an image: after each step, its latents at the noise level of the next replace others."""

    original: NDArray[np.float32]
    """The image's latents in the denoiser's scale, [count, channels, height / 8, width / 8]."""
    noise: NDArray[np.float32]
    """The initial noise, of the same shape."""
    mask: NDArray[np.float32]
    """1 where the image is generated, 0 where it is kept: [1, 1, height / 8, width / 8]."""

    def restored(self, latents: NDArray[np.float32], level: tuple[float, float]) -> NDArray[np.float32]:
        """The latents with the kept part at this noise level; see `Schedule.level`."""
        kept, added = level
        return np.where(self.mask > 0, latents, mixed((kept, self.original), (added, self.noise)))


@dataclass(frozen=True)
class Walk:
    """What the loop needs in addition to the denoiser, for one request."""

    schedule: Schedule
    noise: Noise
    guidance: float | Array | None
    """Guidance scale, or one for each frame, that combines the outputs for negative and positive rows; None if all rows
    are positive.
    """
    image_guidance: float | None
    """Guidance scale of the image that the denoiser sees, with one more row for each image; None without one."""
    guidance_rescale: float
    latents: str
    """Name of the denoiser's input for latents."""
    part: str
    """The denoiser's name, for errors."""
    engine: str
    """Name of the engine that runs it, for errors."""
    beside: Array | None = None
    """What is concatenated to the channels of the scaled latents at each step, [rows, ...]; None for nothing."""
    first: int = 0
    """The denoiser call at which the walk begins; later ones than 0 are for image to image."""
    varying: Mapping[str, Array] = field(default_factory=dict[str, Array])
    """Other inputs of the denoiser that change with the call, each [calls from `first`, ...]."""
    kept: Kept | None = None
    """What inpainting keeps; None to generate the whole image."""
    end: int | None = None
    """The denoiser call before which the walk ends, for a refiner to take over; None for the last one."""
    before: int = 0
    """Calls of the model whose latents the walk takes over."""
    after: int = 0
    """Calls of the refiner that takes over."""


def end_of(walk: Walk) -> int:
    """The denoiser call before which a walk ends."""
    return len(walk.schedule.timesteps) if walk.end is None else walk.end


def is_guided(model: Model, request: Request) -> bool:
    """Whether the denoiser gets negative and positive rows; False if the model takes guidance as an input."""
    return request.guided and not model.takes_guidance


def feeds(walk: Walk, index: int, latents: NDArray[np.float32]) -> dict[str, Array]:
    """The denoiser's inputs at a step, without its constants.

    The latents are [rows, channels, height / 8, width / 8], with two or three times the rows if guided; `timestep` is
    [1].
    """
    scaled = walk.schedule.scale(latents, index)
    rows = 1 if walk.guidance is None else 2 if walk.image_guidance is None else 3
    sample = np.concatenate([scaled] * rows)
    if walk.beside is not None:
        sample = np.concatenate([sample, walk.beside], axis=AXES["channels"])
    return {walk.latents: sample, **_of_call(walk, index)}


def _of_call(walk: Walk, index: int) -> dict[str, Array]:
    """The inputs that change with the call, without the sample."""
    varying = {name: array[index - walk.first] for name, array in walk.varying.items()}
    return {TIMESTEP: np.array([walk.schedule.timesteps[index]], np.float32), **varying}


def step(run: Run, walk: Walk, index: int, latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take one step (inputs, denoiser call, guidance, scheduler) and return the next latents.

    `run` takes the result of `feeds` and returns one output of the latents' shape; the constants are bound to it.
    Raises `NotFiniteError` if the output or the next latents hold NaN or infinity. The output is checked separately:
    clipping, and schedulers that predict the original, would turn an infinity into a finite number.
    """
    return _taken(run, walk, index, latents)[0]


def _taken(
    run: Run, walk: Walk, index: int, latents: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The latents after a step, and the denoiser's output with guidance."""
    (output,) = run(feeds(walk, index, latents)).values()
    call = f"denoiser call {index + 1} of {len(walk.schedule.timesteps)}"
    check_finite(output, f"The output of {call}", walk.part, walk.engine)
    # An overflow raises the error below instead of numpy's warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        if walk.guidance is not None:
            output = guide(output, walk.guidance, walk.guidance_rescale, walk.image_guidance)
        following = walk.schedule.step(output, index, latents, walk.noise)
    check_finite(following, f"The latents after {call}", walk.part, walk.engine)
    return following, output


def _estimated(walk: Walk, index: int, latents: NDArray[np.float32], output: Array) -> NDArray[np.float32]:
    """The finished latents as the denoiser predicts them at a step; what inpainting keeps of an image is the image's.

    Not checked: an estimate is shown only, and may be larger than any sample.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = estimate(walk.schedule.settings.prediction_type, output, latents, walk.schedule.level(index))
    return _frozen(found if walk.kept is None else walk.kept.restored(found, (1.0, 0.0)))


def denoise(
    run: Run, walk: Walk, latents: NDArray[np.float32], on_step: OnStep | None = None
) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """Run the walk's steps; returns the latents and the wall time of each denoiser call in seconds.

    `latents` are those before the first call, [count, channels, height / 8, width / 8]; `run` is the same as in `step`.

    Raises `CancelledError` as soon as `on_step` returns False, and `NotFiniteError` as `step` does.
    """
    seconds: list[float] = []

    def timed(given: Mapping[str, Array]) -> dict[str, Array]:
        started = perf_counter()
        answer = run(given)
        seconds.append(perf_counter() - started)
        return answer

    for index in range(walk.first, end_of(walk)):
        before = latents
        latents, output = _taken(timed, walk, index, before)
        if walk.kept is not None:
            latents = walk.kept.restored(latents, walk.schedule.level(index + 1))
        if on_step is not None:
            _report(on_step, walk, index, (before, latents), output)
    return latents, tuple(seconds)


def denoise_on_device(
    engine: Loops,
    fixed: Mapping[str, Array],
    walk: Walk,
    factors: NDArray[np.float32],
    latents: NDArray[np.float32],
    on_step: OnStep | None = None,
) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """`denoise` with an engine that takes the steps, by `linear.step_factors`; `fixed` are the denoiser's constants.

    Latents are copied to the host at the end, and after each call only if there is an `on_step`. The engine carries NaN
    and infinity on, so that `NotFiniteError` is raised for the latents at the end.
    """
    calls, seconds, count = len(walk.schedule.timesteps), list[float](), len(latents)
    with engine.loop({**fixed, **first_feeds(walk, latents), FACTORS: factors[0]}) as chain:
        for index in range(walk.first, end_of(walk)):
            started = perf_counter()
            chain.step({**_of_call(walk, index), FACTORS: factors[index - walk.first]})
            seconds.append(perf_counter() - started)
            if on_step is not None:
                before, latents = latents, chain.read(NEXT_LATENTS)[:count]
                check_finite(latents, f"The latents after denoiser call {index + 1} of {calls}", walk.part, walk.engine)
                _report(on_step, walk, index, (before, latents), chain.read(GUIDED)[:count])
        latents = chain.read(NEXT_LATENTS)[:count]
    check_finite(latents, f"The latents after denoiser call {end_of(walk)} of {calls}", walk.part, walk.engine)
    return latents, tuple(seconds)


def first_feeds(walk: Walk, latents: NDArray[np.float32]) -> dict[str, Array]:
    """The inputs of the first call of an engine that takes the steps, without its constants and factors."""
    given = feeds(walk, walk.first, latents)
    rows = len(given[walk.latents])
    images, copies = np.arange(len(latents)), rows // len(latents)
    repeated = np.concatenate([latents] * copies)
    return given | {
        LATENTS: repeated,
        **{name: np.zeros_like(repeated) for name in CARRIES},
        NEGATIVE: np.tile(images, copies),
        POSITIVE: np.tile(images + rows - len(latents), copies),
    }


def _report(
    on_step: OnStep, walk: Walk, index: int, latents: tuple[NDArray[np.float32], NDArray[np.float32]], output: Array
) -> None:
    """Call `on_step` with the latents after a call, of those before and after it."""
    before, after = latents
    total = walk.before + end_of(walk) - walk.first + walk.after
    done, found = walk.before + index + 1 - walk.first, _estimated(walk, index, before, output)
    finished = Step(index=done, total=total, latents=_frozen(after), estimate=found)
    answer = on_step(finished)
    if answer is not None and not answer:
        raise CancelledError(
            f"Cancelled after denoiser call {finished.index} of {finished.total}, because on_step returned False. "
            "To get the image, run the request again; the same seed gives the same image."
        )


def _frozen(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """A read-only view, so that `on_step` can't change the latents."""
    view = latents.view()
    view.flags.writeable = False
    return view
