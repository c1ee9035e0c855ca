"""Replacement of operators for which a device has no kernel, or an inaccurate one.

ONNX Runtime's CUDA provider (1.31.1) has no kernel for GroupNormalization, which it expands into some twenty operators,
and none for ArgMax of integers, which it computes on the CPU, between two copies, so that the call can't be recorded as
a graph. Its Attention in f16 agreed with PyTorch to only 19 dB in a UNet of Stable Diffusion 1.5 on an H200, where
opset 18's small operators reach 62 dB (benchmarks/results/2026-11-26-h200.md). It does have Microsoft's GroupNorm, for
channels-last samples, with or without SiLU behind the norm, and Microsoft's MultiHeadAttention, which takes a mask as a
bias of the scores. What of ONNX's Attention that operator can't express stays in f32.
Source: OperatorKernels.md and ContribOperators.md of the ONNX Runtime repository.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core.errors import CompileError
from ..core.recipes import WIDE

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT = "com.microsoft"
SEQUENCE_RANK, SAMPLE_RANK = 3, 4
HEADS_FIRST = [0, 2, 1, 3]
"""Swaps the heads and the sequence of [batch, heads, length, width], and swaps them back."""
SILU = 1
"""`activation` of Microsoft's GroupNorm."""


def rewrite(model: ir.Model, lacks: Collection[str]) -> ir.Model:
    """Replace the operators of these names by equivalent ones.

    The model is changed in place and returned. Norms of samples of another rank than three or four are not replaced,
    nor is attention with a cache, a softcap, several outputs, an unknown number of heads, fewer of them for keys, a
    mask of unknown rank or type, or a causal flag where there may be more keys than queries: it stays in f32.

    Raises `CompileError` for an operator that has no replacement here.
    """
    if unknown := sorted(set(lacks) - REWRITES.keys()):
        raise CompileError(
            f"The runtime lists {', '.join(unknown)} under `Facts.lacks`, and latentc has no replacement for it. "
            f"Replaceable operators: {', '.join(REWRITES)}. Correct `Facts.lacks` of the runtime."
        )
    for node in list(model.graph):
        if node.op_type in lacks and node.domain in ("", "ai.onnx") and node.graph is not None:
            REWRITES[node.op_type](model, node)
    return model


def _argmax(model: ir.Model, node: ir.Node) -> None:
    """ArgMax over floats instead of integers: f32 holds integers below 2^24, such as token ids, exactly."""
    import onnx_ir as ir

    value = node.inputs[0]
    if value is None or value.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        return
    cast_ = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{node.name}.f32")
    floats = cast_.outputs[0]
    floats.name, floats.shape, floats.type = cast_.name, value.shape, ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(node, cast_)
    node.replace_input_with(0, floats)


class _Before:
    """Creates nodes that replace another one."""

    def __init__(self, model: ir.Model, node: ir.Node, old: ir.Value) -> None:
        self._model, self._node, self._old = model, node, old
        self._made: list[ir.Node] = []

    def __call__(self, op: str, *inputs: Any, domain: str = "", **attributes: Any) -> Any:
        import onnx_ir as ir

        stem = f"{self._node.name or self._node.outputs[0].name}.{len(self._made)}"
        one: ir.Node = cast("Any", ir).node(op, inputs, attributes, domain=domain, name=stem)
        one.outputs[0].name, one.outputs[0].type = stem, self._old.type
        if WIDE in self._node.metadata_props:
            one.metadata_props[WIDE] = self._node.metadata_props[WIDE]
        self._made.append(one)
        return one.outputs[0]

    def integers(self, op: str, *inputs: Any, **attributes: Any) -> Any:
        """The output of an operator that gives int64."""
        import onnx_ir as ir

        made = self(op, *inputs, **attributes)
        made.type = ir.TensorType(ir.DataType.INT64)
        return made

    def whole(self, *values: int) -> Any:
        """A constant of int64."""
        import onnx_ir as ir

        return self.integers("Constant", value=ir.tensor(np.array(values, np.int64)))

    def length(self, value: Any, axis: int) -> Any:
        """The size of an axis, as int64 of one element."""
        return self.integers("Shape", value, start=axis, end=axis + 1)

    @property
    def kind(self) -> Any:
        """The old value's type in numpy."""
        return cast("Any", self._old.dtype).numpy()

    def number(self, value: float) -> Any:
        """A scalar of the old value's type: an initializer, which the conversion to f16 keeps finite."""
        import onnx_ir as ir

        name, graph = f"latentc.{self._old.dtype}.{value:g}", self._model.graph
        if name not in graph.initializers:
            tensor = ir.tensor(np.array(value, self.kind), name=name)
            one = ir.Value(name=name, shape=ir.Shape([]), type=self._old.type, const_value=tensor)
            graph.register_initializer(one)
        return graph.initializers[name]

    def take_place(self, value: Any, gone: Collection[ir.Node]) -> None:
        """Give `value` the old value's name, shape and users, and remove the nodes in `gone`, which computed it."""
        import onnx_ir as ir

        value.shape = self._old.shape
        value.name, self._old.name = self._old.name, value.name
        self._model.graph.insert_before(self._node, self._made)
        cast("Any", ir).convenience.replace_all_uses_with(self._old, value, replace_graph_outputs=True)
        for one in gone:
            self._model.graph.remove(one, safe=True)
        self._model.opset_imports[MICROSOFT] = 1


def _group_norm(model: ir.Model, node: ir.Node) -> None:
    sample, scale, bias = cast("Any", node.inputs)
    rank = None if sample.shape is None else len(sample.shape)
    if rank not in (SEQUENCE_RANK, SAMPLE_RANK):
        return
    given: Mapping[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    silu = _silu(node)
    add = _Before(model, node, (silu or node).outputs[0])
    picture = sample if rank == SAMPLE_RANK else add("Unsqueeze", sample, add.whole(3))
    norm = add(
        "GroupNorm",
        add("Transpose", picture, perm=[0, 2, 3, 1]),
        scale,
        bias,
        domain=MICROSOFT,
        activation=SILU if silu is not None else 0,
        channels_last=1,
        epsilon=float(given.get("epsilon", 1e-5)),
        groups=int(given["num_groups"]),
    )
    whole = add("Transpose", norm, perm=[0, 3, 1, 2])
    if rank == SEQUENCE_RANK:
        whole = add("Squeeze", whole, add.whole(3))
    gone = [node] if silu is None else [silu, *(use for use in node.outputs[0].consumers() if use is not silu), node]
    add.take_place(whole, gone)


def _attention(model: ir.Model, node: ir.Node) -> None:
    query, key, value, mask, *cache = cast("Any", (*node.inputs, None)[: max(4, len(node.inputs))])
    given: Mapping[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    heads, causal = _side(query, 1), bool(given.get("is_causal"))
    plain = len(node.outputs) == 1 and not any(cache) and not given.get("softcap")
    square = not causal or _is_same(_side(query, 2), _side(key, 2))
    if not (plain and square and isinstance(heads, int) and _side(key, 1) == heads and _is_broadcast(mask, key)):
        node.metadata_props[WIDE] = "f32"
        return
    add = _Before(model, node, node.outputs[0])

    def rows(tensor: Any) -> Any:
        """From [batch, heads, length, width] to [batch, length, heads * width]."""
        before: ir.Node | None = tensor.producer()
        if before is not None and before.op_type == "Transpose" and _perm(before) == HEADS_FIRST:
            by_row = before.inputs[0]
        else:
            by_row = add("Transpose", tensor, perm=HEADS_FIRST)
        return add("Reshape", by_row, add.whole(0, 0, -1))

    chosen: dict[str, Any] = {"scale": float(given["scale"])} if given.get("scale") else {}
    inputs = [rows(tensor) for tensor in (query, key, value)]
    if mask is not None:
        inputs += [None, None, _bias(add, mask, query, key)]
    if causal:
        chosen["unidirectional"] = 1
    joined = add("MultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=heads, **chosen)
    by_head = add("Reshape", joined, add.whole(0, 0, heads, -1))
    add.take_place(add("Transpose", by_head, perm=HEADS_FIRST), [node])


def _bias(add: _Before, mask: Any, query: Any, key: Any) -> Any:
    """What is added to the scores, of [batch or 1, heads or 1, queries, keys]: only the first two may be broadcast."""
    missing = SAMPLE_RANK - len(mask.shape)
    fits = _is_same(_side(mask, 2 - missing), _side(query, 2)) and _is_same(_side(mask, 3 - missing), _side(key, 2))
    if mask.dtype.name == "BOOL":  # what may be seen
        mask = add("Where", mask, add.number(0.0), add.number(float(np.finfo(add.kind).min)))
    if missing:
        mask = add("Unsqueeze", mask, add.whole(*range(missing)))
    if not fits:
        sides = [add.length(tensor, 2) for tensor in (query, key)]
        mask = add("Expand", mask, add.integers("Concat", add.whole(1, 1), *sides, axis=0))
    return mask


def _side(value: Any, axis: int) -> Any:
    """Size of an axis, or its symbol; None where there is no such axis, or more than four."""
    shape: Any = () if value is None or value.shape is None else value.shape
    return shape[axis] if 0 <= axis < len(shape) <= SAMPLE_RANK else None


def _is_same(one: Any, other: Any) -> bool:
    """Whether two sizes are known to be equal: numbers, or the same symbol."""
    return one == other and getattr(one, "value", one) is not None


def _is_broadcast(mask: Any, key: Any) -> bool:
    """Whether a mask, if there is one, can be broadcast to the scores of these keys."""
    if mask is None:
        return True
    if mask.shape is None or mask.dtype is None or not SAMPLE_RANK - 2 <= len(mask.shape) <= SAMPLE_RANK:
        return False
    last, keys = mask.shape[-1], _side(key, 2)
    return last == 1 or not (isinstance(last, int) and isinstance(keys, int)) or last == keys


def _perm(node: ir.Node) -> list[int] | None:
    found = node.attributes.get("perm")
    return None if found is None else list(cast("Any", found).value)


def _silu(node: ir.Node) -> ir.Node | None:
    """The product of the node's output and its sigmoid, where nothing else uses either."""
    value = node.outputs[0]
    users = value.consumers()
    sigmoid = next((user for user in users if user.op_type == "Sigmoid"), None)
    product = next((user for user in users if user.op_type == "Mul"), None)
    if len(users) != 2 or sigmoid is None or product is None or value.is_graph_output():
        return None
    gate = sigmoid.outputs[0]
    fits = gate.consumers() == (product,) and not gate.is_graph_output() and set(product.inputs) == {value, gate}
    return product if fits else None


REWRITES: Mapping[str, Callable[[Any, Any], None]] = {
    "ArgMax": _argmax,
    "Attention": _attention,
    "GroupNormalization": _group_norm,
}
"""The replacement of each operator."""
