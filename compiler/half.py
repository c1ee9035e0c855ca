"""Conversion of a graph from f32 to f16, for runtimes that compute in the types of the graph.

Operations that would lose more than rounding stay in f32: sums of many terms (means, softmax, norms where the library
doesn't sum them in f32), powers and exponentials, and everything that leads to a sine (a timestep times a frequency,
where f16 would be off by whole periods of the high frequencies). In what type the products of MatMul, Gemm and Conv are
summed, and the softmax inside a fused Attention, can't be stated in ONNX: IREE, and ONNX Runtime on CUDA, sum in f32;
TensorRT doesn't say, and refuses `softmax_precision`. There the comparison on the device decides. Inputs and outputs
stay f32. So do the nodes that the export marked, whose values f16 can't hold in published checkpoints: T5's
residuals, a block of Stable Diffusion 3.5 Large (`PartSpec.wide`). Where the checkpoint's weights are f16, they are
used from the bundle's file without a copy.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core.errors import CompileError
from ..core.external import values_of
from ..core.recipes import WIDE

if TYPE_CHECKING:
    import onnx_ir as ir

NARROW = frozenset(
    {
        *("Conv", "ConvTranspose", "MatMul", "Gemm", "Attention", "Add", "Sub", "Mul", "Div", "Neg", "Relu", "Sigmoid"),
        *("Tanh", "Gelu", "Erf", "Concat", "Transpose", "Reshape", "Flatten", "Split", "Slice", "Expand", "Squeeze"),
        *("Unsqueeze", "Gather", "GatherND", "Resize", "Pad", "Identity", "Where", "Max", "Min"),
        "MultiHeadAttention",  # Microsoft's
    }
)
"""Operators computed in f16. All other operators, such as Softmax, ReduceMean, RMSNormalization or the sums of an
expanded norm, stay in f32."""

NORMS = frozenset({"GroupNormalization", "LayerNormalization", "GroupNorm"})
"""Operators that take f16 only where the device sums them in f32 internally: `Facts.sums_in_f32`. TensorRT is not such
a device. In onnx-tensorrt 10.1 the importer of GroupNormalization doesn't read `stash_type`, and since TensorRT 11 and
RTX its layer of norms has no setting for it."""

PHASES = frozenset({"Sin", "Cos"})
SCALES = {"Resize": (0,), "Pad": (0, 2), "GroupNorm": (0,)}
"""Operators with f32 inputs that are parameters, such as scales: the indices of the inputs that are data."""

LARGEST, LARGEST_F32 = float(np.finfo(np.float16).max), float(np.finfo(np.float32).max)


def to_half(model: ir.Model, *, norms: bool = True) -> ir.Model:
    """Convert operators that keep their accuracy to f16; the graph's inputs and outputs don't change.

    Without `norms` those stay in f32 too, as on a device that doesn't sum them in f32.

    Raises `CompileError` for a weight that is out of range of f16, and where the graph doesn't state its types.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    _Narrowing(model.graph, NARROW | NORMS if norms else NARROW).run()
    cast("Any", RemoveUnusedNodesPass())(model)
    return model


class _Narrowing:
    """One pass over a graph, in order: every value has an f16 twin, an f32 twin, or both."""

    def __init__(self, graph: ir.Graph, operators: Collection[str]) -> None:
        self.graph, self.operators = graph, operators
        self.narrow: dict[ir.Value, ir.Value] = {}
        self.wide: dict[ir.Value, ir.Value] = {}
        self.changed: set[ir.Value] = set()
        """Values that were f32 and are now f16."""

    def run(self) -> None:
        kept = self._kept()
        for node in list(self.graph):
            if node.op_type == "Cast" and self._widens(node):
                self.narrow[node.outputs[0]] = cast("Any", node.inputs[0])
            elif node.op_type in self.operators and node.outputs[0].dtype is None:
                raise CompileError(
                    f"The graph does not state the output type of {node.op_type} {node.name!r}, so it cannot be "
                    "converted to f16. Export the checkpoint again."
                )
            elif node.op_type in self.operators and node not in kept and _is_f32(node.outputs[0]):
                self._narrow(node)
            else:
                self._widen(node)
        for index, value in enumerate(self.graph.outputs):
            if value in self.changed:
                self._restore(index, value)

    def _kept(self) -> set[ir.Node]:
        """Nodes from which a sine or cosine is computed, and nodes marked to stay in f32."""
        found = {node for node in self.graph if WIDE in node.metadata_props}
        waiting = [node for node in self.graph if node.op_type in PHASES]
        while waiting:
            for value in waiting.pop().inputs:
                before = value.producer() if value is not None else None
                if before is not None and before not in found:
                    found.add(before)
                    waiting.append(before)
        return found

    def _widens(self, node: ir.Node) -> bool:
        value = node.inputs[0]
        return value is not None and _is_f16(value) and _is_f32(node.outputs[0])

    def _narrow(self, node: ir.Node) -> None:
        import onnx_ir as ir

        for index, value in enumerate(node.inputs):
            if value is not None and _is_f32(value) and index in SCALES.get(node.op_type, (index,)):
                node.replace_input_with(index, self._f16(value, node))
        for output in node.outputs:
            if _is_f32(output):
                output.type = ir.TensorType(ir.DataType.FLOAT16)
                self.changed.add(output)

    def _widen(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.changed:
                node.replace_input_with(index, self._f32(value))

    def _f16(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """The f16 twin of an f32 value: a weight's own, or a cast."""
        import onnx_ir as ir

        if value in self.changed:
            return value
        if value not in self.narrow:
            weight = value.const_value if value.is_initializer() else None
            if weight is not None:
                self.narrow[value] = self._weight(value, values_of(weight))
            else:
                self.narrow[value] = self._cast(value, ir.DataType.FLOAT16, before, after=value.producer())
        return self.narrow[value]

    def _weight(self, value: ir.Value, values: Any) -> ir.Value:
        import onnx_ir as ir

        if values.size == 1 and abs(float(values.reshape(()))) == LARGEST_F32:  # what masks hide by
            values = np.sign(values) * LARGEST
        if np.isfinite(values).all() and np.abs(values).max(initial=0.0) > LARGEST:
            raise CompileError(
                f"The weight {value.name} contains {np.abs(values).max():.3g}, but the largest f16 is {LARGEST:.0f}. "
                "Set f32 for this part under [precision]."
            )
        tensor = ir.tensor(values.astype(np.float16), name=f"{value.name}.f16")
        twin = ir.Value(
            name=tensor.name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT16), const_value=tensor
        )
        self.graph.register_initializer(twin)
        return twin

    def _f32(self, value: ir.Value) -> ir.Value:
        import onnx_ir as ir

        if value not in self.wide:
            producer = cast("ir.Node", value.producer())
            self.wide[value] = self._cast(value, ir.DataType.FLOAT, producer, after=producer)
        return self.wide[value]

    def _cast(self, value: ir.Value, kind: ir.DataType, before: ir.Node, after: ir.Node | None) -> ir.Value:
        """Insert a cast behind the value's producer, or, for an input of the graph, before its first use."""
        import onnx_ir as ir

        node = ir.node("Cast", [value], {"to": int(kind)}, name=f"{value.name}.{kind.name.lower()}")
        node.outputs[0].name = node.name
        node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(kind)
        if after is not None:
            self.graph.insert_after(after, node)
        else:
            self.graph.insert_before(before, node)
        return node.outputs[0]

    def _restore(self, index: int, value: ir.Value) -> None:
        """Give an output of the graph its f32 type and its name back."""
        wide = self._f32(value)
        wide.name, value.name = value.name, f"{value.name}.f16"
        self.graph.outputs[index] = wide


def _is_f32(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.name == "FLOAT"


def _is_f16(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.name == "FLOAT16"
