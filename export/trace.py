"""From a torch module to an ONNX graph with free batch, height and width."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from ..checkpoints.parts import PartSpec
from ..core.errors import CompileError
from ..core.manifest import TensorInfo
from ..core.shapes import shape_of

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

OPSET = 23
"""First operator set with Attention; the compiler lowers it to 18 where a profile asks for that."""

LOGGERS = ("torch.onnx", "torch.utils._sympy", "onnxscript", "onnx_ir")
"""The exporter warns of an absent torchvision and of symbols that it renames."""

EXAMPLE_SIZES = {"batch": 2, "frames": 3, "length": 154, "height": 13, "width": 18}
"""Odd and unequal on purpose, so that no size is taken for a constant or for another size."""

LIMITS = {"batch": (1, 63), "frames": (1, 1024), "length": (1, 65536), "height": (9, 4096), "width": (9, 4096)}
"""Ranges promised to the tracer, sides in latents. The graph holds outside them too: 63 is where
diffusers copies a tensor before it is upsampled, 9 keeps every level of the UNet above one latent."""


def trace(spec: PartSpec, module: torch.nn.Module) -> ir.Model:
    """Trace a part (`as_part`) into an ONNX graph at opset 23; the weights are the module's own memory.

    Raises `CompileError` with the exporter's words.
    """
    import torch

    onnx_export = cast("Any", torch.onnx).export
    sizes, dimensions = _sizes()
    example = tuple(_example(tensor, sizes) for tensor in spec.inputs)
    dynamic = tuple(
        {axis: _scaled(dim, dimensions) for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in spec.inputs
    )
    hint = spec.tracing(cast("Any", module).model) if spec.tracing else nullcontext()
    try:
        with muted(*LOGGERS), torch.no_grad(), hint:
            exported = torch.export.export(module, example, dynamic_shapes=(dynamic,), strict=False)
            program = onnx_export(
                exported,
                dynamo=True,
                opset_version=OPSET,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                verbose=False,
            )
    except Exception as exc:
        raise CompileError(f"torch.onnx can't export {spec.name}: {str(exc).strip() or type(exc).__name__}.") from exc
    model: ir.Model = program.model
    _label(model.graph.inputs, spec.inputs)
    _label(model.graph.outputs, spec.outputs)
    _forget_origin(model)
    return model


def _example(tensor: TensorInfo, sizes: dict[str, int]) -> torch.Tensor:
    import torch

    shape = shape_of(tensor.shape, sizes)
    dtype = torch.int64 if tensor.dtype == "int64" else torch.float32
    return torch.ones(shape, dtype=dtype)


def _sizes() -> tuple[dict[str, int], dict[str, Any]]:
    """An example of each free size, and the tracer's name for it."""
    import torch

    dims: dict[str, Any] = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in LIMITS.items()}
    return EXAMPLE_SIZES, dims


def _scaled(dim: str, dimensions: dict[str, Any]) -> Any:
    """The tracer's name for an axis such as `height` or `8*height`."""
    factor, _, name = dim.rpartition("*")
    return int(factor) * dimensions[name] if factor else dimensions[name]


def _label(values: Any, tensors: tuple[TensorInfo, ...]) -> None:
    import onnx_ir as ir

    for value, tensor in zip(values, tensors, strict=True):
        value.name = tensor.name
        value.shape = ir.Shape(tensor.shape)


def _forget_origin(model: ir.Model) -> None:
    """Drop what says where and when it was traced: the same checkpoint gives the same bytes."""
    import onnx_ir as ir

    model.doc_string = None
    model.producer_name = "latentc"
    model.producer_version = None
    model.metadata_props.clear()
    for holder in (model.graph, *model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs):
        holder.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
            if value.shape is not None and not value.is_graph_output():
                value.shape = ir.Shape([size if isinstance(size, int) else None for size in value.shape])


@contextmanager
def muted(*loggers: str) -> Generator[None]:
    """Inside the block, these loggers and Python's warnings report nothing below a critical error."""
    chosen = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in chosen]
    for logger in chosen:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chosen, before, strict=True):
            logger.setLevel(level)
