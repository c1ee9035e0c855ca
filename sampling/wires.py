"""From a request and its encoded prompts to the inputs of the parts that are called at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..core.manifest import Model, TensorInfo
from ..core.request import Request
from ..core.shapes import rows_of
from ..core.tensors import Array
from ..core.wires import AXES, GUIDANCE, LATENTS, SIZE, ZEROS, Wire
from .guidance import guidance_embedding

if TYPE_CHECKING:
    from ..core.wires import Called


def size_row(request: Request, _width: int) -> Array:
    """Original size, crop (0, 0) and target size, each as (height, width) in pixels: f32 [6].

    Source: SDXL, arXiv 2307.01952, section 2.2.
    """
    size = (request.height, request.width)
    return np.array([*size, 0, 0, *size], np.float32)


def guidance_row(request: Request, width: int) -> Array:
    """The guidance scale's embedding: f32 [width]."""
    return guidance_embedding(request.guidance, width, 1)[0]


SOURCES: dict[str, Callable[[Request, int], Array]] = {SIZE: size_row, GUIDANCE: guidance_row}
"""Functions from a request with width and height, and an input's width, to a row f32 [width]. Families may add some."""


def uncomputed(wires: Iterable[Wire], parts: Mapping[str, Called]) -> str | None:
    """Half a sentence about the first wire whose source nothing here computes; None if there is none."""
    for wire in wires:
        known = parts[wire.owner].role == "text_encoder" if wire.of_part else wire.source in (LATENTS, *SOURCES)
        if not (known or wire.owner == ZEROS):
            return (
                f"wires {wire.source} to {wire.input}, a source that this version of latentc does not know: it knows "
                f"{', '.join(SOURCES)} and the outputs of text encoders"
            )
    return None


def wired(
    model: Model,
    inputs: Iterable[TensorInfo],
    request: Request,
    encoded: Mapping[str, Mapping[str, Array]],
    *,
    guided: bool,
) -> dict[str, Array]:
    """The inputs that are the same at every step, by name: f32, negative rows first if guided.

    `encoded` holds the text encoders' outputs by part and name, with a row for each prompt. Rows are repeated for
    every image: [negative] * count + [positive] * count.
    """
    made: dict[str, Array] = {}
    widths = {tensor.name: tensor.shape[-1] for tensor in inputs}
    for wire in model.wires:
        if wire.source == LATENTS or wire.input not in widths:
            continue
        if wire.owner == ZEROS:
            array = _zeros(model, int(wire.name), made[wire.input])
        else:
            array = _known(wire, request, encoded, widths[wire.input], guided=guided)
        if wire.axis is not None:
            array = np.concatenate([made[wire.input], array], axis=AXES[wire.axis])
        if wire.pad is not None and wire.pad > array.shape[-1]:
            array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, wire.pad - array.shape[-1])])
        made[wire.input] = array
    return {name: np.repeat(array, request.count, axis=0) for name, array in made.items()}


def resized(model: Model, parts: Mapping[str, Called], part: str, feeds: dict[str, Array], request: Request) -> None:
    """Update a part's inputs in `feeds` for a request of another size; the text encoders' outputs stay."""
    changed = {wire.input for wire in model.wires if wire.source in SOURCES}
    kept: dict[str, dict[str, Array]] = {}
    for wire in model.wires:
        if wire.of_part and wire.input in changed:
            (shape,) = (output.shape for output in parts[wire.owner].outputs if output.name == wire.name)
            kept.setdefault(wire.owner, {})[wire.name] = np.full((1, int(shape[-1])), np.nan, np.float32)
    inputs = [tensor for tensor in parts[part].inputs if tensor.name in changed]
    for name, rows in wired(model, inputs, request, kept, guided=False).items():
        feeds[name] = np.where(np.isnan(rows[:1]), feeds[name], rows[:1])


def _zeros(model: Model, length: int, before: Array) -> Array:
    """What a text encoder with rows of `length` ids would add to `before`, [prompts, length, width], as zeros.

    `before` holds the chunks of encoders whose rows have the model's own length.
    """
    rows = rows_of(length, model.length, before.shape[1] // model.length)
    return np.zeros((before.shape[0], rows * length, before.shape[2]), np.float32)


def _known(
    wire: Wire, request: Request, encoded: Mapping[str, Mapping[str, Array]], width: int | str, *, guided: bool
) -> Array:
    """The value of a wire's source, in rows for one image."""
    if not wire.of_part:
        row = SOURCES[wire.source](request, width if isinstance(width, int) else 0)
        return np.tile(row, (2 if guided else 1, 1))
    array = encoded[wire.owner][wire.name]
    if guided and wire.empty == "zeros" and not request.negative_prompt:
        array = np.concatenate([np.zeros_like(array[:1]), array[1:]])
    return array
