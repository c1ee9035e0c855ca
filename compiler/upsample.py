"""Nearest upsampling by two, followed by a 3x3 convolution, as one transposed convolution of 4x4 with stride 2.

Each output pixel then takes 4 multiplications per channel instead of 9: of the 9 weights, those that meet the same
pixel of the small image are added. The result is the same but for rounding of these sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core.errors import LatentcError
from ..core.external import values_of
from ..core.recipes import WIDE
from ..core.tensors import Array, Shape
from .sizes import infer_shapes, read_graph

if TYPE_CHECKING:
    import onnx_ir as ir

SUMS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=np.float32)
"""The 4 weights of the transposed convolution along an axis, as sums of the 3 of the convolution."""

_F32 = 1
"""`onnx.TensorProto.FLOAT`."""
_NEAREST = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
_PLAIN: dict[str, Any] = {
    "pads": [1, 1, 1, 1],
    "strides": [1, 1],
    "dilations": [1, 1],
    "group": 1,
    "auto_pad": "NOTSET",
}
_DEFAULTS: dict[str, Any] = {**_PLAIN, "pads": [0, 0, 0, 0]}


def upsamples(graph: Path) -> bool:
    """Whether a graph file enlarges anything."""
    return any(node.op_type == "Resize" for node in read_graph(graph).graph.node)


def fold_upsampling(model: ir.Model, graph: Path, inputs: Mapping[str, Shape] | None) -> ir.Model:
    """Replace each pair of nearest upsampling by exactly two and 3x3 convolution, in place; returns the model.

    `graph` is the file that the model was read from. An upsampling to a computed size, such as that of a UNet's skip
    connection, is replaced only if the shapes of the model's `inputs` are fixed and it follows that it doubles. Pairs
    whose upsampled image has other readers are kept.
    """
    known = _known(model, graph, inputs)
    for node in list(model.graph):
        if node.op_type == "Conv" and _is_plain(node):
            resize = node.inputs[0].producer() if node.inputs[0] is not None else None
            if resize is not None and _doubles(resize, known) and len(tuple(resize.outputs[0].uses())) == 1:
                _replace(model, resize, node)
    return model


def _known(model: ir.Model, graph: Path, inputs: Mapping[str, Shape] | None) -> Mapping[str, Shape]:
    """The shapes of all values, where they are needed and follow from those of the inputs."""
    computed = any(node.op_type == "Resize" and _scales(node) is None for node in model.graph)
    if inputs is None or not computed:
        return {}
    try:
        return infer_shapes(read_graph(graph), graph, inputs)
    except LatentcError:  # of an adopted graph: it stays as it is
        return {}


def _is_plain(node: ir.Node) -> bool:
    """Whether it is a convolution of 3x3 that keeps the size."""
    found: dict[str, Any] = {name: one.value for name, one in node.attributes.items() if name != "kernel_shape"}
    if found.keys() - _PLAIN.keys() or any(
        _listed(found.get(name, _DEFAULTS[name])) != one for name, one in _PLAIN.items()
    ):
        return False
    weight = _weight(node)
    return weight is not None and [int(size) for size in weight.shape.numpy()[2:]] == [3, 3]


def _listed(value: Any) -> Any:
    return value if isinstance(value, str | int) else list(value)


def _weight(node: ir.Node) -> Any:
    """The stored weight of a convolution in f32, in front of a cast if there is one; None for any other."""
    value = node.inputs[1]
    maker = None if value is None else value.producer()
    if maker is not None and maker.op_type == "Cast" and int(maker.attributes["to"].value) == _F32:
        value = maker.inputs[0]
        return None if value is None else value.const_value
    stored = None if value is None else value.const_value
    return stored if stored is not None and int(stored.dtype) == _F32 else None


def _scales(node: ir.Node) -> list[float] | None:
    """The scales of an upsampling; None where it has a size instead, or they are computed."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    maker = None if value is None else value.producer()
    stored = None if value is None else value.const_value
    if stored is None and maker is not None and maker.op_type == "Constant" and "value" in maker.attributes:
        stored = maker.attributes["value"].value
    return None if stored is None or stored.size == 0 else [float(one) for one in stored.numpy()]


def _doubles(node: ir.Node, known: Mapping[str, Shape]) -> bool:
    if node.op_type != "Resize" or node.domain not in ("", "ai.onnx"):
        return False
    if any(name not in node.attributes or node.attributes[name].value != value for name, value in _NEAREST.items()):
        return False
    scales = _scales(node)
    if scales is None and node.inputs[0] is not None:
        before, after = known.get(str(node.inputs[0].name)), known.get(str(node.outputs[0].name))
        return before is not None and len(before) == 4 and after == (*before[:2], 2 * before[2], 2 * before[3])
    return scales == [1.0, 1.0, 2.0, 2.0]


def _replace(model: ir.Model, resize: ir.Node, conv: ir.Node) -> None:
    import onnx_ir as ir

    stored, old, kept = _weight(conv), conv.outputs[0], conv.inputs[1]
    assert kept is not None
    spare = resize.inputs[1:]
    out, into = (int(size) for size in stored.shape.numpy()[:2])

    def sums() -> ir.TensorProtocol:
        return ir.tensor(transposed(values_of(stored).astype(np.float32)))

    name, shape, dtype = f"{kept.name}.upsampled", ir.Shape((into, out, 4, 4)), ir.DataType.FLOAT
    weight = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
    weight.const_value = ir.LazyTensor(sums, dtype=dtype, shape=shape, name=name, cache=False)
    model.graph.register_initializer(weight)
    attributes = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    whole = ir.node("ConvTranspose", [resize.inputs[0], weight, *conv.inputs[2:]], attributes, name=conv.name)
    new = whole.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    if WIDE in conv.metadata_props:
        whole.metadata_props[WIDE] = conv.metadata_props[WIDE]
    model.graph.insert_before(conv, whole)
    cast("Any", ir.convenience).replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove([conv, resize], safe=True)
    for value in (kept, *spare):
        _drop_unused(model, value)


def _drop_unused(model: ir.Model, weight: ir.Value | None) -> None:
    """Remove a weight or a constant, and the cast behind it, unless they have other readers."""
    while weight is not None and not tuple(weight.uses()):
        maker = weight.producer()
        if maker is None:
            model.graph.initializers.pop(str(weight.name), None)
            return
        source = maker.inputs[0] if maker.inputs else None
        model.graph.remove(maker, safe=True)
        weight = source


def transposed(weight: Array) -> Array:
    """The weight [in, out, 4, 4] of the transposed convolution from that of the convolution, [out, in, 3, 3]."""
    return np.ascontiguousarray(np.einsum("ak,oikl,bl->ioab", SUMS, weight, SUMS, optimize=True))
