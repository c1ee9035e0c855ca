"""References: outputs of PyTorch and diffusers' pipeline, recorded at export, which every engine is compared with.

reference/<part>.npz       calls of the part, each a case: `<case>/in.<input>` and `<case>/out.<output>`
reference/drawings.npz     arrays of diffusers' pipeline between the calls: `<drawing>/<array>`
reference/drawings.json    the requests of the drawings

A drawing is a request that diffusers' pipeline ran, recorded call by call. The denoiser's cases of a drawing are named
`<drawing>.<call>`; inputs that do not change between its calls are stored once, under the drawing's own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .record import Record
from .request import Request
from .tensors import Array
from .wires import CONTROL_IMAGE, IMAGE_TOKENS, TIMESTEP

if TYPE_CHECKING:
    from .model import Model

DRAWINGS = "reference/drawings.json"
DRAWN = "reference/drawings.npz"

ENDS = "ends"
"""Name of the denoiser's cases that belong to no drawing: timesteps at and near both ends."""

CONTROL_ARRAY = "control_"
"""Start of the name of the array with the image of a drawing's ControlNet, such as `whole/control_1`."""

OF_REFINER = "@refiner"
"""End of the names of drawings that a refiner made, from latents that it took over."""

STYLE_ARRAY = "style"
"""Name of the array with the style image of a drawing, such as `whole/style`."""

IN, OUT = "in.", "out."
IDS, MASK = "input_ids", "attention_mask"
TABLE = "table"
"""Key of a text encoder's embedding table: hex SHA-256 of its token embeddings as f32, row by row."""


def hide(ids: NDArray[np.int64], where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Token ids with some hidden from a text encoder's attention: -1 - id, for one that `hides`."""
    return np.where(where, -1 - ids, ids)


def stored_at(part: str) -> str:
    """Path of a part's reference file."""
    return f"reference/{part}.npz"


@dataclass(frozen=True)
class Case:
    """One call of a part: its inputs, and PyTorch's outputs; some outputs may be left out."""

    name: str
    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]

    @property
    def drawing(self) -> str:
        """The drawing that a denoiser's call belongs to."""
        return self.name.partition(".")[0]


class ReferenceDrawing(Record):
    """A request that diffusers' pipeline ran."""

    name: str
    request: Request
    """With explicit size; `scheduler` is None for the checkpoint's own."""
    calls: int
    """Number of recorded denoiser calls: all, or the first ones."""
    complete: bool
    """Whether it ran to the end and was decoded."""


class ReferenceTokens(Record):
    """Token ids from transformers' tokenizer."""

    start: int | None
    end: int
    pad: int
    length: int
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    """Token ids of each text, without start, end and padding."""


class Drawings(Record):
    """Content of `drawings.json`."""

    default_size: int
    """The model's own image width in pixels."""
    default_height: int | None = None
    """The model's own image height, if it differs from the width."""
    patch: int = 1
    largest_side: int | None = None
    """Limits of the denoiser's sizes, as in `Model`."""
    frame_guidance: Annotated[tuple[float, float] | None, Field(exclude_if=lambda value: value is None)] = None
    """Default guidance scales of the first and the last frame, as in `Model`."""
    scheduler: dict[str, Any]
    """The scheduler's config, with the corrections of diffusers' pipeline."""
    tokens: dict[str, ReferenceTokens]
    """Reference token ids, keyed by text encoder."""
    drawings: tuple[ReferenceDrawing, ...]


def stated(model: Model) -> dict[str, Any]:
    """Facts about a model that no recorded call shows, as fields of `Drawings`."""
    names = ("default_size", "default_height", "patch", "largest_side", "frame_guidance")
    return {name: getattr(model, name) for name in names}


def text_pairs(cases: Sequence[Case], latents: str) -> list[tuple[int, int]]:
    """Index pairs of denoiser cases that differ only in what they are conditioned on: equal timestep, and equal
    `latents` input. See `changed`.
    """
    found: list[tuple[int, int]] = []
    first: dict[bytes, int] = {}
    for index, case in enumerate(cases):
        if TIMESTEP in case.feeds:
            sample, timestep = case.feeds[latents], case.feeds[TIMESTEP]
            other = first.setdefault(sample.tobytes() + timestep.tobytes(), index)
            if other != index and sample.shape == cases[other].feeds[latents].shape:
                found.append((other, index))
    return found


Change = Literal["text", "control", "style"]
"""What two calls of a denoiser differ in: only images of ControlNets, only what its IP-Adapter reads of a style image,
or else its text (or image)."""

CHANGES: dict[Change, str] = {"control": CONTROL_IMAGE, "style": IMAGE_TOKENS}
"""Starts of the names of the inputs that stand for a change other than of the text."""


def changed(one: Case, other: Case) -> Change:
    """What two calls of a denoiser differ in."""
    names = [name for name in one.feeds if not np.array_equal(one.feeds[name], other.feeds[name])]
    for what, start in CHANGES.items():
        if names and all(name.startswith(start) for name in names):
            return what
    return "text"


def pack(cases: Iterable[Case], shared: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """Pack cases into arrays keyed by name; `shared` holds the inputs that are stored once per drawing."""
    arrays = {f"{name}/{IN}{key}": array for name, feeds in shared.items() for key, array in feeds.items()}
    for case in cases:
        known = shared.get(case.drawing, {})
        arrays |= {f"{case.name}/{IN}{key}": array for key, array in case.feeds.items() if key not in known}
        arrays |= {f"{case.name}/{OUT}{key}": array for key, array in case.outputs.items()}
    return arrays


def unpack(arrays: Mapping[str, Array]) -> tuple[Case, ...]:
    """The cases in arrays from `pack`, in the same order."""
    feeds: dict[str, dict[str, Array]] = {}
    outputs: dict[str, dict[str, Array]] = {}
    for key, array in arrays.items():
        name, _, tensor = key.partition("/")
        if tensor.startswith(OUT):
            outputs.setdefault(name, {})[tensor.removeprefix(OUT)] = array
        elif tensor.startswith(IN):
            feeds.setdefault(name, {})[tensor.removeprefix(IN)] = array
    return tuple(
        Case(name, {**feeds.get(name.partition(".")[0], {}), **feeds.get(name, {})}, out)
        for name, out in outputs.items()
    )
