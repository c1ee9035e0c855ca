"""Writing a graph's weights beside it, as a stream, in the type they were published in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

DATA = "model.onnx_data"
INLINE_BYTES = 1024
"""Initializers up to this size stay in the graph: shapes and small constants."""


def store_half(model: ir.Model) -> None:
    """Keep every large f32 weight as f16, cast to f32 where it is used: the arithmetic stays f32.

    For checkpoints published in f16 nothing is lost, and the bundle is half as large.
    """
    import onnx_ir as ir

    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes <= INLINE_BYTES:
            continue
        half = ir.Value(
            name=f"{name}.f16", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT16), const_value=_half(tensor)
        )
        cast = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.to_f32")
        wide = cast.outputs[0]
        wide.name, wide.shape, wide.type = f"{name}.f32", value.shape, value.type
        ir.convenience.replace_all_uses_with(value, wide)
        del graph.initializers[name]
        graph.register_initializer(half)
        graph.insert_before(graph[0], cast)


def _half(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    import onnx_ir as ir

    def read() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float16), name=tensor.name)

    shape = ir.Shape([int(size) for size in tensor.shape.numpy()])
    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT16, shape=shape, name=tensor.name, cache=False)


def write(model: ir.Model, folder: Path) -> None:
    """Write `model.onnx` and `model.onnx_data` into an existing folder; one weight in memory at a time."""
    import onnx_ir as ir

    cast("Any", ir).save(model, folder / "model.onnx", external_data=DATA, size_threshold_bytes=INLINE_BYTES)


def parameters(model: ir.Model) -> int:
    """How many numbers the weights are."""
    return sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value is not None)


def stored_in(dtypes: set[str]) -> Literal["f16", "f32"]:
    """What a bundle keeps weights in, by the types the checkpoint has them in (safetensors' names)."""
    return "f16" if dtypes == {"F16"} else "f32"
