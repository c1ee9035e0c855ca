"""From a request and its encoded prompts to the inputs of the parts that are called at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..core.manifest import TensorInfo
from ..core.model import Model
from ..core.request import Request
from ..core.shapes import rows_of
from ..core.tensors import Array
from ..core.wires import (
    AXES,
    CONTROL,
    CONTROL_SCALE,
    DERIVED,
    GUIDANCE,
    LATENTS,
    MASK,
    MOTION,
    SCORE,
    SIZE,
    STEP,
    STYLE,
    ZEROS,
    Wire,
)
from .denoise import is_guided
from .guidance import guidance_embedding

if TYPE_CHECKING:
    from ..core.wires import Called


def size_row(request: Request, _width: int) -> Array:
    """Original size, crop (0, 0) and target size, each as (height, width) in pixels: f32 [6].

    Source: SDXL, arXiv 2307.01952, section 2.2.
    """
    size = (request.height, request.width)
    return np.array([*size, 0, 0, *size], np.float32)


def score_row(request: Request, _width: int) -> Array:
    """Original size, crop (0, 0) and the aesthetic score, for rows of the prompt: f32 [5].

    Source: diffusers' StableDiffusionXLImg2ImgPipeline.
    """
    return _scored(request, request.aesthetic_score)


def negative_score_row(request: Request, _width: int) -> Array:
    """The same for negative rows: f32 [5]."""
    return _scored(request, request.negative_aesthetic_score)


def _scored(request: Request, score: float | None) -> Array:
    assert score is not None
    return np.array([request.height, request.width, 0, 0, score], np.float32)


def guidance_row(request: Request, width: int) -> Array:
    """The guidance scale's embedding: f32 [width]."""
    return guidance_embedding(request.guidance, width, 1)[0]


def motion_row(request: Request, _width: int) -> Array:
    """Frames per second less one, as it was trained; the motion bucket; and the noise augmentation: f32 [3].

    Source: diffusers' StableVideoDiffusionPipeline.
    """
    assert request.fps is not None
    return np.array([request.fps - 1, request.motion_bucket_id, request.noise_aug_strength], np.float32)


def style_row(request: Request, _width: int) -> Array:
    """The share of the IP-Adapter's effect, 0 for a request without a style image: f32 [1]."""
    return np.array([request.style_strength if request.style_sha256 is not None else 0], np.float32)


SOURCES: dict[str, Callable[[Request, int], Array]] = {
    SIZE: size_row,
    SCORE: score_row,
    GUIDANCE: guidance_row,
    MOTION: motion_row,
    STYLE: style_row,
}
"""Functions from a request with width and height, and an input's width, to a row f32 [width]. Families may add some."""

NEGATIVES: dict[str, Callable[[Request, int], Array]] = {SCORE: negative_score_row}
"""The same for negative rows, of sources where these differ."""


def is_of_control(wire: Wire) -> bool:
    """Whether it feeds a ControlNet's image or factors."""
    return wire.source.startswith((CONTROL, CONTROL_SCALE))


READS_IMAGE = ("image_encoder", "encoder")
"""Roles of parts that read the request's image."""


def uncomputed(wires: Iterable[Wire], parts: Mapping[str, Called]) -> str | None:
    """Half a sentence about the first wire whose source nothing here computes; None if there is none."""
    for wire in wires:
        if wire.of_part:
            role = parts[wire.owner].role
            known = role == "text_encoder" or (role in READS_IMAGE and (role == "encoder") == (wire.name in DERIVED))
        else:
            known = wire.owner == ZEROS or wire.source in (LATENTS, MASK, *SOURCES) or is_of_control(wire)
        if not known:
            return (
                f"wires {wire.source} to {wire.input}, a source that this version of latentc does not know: it knows "
                f"{', '.join((MASK, *SOURCES))}, the outputs of text and image encoders, and {' and '.join(DERIVED)} "
                "of a VAE's encoder"
            )
    return None


def wired(
    model: Model,
    inputs: Iterable[TensorInfo],
    request: Request,
    encoded: Mapping[str, Mapping[str, Array]],
    pictured: Mapping[str, Mapping[str, Array]] = {},
    controls: Mapping[str, Array] = {},
    *,
    guided: bool,
) -> dict[str, Array]:
    """The inputs that are the same at every step, by name: f32, negative rows first if guided.

    `encoded` holds the text encoders' outputs by part and name, with a row for each prompt; rows are repeated for
    every image: [negative] * count + [positive] * count. `pictured` holds the outputs for the request's images, and
    under `request` its mask, with a row for each image that is generated, and `controls` what ControlNets read, one row
    each. What belongs beside the latents is under their name. A model with three rows for each guided image has the
    negative rows twice, the first time without the image.
    """
    made: dict[str, Array] = {}
    shapes = {tensor.name: tensor.shape for tensor in inputs}
    rows = model.guided_rows if guided else 1
    for wire in model.wires:
        if wire.owner == STEP or wire.input not in shapes:
            continue
        shape = shapes[wire.input]
        if wire.owner == ZEROS:
            array = _zeros(model, int(wire.name), made[wire.input])
        elif wire.source.startswith(CONTROL):
            array = controls[wire.name]
            if shape[0] == "batch":
                array = np.repeat(array, request.count * rows, axis=0)
        elif wire.name in pictured.get(wire.owner, {}):
            array = _of_image(wire, pictured[wire.owner], rows)
        else:
            array = _known(wire, request, encoded, shape[-1], guided=guided)
            array = np.repeat(np.concatenate([array[:1]] * (rows - len(array)) + [array]), request.count, axis=0)
        if array.ndim == len(shape) - 1:
            array = np.repeat(array[:, None], int(shape[1]), axis=1)
        if wire.axis is not None and wire.input in made:
            array = np.concatenate([made[wire.input], array], axis=AXES[wire.axis])
        if wire.pad is not None and wire.pad > array.shape[-1]:
            array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, wire.pad - array.shape[-1])])
        made[wire.input] = array
    return made


def resized(model: Model, parts: Mapping[str, Called], part: str, feeds: dict[str, Array], request: Request) -> None:
    """Update a part's inputs in `feeds` for a request of another size; the text encoders' outputs stay."""
    changed = {wire.input for wire in model.wires if wire.source in SOURCES}
    kept: dict[str, dict[str, Array]] = {}
    for wire in model.wires:
        if wire.of_part and wire.input in changed:
            (shape,) = (output.shape for output in parts[wire.owner].outputs if output.name == wire.name)
            kept.setdefault(wire.owner, {})[wire.name] = np.full((2, int(shape[-1])), np.nan, np.float32)
    inputs = [tensor for tensor in parts[part].inputs if tensor.name in changed]
    one = request.model_copy(update={"count": 1, "negative_prompt": "kept"})  # an empty one may stand for zeros
    for name, rows in wired(model, inputs, one, kept, guided=is_guided(model, request)).items():
        each = np.repeat(rows, -(-len(feeds[name]) // len(rows)), axis=0)[-len(feeds[name]) :]
        feeds[name] = np.where(np.isnan(each), feeds[name], each)


def _zeros(model: Model, length: int, before: Array) -> Array:
    """What a text encoder with rows of `length` ids would add to `before`, [prompts, length, width], as zeros.

    `before` holds the chunks of encoders whose rows have the model's own length.
    """
    rows = rows_of(length, model.length, before.shape[1] // model.length)
    return np.zeros((before.shape[0], rows * length, before.shape[2]), np.float32)


def _of_image(wire: Wire, outputs: Mapping[str, Array], rows: int) -> Array:
    """The value of a wire that reads an image, in this many rows for each: the first are negative."""
    own = outputs[wire.name]
    first = (
        outputs[wire.negative] if wire.negative is not None else np.zeros_like(own) if wire.empty == "zeros" else own
    )
    return np.concatenate([first, *[own] * (rows - 1)]) if rows > 1 else own


def _known(
    wire: Wire, request: Request, encoded: Mapping[str, Mapping[str, Array]], width: int | str, *, guided: bool
) -> Array:
    """The value of a wire's source, in rows for one image."""
    if not wire.of_part:
        each = (NEGATIVES.get(wire.source, SOURCES[wire.source]), SOURCES[wire.source])
        return np.stack([row(request, width if isinstance(width, int) else 0) for row in each[not guided :]])
    array = encoded[wire.owner][wire.name]
    if guided and wire.empty == "zeros" and not request.negative_prompt:
        array = np.concatenate([np.zeros_like(array[:1]), array[1:]])
    return array
