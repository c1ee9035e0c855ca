"""From a torch module to an ONNX graph with dynamic batch, height and width."""

from __future__ import annotations

import ast
import gc
import logging
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..checkpoints.parts import PartSpec
from ..core.errors import CompileError
from ..core.external import TRANSPOSED
from ..core.install import in_tested_versions
from ..core.manifest import TensorInfo
from ..core.recipes import WIDE
from ..core.shapes import shape_of

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

OPSET = 23
"""First operator set with Attention; the compiler lowers it to 18 for profiles that need it."""

LOGGERS = ("torch.onnx", "torch.utils._sympy", "onnxscript", "onnx_ir")
"""Loggers that are muted: the exporter warns about a missing torchvision and about symbols that it renames."""

EXAMPLE_SIZES = {"batch": 2, "frames": 3, "length": 154, "height": 13, "width": 18}
"""Odd and unequal, so that no size is mistaken for a constant or for another size."""

SIDES = ("height", "width")

LIMITS = {"batch": (1, 63), "frames": (1, 1024), "length": (1, 65536), "height": (9, 4096), "width": (9, 4096)}
"""Ranges given to the tracer, with sides in latents. The graph is valid outside them too: above 63 diffusers copies
tensors before upsampling, and 9 keeps every level of the UNet larger than one latent."""


def trace(spec: PartSpec, module: torch.nn.Module) -> ir.Model:
    """Trace a part (`as_part`) into an ONNX graph at opset 23; the weights share the module's memory.

    Raises `CompileError` with the exporter's message.
    """
    import torch

    onnx_export = cast("Any", torch.onnx).export
    sizes, dimensions = _sizes(spec)
    dimensions |= {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in spec.limits.items()}
    example = tuple(_example(tensor, sizes) for tensor in spec.inputs)
    dynamic = tuple(
        {axis: _scaled(dim, dimensions) for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in spec.inputs
    )
    hint = spec.tracing(cast("Any", module).model) if spec.tracing else nullcontext()
    try:
        with muted(*LOGGERS), uncollected(), torch.no_grad(), hint:
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
        raise CompileError(
            f"torch.onnx failed to export {spec.name}: {str(exc).strip() or type(exc).__name__}. Please report the "
            "checkpoint."
        ) from exc
    model: ir.Model = program.model
    _label(model.graph.inputs, spec.inputs)
    _label(model.graph.outputs, spec.outputs)
    _name_weights(model, module)
    wide = _wide(model, spec)
    _forget_origin(model)
    for node in wide:
        node.metadata_props[WIDE] = "f32"
    return model


def _name_weights(model: ir.Model, module: torch.nn.Module) -> None:
    """Give each weight a value of its own with its name.

    The exporter folds weights that are transposed or cast into constants without a name, and joins equal small ones of
    several layers.
    """
    import onnx_ir as ir

    graph = model.graph
    for node in graph:
        path = _path(module, _module_of(node))
        for index, value in enumerate(node.inputs):
            if value is None or value.name not in graph.initializers or str(value.name).startswith(f"{path}."):
                continue
            leaf = _leaf(module, path, node, index)
            if leaf is None:
                continue
            name = f"{path}.{leaf}"
            if len(value.uses()) == 1 and name not in graph.initializers:
                value.name = name
                continue
            if name not in graph.initializers:
                own = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
                graph.register_initializer(own)
            node.replace_input_with(index, graph.initializers[name])


def _path(module: torch.nn.Module, scope: str) -> str:
    """The path in a part's module of one of the component's, or of one of a further component."""
    own = scope.partition(".")[0]
    return scope if own != "model" and hasattr(module, own) else f"model.{scope}"


def _leaf(module: torch.nn.Module, path: str, node: ir.Node, index: int) -> str | None:
    """The weight of a layer that an input of its operator holds: `weight`, `weight.T` or `bias`; None for another."""
    import torch

    try:
        layer = module.get_submodule(path)
    except AttributeError:
        return None
    value = node.inputs[index]
    tensor = None if value is None else value.const_value
    found: list[str] = []
    for leaf in ("weight", "bias"):
        own: object = getattr(layer, leaf, None)
        if tensor is None or not isinstance(own, torch.Tensor):
            continue
        array = own.detach().float().numpy()
        layouts = {leaf: array, f"{leaf}{TRANSPOSED}": array.T} if array.ndim == 2 else {leaf: array}
        found += [name for name, one in layouts.items() if np.array_equal(tensor.numpy(), one)]
    if len(found) > 1:  # equal values: the operator tells
        likely = "bias" if index == 2 or node.op_type == "Add" else "weight"
        found = [name for name in found if name == (f"weight{TRANSPOSED}" if node.op_type == "MatMul" else likely)]
    return found[0] if found else None


def _wide(model: ir.Model, spec: PartSpec) -> list[ir.Node]:
    """The nodes of the modules that stay in f32; raises `CompileError` where there are none of a pattern."""
    found: list[ir.Node] = []
    modules = {node: _module_of(node) for node in model.graph}
    for pattern in spec.wide:
        own = [node for node, module in modules.items() if re.fullmatch(pattern, module)]
        if not own:
            raise CompileError(
                f"{spec.name} has no operators of a module {pattern!r}, which is to stay in f32. "
                f"{in_tested_versions('torch', 'diffusers', 'transformers')}"
            )
        found += own
    return found


def _module_of(node: ir.Node) -> str:
    """The path of the innermost module that a node comes from."""
    scopes: object = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    names = [str(name) for name in cast("list[object]", scopes)]
    return names[-2].removeprefix("model.") if len(names) > 1 else ""


def _example(tensor: TensorInfo, sizes: dict[str, int]) -> torch.Tensor:
    import torch

    shape = shape_of(tensor.shape, sizes)
    dtype = torch.int64 if tensor.dtype == "int64" else torch.float32
    return torch.ones(shape, dtype=dtype)


def _sizes(spec: PartSpec) -> tuple[dict[str, int], dict[str, Any]]:
    """An example of each dynamic size, and the tracer's dimension for it: sides are multiples of the part's patch."""
    import torch

    dims: dict[str, Any] = {}
    sizes = dict(EXAMPLE_SIZES)
    for name, (low, high) in LIMITS.items():
        if name not in SIDES:
            dims[name] = torch.export.Dim(name, min=low, max=high)
            continue
        high = min(high, spec.largest_side or high) // spec.patch
        low = min(low, high - 1)
        sizes[name] = min(EXAMPLE_SIZES[name], high - SIDES.index(name)) * spec.patch
        dims[name] = spec.patch * torch.export.Dim(name, min=low, max=high)
    return sizes, dims


def _scaled(dim: str, dimensions: dict[str, Any]) -> Any:
    """The tracer's dimension for an axis such as `height` or `8*height`."""
    factor, _, name = dim.rpartition("*")
    return int(factor) * dimensions[name] if factor else dimensions[name]


def _label(values: Any, tensors: tuple[TensorInfo, ...]) -> None:
    import onnx_ir as ir

    for value, tensor in zip(values, tensors, strict=True):
        value.name = tensor.name
        value.shape = ir.Shape(tensor.shape)


def _forget_origin(model: ir.Model) -> None:
    """Drop metadata about where and when it was traced, so that the same checkpoint gives the same bytes."""
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
    """Silence these loggers below critical errors, and Python's warnings, inside the block."""
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


@contextmanager
def uncollected() -> Generator[None]:
    """Pause the collection of garbage in cycles inside the block: searching the many small objects of a trace takes a
    tenth of its time. Weights are in no cycle of a trace.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
