"""Writing a graph's weights next to it, one at a time, in the type they were published in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..checkpoints.stored import FLOATS, kept_as
from ..core.external import Kept

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from ..checkpoints.open import Checkpoint
    from ..checkpoints.parts import PartSpec

DATA = "model.onnx_data"
INLINE_BYTES = 1024
"""Initializers up to this size stay in the graph: shapes and small constants."""


def store_narrow(model: ir.Model, kept: Kept) -> None:
    """Store initializers that the exporter folded to f32 in `kept` again, where that is exact."""
    import onnx_ir as ir

    graph, kind = model.graph, kind_of(kept)
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes <= INLINE_BYTES:
            continue
        if not _fits(tensor.numpy(), kind):
            continue
        narrow = ir.Value(
            name=f"{name}.{kept}", shape=value.shape, type=ir.TensorType(kind), const_value=_narrow(tensor, kind)
        )
        cast = ir.node("Cast", [narrow], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.to_f32")
        wide = cast.outputs[0]
        wide.name, wide.shape, wide.type = f"{name}.f32", value.shape, value.type
        ir.convenience.replace_all_uses_with(value, wide)
        del graph.initializers[name]
        graph.register_initializer(narrow)
        graph.insert_before(graph[0], cast)


def kind_of(kept: Kept) -> ir.DataType:
    """The type of f16 or bf16 weights."""
    import onnx_ir as ir

    return ir.DataType.BFLOAT16 if kept == "bf16" else ir.DataType.FLOAT16


def _fits(values: Any, kind: ir.DataType) -> bool:
    return np.array_equal(values.astype(kind.numpy()).astype(np.float32), values)


def _narrow(tensor: ir.TensorProtocol, kind: ir.DataType) -> ir.TensorProtocol:
    import onnx_ir as ir

    def read() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(kind.numpy()), name=tensor.name)

    shape = ir.Shape([int(size) for size in tensor.shape.numpy()])
    return ir.LazyTensor(read, dtype=kind, shape=shape, name=tensor.name, cache=False)


def write(model: ir.Model, folder: Path) -> None:
    """Write `model.onnx` and `model.onnx_data` into an existing folder; one weight in memory at a time."""
    import onnx_ir as ir

    cast("Any", ir).save(model, folder / "model.onnx", external_data=DATA, size_threshold_bytes=INLINE_BYTES)


def write_variant(model: ir.Model, path: Path) -> None:
    """Write another graph next to `model.onnx`, sharing its weights file.

    Tensors are matched by their bytes, as the names of folded ones are arbitrary. Tensors that only this graph has
    are stored inline in it.
    """
    import onnx_ir as ir

    library = cast("Any", ir)
    base: ir.Model = library.load(path.with_name("model.onnx"))
    stored = [value.const_value for value in base.graph.initializers.values()]
    kept = {_content(tensor): tensor for tensor in stored if isinstance(tensor, ir.ExternalTensor)}
    for value in model.graph.initializers.values():
        own = value.const_value
        if own is not None and own.nbytes > INLINE_BYTES and (same := kept.get(_content(own))):
            about = {"dtype": same.dtype, "shape": same.shape, "name": value.name, "base_dir": path.parent}
            value.const_value = library.ExternalTensor(DATA, same.offset, same.length, **about)
    library.save(model, path)


def _content(tensor: ir.TensorProtocol) -> tuple[str, tuple[int, ...], str]:
    return tensor.dtype.name, tuple(tensor.shape.numpy()), hashlib.sha256(tensor.tobytes()).hexdigest()


def parameters(model: ir.Model) -> int:
    """Number of parameters."""
    return sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value is not None)


def casting(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Make a module compute in `dtype`: each parameter of another type is cast where it is used, then released.

    So a large model takes the memory of its stored weights, mapped from the file, and of one layer in `dtype`. The
    traced graph does the same: a stored weight, cast to f32 where it is used.
    """
    import torch
    from torch.nn.utils import parametrize

    class Cast(torch.nn.Module):
        def forward(self, stored: torch.Tensor) -> torch.Tensor:
            return stored.to(dtype)

    for owner in list(module.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.is_floating_point() and parameter.dtype != dtype:
                parametrize.register_parametrization(owner, name, Cast(), unsafe=True)
        for buffer in owner.buffers(recurse=False):
            if torch.promote_types(buffer.dtype, dtype) != dtype:
                buffer.data = buffer.to(dtype)
    for owner in module.modules():
        if isinstance(owner, torch.nn.ModuleList):  # diffusers' TemporalDecoder rounds to the type of its blocks
            cast("Any", owner).parameters = partial(_cast, list(owner.parameters()), dtype)
    return module.eval()


def _cast(stored: list[torch.nn.Parameter], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The parameters in the type that they compute in."""
    return (one.to(dtype) for one in stored)


def computing(checkpoint: Checkpoint, component: str, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """A component that computes in `dtype` (float32 if None); its weights stay in the type that a bundle keeps.

    Where they aren't stored in that type, another `dtype` is a copy of them like any other.
    """
    import torch

    held = checkpoint.weights[component].values()
    kept = kept_as(held)
    if dtype is not None and any(one.dtype in FLOATS and one.dtype != kept.upper() for one in held):
        return checkpoint.module(component, dtype=dtype)
    stored = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kept]
    dtype = dtype or torch.float32
    module = checkpoint.module(component, dtype=stored)
    if stored == dtype:
        return module
    module = casting(module, dtype)
    # diffusers reads a module's dtype, and would round its inputs to that of the stored weights. transformers looks up
    # which classes record hidden states by their names, with that of their module.
    kind = type(module)
    own = {"dtype": dtype, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    module.__class__ = type(kind.__name__, (kind,), own)
    return module


def beside(checkpoint: Checkpoint, spec: PartSpec) -> Callable[[str], torch.nn.Module]:
    """What loads the further components of a part. They compute in f32 too; only those whose weights are stored as the
    part's own stay narrow, so that a graph has one stored type.
    """
    own = kept_as(checkpoint.weights[spec.component].values())

    def load(name: str) -> torch.nn.Module:
        alike = kept_as(checkpoint.weights[name].values()) == own
        return computing(checkpoint, name) if alike else checkpoint.module(name)

    return load


def plain_names(model: ir.Model) -> None:
    """Give cast weights their names in the checkpoint again."""
    for value in list(model.graph.initializers.values()):
        value.name = str(value.name).replace("parametrizations.", "").removesuffix(".original")
