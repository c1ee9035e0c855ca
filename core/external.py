"""Weights of ONNX models: their names, and external tensors, also from files with several hard links.

onnx-ir refuses such files, but backups and the Hub's cache create them. Paths and digests of a bundle's files are
checked before anything is read (`core.bundle`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from .tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir


Kept = Literal["f32", "f16", "bf16"]
"""Types of weights in a bundle; the graph casts them to f32 where it uses them."""

TRANSPOSED = ".T"
"""Suffix of the name of a weight that is stored transposed."""

_WRAPPER = "model."
"""Prefix of the names of a part's weights: the module that is traced holds the checkpoint's as `model`."""


def parameter_of(name: str) -> tuple[str, bool]:
    """The parameter of the component that an initializer of this name holds, and whether it is transposed."""
    for kept in get_args(Kept):
        name = name.removesuffix(f".{kept}")
    return name.removeprefix(_WRAPPER).removesuffix(TRANSPOSED), name.endswith(TRANSPOSED)


def values_of(tensor: Any) -> Array:
    """A tensor's values; an external tensor is memory-mapped from its file."""
    import onnx_ir as ir

    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    given = cast("Any", tensor)
    kind, shape = given.dtype.numpy(), tuple(int(size) for size in given.shape.numpy())
    if 0 in shape:
        return np.empty(shape, kind)
    return np.memmap(given.path, kind, "r", given.offset or 0, shape)


def map_values(model: ir.Model) -> None:
    """Replace a model's external tensors by their values, so that it can be saved as a whole."""
    import onnx_ir as ir

    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = cast("Any", ir).tensor(values_of(value.const_value), name=value.name)
