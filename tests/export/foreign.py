"""Folders of ONNX graphs as other tools write them, made of latentc's own exports: optimum is not needed.

Names, axes, types and layouts are those of optimum-onnx 0.1.0, of diffusers' OnnxStableDiffusionPipeline, and of
NVIDIA's TensorRT demo. tests/export/test_adopt.py compares what is adopted with diffusers' own pipeline.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir

from latentc.compiler.half import to_half
from latentc.compiler.kernels import rewrite
from latentc.compiler.lower import lower_opset
from latentc.core.external import map_values
from latentc.core.norms import stage_norms

AXES = {"batch": "batch_size", "length": "sequence_length", "height": "height", "width": "width"}
OPTIMUM_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
NARROW = ir.TensorType(ir.DataType.FLOAT16)
WIDE = ir.TensorType(ir.DataType.FLOAT)


def load(bundle, part):
    model = ir.load(bundle.graph(part))
    map_values(model)
    return model


def axes(model, names=AXES):
    """Give the axes of inputs and outputs other names; None leaves them anonymous."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape([one if isinstance(one, int) else names and named(one, names) for one in value.shape])
    return model


def named(dim, names):
    factor, _, name = str(dim.value if hasattr(dim, "value") else dim).rpartition("*")
    other = names.get(name, name)
    return f"{other} * {factor}" if factor else other


def insert(model, nodes):
    model.graph.insert_before(model.graph[0], nodes)


def scalar_timestep(model):
    """optimum's UNets take a timestep without axes."""
    own = next(value for value in model.graph.inputs if value.name == "timestep")
    new = ir.Value(name="timestep", shape=ir.Shape([]), type=WIDE)
    own.name = "timestep.row"
    shape = ir.node("Constant", [], {"value": ir.tensor(np.array([1], np.int64))})
    node = ir.node("Reshape", [new, shape.outputs[0]])
    ir.convenience.replace_all_uses_with(own, node.outputs[0])
    model.graph.inputs[list(model.graph.inputs).index(own)] = new
    insert(model, [shape, node])
    return model


def typed(model, name, dtype, shape=None):
    """Give an input another type, cast to its own inside."""
    index = next(at for at, value in enumerate(model.graph.inputs) if value.name == name)
    own = model.graph.inputs[index]
    new = ir.Value(name=name, shape=own.shape if shape is None else ir.Shape(shape), type=ir.TensorType(dtype))
    own.name = f"{name}.own"
    node = ir.node("Cast", [new], {"to": int(own.dtype)})
    ir.convenience.replace_all_uses_with(own, node.outputs[0])
    model.graph.inputs[index] = new
    insert(model, [node])
    return model


def half_edges(model):
    """f16 inputs and outputs, as in the `_io16` folders."""
    for value in list(model.graph.inputs):
        if value.dtype == ir.DataType.FLOAT:
            typed(model, value.name, ir.DataType.FLOAT16)
    for index, value in enumerate(list(model.graph.outputs)):
        node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)})
        name, value.name = value.name, f"{value.name}.wide"
        out = node.outputs[0]
        out.name, out.shape, out.type = name, value.shape, NARROW
        model.graph.append(node)
        model.graph.outputs[index] = out
    return model


def bfloat16(model):
    """Every number in bf16, edges included, as in NVIDIA's transformers."""
    kind = ir.DataType.BFLOAT16

    def narrow(tensor):
        return ir.tensor(np.asarray(tensor.numpy()).astype(kind.numpy()), name=tensor.name)

    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = narrow(value.const_value)
    for node in model.graph:
        for name, attribute in list(node.attributes.items()):
            if name == "to" and attribute.value == ir.DataType.FLOAT:
                node.attributes[name] = ir.AttrInt64(name, int(kind))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.FLOAT:
                node.attributes[name] = ir.AttrTensor(name, narrow(attribute.value))
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for value in (*values, *(out for node in model.graph for out in node.outputs)):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(kind)
    return model


def renamed(model, names):
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = names.get(value.name, value.name)
    return model


def old(model):
    """Operators of opset 18, as most exporters write."""
    stage_norms(model)
    lower_opset(model)
    return model


def microsoft(model, *operators):
    """With Microsoft's operators, as ONNX Runtime's optimizer writes them."""
    rewrite(model, operators)
    lower_opset(model)
    return model


def save(model, folder, *, external=None):
    model.producer_name, model.producer_version = "pytorch", "2.8.0"
    folder.mkdir(parents=True, exist_ok=True)
    if external:
        ir.save(model, folder / "model.onnx", external_data=external, size_threshold_bytes=1024)
    else:
        ir.save(model, folder / "model.onnx")
    return folder


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def configs(bundle, folder, checkpoint):
    """The files beside the graphs: optimum writes no tokenizer.json."""
    for name in bundle.manifest.parts:
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle.folder / name / "config.json", folder / name)
    for encoder in bundle.manifest.model.text_encoders:
        (folder / encoder.tokenizer).mkdir()
        for name in OPTIMUM_TOKENIZER:
            source = Path(checkpoint) / encoder.tokenizer / name
            if source.exists():
                shutil.copy(source, folder / encoder.tokenizer)
        if not (folder / encoder.tokenizer / "vocab.json").exists():  # T5
            shutil.copy(Path(checkpoint) / encoder.tokenizer / "tokenizer.json", folder / encoder.tokenizer)
    shutil.copytree(bundle.folder / "scheduler", folder / "scheduler")
    shutil.copy(bundle.folder / "model_index.json", folder)


def optimum(bundle, checkpoint, folder, *, change=lambda model, part: old(model), external="model.onnx_data"):
    """A folder as `optimum-cli export onnx` writes it."""
    configs(bundle, folder, checkpoint)
    for name, part in bundle.manifest.parts.items():
        model = change(load(bundle, name), name)
        if part.role == "denoiser" and name == "unet":
            scalar_timestep(model)
        save(axes(model), folder / name, external=external)
    return folder


def amd(bundle, checkpoint, folder, *, edges="io32"):
    """A folder like those that are published for AMD's GPUs: f16 inside, and f16 or f32 at the edges."""

    def change(model, _part):
        model = to_half(old(model))
        return half_edges(model) if edges == "io16" else model

    return optimum(bundle, checkpoint, folder, change=change, external="model.onnx.data")


def nvidia(bundle, folder):
    """The graphs of NVIDIA's demo alone, without configs: Stable Diffusion 1."""
    parts = {
        "text_encoder": ("clip.opt", {"last_hidden_state": "text_embeddings"}),
        "unet": ("unet.opt", {"out_sample": "latent"}),
        "vae_decoder": ("vae.opt", {"latent_sample": "latent", "sample": "images"}),
    }
    for name, (place, names) in parts.items():
        model = renamed(old(load(bundle, name)), names)
        if name == "text_encoder":
            del model.graph.outputs[1:]
            typed(model, "input_ids", ir.DataType.INT32)
        save(axes(model, {"batch": "2B", "height": "H", "width": "W", "length": "L"}), folder / "ONNX" / place)
    return folder


def old_diffusers(bundle, checkpoint, folder):
    """A folder as diffusers' OnnxStableDiffusionPipeline of 2022 wrote it: no configs, and an encoder that samples."""
    optimum(bundle, checkpoint, folder)
    for name in bundle.manifest.parts:
        (folder / name / "config.json").unlink()
    edit_json(folder / "model_index.json", _class_name="OnnxStableDiffusionPipeline")
    model = ir.load(folder / "vae_encoder" / "model.onnx")
    map_values(model)
    value = model.graph.outputs[0]
    channels = value.shape[1] // 2
    number = [ir.node("Constant", [], {"value": ir.tensor(np.array([one], np.int64))}) for one in (0, channels, 1)]
    node = ir.node("Slice", [value, *(one.outputs[0] for one in number)])
    out = node.outputs[0]
    out.name, out.type = "latent_sample", value.type
    out.shape = ir.Shape([value.shape[0], channels, *value.shape[2:]])
    for one in (*number, node):
        model.graph.append(one)
    model.graph.outputs[:] = [out]
    for path in (folder / "vae_encoder").iterdir():
        path.unlink()
    save(model, folder / "vae_encoder")
    return folder
