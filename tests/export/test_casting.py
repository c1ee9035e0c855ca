"""Weights stay in the type they are stored in, and are cast where they are used."""

import gc
import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from latentc.checkpoints import new_checkpoint, open_checkpoint
from latentc.checkpoints.modules import fill
from latentc.checkpoints.parts import as_part, part_specs
from latentc.core.manifest import TensorInfo
from latentc.core.progress import quiet
from latentc.core.shapes import shape_of
from latentc.export.sessions import unoptimized
from latentc.export.trace import EXAMPLE_SIZES
from latentc.export.weights import computing
from latentc.runtimes import Target
from latentc.runtimes.base import Job, files_in
from latentc.runtimes.onnxruntime import ONNXRuntime

SIZES = EXAMPLE_SIZES | {"length": 77, "height": 16, "width": 12, "frames": 14}


def feeds_of(spec, dtype):
    torch.manual_seed(0)
    shapes = [(tensor, shape_of(tensor.shape, SIZES)) for tensor in spec.inputs]
    return [
        torch.randint(0, 9, shape) if tensor.dtype == "int64" else torch.rand(shape).to(dtype)
        for tensor, shape in shapes
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "sd35m", "sd35l", "svd"])
@pytest.mark.parametrize("stored", ["f16", "f32"])
def test_casting_equals_a_copy_of_all_weights(family, stored, tmp_path):
    opened = open_checkpoint(str(new_checkpoint(family, "tiny", 3, tmp_path / "new", dtype=stored)))
    narrow = {"f16": torch.float16, "f32": torch.float32}[stored]
    for dtype in (torch.float32, torch.bfloat16):
        for spec in part_specs(opened):
            ours, whole = computing(opened, spec.component, dtype), opened.module(spec.component, dtype=dtype)
            assert {one.dtype for one in ours.parameters()} == {narrow}
            feeds = feeds_of(spec, dtype)
            with torch.no_grad():
                found, wanted = (as_part(opened, spec, one)(*feeds) for one in (ours, whole))
            assert all(one.dtype == dtype and torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
            assert not all(torch.equal(one, torch.zeros_like(one)) for one in found), spec.name


def test_weights_that_are_converted_are_converted_once(tmp_path):
    """Several types are kept as f32; in bf16 they aren't held in f32 too."""
    folder = new_checkpoint("sd1", "tiny", 3, tmp_path / "new", dtype="f16")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"conv_in.weight": tensors["conv_in.weight"].float()}, path)
    opened = open_checkpoint(str(folder))
    for dtype in (None, torch.bfloat16):
        assert {one.dtype for one in computing(opened, "unet", dtype).parameters()} == {dtype or torch.float32}


def allocated_bytes(act):
    """Bytes that torch's operators allocate in the meantime; what maps a file isn't one."""
    with torch.profiler.profile(profile_memory=True) as profile:
        act()
    own = (event for event in profile.key_averages() if event.key.startswith("aten::"))
    return sum(max(0, event.self_cpu_memory_usage) for event in own)


def test_weights_stay_mapped(tmp_path):
    opened = open_checkpoint(str(new_checkpoint("sd35l", "tiny", 3, tmp_path / "new", dtype="f16")))
    module, plan = opened._fitted("transformer")
    component = opened.family.component("transformer")
    used = allocated_bytes(lambda: fill(module, component, plan, torch.float16))
    stored = sum(one.nbytes for one in module.parameters())
    assert used < stored / 10, f"{used} bytes allocated for {stored} bytes of weights"


LAYERS = 6


def narrow_graph(path):
    """Layers whose f16 weights are cast and transposed before each, as in an exported graph."""
    nodes, weights, at = [], [], "x"
    for layer in range(LAYERS):
        values = np.random.default_rng(layer).standard_normal((8, 8)).astype(np.float16)
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        nodes += [
            helper.make_node("Cast", [f"w{layer}"], [f"c{layer}"], f"cast{layer}", to=TensorProto.FLOAT),
            helper.make_node("Transpose", [f"c{layer}"], [f"t{layer}"], f"turn{layer}", perm=[1, 0]),
            helper.make_node("MatMul", [at, f"t{layer}"], [f"y{layer}"], f"layer{layer}"),
        ]
        at = f"y{layer}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in ("x", at)]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


IN_TURN = [f"{kind}{layer}" for layer in range(LAYERS) for kind in ("cast", "layer")]


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """`ran()`: the layers and casts of a call, in the order in which ONNX Runtime ran them, once its session ended."""
    plain = onnxruntime.SessionOptions

    def profiled():
        options = plain()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        return options

    monkeypatch.setattr(onnxruntime, "SessionOptions", profiled)

    def names():
        gc.collect()
        listed = [json.loads(path.read_text()) for path in tmp_path.glob("profile*")]
        ends = [one["name"].removesuffix("_kernel_time") for events in listed for one in events]
        return [name for name in ends if name.removesuffix(name[-1]) in ("cast", "layer")]

    return names


def test_weights_are_cast_where_they_are_used(tmp_path, ran):
    """By default ONNX Runtime casts all of them first: in 3.5 Large, 9 GB at once."""
    narrow_graph(tmp_path / "model.onnx")
    unoptimized(tmp_path / "model.onnx").run(None, {"x": np.ones((2, 8), np.float32)})
    assert ran() == IN_TURN


def test_engines_that_are_not_optimized_cast_so_too(tmp_path, ran):
    """ONNX Runtime writes graphs in an order of its own, in which the last weight is cast first."""
    narrow_graph(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="data", size_threshold=0)
    os.link(tmp_path / "data", tmp_path / "backup")  # onnx-ir refuses files with several links
    ends = [
        (TensorInfo(name=one[0].name, dtype="float32", shape=(2, 8)),)
        for one in (model.graph.input, model.graph.output)
    ]
    target = Target("onnxruntime", "CPU", "f32", {"graph_optimization_level": "off"}, *ends)
    artifact = tmp_path / "engine"
    artifact.mkdir()
    ONNXRuntime().compile(Job("unet", tmp_path / "model.onnx", tmp_path, target), artifact, quiet)
    weights = onnx.load(artifact / "engine.onnx").graph.initializer
    assert {weight.data_type for weight in weights} == {TensorProto.FLOAT16}
    engine = ONNXRuntime().load(artifact, target, files_in(artifact))
    engine.run({"x": np.ones((2, 8), np.float32)})
    engine.close()
    del engine
    assert ran() == IN_TURN
