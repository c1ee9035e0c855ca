"""Tensors in files of their own, read whatever links lead to the file.

onnx-ir refuses files that have several hard links, as a backup makes them, and as bundles in the hub's cache have them.
Paths and digests of a bundle's files are checked before anything is read (`core.bundle`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir


def values_of(tensor: Any) -> Array:
    """A tensor's values; those of an external one are mapped from its file, not copied."""
    import onnx_ir as ir

    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    given = cast("Any", tensor)
    kind, shape = given.dtype.numpy(), tuple(int(size) for size in given.shape.numpy())
    if 0 in shape:
        return np.empty(shape, kind)
    return np.memmap(given.path, kind, "r", given.offset or 0, shape)


def map_values(model: ir.Model) -> None:
    """Replace external tensors of a model by their values, so that it can be saved with all of them."""
    import onnx_ir as ir

    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = cast("Any", ir).tensor(values_of(value.const_value), name=value.name)
