"""Comparison of what latentc computes outside engines with drawings of diffusers' pipeline; see `trial`.

Prompts, wires, guidance, scheduler and scaling are the *host*. It computes in f32 everywhere and must agree up to
rounding; it is tested with PyTorch's recorded outputs in place of engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..core.bundle import Bundle
from ..core.errors import BundleError, ParityError
from ..core.images import pixels_sha256
from ..core.model import Model
from ..core.record import shown
from ..core.references import (
    DRAWINGS,
    DRAWN,
    IDS,
    OF_REFINER,
    Case,
    Drawings,
    ReferenceDrawing,
)
from ..core.request import TINY
from ..core.standing import Standing
from ..core.tensors import PERFECT_DB, Array, psnr_db
from ..core.wires import TIMESTEP
from ..sampling.denoise import feeds, step
from ..sampling.draw import beside_latents, constants
from ..sampling.given import Given, begun
from ..sampling.host import Host, latent_shape
from ..sampling.pixels import frame_chunks, quantized
from ..sampling.reading import read_request
from ..sampling.scaling import unscaled
from ..sampling.vocabulary import ids_of
from ..sampling.wires import READS_IMAGE
from .cases import stored_cases, stored_drawings
from .trial import Answer, answering, own_drawings, trial_of, walk_for

WHOLE = "whole"
"""The drawing that is complete: with all steps and the image."""

DRAWN_ALWAYS = {WHOLE: True, "wide": True, "single": False, "long": True}
"""Drawings that every export makes with each denoiser, and whether they are guided."""
VIDEOS_ALWAYS = {WHOLE: True, "wide": True, "single": False, "other": True}
"""The same for a model that generates a video from an image."""

HOST_DB = 80.0
"""The PSNR in dB that the host must reach against diffusers: both compute in f32."""


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
    drawings, by = own_drawings(host, stored), bundle.standing
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
        trial = trial_of(drawing, arrays, cases)
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
        walk = walk_for(host, trial)
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
            found = step(answering(trial.outputs[index]), walk, call, before)
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
    own = {one.name: one for one in own_drawings(host, stored) if host.denoisers.get(one.request.variant) == part}
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


def _calls(bundle: Bundle, host: Host) -> dict[str, dict[str, Case]]:
    """Recorded calls of each denoiser, keyed by name."""
    return {part: {case.name: case for case in stored_cases(bundle, part)} for part in host.denoisers.values()}


def _nearest(cases: list[Case], given: Mapping[str, Array]) -> Case:
    """The recorded call of a part whose inputs are nearest to these: inpainting encodes two images."""

    def away(case: Case) -> float:
        pairs = [(case.feeds[name][:1], array) for name, array in given.items()]
        return sum(float(np.abs(one - other).mean()) if one.shape == other.shape else np.inf for one, other in pairs)

    return min(cases, key=away)


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
