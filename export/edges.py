"""Graphs of other tools as latentc's parts: their inputs, outputs and types are mapped to those of a `PartSpec`.

`fit` decides from the graph's stated inputs and outputs alone, and refuses what cannot be mapped. `adapt` then rewrites
the graph's edges. A graph that computes in f16 or bf16 is widened: its weights stay as they are stored, and are cast to
f32 where they are used, as in an exported bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..checkpoints.graphs import ForeignGraph, same_names
from ..checkpoints.parts import PartSpec
from ..core.errors import CheckpointError
from ..core.external import values_of
from ..core.graph import Value
from ..core.manifest import TensorInfo
from ..core.record import shown
from ..core.tensors import Array
from ..core.wires import TIMESTEP
from .weights import INLINE_BYTES

if TYPE_CHECKING:
    import onnx_ir as ir

FLOATS = ("float32", "float16", "bfloat16")
INTEGERS = ("int64", "int32")
NARROW = ("float16", "bfloat16")
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
"""Integer attributes that name a type."""

AGAIN = "Export the model to ONNX again."
FREE = "Export the model to ONNX again with dynamic axes (optimum-cli without --no-dynamic-axes)."

OUTPUTS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "last_hidden_state": (("last_hidden_state", 3), ("text_embeddings", 3)),
    "text_embeds": (("text_embeds", 2), ("text_embeddings", 2), ("pooled_output", 2)),
    "pooler_output": (("pooler_output", 2), ("pooled_output", 2)),
}
"""Names and ranks of a text encoder's outputs in other tools, keyed by transformers' name."""

STATES = "hidden_states"
"""An output of NVIDIA's text encoders: the states of the one layer that the pipeline reads."""

ONLY = ("out_sample", "sample", "latent", "latents", "images", "noise_pred", "output", "latent_parameters")
"""Names of the output of a denoiser and of the VAE's two halves, where a graph has several outputs."""


@dataclass(frozen=True)
class Fit:
    """How a graph's inputs and outputs map to those of a part."""

    spec: PartSpec
    """The part, with those outputs that the graph has."""
    graph: ForeignGraph
    inputs: Mapping[str, Value]
    """The graph's input of each of the part's inputs."""
    outputs: Mapping[str, Value]
    notices: tuple[str, ...] = ()

    def foreign(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs of the part, as the unmodified graph takes them."""
        rows = next((len(array) for name, array in feeds.items() if name != TIMESTEP), 1)
        made: dict[str, Array] = {}
        for name, value in self.inputs.items():
            array = feeds[name]
            if name == TIMESTEP:
                array = array.reshape(()) if not value.shape else array
                array = np.repeat(array, rows) if _is_per_row(value) else array
            made[value.name] = array.astype(value.dtype)
        return made


def fit(spec: PartSpec, graph: ForeignGraph, needed: Sequence[str], *, title: str) -> Fit:
    """Map a graph's inputs and outputs to a part's.

    `needed` are the outputs that the model reads; `title` names its family. Raises CheckpointError naming the tensor,
    what was found and what was expected.
    """
    _refuse_swapped(spec, graph)
    inputs = _inputs(spec, graph)
    outputs, notices = _outputs(spec, graph, needed, title)
    kept = tuple(tensor for tensor in spec.outputs if tensor.name in outputs)
    integer = inputs.get(TIMESTEP)
    if integer is not None and integer.dtype in INTEGERS:
        notices.append(
            f"The graph of {spec.name} takes whole timesteps: those of schedulers with fractions are cut off, as in "
            "optimum."
        )
    return Fit(replace(spec, outputs=kept), graph, inputs, outputs, tuple(notices))


def _refuse_swapped(spec: PartSpec, graph: ForeignGraph) -> None:
    """Raise CheckpointError for the VAE's other half."""
    if spec.role not in ("encoder", "decoder"):
        return
    channels = next((value.shape[1] for value in graph.facts.inputs if value.shape and len(value.shape) == 4), None)
    own = spec.inputs[0].shape[1]
    if isinstance(channels, int) and channels != own:
        what = "encodes images" if channels == 3 else f"reads {channels} channels"
        raise CheckpointError(
            f"{graph.path} {what}, but {spec.name} reads {own} channels. The encoder and the decoder of the VAE may be "
            "swapped, or they belong to another model."
        )


def _inputs(spec: PartSpec, graph: ForeignGraph) -> dict[str, Value]:
    left = {value.name: value for value in graph.facts.inputs}
    found: dict[str, Value] = {}
    for tensor in spec.inputs:
        names = tuple(left) if spec.role == "encoder" and len(left) == 1 else same_names(tensor.name)
        name = next((one for one in names if one in left), None)
        if name is None:
            has = ", ".join(shown(one.name) for one in graph.facts.inputs) or "nothing"
            raise CheckpointError(
                f"{graph.path} has no input {tensor.name} {_dims(tensor.shape)}, which {spec.name} needs. It takes "
                f"{has}. {AGAIN}"
            )
        found[tensor.name] = left.pop(name)
        _check_input(graph, tensor, found[tensor.name])
    if left:
        raise CheckpointError(
            f"{graph.path} has an input {shown(next(iter(left)))}, which latentc does not feed. Expected inputs: "
            f"{', '.join(tensor.name for tensor in spec.inputs)}. {AGAIN}"
        )
    return found


def _check_input(graph: ForeignGraph, tensor: TensorInfo, value: Value) -> None:
    allowed = INTEGERS if tensor.dtype == "int64" else (*FLOATS, *INTEGERS) if tensor.name == TIMESTEP else FLOATS
    where = f"{graph.path} has an input {shown(value.name)}"
    if value.dtype not in allowed:
        raise CheckpointError(f"{where} of type {value.dtype}; expected: {', '.join(allowed)}. {AGAIN}")
    if value.shape is None:
        raise CheckpointError(f"{where} without a stated rank; expected {_dims(tensor.shape)}. {AGAIN}")
    if tensor.name == TIMESTEP:
        if len(value.shape) > 1:
            raise CheckpointError(f"{where} of shape {_dims(value.shape)}; expected a number, or one per row. {AGAIN}")
        if value.shape and isinstance(value.shape[0], int) and value.shape[0] != 1:
            raise CheckpointError(
                f"{where} for {value.shape[0]} rows only; latentc needs a free number of rows. {FREE}"
            )
        return
    _check_dims(where, tensor, value)


def _check_dims(where: str, tensor: TensorInfo, value: Value) -> None:
    shape = value.shape or ()
    if len(shape) != len(tensor.shape):
        raise CheckpointError(f"{where} of shape {_dims(shape)}; expected {_dims(tensor.shape)}. {AGAIN}")
    for expected, has in zip(tensor.shape, shape, strict=True):
        if not isinstance(has, int) or has == expected:
            continue
        if isinstance(expected, int):
            raise CheckpointError(
                f"{where} of shape {_dims(shape)}, but the configs say {_dims(tensor.shape)}: {expected} instead of "
                f"{has}. The graph belongs to another model, or was exported for another length."
            )
        raise CheckpointError(
            f"{where} of the fixed shape {_dims(shape)}, but latentc needs a free {expected}: {_dims(tensor.shape)}. "
            f"{FREE}"
        )


def _outputs(
    spec: PartSpec, graph: ForeignGraph, needed: Sequence[str], title: str
) -> tuple[dict[str, Value], list[str]]:
    has = {value.name: value for value in graph.facts.outputs}
    if spec.role != "text_encoder":
        (tensor,) = spec.outputs
        name = next(iter(has)) if len(has) == 1 else next((one for one in ONLY if one in has), None)
        if name is None:
            raise CheckpointError(
                f"{graph.path} has the outputs {', '.join(map(shown, has)) or 'none'}; expected one, {tensor.name}. "
                f"{AGAIN}"
            )
        _check_output(graph, tensor, has[name])
        return {tensor.name: has[name]}, []
    found: dict[str, Value] = {}
    notices: list[str] = []
    for tensor in spec.outputs:
        stem, _, layer = tensor.name.partition(".")
        names = ((tensor.name, 3), (f"{stem}_{layer}", 3)) if layer else OUTPUTS[tensor.name]
        value = next((has[name] for name, rank in names if name in has and _ranks(has[name]) in (None, rank)), None)
        if value is None and layer and tensor.name in needed and STATES in has:
            value = has[STATES]
            notices.append(f"The output {STATES} of {spec.name} is read as layer {layer}, which {title} uses.")
        if value is not None and value not in found.values():
            _check_output(graph, tensor, value)
            found[tensor.name] = value
    if missing := [name for name in needed if name not in found]:
        more = " Export the model with the hidden states of its text encoders." if "." in missing[0] else f" {AGAIN}"
        raise CheckpointError(
            f"{graph.path} has no output {missing[0]}, which {title} reads. Its outputs: "
            f"{', '.join(map(shown, has))}.{more}"
        )
    return found, notices


def _check_output(graph: ForeignGraph, tensor: TensorInfo, value: Value) -> None:
    where = f"{graph.path} has an output {shown(value.name)}"
    if value.dtype not in FLOATS:
        raise CheckpointError(f"{where} of type {value.dtype}; expected: {', '.join(FLOATS)}. {AGAIN}")
    shape = value.shape
    if shape is None:
        return
    plain = Value(value.name, value.dtype, tuple(None if isinstance(one, str) else one for one in shape))
    _check_dims(where, tensor, plain)


def _ranks(value: Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _is_per_row(value: Value) -> bool:
    """Whether the graph takes a timestep for each row."""
    return bool(value.shape) and value.shape[0] != 1 if value.shape is not None else False


def _dims(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join(str(one) if isinstance(one, int) else one or "?" for one in shape) + "]"


def is_narrow(model: ir.Model) -> str | None:
    """The narrow type in which a graph computes, `float16` or `bfloat16`; None for one that computes in f32."""
    for node in model.graph:
        for name, attribute in node.attributes.items():
            if name in TYPE_ATTRIBUTES and attribute.value in (10, 16):
                return NARROW[0] if attribute.value == 10 else NARROW[1]
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.dtype is not None and value.dtype.name in ("FLOAT16", "BFLOAT16"):
            return value.dtype.name.lower()
    return None


def adapt(model: ir.Model, found: Fit) -> ir.Model:
    """Give a graph the part's inputs and outputs, and f32 as the type it computes in; it is changed in place.

    Raises CheckpointError for a weight that is NaN or infinite.
    """
    _check_finite(model, found.graph)
    widen(model)
    for tensor in found.spec.inputs:
        _map_input(model, tensor, found.inputs[tensor.name])
    _map_outputs(model, found)
    used = {node.domain for node in model.graph}
    for domain in [one for one in model.opset_imports if one and one not in used]:
        del model.opset_imports[domain]
    _state_types(model)
    model.doc_string = None
    model.metadata_props.clear()
    return model


def _check_finite(model: ir.Model, graph: ForeignGraph) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or value.dtype is None or value.dtype.name not in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"):
            continue
        flat = np.asarray(values_of(tensor)).reshape(-1)
        for begin in range(0, flat.size, 1 << 22):
            if not np.isfinite(flat[begin : begin + (1 << 22)].astype(np.float32)).all():
                if flat.size == 1:
                    break  # masks are filled with -inf
                raise CheckpointError(
                    f"{graph.path}: the weight {shown(name)} holds NaN or infinity. Download the files again."
                )


def widen(model: ir.Model) -> ir.Model:
    """Make a graph of f16 or bf16 compute in f32. Large weights stay narrow and are cast where they are used."""
    import onnx_ir as ir

    library, narrow = cast("Any", ir), (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    wide = ir.TensorType(ir.DataType.FLOAT)
    graph = model.graph

    def as_f32(tensor: Any) -> Any:
        return library.tensor(np.ascontiguousarray(np.asarray(values_of(tensor)).astype(np.float32)), name=tensor.name)

    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype not in narrow:
            continue
        uses = [use.node for use in value.uses()]
        if tensor.nbytes <= INLINE_BYTES or any(node.domain not in ("", "ai.onnx") for node in uses):
            value.const_value, value.type = as_f32(tensor), wide
            continue
        if uses and all(node.op_type == "Cast" and node.attributes["to"].value == 1 for node in uses):
            continue
        node = library.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.to_f32")
        out = node.outputs[0]
        library.convenience.replace_all_uses_with(value, out)
        node.replace_input_with(0, value)
        out.name, out.shape, out.type = f"{name}.f32", value.shape, wide
        graph.insert_before(graph[0], node)
        value.type = ir.TensorType(tensor.dtype)
    kept = {id(value) for value in graph.initializers.values()}
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if name in TYPE_ATTRIBUTES and attribute.value in (10, 16):
                node.attributes[name] = library.AttrInt64(name, 1)
            elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in narrow:
                node.attributes[name] = library.AttrTensor(name, as_f32(attribute.value))
        for value in node.outputs:
            if value.dtype in narrow:
                value.type = wide
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in narrow and id(value) not in kept:
            value.type = wide
    return model


def _map_input(model: ir.Model, tensor: TensorInfo, value: Value) -> None:
    """Rename an input; where its type or shape differs, insert what converts the part's input to the graph's."""
    import onnx_ir as ir

    library, graph = cast("Any", ir), model.graph
    index = next(at for at, one in enumerate(graph.inputs) if one.name == value.name)
    own = cast("Any", graph.inputs[index])
    kind = ir.DataType.INT64 if tensor.dtype == "int64" else ir.DataType.FLOAT
    changes = value.dtype in INTEGERS and value.dtype != tensor.dtype
    shapes = tensor.name == TIMESTEP and (not value.shape or _is_per_row(value))
    if not (changes or shapes):
        _free_name(model, tensor.name, own)
        own.name, own.shape, own.type = tensor.name, ir.Shape(tensor.shape), ir.TensorType(kind)
        return
    own.name = f"{value.name}.own"
    _free_name(model, tensor.name, own)
    new = library.Value(name=tensor.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(kind))
    nodes: list[Any] = []

    def add(op: str, inputs: list[Any], dtype: ir.DataType, **attributes: Any) -> Any:
        node = library.node(op, inputs, attributes, name=f"{tensor.name}.edge.{len(nodes)}")
        node.outputs[0].name, node.outputs[0].type = f"{tensor.name}.edge.{len(nodes)}", ir.TensorType(dtype)
        nodes.append(node)
        return node.outputs[0]

    def number(value: Any) -> Any:
        return add("Constant", [], ir.DataType.INT64, value=library.tensor(np.array(value, np.int64)))

    out = new
    if changes:
        kind = ir.DataType.INT32 if value.dtype == "int32" else ir.DataType.INT64
        out = add("Cast", [out], kind, to=int(kind))
    if shapes and not value.shape:
        out = add("Gather", [out, number(0)], kind, axis=0)
    elif shapes:
        rows = next(one for one in graph.inputs if one is not own and one.shape is not None and len(one.shape) == 4)
        shape = add("Shape", [rows], ir.DataType.INT64)
        out = add("Expand", [out, add("Gather", [shape, number([0])], ir.DataType.INT64, axis=0)], kind)
    library.convenience.replace_all_uses_with(own, out)
    first = graph[0]
    graph.inputs[index] = new
    graph.insert_before(first, nodes)


def _map_outputs(model: ir.Model, found: Fit) -> None:
    import onnx_ir as ir

    graph = model.graph
    has = {str(value.name): value for value in graph.outputs}
    chosen: list[tuple[TensorInfo, Any]] = []
    for tensor in found.spec.outputs:
        value = cast("Any", has[found.outputs[tensor.name].name])
        if value.is_graph_input() or value.producer() is None:
            raise CheckpointError(
                f"{found.graph.path} has an output {shown(str(value.name))} that it does not compute. {AGAIN}"
            )
        chosen.append((tensor, value))
    for at, (_, value) in enumerate(chosen):
        value.name = f"output.own.{at}"
    graph.outputs[:] = [value for _, value in chosen]
    for tensor, value in chosen:
        _free_name(model, tensor.name, value)
        value.name, value.shape = tensor.name, ir.Shape(tensor.shape)
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _free_name(model: ir.Model, name: str, own: Any) -> None:
    """Rename any other value of this name."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    for value in values:
        if value is not own and value.name == name:
            value.name = f"{name}.inner"


def _state_types(model: ir.Model) -> None:
    """State the type of every value, which the conversion to f16 needs: by ONNX's inference, else by the inputs."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    shapes = {value: value.shape for value in (*model.graph.inputs, *model.graph.outputs)}
    cast("Any", ShapeInferencePass)()(model)
    for value, shape in shapes.items():
        value.shape = shape
    for node in model.graph:
        for value in node.outputs:
            if value.type is None:
                given = next((one.type for one in node.inputs if one is not None and one.type is not None), None)
                value.type = given or ir.TensorType(ir.DataType.FLOAT)
