"""The arithmetic of a part's ONNX graph at given shapes.

Counted: Conv, ConvTranspose, MatMul, Gemm, Attention and Einsum, at 2 FLOP for each multiply-add; that is the
convention of the published figures (SD1.5's UNet: 803 GFLOP a forward at 512x512). Attention is its two matrix
products, masked entries included.

Not counted, as in those figures: operators that take a few operations per number (bias, activations, normalization,
softmax, resizing), and memory traffic. In a UNet that is about one percent of the arithmetic, though not of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from ..core.errors import BundleError, ShapeError
from ..core.tensors import Shape
from .sizes import attribute, infer_shapes, read_graph

REFUSED = ("If", "Loop", "Scan", "LSTM", "GRU", "RNN", "DFT", "STFT", "DeformConv", "QLinearConv", "QLinearMatMul")
"""Operators whose arithmetic isn't counted here: a graph that has one is refused, as its count would be too low."""


def count_flops(graph: Path, shapes: Mapping[str, Shape]) -> int:
    """FLOP of one call at the inputs' `shapes`, keyed by name. Only the graph is read, not its weights.

    Raises `ShapeError` where an input's shape is missing, unknown or doesn't fit, or where the shape of a counted
    operator doesn't follow from them; `BundleError` for a file that isn't a graph, or has operators that do
    arithmetic and can't be counted here; `RuntimeMissing` without onnx.
    """
    model = read_graph(graph)
    _refuse(model, graph)
    known = infer_shapes(model, graph, shapes)
    return sum(
        2 * COUNTERS[node.op_type](node, lambda name, node=node: _shape(known, name, node))
        for node in model.graph.node
        if node.op_type in COUNTERS
    )


def _refuse(model: Any, graph: Path) -> None:
    functions = {function.name for function in model.functions}
    for node in model.graph.node:
        if node.op_type in REFUSED or node.op_type in functions or node.domain not in ("", "ai.onnx"):
            name = ".".join(filter(None, (node.domain, node.op_type)))
            raise BundleError(
                f"The arithmetic of {name} ({node.name!r} in {graph}) cannot be counted. "
                "Use the graph that was exported, not one that a runtime or a quantizer rewrote."
            )


def _shape(known: Mapping[str, Shape], name: str, node: Any) -> Shape:
    if name not in known:
        raise ShapeError(
            f"The shape of {name!r} at {node.op_type} {node.name!r} does not follow from the shapes of the inputs, so "
            "the arithmetic of the graph cannot be counted. Use the graph that was exported."
        )
    return known[name]


ShapeOf = Callable[[str], Shape]


def _conv(node: Any, shape: ShapeOf) -> int:
    """Each output is a sum over a kernel and the channels of one group; the weight holds both."""
    return math.prod(shape(node.output[0])) * math.prod(shape(node.input[1])[1:])


def _conv_transpose(node: Any, shape: ShapeOf) -> int:
    """Each input goes to a kernel and the channels of one group; the weight holds both."""
    return math.prod(shape(node.input[0])) * math.prod(shape(node.input[1])[1:])


def _matmul(node: Any, shape: ShapeOf) -> int:
    return math.prod(shape(node.output[0])) * shape(node.input[0])[-1]


def _gemm(node: Any, shape: ShapeOf) -> int:
    return math.prod(shape(node.output[0])) * shape(node.input[0])[0 if attribute(node, "transA", 0) else 1]


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
        shared = attribute(node, "q_num_heads", 1) // attribute(node, "kv_num_heads", 1)
        value_width = value[2] * shared
    return batch * heads * length * keys * (width + value_width)


def _einsum(node: Any, shape: ShapeOf) -> int:
    """One multiply-add for each combination of indices, of two operands; of one operand, none."""
    terms = cast("str", attribute(node, "equation", "")).replace(" ", "").split("->")[0].split(",")
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
