"""Free sizes: from the shapes of what is fed to the shapes of what comes out."""

from __future__ import annotations

from collections.abc import Mapping

from .bundle import Dim, TensorInfo
from .errors import ShapeError


def sizes_of(inputs: tuple[TensorInfo, ...], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The value of each free size, read off the inputs' shapes.

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
            (sizes.setdefault(dim, size) if isinstance(dim, str) else dim) == size
            for dim, size in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            raise ShapeError(
                f"{tensor.name!r} has shape {list(shape)}; it must be {_shown(tensor.shape)}, with {sizes}."
            )
    return sizes


def shape_of(dims: tuple[Dim, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """An output's shape, from the free sizes."""
    return tuple(dim if isinstance(dim, int) else _value(dim, sizes) for dim in dims)


def _value(dim: str, sizes: Mapping[str, int]) -> int:
    factor, _, name = dim.rpartition("*")
    name, _, divisor = name.partition("/")
    if name not in sizes:
        raise ShapeError(f"{dim!r} is no axis here; known: {', '.join(sorted(sizes))}. Export the checkpoint again.")
    return int(factor or 1) * sizes[name] // int(divisor or 1)


def _shown(dims: tuple[Dim, ...]) -> str:
    return "[" + ", ".join(str(dim) for dim in dims) + "]"
