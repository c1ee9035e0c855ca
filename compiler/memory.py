"""How much memory the values of a graph take at once, at given shapes, beside its weights.

A value is held from the node that makes it to the last that reads it. Nodes that rearrange nothing (reshape, split,
slice) give views; chains of operators that go number by number are computed in one piece, in the place of an input that
is not needed after, as compilers do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ShapeError
from .sizes import Shape, attribute, infer_shapes, read_graph

VIEWS = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"})
POINTWISE = frozenset(
    {
        *("Add", "Cast", "Div", "Erf", "Exp", "Gelu", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Swish"),
        *("Tanh", "Where"),
    }
)


def activation_bytes(
    graph: Path, shapes: Mapping[str, Shape], width: int, *, scores: int = 0, unrolls: bool = False
) -> int:
    """The most bytes that values take at once, at `width` bytes a number.

    `scores` is how many copies of attention's scores are held at once, 0 where the operator is fused; `unrolls` counts
    the windows of a convolution written out as a matrix. Raises what `infer_shapes` raises.
    """
    model = read_graph(graph)
    known = infer_shapes(model, graph, shapes)
    walk = _Walk(model, known)
    most = live = sum(walk.numbers(name) for name in walk.held)
    for index, node in enumerate(model.graph.node):
        dying = {name for name in walk.sources(node) & walk.held if walk.last.get(name, -1) <= index}
        made = [name for name in node.output if name in walk.roots and walk.roots[name] == {name}]
        freed = sum(map(walk.numbers, dying))
        live += sum(map(walk.numbers, made)) - (freed if node.op_type in POINTWISE else 0)
        most = max(most, live + _scratch(node, known, scores, unrolls))
        live -= 0 if node.op_type in POINTWISE else freed
        unread = {name for name in made if name not in walk.last}
        live -= sum(map(walk.numbers, unread))
        walk.held = (walk.held - dying) | (set(made) - unread)
    return most * width


class _Walk:
    """What each value of a graph is made of, and when that is read last."""

    def __init__(self, model: Any, known: Mapping[str, Shape]) -> None:
        self._known = known
        graph = model.graph
        weights = {tensor.name for tensor in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in weights]
        ends = {value.name for value in graph.output}
        readers: dict[str, list[str]] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node.op_type)
        self.roots: dict[str, set[str]] = {name: {name} for name in inputs}
        """By value: those held in memory that it is read from. What follows from weights alone has none."""
        for node in graph.node:
            sources = self.sources(node)
            for name in node.output:
                through = node.op_type in VIEWS or (
                    node.op_type in POINTWISE and all(kind in POINTWISE for kind in readers.get(name, ()))
                )
                self.roots[name] = sources if not sources or (through and name not in ends) else {name}
        self.last: dict[str, int] = {}
        """By value held: the index of the last node that reads it."""
        for index, node in enumerate(graph.node):
            self.last |= dict.fromkeys(self.sources(node), index)
        self.last |= dict.fromkeys(ends, len(graph.node))
        self.held = set(inputs)

    def sources(self, node: Any) -> set[str]:
        return {root for name in node.input for root in self.roots.get(name, ())}

    def numbers(self, name: str) -> int:
        return math.prod(self._known.get(name, (0,)))


def _scratch(node: Any, known: Mapping[str, Shape], scores: int, unrolls: bool) -> int:
    """Numbers that a node holds while it computes."""
    if node.op_type == "Attention" and scores:
        if not all(name in known for name in node.input[:2]):
            raise ShapeError(f"The shapes of attention {node.name!r} don't follow from those of the inputs.")
        query, key = known[node.input[0]], known[node.input[1]]
        return scores * math.prod(query[:3]) * key[2] if len(query) == 4 else 0
    if node.op_type == "Conv" and unrolls and node.output[0] in known:
        window = math.prod(known.get(node.input[1], (0,))[1:])
        pixels = math.prod(known[node.output[0]][2:])
        return window * pixels if math.prod(attribute(node, "kernel_shape", [1])) > 1 else 0
    return 0
