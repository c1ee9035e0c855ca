"""The shape of every value of an ONNX graph, from the shapes of its inputs. Only the graph is read, not its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.errors import BundleError, RuntimeMissing, ShapeError
from ..core.install import install
from ..core.tensors import Array, Shape

SMALL = 64
"""A value of at most this many numbers may hold sizes, and is computed."""

ARITHMETIC = frozenset(
    {"Conv", "ConvTranspose", "ConvInteger", "MatMul", "MatMulInteger", "Gemm", "Attention", "Einsum"}
)
"""Operators that never compute sizes."""


def read_graph(graph: Path) -> Any:
    """Read an ONNX model without its weights; raises `BundleError` for other files, `RuntimeMissing` without onnx."""
    onnx = _onnx()
    try:
        return onnx.load(str(graph), load_external_data=False)
    except Exception as exc:  # protobuf's own, or OSError
        raise BundleError(f"{graph} cannot be read as an ONNX graph ({exc}). Export the checkpoint again.") from exc


def infer_shapes(model: Any, graph: Path, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Infer the shapes of all values, keyed by name, from the inputs' `shapes`. Nodes that compute sizes are removed.

    onnx infers shapes, but follows sizes through few of the operators that compute them. Operators whose inputs are
    known are computed here, until nothing new is found. Values whose shape stays unknown are left out. Raises
    `ShapeError` where an input's shape is missing, unknown or doesn't fit.
    """
    onnx = _onnx()
    _set_inputs(model, shapes)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    norms = _as_identities(model)
    folded = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if _small(tensor)}
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception as exc:  # InferenceError, or what protobuf raises
            raise ShapeError(f"{graph} does not accept these shapes: {str(exc).strip()}. Check the sizes.") from exc
        known: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
            kind = value.type.tensor_type
            if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
                known[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
        if not _fold(model, known, folded):
            for node in model.graph.node:
                if node.output[0] in norms:
                    node.CopyFrom(norms[node.output[0]])
            return known


def attribute(node: Any, name: str, default: Any) -> Any:
    """A node's attribute."""
    for one in node.attribute:
        if one.name == name:
            value = _onnx().helper.get_attribute_value(one)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as exc:
        raise RuntimeMissing(f"Reading graphs requires onnx ({exc}). {install('build')}") from exc
    return onnx


def _as_identities(model: Any) -> dict[str, Any]:
    """Replace group norms by identities, as onnx 1.23 can't infer through them; returns the originals by output."""
    norms: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type == "GroupNormalization":
            kept = norms[node.output[0]] = type(node)()
            kept.CopyFrom(node)
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    return norms


def _set_inputs(model: Any, shapes: Mapping[str, Shape]) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    if inputs.keys() != shapes.keys():
        missing, unknown = sorted(inputs.keys() - shapes.keys()), sorted(shapes.keys() - inputs.keys())
        raise ShapeError(
            f"Give the shapes of exactly these inputs: {sorted(inputs)}. Missing: {missing}; unknown: {unknown}."
        )
    for name, value in inputs.items():
        dims = value.type.tensor_type.shape.dim
        fixed = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        wanted = shapes[name]
        if len(wanted) != len(fixed) or any(has not in (None, size) for has, size in zip(fixed, wanted, strict=True)):
            shown = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]
            raise ShapeError(f"{name!r} cannot have shape {list(wanted)}; the graph accepts {shown}.")
        for dim, size in zip(dims, wanted, strict=True):
            dim.dim_value = size


def _small(tensor: Any) -> bool:
    """Whether a weight is stored in the graph file itself and may be a size."""
    return tensor.data_location == tensor.DEFAULT and math.prod(tensor.dims) <= SMALL


def _fold(model: Any, known: Mapping[str, Shape], folded: dict[str, Array]) -> bool:
    """Put constants in place of nodes that compute sizes; returns whether there were any."""
    onnx = _onnx()
    from onnx.reference import ReferenceEvaluator

    left: list[Any] = []
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] in known:
            shape = known[node.input[0]]
            first, last = attribute(node, "start", 0), attribute(node, "end", len(shape))
            values = [np.array(shape[first:last], dtype=np.int64)]
        elif node.op_type not in ARITHMETIC and all(name in folded for name in node.input if name):
            if any(math.prod(known.get(name, (SMALL + 1,))) > SMALL for name in node.output):
                left.append(node)
                continue
            feeds = {name: folded[name] for name in node.input if name}
            try:
                values = cast("Any", ReferenceEvaluator)(node).run(None, feeds)
            except Exception:  # it stays a node, and shapes that follow from it stay unknown
                left.append(node)
                continue
        else:
            left.append(node)
            continue
        for name, value in zip(node.output, values, strict=True):
            folded[name] = np.asarray(value)
            model.graph.initializer.append(onnx.numpy_helper.from_array(folded[name], name))
    found = len(left) < len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(left)
    return found
