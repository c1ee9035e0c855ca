"""Axes: the sizes of batch rows, frames, latents and token ids, and the tensor shapes that follow from them.

`height` and `width` are always in latents: an image has `8*height` by `8*width` pixels, on inputs and on outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .errors import ShapeError
from .manifest import Dim, TensorInfo
from .model import Model, Role
from .wires import ZEROS

FREE = -1
"""Stands for a free size in the input shapes that an engine was built for."""

GUIDED_PROMPTS = 2
"""Prompts that are encoded with guidance: the negative one and the prompt."""


@dataclass(frozen=True)
class Setting:
    """The size of one batch."""

    width: int
    """Image width in pixels."""
    height: int
    """Image height in pixels."""
    images: int = 1
    guided: bool = True
    chunks: int = 1
    """Chunks per prompt."""
    frames: int | None = None
    """Frames that the decoder takes at once; None for all of them."""


def sizes(model: Model, role: Role, setting: Setting) -> dict[str, int]:
    """The free sizes that a part of this role is called with, keyed by axis name.

    A denoiser is called with all images at once, and `guided_rows` of each with guidance; text encoders with the
    prompts; the VAE and the image encoder with one image at a time, or the frames of one video.
    """
    stepping = setting.images * (model.guided_rows if setting.guided else 1)
    prompts = GUIDED_PROMPTS if setting.guided else 1
    rows = {"denoiser": stepping, "control": stepping, "text_encoder": prompts}
    return {
        "batch": rows.get(role, 1),
        "frames": (role == "decoder" and setting.frames) or model.frames or 1,
        "height": setting.height // model.downscale,
        "width": setting.width // model.downscale,
        "length": embedding_length(model, setting.chunks),
    }


def size_complaint(model: Model, width: int, height: int) -> str | None:
    """Why a model can't generate images of this size in pixels, as a sentence; None if it can."""
    step = model.downscale * model.patch
    if width % step or height % step:
        return f"{width}x{height} is not a valid size for this model: use multiples of {step} pixels."
    if model.largest_side is not None and max(width, height) > (largest := model.largest_side * model.downscale):
        return f"{width}x{height} is too large for this model: use at most {largest} pixels per side."
    return None


def rows_of(length: int, base: int, chunks: int) -> int:
    """Rows of `length` token ids that hold a prompt of `chunks` chunks of `base` ids."""
    return -(-chunks * base // length)


def embedding_length(model: Model, chunks: int) -> int:
    """Length of the denoiser's prompt embeddings for this many chunks, all text encoders together."""
    joined = next((wire.input for wire in model.wires if wire.axis == "length"), None)
    if joined is None:
        return model.length * chunks
    own = {one.part: one.length or model.length for one in model.text_encoders}
    lengths = (
        int(wire.name) if wire.owner == ZEROS else own[wire.owner]
        for wire in model.wires
        if wire.input == joined and wire.axis != "width"
    )
    return sum(length * rows_of(length, model.length, chunks) for length in lengths)


def sizes_of(inputs: tuple[TensorInfo, ...], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The value of each free size, from the inputs' shapes.

    Raises `ShapeError` for a missing or unknown input, a fixed axis that differs, or two inputs that
    disagree on a size.
    """
    names = {tensor.name for tensor in inputs}
    if names != set(shapes):
        missing, unknown = sorted(names - shapes.keys()), sorted(shapes.keys() - names)
        raise ShapeError(f"Inputs must be {sorted(names)}; missing: {missing or 'none'}, unknown: {unknown or 'none'}.")
    sizes: dict[str, int] = {}
    for tensor in inputs:
        shape = shapes[tensor.name]
        fits = len(shape) == len(tensor.shape) and all(
            _agrees(dim, size, sizes) for dim, size in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            raise ShapeError(
                f"{tensor.name!r} has shape {list(shape)}; it must be {_shown(tensor.shape)}, with {sizes}."
            )
    return sizes


def _agrees(dim: Dim, size: int, sizes: dict[str, int]) -> bool:
    """Whether an axis has the expected size; a size that is not known yet is added to `sizes`."""
    if isinstance(dim, int):
        return dim == size
    factor, _, name = dim.rpartition("*")
    whole, rest = divmod(size, int(factor or 1))
    return rest == 0 and sizes.setdefault(name, whole) == whole


def shape_of(dims: tuple[Dim, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's shape for given free sizes."""
    return tuple(dim if isinstance(dim, int) else _value(dim, sizes) for dim in dims)


def freed(dims: tuple[Dim, ...], shape: tuple[int, ...], axes: Collection[str]) -> tuple[int, ...]:
    """A tensor's shape with `FREE` for each of these axes."""
    named = (dim.rpartition("*")[2] if isinstance(dim, str) else "" for dim in dims)
    return tuple(FREE if name in axes else size for name, size in zip(named, shape, strict=True))


def is_of(shape: tuple[int, ...], built: tuple[int, ...]) -> bool:
    """Whether a shape is the one that an engine was built for, whose free sizes may have any value."""
    return len(shape) == len(built) and all(has in (FREE, size) for size, has in zip(shape, built, strict=True))


def all_of(shapes: Mapping[str, tuple[int, ...]], built: Mapping[str, tuple[int, ...]]) -> bool:
    """`is_of` for the shapes of all inputs, keyed by name."""
    return shapes.keys() == built.keys() and all(is_of(shape, built[name]) for name, shape in shapes.items())


def filled(built: Mapping[str, tuple[int, ...]], usual: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes that an engine was built for, with `usual` values for its free sizes."""
    return {
        name: tuple(other if size == FREE else size for size, other in zip(shape, usual[name], strict=True))
        for name, shape in built.items()
    }


def _value(dim: str, sizes: Mapping[str, int]) -> int:
    factor, _, name = dim.rpartition("*")
    if name not in sizes:
        raise ShapeError(
            f"{dim!r} is not a known axis; known axes: {', '.join(sorted(sizes))}. Export the checkpoint again."
        )
    return int(factor or 1) * sizes[name]


def _shown(dims: tuple[Dim, ...]) -> str:
    return "[" + ", ".join(str(dim) for dim in dims) + "]"
