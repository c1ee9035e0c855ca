"""Writing a graph's weights beside it, as a stream, in the type they were published in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from ..checkpoints.open import Checkpoint

DATA = "model.onnx_data"
INLINE_BYTES = 1024
"""Initializers up to this size stay in the graph: shapes and small constants."""


def store_half(model: ir.Model) -> None:
    """Keep as f16 what the exporter folded to f32 of a model whose weights are f16: nothing is lost."""
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


def halves(module: torch.nn.Module) -> torch.nn.Module:
    """Let a module whose parameters are f16 compute in f32: each is widened when it is used, and forgotten after.

    So a large model needs its f16 weights, mapped from the file, and one layer in f32; and the traced graph says the
    same: an f16 weight, cast to f32 where it is used.
    """
    import torch
    from torch.nn.utils import parametrize

    class Widen(torch.nn.Module):
        def forward(self, half: torch.Tensor) -> torch.Tensor:
            return half.float()

    for owner in list(module.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.dtype == torch.float16:
                parametrize.register_parametrization(owner, name, Widen(), unsafe=True)
    return module.eval()


def computing(checkpoint: Checkpoint, component: str) -> torch.nn.Module:
    """A component that computes in f32: its weights stay in f16 where the checkpoint has all of them so."""
    import torch

    if not is_half({tensor.dtype for tensor in checkpoint.weights[component].values()}):
        return checkpoint.module(component)
    module = halves(checkpoint.module(component, dtype=torch.float16))
    # diffusers asks a module for its type, and would round what it is fed to that of the stored weights.
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"dtype": torch.float32})
    return module


def is_half(dtypes: set[str]) -> bool:
    """Whether a checkpoint that has tensors of these types (safetensors' names) has all its weights in f16."""
    return {dtype for dtype in dtypes if dtype.startswith(("F", "BF"))} == {"F16"}


def plain_names(model: ir.Model) -> None:
    """Give widened weights the names that the checkpoint has."""
    for value in list(model.graph.initializers.values()):
        value.name = str(value.name).replace("parametrizations.", "").removesuffix(".original")
