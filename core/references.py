"""References: what PyTorch and diffusers' own pipeline computed at export, and every engine is compared with.

reference/<part>.npz       calls of the part, each a case: `<case>/in.<input>` and `<case>/out.<output>`
reference/drawings.npz     what diffusers' pipeline had between the calls: `<drawing>/<array>`
reference/drawings.json    the requests behind them

A drawing is a request that diffusers' pipeline drew, call by call. The denoiser's cases of a drawing are named
`<drawing>.<call>`; inputs that stay the same over its calls are stored once, under the drawing's own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .record import Record
from .request import Request
from .tensors import Array
from .wires import TIMESTEP

DRAWINGS = "reference/drawings.json"
DRAWN = "reference/drawings.npz"

ENDS = "ends"
"""The denoiser's cases that belong to no drawing: timesteps at both ends, and near them."""

IN, OUT = "in.", "out."
IDS, MASK = "input_ids", "attention_mask"
TABLE = "table"
"""Of a text encoder: SHA-256 of its table of token embeddings as f32, row by row, in hex."""


def stored_at(part: str) -> str:
    """The file of a part's cases."""
    return f"reference/{part}.npz"


@dataclass(frozen=True)
class Case:
    """One call of a part: inputs, and what PyTorch made of them; some outputs may be left out."""

    name: str
    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]

    @property
    def drawing(self) -> str:
        """The drawing that a denoiser's call belongs to."""
        return self.name.partition(".")[0]


class ReferenceDrawing(Record):
    """A request that diffusers' pipeline drew."""

    name: str
    request: Request
    """With its size; `scheduler` is None where the checkpoint's own drew it."""
    calls: int
    """Denoiser calls that were recorded: all, or the first ones."""
    complete: bool
    """Whether it was drawn to the end and decoded."""


class ReferenceTokens(Record):
    """What transformers' tokenizer makes of texts."""

    start: int
    end: int
    pad: int
    length: int
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    """Of each text, without frame and padding."""


class Drawings(Record):
    """`drawings.json`."""

    default_size: int
    """Width in pixels of the pictures that the checkpoint was made for."""
    default_height: int | None = None
    """Their height, where it isn't the width."""
    scheduler: dict[str, Any]
    """The scheduler's config, as diffusers' pipeline repairs it."""
    tokens: dict[str, ReferenceTokens]
    """By text encoder."""
    drawings: tuple[ReferenceDrawing, ...]


def text_pairs(cases: Sequence[Case], latents: str) -> list[tuple[int, int]]:
    """Places of a denoiser's cases that differ by their text alone: of the same timestep, and the same in `latents`."""
    found: list[tuple[int, int]] = []
    first: dict[bytes, int] = {}
    for index, case in enumerate(cases):
        if TIMESTEP in case.feeds:
            sample, timestep = case.feeds[latents], case.feeds[TIMESTEP]
            other = first.setdefault(sample.tobytes() + timestep.tobytes(), index)
            if other != index and sample.shape == cases[other].feeds[latents].shape:
                found.append((other, index))
    return found


def pack(cases: Iterable[Case], shared: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """Cases as arrays by name; `shared` holds inputs by drawing, which are stored once."""
    arrays = {f"{name}/{IN}{key}": array for name, feeds in shared.items() for key, array in feeds.items()}
    for case in cases:
        known = shared.get(case.drawing, {})
        arrays |= {f"{case.name}/{IN}{key}": array for key, array in case.feeds.items() if key not in known}
        arrays |= {f"{case.name}/{OUT}{key}": array for key, array in case.outputs.items()}
    return arrays


def unpack(arrays: Mapping[str, Array]) -> tuple[Case, ...]:
    """What `pack` packed, in order."""
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
