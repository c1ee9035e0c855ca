"""Microsoft's operators for GPUs as standard ones, so that the CPU and every runtime compute them.

ONNX Runtime's optimizer, which Olive calls, fuses graphs to them for CUDA and DirectML. The CPU has no kernels for all
of their forms.
Source: ContribOperators.md of the ONNX Runtime repository.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT = "com.microsoft"
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
ATTENTION = "MultiHeadAttention"
"""Has a CPU kernel, but not for a query that holds keys and values, or keys that hold values."""
QUERY, KEY, VALUE = range(3)


class _Nodes:
    """Creates the standard nodes that replace one of Microsoft's."""

    def __init__(self, node: ir.Node) -> None:
        self.node, self.made = node, list[Any]()
        self.inputs: list[Any] = [*node.inputs, *[None] * 5]
        self.given: Mapping[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}

    def __call__(self, op: str, *inputs: Any, **attributes: Any) -> Any:
        import onnx_ir as ir

        stem = f"{self.node.outputs[0].name}.{len(self.made)}"  # names of nodes may be there twice
        one: Any = cast("Any", ir).node(op, inputs, attributes, name=stem)
        one.outputs[0].name = stem
        self.made.append(one)
        return one.outputs[0]

    def constant(self, array: Any) -> Any:
        import onnx_ir as ir

        return self("Constant", value=ir.tensor(np.asarray(array)))

    def reshape(self, value: Any, *sides: int) -> Any:
        return self("Reshape", value, self.constant(np.array(sides, np.int64)))

    def sum(self, *values: Any) -> Any:
        """The sum of those that are given."""
        first, *others = (one for one in values if one is not None)
        for one in others:
            first = self("Add", first, one)
        return first


def _normed(add: _Nodes, sample: Any) -> Any:
    _, scale, bias, *_ = add.inputs
    groups, last = int(add.given["groups"]), bool(add.given.get("channels_last", 1))
    sample = add("Transpose", sample, perm=TO_CHANNELS_FIRST) if last else sample
    norm = add(
        "InstanceNormalization",
        add.reshape(sample, 0, groups, -1),
        add.constant(np.ones(groups, np.float32)),
        add.constant(np.zeros(groups, np.float32)),
        epsilon=float(add.given.get("epsilon", 1e-5)),
    )
    whole = add("Reshape", norm, add("Shape", sample))
    whole = add.sum(add("Mul", whole, add.reshape(scale, -1, 1, 1)), add.reshape(bias, -1, 1, 1))
    if add.given.get("activation", 0):
        whole = add("Mul", whole, add("Sigmoid", whole))
    return add("Transpose", whole, perm=TO_CHANNELS_LAST) if last else whole


def _group_norm(add: _Nodes) -> list[Any]:
    return [_normed(add, add.inputs[0])]


def _of_four_axes(add: _Nodes, skip: Any, *, last: bool) -> Any:
    """A skip whose number of axes the graph doesn't say, two or four, with four of them."""
    sides, end = add("Shape", skip), np.iinfo(np.int64).max

    def cut(start: int, stop: int) -> Any:
        return add("Slice", sides, *(add.constant(np.array([one], np.int64)) for one in (start, stop)))

    before, middle, after = (cut(0, 1), cut(1, -1), [cut(-1, end)]) if last else (cut(0, 2), cut(2, end), [])
    ones = add.constant(np.ones(2, np.int64))
    missing = add("Slice", ones, add("Shape", middle), add.constant(np.array([2], np.int64)))
    return add("Reshape", skip, add("Concat", before, missing, middle, *after, axis=0))


def _skip_group_norm(add: _Nodes) -> list[Any]:
    sample, _, _, skip, bias, *_ = add.inputs
    last = bool(add.given.get("channels_last", 1))
    if skip.shape is None:
        skip = _of_four_axes(add, skip, last=last)
    elif len(skip.shape) == 2:
        skip = add.reshape(skip, 0, 1, 1, -1) if last else add.reshape(skip, 0, -1, 1, 1)
    if bias is not None and not last:
        bias = add.reshape(bias, -1, 1, 1)
    total = add.sum(sample, skip, bias)
    return [_normed(add, total), total]


def _bias_split_gelu(add: _Nodes) -> list[Any]:
    total = add.sum(*add.inputs[:2])
    half = add("Div", add("Shape", total), add.constant(np.array([1, 1, 2], np.int64)))
    middle = add("Gather", half, add.constant(np.array([2], np.int64)), axis=0)
    start, stop, axis = (add.constant(np.array([one], np.int64)) for one in (0, np.iinfo(np.int64).max, 2))
    left, right = add("Slice", total, start, middle, axis), add("Slice", total, middle, stop, axis)
    root, one, two = (add.constant(np.float32(number)) for number in (np.sqrt(2), 1, 2))
    grown = add("Mul", right, add("Add", add("Erf", add("Div", right, root)), one))
    return [add("Mul", left, add("Div", grown, two))]


def _bias_add(add: _Nodes) -> list[Any]:
    return [add.sum(*add.inputs[:3])]


def _conv(add: _Nodes) -> list[Any]:
    sample, weight, *bias = add.inputs[:3]
    chosen = {name: value for name, value in add.given.items() if name != "activation"}
    first = [add("Transpose", one, perm=TO_CHANNELS_FIRST) for one in (sample, weight)]
    return [add("Transpose", add("Conv", *first, *(one for one in bias if one is not None), **chosen),
                perm=TO_CHANNELS_LAST)]  # fmt: skip


def _unpack(add: _Nodes) -> None:
    """Give attention its query, keys and values apart, each of [batch, length, heads * width]."""
    packed = QUERY if add.inputs[KEY] is None else KEY
    for at in range(packed, VALUE + 1):
        index = add.constant(np.array(at - packed, np.int64))
        add.node.replace_input_with(at, add.reshape(add("Gather", add.inputs[packed], index, axis=3), 0, 0, -1))


EXPANSIONS: Mapping[str, Callable[[_Nodes], list[Any]]] = {
    "BiasAdd": _bias_add,
    "BiasSplitGelu": _bias_split_gelu,
    "GroupNorm": _group_norm,
    "NhwcConv": _conv,
    "SkipGroupNorm": _skip_group_norm,
}
"""What computes each of Microsoft's operators that has no CPU kernel: its outputs, in order."""


def expand(model: ir.Model) -> tuple[str, ...]:
    """Replace `EXPANSIONS`, and unpack attention; the model is changed in place. Returns the operators it replaced."""
    import onnx_ir as ir

    replaced: set[str] = set()
    for node in [one for one in model.graph if one.domain == MICROSOFT]:
        add = _Nodes(node)
        if node.op_type == ATTENTION and add.inputs[VALUE] is None:
            node.resize_inputs(max(len(node.inputs), VALUE + 1))
            _unpack(add)
            model.graph.insert_before(node, add.made)
            replaced.add(node.op_type)
        elif node.op_type in EXPANSIONS:
            made = EXPANSIONS[node.op_type](add)
            model.graph.insert_before(node, add.made)
            for old, new in zip(node.outputs, made, strict=False):
                new.name, old.name, new.shape, new.type = old.name, f"{old.name}.old", old.shape, old.type
                cast("Any", ir).convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            replaced.add(node.op_type)
    return tuple(sorted(replaced))
