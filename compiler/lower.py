"""Lowering: from the bundle's portable graph to the graph that a runtime compiles.

Passes take a model, change it in place, and return it. The lowered graph is written to a scratch folder of its own,
never into the part's. Its weights stay in the part's data file, which the scratch folder links to; where a pass creates
many new weights, all of them are written to a file in the scratch folder.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core.errors import CompileError, RuntimeMissing
from ..core.external import map_values, values_of
from ..core.files import link
from ..core.install import install
from ..core.norms import stage_norms
from ..core.recipes import WIDE, Pass
from ..core.shapes import FREE
from ..runtimes.base import TOGETHER, Runtime, Target
from .half import to_half
from .kernels import rewrite
from .looped import append_step
from .scratch import scratch_folder
from .upsample import fold_upsampling, upsamples

if TYPE_CHECKING:
    import onnx_ir as ir

LOWERING_VERSION = 6
"""Part of every key: increase it when a pass changes its output."""

PLACE = ".latentc-weights"
"""In the scratch folder of a lowered graph: a file with the path of the folder that holds the graph's weights. A part's
own folder has no file of this name.
"""

INLINE_BYTES = 512 * 2**20
"""New weights above this size are written to a separate file: a graph file is limited to 2 GB."""


def prepares_graphs() -> bool:
    """Whether onnx-ir is installed, which lowering needs."""
    return find_spec("onnx_ir") is not None


def needed_passes(adapter: Runtime, target: Target, weights: str = "f32") -> tuple[Pass, ...]:
    """The passes that a target's graph needs: those of its recipe that the runtime doesn't do, and the runtime's own.

    `weights` is the type in which the part's weights are stored.
    """
    facts = adapter.facts
    recipe: dict[Pass, bool] = {
        "half": facts.typed,
        "norms": facts.typed and not set(target.device.split(TOGETHER)) <= facts.sums_in_f32,
        "stage": target.device in facts.sums_in_a_row,
    }
    own: dict[Pass, bool] = {
        "whole": target.device in facts.whole_norms,
        "fold": not facts.infers_shapes,
        "widen": weights == "bf16" and not facts.reads_bf16,
        "upsample": set(target.device.split(TOGETHER)) <= facts.transposes,
    }
    return (
        *(name for name in target.recipe.passes if recipe[name]),
        *(name for name, needs in own.items() if needs),
    )


@contextmanager
def lowered(
    graph: Path,
    name: str,
    opset: int,
    shape: Mapping[str, tuple[int, ...]] | None,
    passes: Collection[Pass] = (),
    *,
    lacks: Collection[str] = (),
    scratch: Path | None = None,
    loop: str | None = None,
) -> Generator[Path]:
    """Yield the path of the lowered graph, or of the part's own graph where nothing needs lowering.

    The passes: `half` computes in f16 where accuracy allows; `norms` leaves norms in f32; `fold` evaluates everything
    that follows from the shape; `widen` converts weights stored in bf16 to f32, for libraries that don't read bf16;
    `stage` expands group norms for runtimes that sum sequentially (`core.norms`); `whole` keeps a norm that opset 18
    doesn't have one operator; `upsample` merges nearest upsampling with the convolution behind it
    (`compiler.upsample`). Operators that the device `lacks` kernels for are replaced by others. With `loop`, the input
    for the sample, guidance and the scheduler's step are appended (`compiler.looped`).
    The graph is named `name`, in a new folder inside `scratch`, or inside the system's temporary folder where `scratch`
    is None or can't be written. It is removed after the block. `weights_of` finds the weights.

    Raises `CompileError` for an operator that opset 18 can't express, or a weight out of range of f16.
    """
    merges = "upsample" in passes and upsamples(graph)
    if opset >= 23 and shape is None and not ({"half", "widen", "stage"} & set(passes) or lacks or merges or loop):
        yield graph
        return
    try:
        import onnx_ir as ir
    except ImportError as exc:
        raise RuntimeMissing(f"Building requires onnx-ir ({exc}). {install('build')}") from exc
    model: ir.Model = cast("Any", ir).load(graph)
    if "half" in passes or "widen" in passes:
        widen_bf16(model)
    if "stage" in passes:
        stage_norms(model)
    if merges:
        fold_upsampling(model, graph, None if shape is None else _any_rows(shape))
    rewrite(model, lacks)
    if shape is not None:
        fix_shapes(model, shape)
    if opset < model.opset_imports[""]:  # adopted graphs may have an older one, which every runtime reads
        lower_opset(model, whole="whole" in passes)
    if "fold" in passes:
        if any(path.is_file() and path.stat().st_nlink > 1 for path in graph.parent.iterdir()):
            map_values(model)  # weights with several hard links are refused: by the optimizer, and by IREE's importer
        if shape is not None:
            fold(model)
    if "half" in passes:
        to_half(model, norms="norms" not in passes)
    if loop is not None:
        append_step(model, loop)
    external = {str(value.const_value.location) for value in _initializers(model) if _is_external(value)}
    many = sum(value.const_value.nbytes for value in _initializers(model) if not _is_external(value)) > INLINE_BYTES
    with scratch_folder(scratch) as folder:
        path = folder / f"{name}.onnx"
        if many:
            map_values(model)
            cast("Any", ir).save(model, path, external_data=f"{path.name}_data")
        else:
            cast("Any", ir).save(model, path)
            _link(folder, graph.parent.absolute(), external)
        yield path


def weights_of(graph: Path) -> Path:
    """The folder of a lowered graph's external data: its own, or the part's, to whose files it has links."""
    place = graph.with_name(PLACE)
    return Path(os.fsdecode(place.read_bytes())) if place.is_file() else graph.parent


def _initializers(model: ir.Model) -> list[Any]:
    return [value for value in model.graph.initializers.values() if value.const_value is not None]


def _is_external(value: Any) -> bool:
    return hasattr(value.const_value, "location")


def _link(folder: Path, weights: Path, names: set[str]) -> None:
    """Note the folder of the weights in a scratch folder, and link to each file under the name that the graph uses.

    Most libraries refuse external data that is a link (see `Job.weights`); TensorRT and MIGraphX follow it.
    """
    (folder / PLACE).write_bytes(os.fsencode(weights))
    for name in names - {PLACE}:
        if Path(name).name == name:
            try:
                link(folder / name, weights / name)
            except OSError:  # Windows, and another drive
                shutil.copyfile(weights / name, folder / name)


def widen_bf16(model: ir.Model) -> ir.Model:
    """Convert weights stored in bf16 to f32 and remove the casts behind them; the conversion is exact."""
    import onnx_ir as ir

    for weight in list(model.graph.initializers.values()):
        tensor = weight.const_value
        if tensor is None or tensor.dtype != ir.DataType.BFLOAT16:
            continue
        casts = [use.node for use in weight.uses()]
        if not all(cast_.op_type == "Cast" and cast_.outputs[0].dtype == ir.DataType.FLOAT for cast_ in casts):
            raise CompileError(
                f"{weight.name} is stored in bf16 and used without a cast to f32. Export the checkpoint again."
            )
        weight.const_value, weight.type = _as_f32(tensor), ir.TensorType(ir.DataType.FLOAT)
        for node in casts:
            cast("Any", ir.convenience).replace_all_uses_with(node.outputs[0], weight)
            model.graph.remove(node, safe=True)
    return model


def _as_f32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    import onnx_ir as ir

    def read() -> ir.TensorProtocol:
        return ir.tensor(values_of(tensor).astype(np.float32), name=tensor.name)

    shape = ir.Shape([int(size) for size in tensor.shape.numpy()])
    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=shape, name=tensor.name, cache=False)


def fix_shapes(model: ir.Model, shape: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """Give every input a fixed shape, in which the names of free sizes are kept; the runtime infers all others."""
    import onnx_ir as ir

    for value in model.graph.inputs:
        before, fixed = value.shape, shape[str(value.name)]
        kept = (one if before is None or one != FREE else before[axis] for axis, one in enumerate(fixed))
        value.shape = ir.Shape(list(kept))
    for value in model.graph.outputs:
        value.shape = None
    return model


def _any_rows(shape: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes with a number for each free size, to follow those that don't depend on it."""
    return {name: tuple(1 if size == FREE else size for size in sides) for name, sides in shape.items()}


def fold(model: ir.Model) -> ir.Model:
    """Evaluate everything that follows from fixed shapes, and store the shape of every value in the graph.

    Raises `RuntimeMissing` without onnxscript.
    """
    try:
        from onnxscript import optimizer
    except ImportError as exc:
        raise RuntimeMissing(f"Building for this runtime requires onnxscript ({exc}). {install('iree')}") from exc
    cast("Any", optimizer).optimize(model)
    return model


def lower_opset(model: ir.Model, *, whole: bool = False) -> ir.Model:
    """Convert from opset 23 to 18: attention, norms and Gelu are expanded into smaller operators.

    With `whole`, the sums of a norm are those of one operator: InstanceNormalization, or ONNX Runtime's
    SimplifiedLayerNormalization.
    """
    expansions: dict[str, Callable[[Tape, ir.Node], ir.Value]] = {
        "Attention": _attention,
        "GroupNormalization": partial(_group_norm, whole=whole),
        "RMSNormalization": partial(_rms_norm, whole=whole),
        "Gelu": _gelu,
    }
    for node in list(model.graph):
        expand = expansions.get(node.op_type)
        if expand is None or node.domain not in ("", "ai.onnx"):
            continue
        tape = Tape(node)
        _take_place(node, expand(tape, node))
    model.opset_imports[""] = 18
    return model


class Tape:
    """Inserts nodes before the node that they replace."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.count = 0
        self.kept = self.wide = WIDE in node.metadata_props
        """Whether nodes that are inserted now stay in f32: always, where the node itself does."""

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Insert an operator; returns its output."""
        import onnx_ir as ir

        graph = cast("ir.Graph", self.node.graph)
        self.count += 1
        output = self.node.outputs[0].name
        node = ir.node(op, inputs, attributes, name=f"{self.node.name or output}.{self.count}")
        node.outputs[0].name = f"{output}.{self.count}"
        node.outputs[0].type = _type_of(op, inputs, attributes)
        if self.wide:
            node.metadata_props[WIDE] = "f32"
        graph.insert_before(self.node, node)
        return node.outputs[0]

    def constant(self, value: float | list[int] | list[float]) -> ir.Value:
        """A constant: int64 for integers, f32 for the rest."""
        import onnx_ir as ir

        whole = isinstance(value, list) and all(isinstance(item, int) for item in value)
        return self("Constant", value=ir.tensor(np.array(value, dtype=np.int64 if whole else np.float32)))


def _type_of(op: str, inputs: tuple[ir.Value | None, ...], attributes: dict[str, Any]) -> ir.TypeProtocol | None:
    """The type of the output of an operator that is used here: that of its data input."""
    import onnx_ir as ir

    if op == "Shape":
        return ir.TensorType(ir.DataType.INT64)
    if op == "Constant":
        return ir.TensorType(attributes["value"].dtype)
    first = inputs[-1] if op == "Where" else inputs[0]
    return None if first is None else first.type


def _take_place(node: ir.Node, value: ir.Value) -> None:
    import onnx_ir as ir

    old = node.outputs[0]
    graph = cast("ir.Graph", node.graph)
    value.shape, value.type = old.shape, old.type
    if old.is_graph_output():
        value.name, old.name = old.name, value.name
    cast("Any", ir.convenience).replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _refuse(node: ir.Node, what: str) -> CompileError:
    return CompileError(
        f"{node.op_type} {node.name!r} {what}, so it cannot be converted to opset 18. Use opset = 23 in the profile."
    )


def _attention(tape: Tape, node: ir.Node) -> ir.Value:
    """softmax(q k^T scale + mask) v; q and k are scaled before they are multiplied, as the operator is defined."""
    query, key, value, mask, *rest = (*node.inputs, None, None)[:7]
    plain = (
        len(node.outputs) == 1
        and not any(rest)
        and not _attribute(node, "is_causal", 0)
        and not _attribute(node, "softcap", 0.0)
        and query is not None
        and query.shape is not None
        and len(query.shape) == 4
    )
    if not plain:
        raise _refuse(node, "has a cache, a causal flag, a softcap or inputs of three axes")
    width = cast("Any", query).shape[3]
    scale = _attribute(node, "scale", None) or (1 / math.sqrt(width) if isinstance(width, int) else None)
    if scale is None:
        raise _refuse(node, "has a head of unknown width")
    root = tape.constant(math.sqrt(scale))
    scores = tape("MatMul", tape("Mul", query, root), tape("Transpose", tape("Mul", key, root), perm=[0, 1, 3, 2]))
    if mask is not None:
        boolean = mask.type is None or mask.type.dtype.name == "BOOL"
        add = tape("Where", mask, tape.constant(0.0), tape.constant(-math.inf)) if boolean else mask
        scores = tape("Add", scores, add)
    return tape("MatMul", tape("Softmax", scores, axis=-1), value)


def _group_norm(tape: Tape, node: ir.Node, *, whole: bool) -> ir.Value:
    """Each group less its mean, over its deviation, then scaled and shifted by channel; always in f32.

    InstanceNormalization does the first two in one operator (`whole`), but IREE 3.13 gives NaN for it where sizes are
    free.
    """
    sample, scale, bias = node.inputs
    groups = int(_attribute(node, "num_groups", 0))
    if sample is None or sample.shape is None:
        raise _refuse(node, "has a sample of unknown rank")
    tape.wide = True
    grouped = tape("Reshape", sample, tape.constant([0, groups, -1]))
    epsilon = float(_attribute(node, "epsilon", 1e-5))
    if whole:
        ones, zeros = tape.constant([1.0] * groups), tape.constant([0.0] * groups)
        normal = tape("InstanceNormalization", grouped, ones, zeros, epsilon=epsilon)
    else:
        centred = tape("Sub", grouped, tape("ReduceMean", grouped, tape.constant([2])))
        variance = tape("ReduceMean", tape("Mul", centred, centred), tape.constant([2]))
        normal = tape("Div", centred, tape("Sqrt", tape("Add", variance, tape.constant(epsilon))))
    tape.wide = tape.kept
    joined = tape("Reshape", normal, tape("Shape", sample))
    axes = tape.constant(list(range(1, len(sample.shape) - 1)))
    scaled = tape("Mul", joined, tape("Unsqueeze", scale, axes))
    return tape("Add", scaled, tape("Unsqueeze", bias, axes))


def _rms_norm(tape: Tape, node: ir.Node, *, whole: bool) -> ir.Value:
    """The last axis over the root of its mean square, then scaled; always in f32. Source: arXiv 1910.07467."""
    sample, scale = node.inputs
    rank = None if sample is None or sample.shape is None else len(sample.shape)
    if _attribute(node, "axis", -1) not in (-1, None if rank is None else rank - 1):
        raise _refuse(node, "covers more than the last axis")
    tape.wide = True
    epsilon = float(_attribute(node, "epsilon", 1e-5))
    if whole:
        return tape("SimplifiedLayerNormalization", sample, scale, axis=-1, epsilon=epsilon)
    square = tape("ReduceMean", tape("Mul", sample, sample), tape.constant([-1]))
    return tape("Mul", tape("Div", sample, tape("Sqrt", tape("Add", square, tape.constant(epsilon)))), scale)


def _gelu(tape: Tape, node: ir.Node) -> ir.Value:
    """Half of x (1 + erf(x / sqrt 2)), or its approximation by tanh, in f32. Source: arXiv 1606.08415."""
    value = node.inputs[0]
    if _attribute(node, "approximate", "none") == "tanh":
        tape.wide = True  # the cube of 41 is out of range of f16
        cube = tape("Mul", tape("Mul", value, value), tape("Mul", value, tape.constant(0.044715)))
        error = tape("Tanh", tape("Mul", tape("Add", value, cube), tape.constant(math.sqrt(2 / math.pi))))
    else:
        error = tape("Erf", tape("Mul", value, tape.constant(math.sqrt(0.5))))
    return tape("Mul", tape("Mul", value, tape.constant(0.5)), tape("Add", error, tape.constant(1.0)))
