"""Comparison of latentc's own sampling with drawings of diffusers' pipeline: the host, each step, and an image.

A *drawing* is one run of diffusers' pipeline, recorded at export. The *host* is what latentc computes outside engines:
prompts, wires, guidance, scheduler and scaling. It computes in f32 everywhere and must agree up to rounding; it is
tested with PyTorch's recorded outputs in place of engines. Then the engines compute each step of a drawing from
diffusers' own latents, so that errors don't accumulate, and one image is generated as in normal use.
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
from ..core.engine import EngineOf, Run
from ..core.errors import BundleError, ParityError, ShapeError
from ..core.images import pixels_sha256
from ..core.manifest import Model
from ..core.record import Record, shown
from ..core.references import (
    CONTROL_ARRAY,
    DRAWINGS,
    DRAWN,
    IDS,
    OF_REFINER,
    STYLE_ARRAY,
    Case,
    Drawings,
    ReferenceDrawing,
)
from ..core.request import TINY, Request
from ..core.shapes import FREE, all_of, filled
from ..core.standing import Standing
from ..core.tensors import PERFECT_DB, Array, change_db, psnr_db
from ..core.wires import CONTROL, TIMESTEP
from ..sampling.denoise import Walk, feeds, is_guided, step
from ..sampling.draw import (
    Host,
    beside_latents,
    constants,
    decoded_shapes,
    draw,
    image_shape,
    latent_shape,
    read_request,
    sample_shape,
    walk_of,
)
from ..sampling.given import Given, begun, with_kept
from ..sampling.pixels import frame_chunks, quantized
from ..sampling.scaling import unscaled
from ..sampling.vocabulary import ids_of
from ..sampling.wires import READS_IMAGE
from .cases import InputShapes, reference, shapes_of, stored_cases, stored_drawings, stretched

WHOLE = "whole"
"""The drawing that is complete: with all steps and the image."""

DRAWN_ALWAYS = {WHOLE: True, "wide": True, "single": False, "long": True}
"""Drawings that every export makes with each denoiser, and whether they are guided."""
VIDEOS_ALWAYS = {WHOLE: True, "wide": True, "single": False, "other": True}
"""The same for a model that generates a video from an image."""

HOST_DB = 80.0
"""The PSNR in dB that the host must reach against diffusers: both compute in f32."""

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


def check_host(bundle: Bundle, host: Host) -> float:
    """Worst PSNR in dB of what the host computes from PyTorch's outputs, against diffusers' pipeline.

    Raises `ParityError` below 80 dB, or for different token ids, naming the drawing and the value.
    """
    try:
        worst = _check_host(bundle, host)
        return worst if host.refiner is None else min(worst, _check_host(bundle, host.refiner))
    except (KeyError, IndexError, StopIteration, ValueError, TypeError, AssertionError) as exc:
        raise BundleError(f"{bundle.folder / DRAWN} lacks references ({exc!r}). {bundle.standing.again}") from exc


def _check_host(bundle: Bundle, host: Host) -> float:
    stored, arrays = stored_drawings(bundle)
    drawings, by = _own(host, stored), bundle.standing
    if lacking := [name for part in host.denoisers.values() for name in _lacking(host, part, stored, arrays)]:
        raise BundleError(
            f"{bundle.folder / DRAWINGS} lacks the reference images {', '.join(lacking)} that every export generates, "
            f"so nothing can be {bundle.standing.verb}. {bundle.standing.again}"
        )
    _check_tokens(host, stored, by)
    _check_hidden(bundle, host.model)
    if dict(host.scheduler) != stored.scheduler:
        raise ParityError(
            f"The scheduler config is not the one that {by.pipeline} used {by.when}. Differing fields: "
            f"{', '.join(sorted(set(_differing(host.scheduler, stored.scheduler))))}. {by.again}"
        )
    if (stored.default_size, stored.default_height) != (host.model.default_size, host.model.default_height):
        raise ParityError(
            f"The manifest states a model size of {'x'.join(map(str, host.model.own_size))} pixels, but the checkpoint "
            f"has {stored.default_size}x{stored.default_height or stored.default_size}. {by.again}"
        )
    if (stored.patch, stored.largest_side) != (host.model.patch, host.model.largest_side):
        raise ParityError(
            f"The manifest states sides that are multiples of {host.model.patch} latents, up to "
            f"{host.model.largest_side or 'any'}, but the checkpoint has {stored.patch} and "
            f"{stored.largest_side or 'any'}. {by.again}"
        )
    if stored.frame_guidance != host.model.frame_guidance:
        raise ParityError(
            f"The manifest states the default guidance {shown(host.model.frame_guidance)} for the first and the last "
            f"frame, but the checkpoint has {shown(stored.frame_guidance)}. {by.again}"
        )
    answer = _recorded_text(bundle, host.model)
    pictured = _recorded_images(bundle, host)
    called = _calls(bundle, host)
    decoded: dict[tuple[str, str], list[Case]] = {}
    for decoder in host.decoders.values():
        for case in stored_cases(bundle, decoder):
            decoded.setdefault((decoder, case.drawing), []).append(case)
    worst, where = PERFECT_DB, "nothing"

    def compare(wanted: Array, found: Array, what: str, drawing: ReferenceDrawing) -> None:
        nonlocal worst, where
        if (figure := psnr_db(wanted, found)) < worst:
            worst, where = figure, f"{what} of {drawing.request.prompt or drawing.name!r}"

    for drawing in drawings:
        part = host.denoiser(drawing.request)
        cases = called[part]
        trial = _trial(drawing, arrays, cases)
        if latent_shape(host.model, drawing.request) != trial.start.shape:
            raise ParityError(
                f"The manifest gives latents of shape {list(latent_shape(host.model, drawing.request))} for "
                f"{drawing.request.width}x{drawing.request.height} pixels, but {by.pipeline} used "
                f"{list(trial.start.shape)}. {by.again}"
            )
        digests = tuple(map(pixels_sha256, trial.controls))
        if trial.given is None and digests != (drawing.request.control_sha256 or ()):
            raise ParityError(
                f"The images for ControlNets of the reference {drawing.name} are not those that it was made from. "
                f"{by.again}"
            )

        if (None if trial.style is None else pixels_sha256(trial.style)) != drawing.request.style_sha256:
            raise ParityError(
                f"The style image of the reference {drawing.name} is not the one that it was made from. {by.again}"
            )

        def compared(part: str, given: Mapping[str, Array], drawing: ReferenceDrawing = drawing) -> dict[str, Array]:
            if part not in pictured:
                return answer(part, given)
            case = _nearest(pictured[part][drawing.name], given)
            for name, array in given.items():
                compare(case.feeds[name][:1], array, f"{name} of the {part}", drawing)
            return {name: array[:1] for name, array in case.outputs.items()}

        if trial.given is not None:
            _check_image(drawing, trial.given, by)
        text = read_request(host, drawing.request, trial.given, compared, controls=trial.controls, style=trial.style)
        walk = _walk(host, trial)
        changing = (host.model.latents_input, TIMESTEP, *walk.varying)
        wanted = {name: array for name, array in cases[f"{drawing.name}.0"].feeds.items() if name not in changing}
        found = constants(host, drawing.request, text)
        if found.keys() != wanted.keys():
            raise ParityError(
                f"latentc gives the {part} the inputs {sorted(found)}, but {by.pipeline} gave it "
                f"{sorted(wanted)}. The manifest does not match the checkpoint. {by.again}"
            )
        for name, array in wanted.items():
            compare(array, found[name], name, drawing)
        walk = replace(walk, beside=beside_latents(host, drawing.request, text))
        begin, _ = begun(host, drawing.request, trial.given, walk, trial.start, compared)
        compare(trial.befores[0], begin, "the start", drawing)
        for index, (before, after) in enumerate(zip(trial.befores, trial.afters, strict=True)):
            case, call = cases[f"{drawing.name}.{index}"], walk.first + index
            for name, found in feeds(walk, call, before).items():
                compare(case.feeds[name], found, f"{name} of call {index + 1}", drawing)
            found = step(_answering(trial.outputs[index]), walk, call, before)
            compare(after, found, f"the latents after call {index + 1}", drawing)
        if drawing.complete and trial.images is not None:
            latents = unscaled(host.model, trial.afters[-1], drawing.request.decoder)
            cases_of = iter(decoded[host.decoder(drawing.request), drawing.name])
            images: list[Array] = []
            if host.model.reads_image:  # recorded chunk by chunk
                for one in latents:
                    frames: list[Array] = []
                    for chunk in frame_chunks(len(one), drawing.request.decode_chunk_size):
                        case = next(cases_of)
                        found = one[chunk.start : chunk.stop]
                        compare(case.feeds["latent_sample"][0], found, "the scaled latents", drawing)
                        frames.append(case.outputs["sample"][0])
                    images.append(quantized(np.concatenate(frames)))
            else:
                case = next(cases_of)
                compare(case.feeds["latent_sample"], latents, "the scaled latents", drawing)
                images = [quantized(image) for image in case.outputs["sample"]]
            compare(trial.images, np.stack(images), "the pixels", drawing)
    if not worst >= HOST_DB:
        raise ParityError(
            f"What latentc computes outside the engines differs from {by.pipeline} {by.when}, most in {where}: "
            f"{worst:.1f} dB, but {HOST_DB:.0f} dB is required. The bundle's manifest, scheduler config or tokenizer "
            f"does not match the checkpoint. {by.again}"
        )
    return round(worst, 2)


def _lacking(host: Host, part: str, stored: Drawings, arrays: Mapping[str, Array]) -> list[str]:
    """Names of missing drawings that a proof of this denoiser requires: made with it, the first complete, and guided or
    not as in `DRAWN_ALWAYS`. A tiny decoder requires one more, complete too, which it decoded.
    """
    own = {one.name: one for one in _own(host, stored) if host.denoisers.get(one.request.variant) == part}
    at = OF_REFINER if host.model.refines else "".join(part.partition("@")[1:])
    lacking: list[str] = []
    always = dict(VIDEOS_ALWAYS if host.model.reads_image else DRAWN_ALWAYS)
    complete: dict[str, str | None] = {WHOLE: None}
    if TINY in host.decoders and not at:
        always[TINY], complete[TINY] = True, TINY
    for name, guided in always.items():
        drawing = own.get(f"{name}{at}")
        whole = name not in complete or (
            drawing is not None
            and drawing.complete
            and drawing.request.decoder == complete[name]
            and f"{drawing.name}/images" in arrays
        )
        if drawing is None or drawing.calls < 1 or drawing.request.guided != guided or not whole:
            lacking.append(f"{name}{at}")
    return lacking


def _own(host: Host, stored: Drawings) -> tuple[ReferenceDrawing, ...]:
    """The drawings of a host: of the model, or of its refiner."""
    return tuple(one for one in stored.drawings if one.name.endswith(OF_REFINER) == host.model.refines)


def _check_image(drawing: ReferenceDrawing, given: Given, by: Standing) -> None:
    """Raise `ParityError` where the recorded image or mask is not the one that the drawing's request names."""
    mask = None if given.mask is None else pixels_sha256(given.mask)
    if (pixels_sha256(given.image), mask) != (drawing.request.image_sha256, drawing.request.mask_sha256):
        raise ParityError(f"The image of the reference {drawing.name} is not the one that it was made from. {by.again}")


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in {**one, **other} if key not in one or key not in other or one[key] != other[key]]


def _check_tokens(host: Host, stored: Drawings, by: Standing) -> None:
    """Raise `ParityError` where a tokenizer gives other ids for a text than the one of the references did."""
    for encoder, vocabulary in zip(host.model.text_encoders, host.vocabularies, strict=True):
        wanted = stored.tokens[encoder.part]
        frame = (vocabulary.start, vocabulary.end, vocabulary.pad, vocabulary.length)
        pairs = zip(wanted.texts, wanted.ids, strict=True)
        other = [text for text, ids in pairs if tuple(ids_of(vocabulary, text)) != ids]
        if other or frame != (wanted.start, wanted.end, wanted.pad, wanted.length):
            raise ParityError(
                f"The tokenizer of {encoder.part} gives other token ids than {by.tokenizer} gave {by.when}, for "
                f"{(other or ['start, end and padding'])[0]!r}. It is not the checkpoint's tokenizer. {by.again}"
            )


def _check_hidden(bundle: Bundle, model: Model) -> None:
    """Raise `ParityError` where the manifest differs from the references on text encoders that take hidden ids."""
    for encoder in model.text_encoders:
        fed = any((case.feeds[IDS] < 0).any() for case in stored_cases(bundle, encoder.part))
        if fed != encoder.hides:
            raise ParityError(
                f"By the manifest, {encoder.part} {'hides' if encoder.hides else 'does not hide'} words from its "
                f"attention (negative token ids), and by its references it does{' not' * (not fed)}. The bundle was "
                f"changed. {bundle.standing.again}"
            )


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
    for trial in trials:
        found, difference = _steps(host, engine, trial)
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
    )


def _steps(host: Host, engine: EngineOf, trial: StepTrial) -> tuple[float, tuple[float, float] | None]:
    """Worst PSNR of the next latents; SNR and relative size of what guidance adds, over all calls together."""
    shown: dict[str, Any] = {"controls": trial.controls, "style": trial.style}
    text = read_request(host, trial.request, trial.given, _through(engine), **shown)
    text = text if trial.shown is None else replace(text, controls=trial.shown)
    fixed = constants(host, trial.request, text)
    beside = beside_latents(host, trial.request, text) if trial.beside is None else trial.beside
    walk = replace(_walk(host, trial), beside=beside)
    sample = sample_shape(trial.outputs[0].shape, beside)
    shapes = shapes_of(fixed) | {host.model.latents_input: sample, TIMESTEP: (1,)}
    shapes |= {name: array.shape[1:] for name, array in walk.varying.items()}
    one = engine(host.denoiser(trial.request), shapes)
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
        step(_answering(trial.outputs[index]), walk, call, before)  # the history is the reference's
    if not text.guided:
        return worst, None
    wanted, found = (
        np.stack([_difference(one, host.model.guided_rows) for one in each]) for each in (trial.outputs, answers)
    )
    return worst, change_db(wanted, found, np.stack(trial.outputs))


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
    drawings = [drawing for drawing in _own(host, stored) if host.denoiser(drawing.request) == part]
    cases = {case.name: case for case in stored_cases(bundle, part)}
    trials = [_trial(drawing, arrays, cases) for drawing in drawings]
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
        like, request=request, start=start, befores=(before,), outputs=(_output(case),),
        noise=noise[None], images=None, given=given, beside=beside, shown=_shown(host.model, case),
    )  # fmt: skip
    walk = _walk(host, made)
    return replace(made, afters=(step(_answering(made.outputs[0]), walk, walk.first, made.befores[0]),))


def _shown(model: Model, case: Case) -> dict[str, Array]:
    """What the ControlNets read in a call, by the name of the source."""
    wires = (wire for wire in model.wires if wire.source.startswith(CONTROL))
    return {wire.name: case.feeds[wire.input][-1:] for wire in wires}


def _calls(bundle: Bundle, host: Host) -> dict[str, dict[str, Case]]:
    """Recorded calls of each denoiser, keyed by name."""
    return {part: {case.name: case for case in stored_cases(bundle, part)} for part in host.denoisers.values()}


def _trial(drawing: ReferenceDrawing, arrays: Mapping[str, Array], cases: Mapping[str, Case]) -> StepTrial:
    name = drawing.name
    start, after = arrays[f"{name}/start"], tuple(arrays[f"{name}/steps"])
    return StepTrial(
        name=name,
        request=drawing.request,
        start=start,
        befores=(arrays.get(f"{name}/before", start * np.float32(arrays[f"{name}/sigma"])), *after[:-1]),
        afters=after,
        outputs=tuple(_output(cases[f"{name}.{index}"]) for index in range(drawing.calls)),
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


def _nearest(cases: list[Case], given: Mapping[str, Array]) -> Case:
    """The recorded call of a part whose inputs are nearest to these: inpainting encodes two images."""

    def away(case: Case) -> float:
        pairs = [(case.feeds[name][:1], array) for name, array in given.items()]
        return sum(float(np.abs(one - other).mean()) if one.shape == other.shape else np.inf for one, other in pairs)

    return min(cases, key=away)


def _walk(host: Host, trial: StepTrial) -> Walk:
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


def _answering(output: Array) -> Run:
    """A denoiser that returns a recorded output."""
    return lambda _feeds: {"output": output}


def _through(engine: EngineOf) -> Answer:
    return lambda part, given: engine(part, shapes_of(given)).run(given)


def _recorded_text(bundle: Bundle, model: Model) -> Answer:
    """Text encoders that return PyTorch's outputs for the ids of transformers' tokenizers."""
    known, by = dict[str, dict[bytes, dict[str, Array]]](), bundle.standing
    for encoder in model.text_encoders:
        case = next(case for case in stored_cases(bundle, encoder.part) if case.name == "prompts")
        known[encoder.part] = {
            fed: {name: array[row] for name, array in case.outputs.items()} for row, fed in enumerate(_fed(case.feeds))
        }

    def answer(part: str, given: Mapping[str, Array]) -> dict[str, Array]:
        rows = [known[part].get(fed) for fed in _fed(given)]
        found = [row for row in rows if row is not None]
        if len(found) < len(rows):
            raise ParityError(
                f"The tokenizer of {part} gives other token ids than {by.tokenizer} gave {by.when}, for the prompts of "
                f"the bundle's references. The tokenizer in {bundle.folder} is not the checkpoint's. {by.again}"
            )
        return {name: np.stack([row[name] for row in found]) for name in found[0]}

    return answer


def _recorded_images(bundle: Bundle, host: Host) -> dict[str, dict[str, list[Case]]]:
    """Recorded calls of each part that reads the image, keyed by part and drawing."""
    parts = dict.fromkeys(wire.owner for wire in host.model.wires if wire.of_part)
    if (host.model.encodes_controls or host.model.needs_image) and host.encoder is not None:
        parts[host.encoder] = None
    found: dict[str, dict[str, list[Case]]] = {}
    for part in (one for one in parts if host.roles[one] in READS_IMAGE):
        called = found.setdefault(part, {})
        for case in stored_cases(bundle, part):
            called.setdefault(case.drawing, []).append(case)
    return found


def _fed(given: Mapping[str, Array]) -> list[bytes]:
    """The input of each row of a text encoder as bytes: ids, and the mask where it has one."""
    return [b"".join(given[name][row].tobytes() for name in sorted(given)) for row in range(len(given[IDS]))]


def _output(case: Case) -> Array:
    """The denoiser's only output."""
    return next(iter(case.outputs.values()))


def _difference(output: Array, rows: int) -> Array:
    """What the prompt changes: the output of the positive rows less that of negative rows of the same image."""
    *_, negative, positive = np.split(output, rows)
    return positive - negative
