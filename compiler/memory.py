"""Peak memory of the values of a graph at given shapes, without its weights.

A value is held from the node that computes it to the last node that reads it. Nodes that move no data (reshape, split,
slice) give views. Chains of pointwise operators are fused and computed in place of an input that isn't needed
afterwards, as compilers do. Memory that a runtime adds to that is a factor of its own (`Costs.per_value`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ShapeError
from ..core.tensors import Shape
from .sizes import infer_shapes, read_graph

VIEWS = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"})
POINTWISE = frozenset(
    {
        *("Add", "Cast", "Div", "Erf", "Exp", "Gelu", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Swish"),
        *("Tanh", "Where"),
    }
)


@dataclass(frozen=True)
class Lifetime:
    """Interval in which so many numbers are held. Node `i` reads at time `2 * i` and computes at `2 * i + 1`."""

    first: int
    last: int
    numbers: float


def activation_bytes(
    graph: Path, shapes: Mapping[str, Shape], width: int, *, per_value: float = 1.0, scores: int = 0
) -> int:
    """Peak bytes of all values, at `width` bytes per number, scaled by `per_value`.

    `scores` is the number of copies of the attention scores that are held beside them, 0 where attention is fused.
    Raises the errors of `infer_shapes`.
    """
    model = read_graph(graph)
    known = infer_shapes(model, graph, shapes)
    values = [Lifetime(one.first, one.last, per_value * one.numbers) for one in _values(model, known)]
    return round(_at_once([*values, *_scores(model, known, scores)]) * width)


def looked_up(graph: Path) -> int:
    """Count the numbers in weights that are only used for look-ups, such as a text encoder's token embeddings."""
    model = read_graph(graph)
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def only_looked_up(name: str) -> bool:
        return bool(readers.get(name)) and all(
            only_looked_up(node.output[0])
            if node.op_type in ("Cast", "Identity")
            else node.op_type == "Gather" and node.input[0] == name and name not in node.input[1:]
            for node in readers[name]
        )

    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if only_looked_up(tensor.name))


def _values(model: Any, known: Mapping[str, Shape]) -> Iterable[Lifetime]:
    """The lifetime of each value, from the node that computes it to the last that reads it."""
    nodes, graph = list(model.graph.node), model.graph
    weights = {tensor.name for tensor in graph.initializer}
    ends = {value.name for value in graph.output}
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    made = {value.name: -1 for value in graph.input if value.name not in weights}
    """For each value in memory: the index of the node that computes it."""
    roots: dict[str, set[str]] = {name: {name} for name in made}
    """For each value: the values in memory from which it is read; none where it follows from weights alone."""
    for index, node in enumerate(nodes):
        sources = {root for name in node.input for root in roots.get(name, ())}
        for name in node.output:
            through = node.op_type in VIEWS or (
                node.op_type in POINTWISE and all(kind in POINTWISE for kind in readers.get(name, ()))
            )
            if not sources or (through and name not in ends):
                roots[name] = sources
            else:
                roots[name], made[name] = {name}, index
    last = dict(made)
    for index, node in enumerate(nodes):
        last |= {root: index for name in node.input for root in roots.get(name, ())}
    last |= dict.fromkeys(ends & made.keys(), len(nodes))
    for name, index in made.items():
        end = last[name]
        in_place = index < end < len(nodes) and nodes[end].op_type in POINTWISE
        yield Lifetime(2 * index + 1, 2 * end + (0 if in_place else 1), math.prod(known.get(name, (0,))))


def _at_once(held: list[Lifetime]) -> float:
    """The largest count of numbers held at one time."""
    changes: dict[int, float] = {}
    for one in held:
        changes[one.first] = changes.get(one.first, 0) + one.numbers
        changes[one.last + 1] = changes.get(one.last + 1, 0) - one.numbers
    most = live = 0.0
    for time in sorted(changes):
        live += changes[time]
        most = max(most, live)
    return most


def _scores(model: Any, known: Mapping[str, Shape], copies: int) -> Iterable[Lifetime]:
    """The attention scores (queries times keys) that are held while attention computes."""
    for index, node in enumerate(model.graph.node):
        if node.op_type != "Attention" or not copies:
            continue
        if not all(name in known for name in node.input[:2]):
            raise ShapeError(
                f"The shapes of attention {node.name!r} do not follow from those of the inputs, so its memory cannot "
                "be predicted. Use the graph that was exported."
            )
        query, key = known[node.input[0]], known[node.input[1]]
        if len(query) == 4:
            yield Lifetime(2 * index + 1, 2 * index + 1, copies * math.prod(query[:3]) * key[2])
