"""Qualcomm's NPU: compiled for where there is none, and executed by the simulator that comes with its plugin."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from latentc.compiler.build import build
from latentc.compiler.lower import lowered, needed_passes, weights_of
from latentc.compiler.targets import job_of
from latentc.core.errors import CompileError, ProfileError, RuntimeMissing, ShapeError
from latentc.core.manifest import TensorInfo
from latentc.core.progress import quiet
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.profiles.profile import FOLDER
from latentc.runtimes import Job
from latentc.runtimes.base import Target, files_in
from latentc.runtimes.onnxruntime import ONNXRuntime

PROFILE = load_profile("snapdragon-x-elite")
WHY_NOT = ONNXRuntime().unbuildable("QNN")
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
simulated = pytest.mark.skipif(
    ONNXRuntime().missing("QNN-simulator") is not None, reason=str(ONNXRuntime().missing("QNN-simulator"))
)


@pytest.fixture
def compiled(make_case, tmp_path):
    """Compiles the small part for a device, and gives the case, its feeds and the target."""
    case = make_case("onnxruntime")

    def made(device, **options):
        feeds = case.feeds()
        shape = {name: array.shape for name, array in feeds.items()}
        target = replace(
            case.target, device=device, precision="f16", options={**PROFILE.options, **options}, shape=shape
        )
        out = tmp_path / device
        out.mkdir()
        with lowered(case.bundle.graph("unet"), device, 18, shape, ("half",)) as graph:
            case.adapter.compile(Job("unet", graph, weights_of(graph), target), out, quiet)
        return replace(case, artifact=out, target=target), feeds

    return made


@simulated
def test_the_npus_code_computes_what_it_should(compiled):
    case, feeds = compiled("QNN-simulator")
    assert json.loads((case.artifact / "placement.json").read_text()) == {"QNNExecutionProvider": {"EPContext": 1}}
    engine = case.adapter.load(case.artifact, case.target, files_in(case.artifact))
    outputs = engine.run(feeds)
    for name, wanted in case.expected(feeds).items():
        np.testing.assert_allclose(outputs[name], wanted, rtol=0, atol=2e-2, err_msg=name)
        assert np.abs(outputs[name] - wanted).max() > 0, "f16 costs something"
    with pytest.raises(ShapeError, match="this engine was built for"):
        engine.run(case.feeds(1, 8, 8))
    engine.close()


@simulated
@pytest.mark.parametrize("op", ["GroupNormalization", "LayerNormalization", "RMSNormalization"])
def test_norms_of_values_whose_squares_are_out_of_range(op, tmp_path):
    """The NPU computes f32 in f16, where the largest square is 255 x 255. Only inside an operator it sums in f32."""
    shape = (2, 8, 4, 8) if op == "GroupNormalization" else (2, 256)
    channels, rows = shape[1], np.random.default_rng(0).normal(size=shape)
    numbers = {"scale": np.linspace(0.5, 2, channels), "bias": np.linspace(-1, 1, channels)}
    weights = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in numbers.items()]
    weights = weights[: 1 if op == "RMSNormalization" else 2]
    own = {"num_groups": 2} if op == "GroupNormalization" else {}
    node = onnx.helper.make_node(op, ["x", *(weight.name for weight in weights)], ["y"], epsilon=1e-5, **own)
    edges = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
    graph = onnx.helper.make_graph([node], "norm", edges[:1], edges[1:], weights)
    proto = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 23)])
    onnx.save(proto, tmp_path / "model.onnx")
    tensors = [(TensorInfo(name=name, dtype="float32", shape=shape),) for name in "xy"]
    adapter, fixed, out = ONNXRuntime(), {"x": shape}, tmp_path / "engine"
    target = Target("onnxruntime", "QNN-simulator", "f16", PROFILE.options, *tensors, shape=fixed)
    out.mkdir()
    with lowered(tmp_path / "model.onnx", "norm", 18, fixed, needed_passes(adapter, target)) as path:
        adapter.compile(Job("norm", path, weights_of(path), target), out, quiet)
    engine = adapter.load(out, target, files_in(out))
    outlier = rows * 10
    outlier.reshape(2, -1)[:, 7] = 20000
    for what, x in {
        "large": rows * 600,
        "largest": np.clip(rows * 15000, -65000, 65000),
        "outlier": outlier,
        "far from zero": rows + 400,
        "large and far from zero": rows * 600 + 10000,
        "tiny": rows * 1e-3,
        "the same": np.full(shape, 600.0),
    }.items():
        values = x.astype(np.float16).astype(np.float32)
        (wanted,) = ReferenceEvaluator(proto).run(None, {"x": values})
        assert psnr_db(wanted, engine.run({"x": values})["y"]) > 50, f"{what}: f16 requires 40"
    engine.close()


def test_code_for_an_npu_that_is_not_here_is_made_and_not_run(compiled):
    case, _ = compiled("QNN")
    assert sum(path.stat().st_size for path in case.artifact.glob("*.bin")) > 10_000
    model = (case.artifact / "engine.onnx").read_bytes()
    assert b":73:60:" in model, "the chip that it was made for"
    if case.adapter.missing("QNN") is None:
        pytest.skip("There is an NPU here.")
    assert case.adapter.missing("QNN").startswith("QNNExecutionProvider finds no NPU. It requires a Snapdragon")
    with pytest.raises(RuntimeMissing, match="finds no NPU"):
        case.adapter.load(case.artifact, case.target, files_in(case.artifact))


def test_a_context_belongs_to_one_version_of_the_plugin():
    """Contexts of another one may be refused, or be slower (onnxruntime-qnn 858); the key has the version."""
    assert ONNXRuntime().device("QNN") == {"onnxruntime_qnn": metadata.version("onnxruntime-qnn")}


def test_what_it_must_be_told_and_what_it_would_take_in_silence(make_case, tmp_path):
    case = make_case("onnxruntime")
    for value in ("12", 73):
        with pytest.raises(ProfileError, match="htp_arch is .* must be one of: 68"):
            case.adapter.check({"htp_arch": value})
    with pytest.raises(ProfileError, match="Did you mean 'htp_performance_mode'"):
        case.adapter.check({"htp_performance_mod": "burst"})
    target = replace(case.target, device="QNN", precision="f16", options={"htp_arch": "73"})
    with pytest.raises(ProfileError, match="requires soc_model"):
        case.adapter.compile(job_of(case.bundle, "unet", case.bundle.graph("unet"), target), tmp_path, quiet)
    assert not case.adapter.takes_free_sizes("QNN", {})
    with pytest.raises(CompileError, match="does not compute in f32 on QNN"):
        case.adapter.compile(
            job_of(case.bundle, "unet", case.bundle.graph("unet"), replace(target, precision="f32")), tmp_path, quiet
        )


@simulated
def test_the_simulator_is_kept_from_standard_output():
    code = "from latentc.runtimes.onnxruntime import ONNXRuntime; print(ONNXRuntime().missing('QNN-simulator'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@simulated
@pytest.mark.slow
def test_the_npus_code_draws_what_pytorch_draws(own_bundle, tmp_path):
    bundle = own_bundle("scenes")
    text = (FOLDER / "snapdragon-x-elite.toml").read_text()
    for old, new in (('device = "QNN"', 'device = "QNN-simulator"'), ('sizes = ["own"]', 'sizes = ["64x64"]')):
        assert old in text
        text = text.replace(old, new)  # a call at the model's own size takes the simulator seven seconds
    (tmp_path / "simulated.toml").write_text(text)
    pictures = []
    for name, floor in ((str(tmp_path / "simulated.toml"), 45), ("torch-f32", 100)):
        profile = load_profile(name)
        built = build(bundle, profile)
        assert built.step_psnr_db > floor  # the worst of every call that diffusers' pipeline made
        with Pipeline.open(bundle.folder, profile) as pipeline:
            request = Request(
                prompt="a red boat on the sea at sunset", width=64, height=64, steps=2, guidance=4, seed=1
            )
            result = pipeline(request)
        pictures.append(result.images.astype(np.float32))
        nodes = "1 QNNExecutionProvider" if profile.runtime == "onnxruntime" else ""
        assert result.engines["unet"].partition(", nodes: ")[2] == nodes
    assert psnr_db(pictures[1], pictures[0]) > 35
    for path in bundle.folder.glob("engines/*/placement.json"):
        assert json.loads(path.read_text()) == {"QNNExecutionProvider": {"EPContext": 1}}
