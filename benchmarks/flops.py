"""How much arithmetic a part's ONNX graph asks for at given shapes.

Counted: Conv, ConvTranspose, MatMul, Gemm, Attention and Einsum, at 2 FLOP for each multiply-add; that is the
convention of the published figures (SD1.5's UNet: 803 GFLOP a forward at 512x512). Attention is its two matrix
products, masked entries included.

Left out, as there: everything that takes a few operations for each number (bias, activations, normalization, softmax,
resizing), and moving memory. Of a UNet that is about one percent of the arithmetic, though not of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.errors import BundleError, RuntimeMissing, ShapeError
from ..core.tensors import Array

Shape = tuple[int, ...]

REFUSED = ("If", "Loop", "Scan", "LSTM", "GRU", "RNN", "DFT", "STFT", "DeformConv", "QLinearConv", "QLinearMatMul")
"""Operators that do arithmetic which isn't counted here: a graph that has one is refused, not counted too low."""

SMALL = 64
"""Numbers that a value may have to be taken for sizes and computed."""


@dataclass(frozen=True)
class Flops:
    """The arithmetic of one call."""

    total: int
    """FLOP: additions and multiplications."""
    by_operator: Mapping[str, int]
    """FLOP of each counted operator, by its ONNX name."""
    left_out: Mapping[str, int]
    """Operators that weren't counted, by name, and how often each occurs."""


def count_flops(graph: Path, shapes: Mapping[str, Shape]) -> Flops:
    """Count a graph at the shapes of its inputs, by name. Only the graph is read, not its weights.

    Raises `ShapeError` where an input's shape is missing, unknown or doesn't fit, or where the shape of a counted
    operator doesn't follow from them; `BundleError` for a file that isn't a graph, or has operators that do
    arithmetic and can't be counted here; `RuntimeMissing` without onnx.
    """
    model = _load(graph)
    _refuse(model, graph)
    _set_inputs(model, shapes)
    nodes = [_copy(node) for node in model.graph.node]
    known = _infer(model, graph)
    by_operator: dict[str, int] = {}
    left_out: dict[str, int] = {}
    for node in nodes:
        counter = COUNTERS.get(node.op_type)
        if counter is None:
            left_out[node.op_type] = left_out.get(node.op_type, 0) + 1
        else:
            flops = 2 * counter(node, lambda name, node=node: _shape(known, name, node))
            by_operator[node.op_type] = by_operator.get(node.op_type, 0) + flops
    return Flops(sum(by_operator.values()), by_operator, left_out)


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as exc:
        raise RuntimeMissing(f'Counting FLOP needs onnx ({exc}). Install it with: pip install ".[build]".') from exc
    return onnx


def _load(graph: Path) -> Any:
    onnx = _onnx()
    try:
        return onnx.load(str(graph), load_external_data=False)
    except Exception as exc:  # protobuf's own, or OSError
        raise BundleError(f"{graph} can't be read as an ONNX graph ({exc}). Export the checkpoint again.") from exc


def _refuse(model: Any, graph: Path) -> None:
    functions = {function.name for function in model.functions}
    for node in model.graph.node:
        if node.op_type in REFUSED or node.op_type in functions or node.domain not in ("", "ai.onnx"):
            name = ".".join(filter(None, (node.domain, node.op_type)))
            raise BundleError(
                f"The arithmetic of {name} ({node.name!r} in {graph}) can't be counted. "
                "Count the graph as it was exported, not one that a runtime or a quantizer rewrote."
            )


def _set_inputs(model: Any, shapes: Mapping[str, Shape]) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    if inputs.keys() != shapes.keys():
        missing, unknown = sorted(inputs.keys() - shapes.keys()), sorted(shapes.keys() - inputs.keys())
        raise ShapeError(f"Shapes are needed of {sorted(inputs)}; missing: {missing}, unknown: {unknown}.")
    for name, value in inputs.items():
        dims = value.type.tensor_type.shape.dim
        fixed = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        wanted = shapes[name]
        if len(wanted) != len(fixed) or any(has not in (None, size) for has, size in zip(fixed, wanted, strict=True)):
            shown = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]
            raise ShapeError(f"{name!r} can't have shape {list(wanted)}; the graph takes {shown}.")
        for dim, size in zip(dims, wanted, strict=True):
            dim.dim_value = size


def _copy(node: Any) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    return copy


def _infer(model: Any, graph: Path) -> dict[str, Shape]:
    """Shapes of all values that have one in full. The model is changed.

    onnx infers shapes, and follows sizes through few of the operators that compute them; so those whose inputs are
    known are computed here, until nothing new comes of it.
    """
    onnx = _onnx()
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    for node in model.graph.node:
        if node.op_type == "GroupNormalization":  # onnx 1.23 infers nothing through it; its output is as its input
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    folded = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if _small(tensor)}
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception as exc:  # InferenceError, or what protobuf raises
            raise ShapeError(f"These shapes don't go through {graph}: {str(exc).strip()}. Check the sizes.") from exc
        known: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
            kind = value.type.tensor_type
            if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
                known[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
        if not _fold(model, known, folded):
            return known


def _small(tensor: Any) -> bool:
    """Whether a weight lies in the graph itself and may be a size."""
    return tensor.data_location == tensor.DEFAULT and math.prod(tensor.dims) <= SMALL


def _fold(model: Any, known: Mapping[str, Shape], folded: dict[str, Array]) -> bool:
    """Put constants in place of nodes that compute sizes; tells whether there were any."""
    onnx = _onnx()
    from onnx.reference import ReferenceEvaluator

    left: list[Any] = []
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] in known:
            shape = known[node.input[0]]
            first, last = _attribute(node, "start", 0), _attribute(node, "end", len(shape))
            values = [np.array(shape[first:last], dtype=np.int64)]
        elif node.op_type not in COUNTERS and all(name in folded for name in node.input if name):
            if any(math.prod(known.get(name, (SMALL + 1,))) > SMALL for name in node.output):
                left.append(node)
                continue
            values = cast("Any", ReferenceEvaluator)(node).run(None, {name: folded[name] for name in node.input})
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


def _shape(known: Mapping[str, Shape], name: str, node: Any) -> Shape:
    if name not in known:
        raise ShapeError(
            f"The shape of {name!r} at {node.op_type} {node.name!r} doesn't follow from the shapes of the inputs, so "
            "the graph can't be counted. Count it as it was exported."
        )
    return known[name]


ShapeOf = Callable[[str], Shape]


def _attribute(node: Any, name: str, default: Any) -> Any:
    onnx = _onnx()
    for attribute in node.attribute:
        if attribute.name == name:
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _conv(node: Any, shape: ShapeOf) -> int:
    """Each output is a sum over a kernel and the channels of one group; the weight holds both."""
    return math.prod(shape(node.output[0])) * math.prod(shape(node.input[1])[1:])


def _conv_transpose(node: Any, shape: ShapeOf) -> int:
    """Each input goes to a kernel and the channels of one group; the weight holds both."""
    return math.prod(shape(node.input[0])) * math.prod(shape(node.input[1])[1:])


def _matmul(node: Any, shape: ShapeOf) -> int:
    return math.prod(shape(node.output[0])) * shape(node.input[0])[-1]


def _gemm(node: Any, shape: ShapeOf) -> int:
    return math.prod(shape(node.output[0])) * shape(node.input[0])[0 if _attribute(node, "transA", 0) else 1]


def _attention(node: Any, shape: ShapeOf) -> int:
    """Queries times keys, and weights times values. Source: ONNX Attention, opset 23.

    With four axes they are [batch, heads, length, width]; with three, [batch, length, heads * width]. Query heads may
    share keys and values.
    """
    query, key, value = (shape(name) for name in node.input[:3])
    past = shape(node.input[4])[2] if len(node.input) > 4 and node.input[4] else 0
    if len(query) == 4:
        batch, heads, length, width = query
        keys, value_width = key[2] + past, value[3]
    else:
        batch, length, heads, width = (*query[:2], 1, query[2])
        keys = key[1] + past
        shared = _attribute(node, "q_num_heads", 1) // _attribute(node, "kv_num_heads", 1)
        value_width = value[2] * shared
    return batch * heads * length * keys * (width + value_width)


def _einsum(node: Any, shape: ShapeOf) -> int:
    """One multiply-add for each combination of indices, of two operands; of one operand, none."""
    terms = cast("str", _attribute(node, "equation", "")).replace(" ", "").split("->")[0].split(",")
    if len(terms) > 2 or any("." in term for term in terms):
        raise BundleError(
            f"Einsum {node.name!r} has more than two operands or an ellipsis: its arithmetic can't be counted. "
            "Write it as products of two."
        )
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        for label, size in zip(term, shape(name), strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values()) if len(terms) == 2 else 0


COUNTERS: dict[str, Callable[[Any, ShapeOf], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "ConvInteger": _conv,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "Gemm": _gemm,
    "Attention": _attention,
    "Einsum": _einsum,
}
"""Multiply-adds of each counted operator."""
