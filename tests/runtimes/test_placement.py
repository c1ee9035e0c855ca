"""ONNX Runtime's devices: no provider in another's place, no work left to the CPU, tensors in the device's memory."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.compiler.lower import lowered
from latentc.core.errors import CompileError, RuntimeMissing
from latentc.core.manifest import TensorInfo
from latentc.core.model import Model, TextEncoder
from latentc.core.shapes import Setting, sizes
from latentc.runtimes import onnxruntime as module
from latentc.runtimes import placement, provider_here
from latentc.runtimes.base import files_in
from latentc.runtimes.providers import PROVIDERS, Provider

from .pretended_device import stand_in


@pytest.fixture
def case(make_case):
    return make_case("onnxruntime")


def test_a_provider_that_steps_in_is_refused(case, monkeypatch):
    """What ONNX Runtime does without a word where CUDA's libraries cannot be loaded."""
    library = placement._library()
    make = library.InferenceSession
    monkeypatch.setattr(library, "InferenceSession", lambda graph, options, **_: make(graph, options))
    with pytest.raises(RuntimeMissing, match="fell back from CUDAExecutionProvider to CPUExec"):
        placement.open_session(str(case.artifact / "engine.onnx"), library.SessionOptions(), "CUDA", {})


def test_work_left_to_the_cpu_is_refused_by_name(case, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    with pytest.raises(
        CompileError, match=r"leaves these nodes to the CPU: .*2 Conv.*opset = 18.*allow_nodes_on_cpu = true"
    ):
        case.compile(tmp_path / "out", device="DSP")
    allowed = {"allow_nodes_on_cpu": True}
    case.adapter.check(allowed)
    target = case.compile(tmp_path / "allowed", device="DSP", options=allowed)
    placed = json.loads((tmp_path / "allowed" / "placement.json").read_text())
    assert list(placed) == ["CPUExecutionProvider"]
    assert placed["CPUExecutionProvider"]["Conv"] == 2
    engine = case.adapter.load(tmp_path / "allowed", target, files_in(tmp_path / "allowed"))
    for name, wanted in case.expected(case.feeds()).items():
        np.testing.assert_allclose(engine.run(case.feeds())[name], wanted, rtol=0, atol=1e-4)
    engine.close()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_provider_that_runs_no_node_never_builds(case, tmp_path, monkeypatch, allowed):
    """Azure's provider is in the CPU's wheel too: ONNX Runtime opens it, and it takes no node of ours."""
    stand_in(monkeypatch, name="AzureExecutionProvider", beside=("CPU",))
    says = "AzureExecutionProvider runs none of this part's nodes; ONNX Runtime leaves them to CPUExecutionProvider"
    with pytest.raises(CompileError, match=says if allowed else "leaves these nodes to the CPU"):
        case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": allowed})


def test_an_engine_that_another_provider_runs_is_not_loaded(case, tmp_path, monkeypatch):
    """As an earlier version built and called it TensorRT."""
    stand_in(monkeypatch)
    target = case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": True})
    files, listed = files_in(tmp_path / "out"), tmp_path / "out" / "placement.json"
    case.adapter.load(tmp_path / "out", target, files).close()
    says = "CPUExecutionProvider runs none of this part's nodes; .* to CUDAExecutionProvider.*Remove .*out. Build again"
    for placed in ({"CUDAExecutionProvider": {"Conv": 2}}, {"CPUExecutionProvider": {}, "CUDAExecutionProvider": {}}):
        listed.write_text(json.dumps(placed))
        with pytest.raises(CompileError, match=says):
            case.adapter.load(tmp_path / "out", target, files)
    listed.write_text('{"CPUExecutionProvider": [1]}')
    with pytest.raises(CompileError, match="is not a list of nodes by provider"):
        case.adapter.load(tmp_path / "out", target, files)


ON_DEVICES = [device for device, provider in PROVIDERS.items() if device != "CPU" and not provider.ahead]


def placed(monkeypatch, device, *nodes, options=None):
    """Where nodes are run, by what a session reports: (provider, operator, bytes) for each."""

    class Session:
        def run(self, names, feeds):
            pass

        def end_profiling(self):
            return events

    with TemporaryDirectory() as folder:
        events = Path(folder) / "events.json"
        kernels = [{"op_name": name, "provider": by, "output_size": str(count)} for by, name, count in nodes]
        events.write_text(json.dumps([{"name": "one_kernel_time", "args": kernel} for kernel in kernels]))
        monkeypatch.setattr(placement, "open_session", lambda *_: Session())
        target = SimpleNamespace(inputs=(), outputs=(), shape=None, device=device, options=options or {})
        return placement.place(Path(), SimpleNamespace(), target, {}, {})


@pytest.mark.parametrize("device", ON_DEVICES)
def test_small_nodes_on_the_cpu_are_no_engine_of_a_device(monkeypatch, device):
    name = PROVIDERS[device].name
    small = ("CPUExecutionProvider", "Gather", 8)
    assert placed(monkeypatch, device, (name, "Mul", 8), small)[name] == {"Mul": 1}
    for nodes in ((small,), ()):
        with pytest.raises(CompileError, match=f"{name} runs none of this part's nodes"):
            placed(monkeypatch, device, *nodes)


@pytest.mark.parametrize("left", ["Attention", "FusedConv", "GroupNormalization", "SkipLayerNormalization"])
def test_tensorrt_leaves_nothing_heavy_to_cuda(monkeypatch, left):
    """CUDA's own graphs are rewritten, because its f16 Attention is wrong; TensorRT's aren't."""
    tensorrt, cuda = ("TensorrtExecutionProvider", "TRTKernel_graph_0", 1 << 20), "CUDAExecutionProvider"
    assert placed(monkeypatch, "TensorRT", tensorrt, (cuda, "Cast", 1 << 20))[cuda] == {"Cast": 1}
    says = rf"TensorrtExecutionProvider does not support .*CUDAExec.*: 2 {left}\. Try opset = 18 .*device = 'CUDA'"
    for options in ({}, {"allow_nodes_on_cpu": True}):
        with pytest.raises(CompileError, match=says):
            placed(monkeypatch, "TensorRT", tensorrt, (cuda, left, 8), (cuda, left, 8), options=options)
    assert placed(monkeypatch, "CUDA", (cuda, left, 8)), "what is CUDA's own it runs"


def test_a_context_without_code_is_refused(tmp_path, monkeypatch):
    """What a compiler ahead of time writes where it takes no node: the graph as it was."""
    import onnx

    value = onnx.helper.make_tensor_value_info("x", 1, [2]), onnx.helper.make_tensor_value_info("y", 1, [2])
    node = onnx.helper.make_node("Mul", ["x", "x"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "small", value[:1], value[1:]))
    monkeypatch.setattr(placement, "open_session", lambda *_: onnx.save(model, tmp_path / "context.onnx"))
    options, target = (
        SimpleNamespace(add_session_config_entry=lambda *_: None),
        SimpleNamespace(device="QNN", options={}),
    )
    with pytest.raises(CompileError, match="QNNExecutionProvider runs none of this part's nodes"):
        placement.compile_ahead(tmp_path / "graph.onnx", tmp_path / "context.onnx", options, target, {})


def test_tensors_stay_in_the_devices_memory(case, tmp_path, monkeypatch):
    """By the same calls, in memory that is called cpu."""
    stand_in(monkeypatch, memory="cpu")
    target = case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": True})
    engine = case.adapter.load(tmp_path / "out", target, files_in(tmp_path / "out"))
    copied = Counter()
    kind = placement._library().OrtValue
    update = kind.update_inplace

    def counted(value, array):
        copied[array.shape] += 1
        update(value, array)

    monkeypatch.setattr(kind, "update_inplace", counted)
    for shape in ((2, 8, 6), (1, 10, 12), (2, 8, 6)):
        feeds = case.feeds(*shape)
        for name, wanted in case.expected(feeds).items():
            np.testing.assert_allclose(engine.run(feeds)[name], wanted, rtol=0, atol=1e-4)
    feeds = case.feeds()
    context = feeds.pop("encoder_hidden_states")
    wanted = engine.run({**feeds, "encoder_hidden_states": context})
    bound = engine.bind({"encoder_hidden_states": context})
    copied.clear()
    for _ in range(3):
        np.testing.assert_array_equal(bound(feeds)["out_sample"], wanted["out_sample"])
    assert copied[context.shape] == 1  # of three calls
    assert copied[feeds["sample"].shape] == 3
    engine.run({**feeds, "encoder_hidden_states": 0 * context})
    np.testing.assert_array_equal(bound(feeds)["out_sample"], wanted["out_sample"])

    def broken(value, array):
        update(value, 0 * array)  # what is written before it fails
        if array.shape == context.shape:
            raise RuntimeError("an illegal memory access was encountered")
        update(value, array)

    monkeypatch.setattr(kind, "update_inplace", broken)
    with pytest.raises(CompileError, match="illegal memory access"):
        engine.run({**feeds, "encoder_hidden_states": context})
    monkeypatch.setattr(kind, "update_inplace", update)
    np.testing.assert_array_equal(bound(feeds)["out_sample"], wanted["out_sample"])
    engine.close()
    with pytest.raises(RuntimeMissing, match="closed"):
        bound(feeds)


@pytest.fixture
def accelerator(monkeypatch):
    """A device with memory of its own and recorded calls, as CUDA is to the adapter; the CPU computes."""
    device = Provider("CPUExecutionProvider", "onnxruntime", precisions=("f32",), memory="cpu", captures="records")
    monkeypatch.setitem(PROVIDERS, "Accelerator", replace(device, options={"records": bool}))
    for where in (module, placement, provider_here):
        monkeypatch.setattr(where, "fault", lambda device, precision: None)  # it asks that no CPU steps in
    return "Accelerator"


def test_a_device_is_given_the_lowered_graph_with_its_weights_beside_it(case, accelerator, tmp_path):
    """ONNX Runtime 1.31 looks for them in the folder that the session names, if it names one."""
    feeds = case.feeds(2, 8, 8)
    shape = {name: array.shape for name, array in feeds.items()}
    changes = {"device": accelerator, "options": {"allow_nodes_on_cpu": True}, "shape": shape}
    with lowered(case.bundle.graph("unet"), "key", 23, shape) as path:
        assert path.parent != case.bundle.graph("unet").parent
        case.build(tmp_path / "out", path, **changes)
    engine = case.load(tmp_path / "out", **changes)
    for name, wanted in case.expected(feeds).items():
        np.testing.assert_allclose(engine.run(feeds)[name], wanted, rtol=0, atol=1e-4)
    engine.close()


def test_what_cannot_be_recorded_is_said_when_it_is_built(case, accelerator, tmp_path, monkeypatch):
    """CUDA's provider refuses graphs with a node that it has no kernel for, in these words (1.31.1, on an H200)."""
    opened = placement.open_session

    def refused(graph, options, device, settings):
        if settings.get("records") == "1":
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        return opened(graph, options, device, settings)

    monkeypatch.setattr(placement, "open_session", refused)
    feeds = case.feeds(2, 8, 8)
    shape = {name: array.shape for name, array in feeds.items()}
    options = {"allow_nodes_on_cpu": True, "records": True}
    with pytest.raises(
        CompileError,
        match=r"cannot record a call as a graph.*graph capture.*records = false under \[part_options\.unet\]",
    ):
        case.compile(tmp_path / "out", device=accelerator, options=options, shape=shape)


@pytest.mark.parametrize(("channels", "sides", "scale"), [(4, ("height", "width"), 8), (3, ("8*height", "8*width"), 1)])
def test_nodes_are_placed_at_the_models_own_width_and_height(tmp_path, monkeypatch, channels, sides, scale):
    fed = {}

    class Session:
        def run(self, names, feeds):
            fed.update(feeds)

        def end_profiling(self):
            node = {"op_name": "Conv", "provider": "CPUExecutionProvider", "output_size": "8"}
            (tmp_path / "events.json").write_text(json.dumps([{"name": "conv_kernel_time", "args": node}]))
            return tmp_path / "events.json"

    monkeypatch.setattr(placement, "open_session", lambda *_: Session())
    picture = TensorInfo(name="x", dtype="float32", shape=("batch", channels, *sides))
    options = {"allow_nodes_on_cpu": True}
    target = SimpleNamespace(inputs=(picture,), outputs=(), shape=None, device="CPU", options=options)
    model = Model(
        text_encoders=(TextEncoder(part="text_encoder", tokenizer="tokenizer"),),
        latent_channels=4,
        downscale=8,
        scaling_factor=0.18215,
        default_size=128,
        default_height=64,
        wires=(),
    )
    usual = sizes(model, "denoiser", Setting(*model.own_size))
    placement.place(tmp_path, SimpleNamespace(), target, {}, usual)
    assert fed["x"].shape == (2, channels, 64 // scale, 128 // scale)
