"""Comparison of engines with drawings of diffusers' pipeline: each step, and an image.

A *drawing* is one run of diffusers' pipeline, recorded at export. Engines compute each of its steps from diffusers' own
latents, so that errors don't accumulate, and one image is generated as in normal use. What latentc computes outside
them is compared first: `host_check`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from ..core.bundle import Bundle
from ..core.engine import Engine, EngineOf, Run
from ..core.errors import BundleError, ShapeError
from ..core.model import Model
from ..core.record import Record
from ..core.references import (
    CONTROL_ARRAY,
    OF_REFINER,
    STYLE_ARRAY,
    Case,
    Drawings,
    ReferenceDrawing,
)
from ..core.request import TINY, Request
from ..core.shapes import FREE, all_of, filled
from ..core.tensors import PERFECT_DB, Array, change_db, psnr_db
from ..core.wires import CONTROL, TIMESTEP
from ..sampling.denoise import Walk, is_guided, step
from ..sampling.draw import beside_latents, constants, decoded_shapes, draw, sample_shape
from ..sampling.given import Given, with_kept
from ..sampling.host import Host, image_shape, latent_shape
from ..sampling.reading import read_request
from ..sampling.walks import walk_of
from .cases import InputShapes, reference, shapes_of, stored_cases, stored_drawings, stretched
from .loop_trial import measure_loop

Answer = Callable[[str, Mapping[str, Array]], dict[str, Array]]


@dataclass(frozen=True)
class StepTrial:
    """A drawing with the arrays that engines are compared with."""

    name: str
    request: Request
    """The request, with its size."""
    start: NDArray[np.float32]
    """Initial noise, of the shape `latent_shape`."""
    befores: tuple[NDArray[np.float32], ...]
    """Latents before each recorded call."""
    afters: tuple[NDArray[np.float32], ...]
    """Latents after each recorded call."""
    outputs: tuple[NDArray[np.float32], ...]
    """Outputs of the denoiser, with a row for each row of its input."""
    noise: NDArray[np.float32]
    """Noise that a stochastic scheduler added, in order of the steps."""
    images: NDArray[np.uint8] | None
    """[count, height, width, 3]; None unless the drawing is complete."""
    given: Given | None = None
    """The image of the request, for a model that reads one."""
    beside: NDArray[np.float32] | None = None
    """What is concatenated to the latents, where it isn't computed from the image."""
    controls: tuple[NDArray[np.uint8], ...] = ()
    """The images of the request's ControlNets."""
    style: NDArray[np.uint8] | None = None
    """The style image of the request."""
    shown: Mapping[str, Array] | None = None
    """What ControlNets read, where it isn't resized from their images: see `Text.controls`."""


class StepFigures(Record):
    """Agreement of a denoiser, with the other engines of a profile, with diffusers' drawings."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    step_db: float
    """PSNR of the next latents, each step started from diffusers' own: the worst of all calls."""
    differences: tuple[tuple[float, float], ...] = ()
    """For each guided drawing, over its calls: SNR in dB of what the prompt changes in the denoiser's output, and the
    RMS of that change in the reference, relative to the RMS of the output.
    """
    picture_db: float | None = None
    """PSNR of a complete image in 8 bits; None where the engines don't accept its size."""
    tiny_db: float | None = None
    """The same of an image from the tiny decoder; None without one too."""
    call_db: float | None = None
    """For an engine that takes the scheduler's step, in a walk on the device: PSNR of its output, compared with calls
    of the same engine from the host. None for other engines.
    """
    loop_db: float | None = None
    """PSNR of guidance, the step, and the next sample in that walk, compared with the host's from the same output."""


def own_drawings(host: Host, stored: Drawings) -> tuple[ReferenceDrawing, ...]:
    """The drawings of a host: of the model, or of its refiner."""
    return tuple(one for one in stored.drawings if one.name.endswith(OF_REFINER) == host.model.refines)


def measure_steps(
    bundle: Bundle, host: Host, part: str, engine: EngineOf, shape: InputShapes | None, *, guided: bool
) -> StepFigures:
    """Compare the engines with every drawing of a denoiser that they accept, step by step, and generate one image.

    `part` is the denoiser; `shape` gives its input shapes where it accepts no others; `guided` tells whether its rows
    are then negative and positive ones.
    """
    trials = _fitting(bundle, host, part, shape, guided=guided)
    figures: list[float] = []
    differences: list[tuple[float, float]] = []
    pictures: dict[str | None, float | None] = {}
    loops: dict[bool, tuple[float, float]] = {}
    for trial in trials:
        found, difference = _steps(host, engine, trial)
        guided_rows = is_guided(host.model, trial.request)
        if guided_rows not in loops and (looped := _loop(host, engine, trial)) is not None:
            loops[guided_rows] = looped
        figures.append(found)
        if difference:
            differences.append(difference)
        decoder = trial.request.decoder
        if trial.images is not None and pictures.get(decoder) is None:
            pictures[decoder] = _picture(host, engine, trial)
    return StepFigures(
        step_db=round(min(figures), 2),
        differences=tuple(differences),
        picture_db=pictures.get(None),
        tiny_db=pictures.get(TINY),
        call_db=min((call for call, _ in loops.values()), default=None),
        loop_db=min((step for _, step in loops.values()), default=None),
    )


def _steps(host: Host, engine: EngineOf, trial: StepTrial) -> tuple[float, tuple[float, float] | None]:
    """Worst PSNR of the next latents; SNR and relative size of what guidance adds, over all calls together."""
    one, fixed, walk, guided = _ready(host, engine, trial)
    run = one.bind(fixed)
    other = one.bind({name: np.zeros_like(array) for name, array in fixed.items()})  # stands for another request
    answers: list[Array] = []

    def kept(given: Mapping[str, Array]) -> dict[str, Array]:
        if not answers:
            other(given)
        answer = run(given)
        answers.extend(answer.values())
        return answer

    worst = PERFECT_DB
    for index, (before, after) in enumerate(zip(trial.befores, trial.afters, strict=True)):
        call = walk.first + index
        worst = min(worst, psnr_db(after, step(kept, deepcopy(walk), call, before)))
        step(answering(trial.outputs[index]), walk, call, before)  # the history is the reference's
    if not guided:
        return worst, None
    wanted, found = (
        np.stack([_difference(one, host.model.guided_rows) for one in each]) for each in (trial.outputs, answers)
    )
    return worst, change_db(wanted, found, np.stack(trial.outputs))


def _loop(host: Host, engine: EngineOf, trial: StepTrial) -> tuple[float, float] | None:
    """See `measure_loop`."""
    one, fixed, walk, _ = _ready(host, engine, trial)
    return measure_loop(host, trial.request, walk, one, fixed, trial.start)


def _ready(host: Host, engine: EngineOf, trial: StepTrial) -> tuple[Engine, dict[str, Array], Walk, bool]:
    """The denoiser's engine for a drawing, its constants, the steps, and whether there are negative rows."""
    shown: dict[str, Any] = {"controls": trial.controls, "style": trial.style}
    text = read_request(host, trial.request, trial.given, _through(engine), **shown)
    text = text if trial.shown is None else replace(text, controls=trial.shown)
    fixed = constants(host, trial.request, text)
    beside = beside_latents(host, trial.request, text) if trial.beside is None else trial.beside
    walk = replace(walk_for(host, trial), beside=beside)
    sample = sample_shape(trial.outputs[0].shape, beside)
    shapes = shapes_of(fixed) | {host.model.latents_input: sample, TIMESTEP: (1,)}
    shapes |= {name: array.shape[1:] for name, array in walk.varying.items()}
    return engine(host.denoiser(trial.request), shapes), fixed, walk, text.guided


def _picture(host: Host, engine: EngineOf, trial: StepTrial) -> float | None:
    """PSNR of the image that the pipeline generates; None where the decoder accepts other sizes only."""
    try:
        for shape in decoded_shapes(trial.start.shape, trial.request.decode_chunk_size):
            engine(host.decoder(trial.request), {"latent_sample": shape})
    except ShapeError:
        return None
    drawn = draw(
        host,
        trial.request,
        engine,
        start=trial.start,
        noise=InTurn(trial.noise),
        given=trial.given,
        controls=trial.controls,
        style=trial.style,
    )
    wanted, found = trial.images, drawn.images
    assert wanted is not None
    area = None if trial.given is None else trial.given.area(trial.request)
    if trial.given is not None and area is not None:  # what is kept is the image's own in both
        wanted, found = (one[:, area] for one in (with_kept(wanted, trial.request, trial.given), found))
    return round(psnr_db(wanted, found), 2)


def _fitting(bundle: Bundle, host: Host, part: str, shape: InputShapes | None, *, guided: bool) -> list[StepTrial]:
    """Every drawing where shapes are free; else those of the shape, or one that is resized to it."""
    stored, arrays = stored_drawings(bundle)
    drawings = [drawing for drawing in own_drawings(host, stored) if host.denoiser(drawing.request) == part]
    cases = {case.name: case for case in stored_cases(bundle, part)}
    trials = [trial_of(drawing, arrays, cases) for drawing in drawings]
    if shape is None:
        return trials
    both = guided and not host.model.takes_guidance
    rows_free = shape[host.model.latents_input][0] == FREE
    kinds = {is_guided(host.model, trial.request) for trial in trials} if rows_free else {both}
    able = [
        trial
        for drawing, trial in zip(drawings, trials, strict=True)
        if all_of(_called_with(cases, drawing.name), shape) and is_guided(host.model, trial.request) in kinds
    ]
    missing = kinds - {is_guided(host.model, trial.request) for trial in able}
    return able + [_made(bundle, host, trials, shape, cases, guided=one) for one in sorted(missing)]


def _called_with(cases: Mapping[str, Case], drawing: str) -> InputShapes:
    """Input shapes of a drawing's first call."""
    return shapes_of(cases[f"{drawing}.0"].feeds)


def _made(
    bundle: Bundle,
    host: Host,
    trials: list[StepTrial],
    shape: InputShapes,
    cases: Mapping[str, Case],
    *,
    guided: bool,
) -> StepTrial:
    """Resize a drawing to another shape, with the denoiser's outputs from its own references."""
    like = next(trial for trial in trials if is_guided(host.model, trial.request) == guided)
    rows, *_, height, width = filled(shape, _called_with(cases, like.name))[host.model.latents_input]
    size = {"width": width * host.model.downscale, "height": height * host.model.downscale}
    request = like.request.model_copy(update={**size, "count": rows // (host.model.guided_rows if guided else 1)})
    found = reference(bundle, host.denoiser(request), shape).cases
    case = next((one for one in found if one.name == f"{like.name}.0"), None)
    if case is None:
        raise BundleError(f"{bundle.folder} has no reference of the whole step at {size}. {bundle.standing.again}")
    shape_of_latents = latent_shape(host.model, request)
    start, noise, before = (stretched(one, shape_of_latents) for one in (like.start, like.noise[0], like.befores[0]))
    given, beside = like.given, None
    if given is not None:  # resized with the whole input, not encoded at that size
        given = replace(given, noise=stretched(given.noise, image_shape(host.model, request)))
        channels = start.shape[-3]
        beside = np.ascontiguousarray(case.feeds[host.model.latents_input][..., channels:, :, :])
        beside = beside if beside.shape[-3] else None
    made = replace(
        like, request=request, start=start, befores=(before,), outputs=(output_of(case),),
        noise=noise[None], images=None, given=given, beside=beside, shown=_shown(host.model, case),
    )  # fmt: skip
    walk = walk_for(host, made)
    return replace(made, afters=(step(answering(made.outputs[0]), walk, walk.first, made.befores[0]),))


def _shown(model: Model, case: Case) -> dict[str, Array]:
    """What the ControlNets read in a call, by the name of the source."""
    wires = (wire for wire in model.wires if wire.source.startswith(CONTROL))
    return {wire.name: case.feeds[wire.input][-1:] for wire in wires}


def trial_of(drawing: ReferenceDrawing, arrays: Mapping[str, Array], cases: Mapping[str, Case]) -> StepTrial:
    """A drawing with its arrays, and the denoiser's calls by name."""
    name = drawing.name
    start, after = arrays[f"{name}/start"], tuple(arrays[f"{name}/steps"])
    return StepTrial(
        name=name,
        request=drawing.request,
        start=start,
        befores=(arrays.get(f"{name}/before", start * np.float32(arrays[f"{name}/sigma"])), *after[:-1]),
        afters=after,
        outputs=tuple(output_of(cases[f"{name}.{index}"]) for index in range(drawing.calls)),
        noise=arrays[f"{name}/noise"],
        images=arrays.get(f"{name}/images"),
        given=_given(name, arrays),
        style=arrays.get(f"{name}/{STYLE_ARRAY}"),
        controls=tuple(
            arrays[key] for key in sorted(key for key in arrays if key.startswith(f"{name}/{CONTROL_ARRAY}"))
        ),
    )


def _given(name: str, arrays: Mapping[str, Array]) -> Given | None:
    """The image of a drawing, and its mask; None for one without."""
    if f"{name}/image" not in arrays:
        return None
    return Given(arrays[f"{name}/image"], arrays[f"{name}/image_noise"], arrays.get(f"{name}/mask"))


def walk_for(host: Host, trial: StepTrial) -> Walk:
    """The steps of a drawing, with its recorded noise."""
    guided = is_guided(host.model, trial.request)
    return walk_of(host, trial.request, guided=guided, noise=InTurn(trial.noise), engine="its engine")


@dataclass
class InTurn:
    """Recorded noise, one array per call. A copy continues from the position at which it was copied."""

    noise: NDArray[np.float32]
    drawn: int = 0

    def __call__(self) -> NDArray[np.float32]:
        """The next array."""
        self.drawn += 1
        return self.noise[self.drawn - 1]


def answering(output: Array) -> Run:
    """A denoiser that returns a recorded output."""
    return lambda _feeds: {"output": output}


def _through(engine: EngineOf) -> Answer:
    return lambda part, given: engine(part, shapes_of(given)).run(given)


def output_of(case: Case) -> Array:
    """The denoiser's only output."""
    return next(iter(case.outputs.values()))


def _difference(output: Array, rows: int) -> Array:
    """What the prompt changes: the output of the positive rows less that of negative rows of the same image."""
    *_, negative, positive = np.split(output, rows)
    return positive - negative
