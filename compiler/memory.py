"""How much memory the values of a graph take at once, at given shapes, beside its weights.

A value is held from the node that makes it to the last that reads it. Nodes that rearrange nothing (reshape, split,
slice) give views; chains of operators that go number by number are computed in one piece, in the place of an input that
is not needed after, as compilers do. IREE also writes a padded copy of what a convolution reads, together with the
value itself where that comes from one, and lays everything out in one block, with the gaps that this leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Held:
    """Numbers that are held; a node reads at twice its index, and computes right after."""

    first: int
    last: int
    numbers: int


def activation_bytes(
    graph: Path, shapes: Mapping[str, Shape], width: int, *, scores: int = 0, unrolls: bool = False, pads: bool = False
) -> int:
    """The most bytes that values take at once, at `width` bytes a number.

    `scores` is how many copies of attention's scores are held at once, 0 where the operator is fused; `unrolls` counts
    the windows of a convolution written out as a matrix; `pads` copies of what convolutions pad, and what is lost
    between values that are laid out in one block. Raises what `infer_shapes` raises.
    """
    model = read_graph(graph)
    known = infer_shapes(model, graph, shapes)
    walk = _Walk(model, known)
    held = [*walk.values(pads=pads), *_scratch(model, known, scores, unrolls)]
    if pads:
        return _laid_out([*held, *walk.padded()]) * width
    return _at_once(held) * width


def looked_up(graph: Path) -> int:
    """Numbers in weights that are only looked up in, as a text encoder's table of tokens."""
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


class _Walk:
    """What each value of a graph is made of, when it is made, and when that is read last."""

    def __init__(self, model: Any, known: Mapping[str, Shape]) -> None:
        self._known, self._nodes = known, list(model.graph.node)
        graph = model.graph
        weights = {tensor.name for tensor in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in weights]
        ends = {value.name for value in graph.output}
        readers: dict[str, list[str]] = {}
        for node in self._nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node.op_type)
        self._roots: dict[str, set[str]] = {name: {name} for name in inputs}
        """By value: those held in memory that it is read from. What follows from weights alone has none."""
        self._made = dict.fromkeys(inputs, -1)
        """By value held: the index of the node that makes it."""
        for index, node in enumerate(self._nodes):
            sources = self._sources(node)
            for name in node.output:
                through = node.op_type in VIEWS or (
                    node.op_type in POINTWISE and all(kind in POINTWISE for kind in readers.get(name, ()))
                )
                if not sources or (through and name not in ends):
                    self._roots[name] = sources
                else:
                    self._roots[name], self._made[name] = {name}, index
        self._last = dict(self._made)
        """By value held: the index of the last node that reads it."""
        for index, node in enumerate(self._nodes):
            self._last |= dict.fromkeys(self._sources(node), index)
        self._last |= dict.fromkeys(ends & self._made.keys(), len(self._nodes))

    def values(self, *, pads: bool) -> Iterable[Held]:
        """Each value, from where it is made to where it is read last."""
        for name, made in self._made.items():
            last = self._last[name]
            reader = self._nodes[last] if made < last < len(self._nodes) else None
            yield Held(2 * made + 1, 2 * last + (0 if self._given_up(name, reader, pads=pads) else 1), self._size(name))

    def padded(self) -> Iterable[Held]:
        """What convolutions pad, copied into zeros that are written while the value itself is made."""
        for index, node in enumerate(self._nodes):
            pads: list[int] = attribute(node, "pads", []) if node.op_type == "Conv" else []
            shape = self._known.get(node.input[0], ()) if any(pads) else ()
            if shape:
                sides = zip(shape[2:], pads, pads[len(pads) // 2 :], strict=False)
                numbers = math.prod(shape[:2]) * math.prod(size + before + after for size, before, after in sides)
                yield Held(max(map(self._begun, self._sources(node)), default=2 * index), 2 * index + 1, numbers)

    def _begun(self, name: str) -> int:
        """When the computing of a value begins: what goes number by number is part of the convolution before it."""
        made = self._made[name]
        node = self._nodes[made] if made >= 0 else None
        if node is not None and node.op_type in POINTWISE:
            before = [self._made[root] for root in self._sources(node) if self._last[root] == made]
            made = max((one for one in before if one >= 0 and self._nodes[one].op_type == "Conv"), default=made)
        convolution = made >= 0 and self._nodes[made].op_type == "Conv"
        return 2 * made + (0 if convolution else 1)

    def _given_up(self, name: str, reader: Any, *, pads: bool) -> bool:
        """Whether its last reader computes in its place, or in a copy."""
        if reader is None:
            return False
        if pads and reader.op_type == "Conv":
            return any(attribute(reader, "pads", []))
        normed = pads and self._nodes[self._made[name]].op_type == "GroupNormalization"
        return reader.op_type in POINTWISE and not normed

    def _sources(self, node: Any) -> set[str]:
        return {root for name in node.input for root in self._roots.get(name, ())}

    def _size(self, name: str) -> int:
        return math.prod(self._known.get(name, (0,)))


def _at_once(held: list[Held]) -> int:
    """The most numbers at one time."""
    changes: dict[int, int] = {}
    for one in held:
        changes[one.first] = changes.get(one.first, 0) + one.numbers
        changes[one.last + 1] = changes.get(one.last + 1, 0) - one.numbers
    most = live = 0
    for time in sorted(changes):
        live += changes[time]
        most = max(most, live)
    return most


def _laid_out(held: list[Held]) -> int:
    """Numbers of one block for all, each in the smallest gap that fits, in the order in which they are made."""
    placed: list[tuple[int, Held]] = []
    for one in sorted(held, key=lambda one: one.first):
        end, gaps = 0, list[tuple[int, int]]()
        for start, other in placed:
            if other.last >= one.first and one.last >= other.first:
                if start - end >= one.numbers:
                    gaps.append((start - end, end))
                end = max(end, start + other.numbers)
        place = min(gaps)[1] if gaps else end
        placed.append((place, one))
        placed.sort(key=lambda pair: pair[0])
    return max((start + one.numbers for start, one in placed), default=0)


def _scratch(model: Any, known: Mapping[str, Shape], scores: int, unrolls: bool) -> Iterable[Held]:
    """What nodes hold while they compute."""
    for index, node in enumerate(model.graph.node):
        if numbers := _scratch_of(node, known, scores, unrolls):
            yield Held(2 * index + 1, 2 * index + 1, numbers)


def _scratch_of(node: Any, known: Mapping[str, Shape], scores: int, unrolls: bool) -> int:
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
