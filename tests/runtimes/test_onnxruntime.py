"""ONNX Runtime: no flavour over another, no provider in another's place."""

import json
import os
import platform
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.compiler.lower import lowered
from latentc.compiler.targets import choices, shapes, targets
from latentc.compiler.targets import wanted as wanted_by
from latentc.core.errors import CompileError, ProfileError, RuntimeMissing
from latentc.core.manifest import Model, TensorInfo, TextEncoder
from latentc.core.shapes import Setting, sizes
from latentc.profiles import load_profile, profile_names
from latentc.profiles.profile import Shapes
from latentc.runtimes import Target, compiled_code, cuda, placement, provider_here, providers
from latentc.runtimes import onnxruntime as module
from latentc.runtimes.base import files_in
from latentc.runtimes.machine import AmdGpu, Gpu
from latentc.runtimes.onnxruntime import ONNXRuntime
from latentc.runtimes.providers import PROVIDERS, Provider


@pytest.fixture
def case(make_case):
    return make_case("onnxruntime")


def test_several_flavours_in_one_folder_are_named(monkeypatch):
    pytest.importorskip("onnxruntime")
    both = {"onnxruntime": "1.31.1", "onnxruntime-webgpu": "1.27.0"}
    monkeypatch.setattr(provider_here, "flavours", lambda: both)
    reason = ONNXRuntime().missing("CPU")
    assert reason is not None
    assert "installed: onnxruntime 1.31.1, onnxruntime-webgpu 1.27.0." in reason
    assert "pip uninstall -y onnxruntime onnxruntime-webgpu && pip install" in reason
    assert ONNXRuntime().devices() == ()


def test_flavours_are_found_by_the_folder_they_own(tmp_path, monkeypatch):
    owned = "onnxruntime/__init__.py,sha256=x,1\n"
    for name, record in (
        ("onnxruntime_gpu", owned),
        ("onnxruntime", owned),
        ("onnxruntime_extensions", "onnxruntime_extensions/__init__.py,,\n"),
        ("onnx", "onnx/__init__.py,,\n"),
    ):
        folder = tmp_path / f"{name}-1.2.3.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2.3\n")
        (folder / "RECORD").write_text(record)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert provider_here.flavours.__wrapped__() == {"onnxruntime": "1.2.3", "onnxruntime-gpu": "1.2.3"}


def test_a_folder_that_lost_its_files_is_named(monkeypatch):
    """What `pip uninstall` of one flavour leaves of the other: a package without InferenceSession."""
    import types

    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", types.ModuleType("onnxruntime"))
    reason = ONNXRuntime().missing("CPU")
    assert reason is not None
    assert "cannot be loaded" in reason
    assert "pip uninstall -y" in reason


def stand_in(monkeypatch, **changes):
    """Let the CPU's provider pass for one of a device called DSP."""
    provider = replace(Provider("CPUExecutionProvider", "onnxruntime-dsp", precisions=("f32",)), **changes)
    for room in (module, placement, providers):
        monkeypatch.setitem(room.PROVIDERS, "DSP", provider)
    for room in (module, provider_here):
        monkeypatch.setattr(room, "fault", lambda device, precision: None)


def test_a_provider_that_steps_in_is_refused(case, monkeypatch):
    """What ONNX Runtime does without a word where CUDA's libraries cannot be loaded."""
    library = placement._library()
    make = library.InferenceSession
    monkeypatch.setattr(library, "InferenceSession", lambda graph, options, **_: make(graph, options))
    with pytest.raises(RuntimeMissing, match="fell back from CUDAExecutionProvider to CPUExec"):
        placement.open_session(str(case.artifact / "engine.onnx"), library.SessionOptions(), "CUDA", {})


def test_a_device_is_tried_before_it_is_offered(monkeypatch):
    """`get_available_providers` names what was compiled in, and says nothing of the GPU."""
    library = placement._library()
    monkeypatch.setattr(library, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    placement.fault.cache_clear()
    reason = ONNXRuntime().missing("CUDA")
    placement.fault.cache_clear()
    assert reason is not None
    assert reason.startswith("CUDAExecutionProvider does not work: ")
    assert "CUDA" not in ONNXRuntime().devices()
    assert ONNXRuntime().precisions("CUDA") == ()


def test_the_graph_that_devices_are_tried_with_is_whole():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx.reference")
    for code, kind in placement.TYPES.values():
        model = onnx.load_from_string(placement.TRIAL % (code, code))
        onnx.checker.check_model(model, full_check=True)
        evaluator = onnx.reference.ReferenceEvaluator(model)
        assert evaluator.run(None, {"x": np.array([3, -4], kind)})[0].tolist() == [9, 16]
        assert model.graph.input[0].type.tensor_type.elem_type == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))


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


def test_a_device_is_tried_without_the_provider_beside_it(monkeypatch):
    opened = []
    monkeypatch.setattr(placement, "_taken", lambda session, provider: session)
    session = SimpleNamespace(run=lambda *_: [np.array([9, 16])])
    monkeypatch.setattr(
        placement._library(),
        "InferenceSession",
        lambda *_, providers, **__: opened.append([*dict(providers)]) or session,
    )
    assert placement.fault.__wrapped__("TensorRT", "f16") is None
    assert opened == [["TensorrtExecutionProvider", "CUDAExecutionProvider"], ["TensorrtExecutionProvider"]]


def test_an_engine_that_was_compiled_again_at_load_is_refused(case, tmp_path, monkeypatch):
    stand_in(monkeypatch, caches=(("keep", "{}"),))
    asked = []
    real = placement.open_session

    def compiling(graph, options, device, settings):
        asked.append(settings)
        (Path(settings["keep"]) / f"{len(asked)}.engine").write_bytes(b"compiled")
        return real(graph, options, device, {})

    monkeypatch.setattr(placement, "open_session", compiling)
    monkeypatch.setattr(module, "open_session", compiling)
    target = case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": True})
    assert asked == [{"keep": str(tmp_path / "out" / "cache")}]
    files = files_in(tmp_path / "out")
    assert "cache/1.engine" in files
    for name in ("2.engine", "3.engine"):  # what was made anew is not taken the next time either
        with pytest.raises(
            CompileError, match=f"did not accept its compiled code of out and recompiled {name}, which is not proved"
        ):
            case.adapter.load(tmp_path / "out", target, files)


def test_an_engine_that_was_compiled_again_over_the_old_one_is_refused(case, tmp_path, monkeypatch):
    """As MIGraphX's provider does with what it can't read: of the same name, and maybe of the same size."""
    stand_in(monkeypatch, caches=(("keep", "{}"),))
    asked = []
    real = placement.open_session

    def compiling(graph, options, device, settings):
        asked.append(settings)
        if len(asked) != 2:
            (Path(settings["keep"]) / "model.mxr").write_bytes(b"compiled")
        return real(graph, options, device, {})

    monkeypatch.setattr(placement, "open_session", compiling)
    monkeypatch.setattr(module, "open_session", compiling)
    target = case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": True})
    files, proved = files_in(tmp_path / "out"), tmp_path / "out" / "cache" / "model.mxr"
    case.adapter.load(tmp_path / "out", target, files).close()
    assert proved.read_bytes() == b"compiled"
    proved.write_bytes(b"proved..")
    with pytest.raises(CompileError, match=r"recompiled model.mxr, which is not proved. Remove .*out"):
        case.adapter.load(tmp_path / "out", target, files)
    assert proved.read_bytes() == b"proved..", "it was compiled elsewhere"


def test_code_that_is_compiled_at_load_is_seen_though_the_bundle_is_read_only(case, tmp_path, monkeypatch):
    """The provider can't store it there, and reports nothing; here it writes only where it may."""
    stand_in(monkeypatch, caches=(("keep", "{}"),))
    given = []
    real, accepted = placement.open_session, [True]

    def compiling(graph, options, device, settings):
        given.append(Path(settings["keep"]))
        new = given[-1] / ("model.mxr" if len(given) == 1 else "another.mxr")
        if (len(given) == 1 or not accepted) and os.access(new.parent, os.W_OK):
            new.write_bytes(b"compiled")
        return real(graph, options, device, {})

    monkeypatch.setattr(placement, "open_session", compiling)
    monkeypatch.setattr(module, "open_session", compiling)
    target = case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": True})
    files, access = files_in(tmp_path / "out"), os.access

    def read_only(path, mode, **more):
        return not (mode & os.W_OK and Path(path).is_relative_to(tmp_path)) and access(path, mode, **more)

    monkeypatch.setattr(os, "access", read_only)
    engine = case.adapter.load(tmp_path / "out", target, files)
    (lent,) = given[-1].iterdir()
    assert lent.resolve() == tmp_path / "out/cache/model.mxr", "what can't be written to isn't copied"
    engine.close()
    assert not given[-1].exists()
    accepted.clear()
    with pytest.raises(CompileError, match="recompiled another.mxr, which is not proved"):
        case.adapter.load(tmp_path / "out", target, files)
    assert not given[-1].exists()


def test_compiled_code_is_copied_where_links_require_a_privilege(tmp_path, monkeypatch):
    """On Windows, a bundle that is read-only."""

    def refused(*_):
        raise OSError("A required privilege is not held by the client")

    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model.engine").write_bytes(b"compiled")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(Path, "symlink_to", refused)
    with compiled_code.lent(tmp_path, ["engine.onnx", "cache/model.engine"]) as cache:
        assert [(path.name, path.read_bytes()) for path in cache.iterdir()] == [("model.engine", b"compiled")]
    assert not cache.exists()


def test_a_build_that_stores_no_code_fails(case, tmp_path, monkeypatch):
    stand_in(monkeypatch, caches=(("keep", "{}"),))
    real = placement.open_session
    monkeypatch.setattr(placement, "open_session", lambda graph, options, device, _: real(graph, options, device, {}))
    with pytest.raises(CompileError, match="stored no compiled code in its cache.*has the option keep"):
        case.compile(tmp_path / "out", device="DSP", options={"allow_nodes_on_cpu": True})


def test_variables_that_override_the_profile_are_refused(monkeypatch):
    """As MIGraphX's provider reads them: any text counts, and 0 is text (migraphx_execution_provider.cc)."""
    stand_in(monkeypatch, environment="ORT_DSP_")
    assert ONNXRuntime().missing("DSP") is None
    monkeypatch.setenv("ORT_DSP_MODEL_CACHE_PATH", "/tmp")
    monkeypatch.setenv("ORT_DSP_FP16_ENABLE", "0")
    reason = ONNXRuntime().missing("DSP")
    assert reason is not None
    assert reason.startswith("ORT_DSP_FP16_ENABLE, ORT_DSP_MODEL_CACHE_PATH in the environment would override")
    assert reason.endswith("Remove it: unset ORT_DSP_FP16_ENABLE ORT_DSP_MODEL_CACHE_PATH.")
    assert PROVIDERS["MIGraphX"].environment == "ORT_MIGRAPHX_"


def test_without_access_to_the_gpu_no_engine_is_to_be_removed(monkeypatch):
    stand_in(monkeypatch, vendor="AMD")
    monkeypatch.setattr(module.hip, "denied", lambda _: "This user cannot open /dev/kfd, which ROCm requires.")
    assert ONNXRuntime().missing("DSP") == "This user cannot open /dev/kfd, which ROCm requires."
    assert ONNXRuntime().device("DSP").keys() == {"gpu"}
    monkeypatch.setattr(module.hip, "versions", lambda: {"rocm": "7.14.0", "migraphx": "libmigraphx.so.2016000.0"})
    assert ONNXRuntime().device("DSP").keys() == {"gpu", "rocm", "migraphx"}, "they are in the key"


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


def test_options_that_a_provider_takes_as_entries_only(case, monkeypatch):
    """WebGPU's provider ignores what it is given as options, a word that doesn't exist as well."""
    stand_in(monkeypatch, entries="ep.dsp.")
    library, asked = placement._library(), []
    make = library.InferenceSession

    def noted(graph, options, providers, **rest):
        asked.append(providers)
        return make(graph, options, providers=providers, **rest)

    monkeypatch.setattr(library, "InferenceSession", noted)
    options = library.SessionOptions()
    placement.open_session(str(case.artifact / "engine.onnx"), options, "DSP", {"layout": "NHWC"})
    assert options.get_session_config_entry("ep.dsp.layout") == "NHWC"
    assert asked == [[("CPUExecutionProvider", {})]]


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_cuda_sums_no_norm_in_f16(tmp_path, precision):
    """Behind a residual the optimizer replaces LayerNormalization by an operator whose CUDA kernel sums in f16."""
    onnx = pytest.importorskip("onnx")
    net = """<ir_version: 10, opset_import: ["": 18]>
    net (float[1, 4, 8] x, float[1, 4, 8] more) => (float[1, 4, 8] y)
    <float[8] scale = {1, 1, 1, 1, 1, 1, 1, 1}, float[8] bias = {0, 0, 0, 0, 0, 0, 0, 0}>
    { a = Add(x, more)  y = LayerNormalization<axis=-1>(a, scale, bias) }"""
    options = module._options(Target("onnxruntime", "CUDA", precision, {}, (), ()), "ORT_ENABLE_ALL")
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    placement.open_session(onnx.parser.parse_model(net).SerializeToString(), options, "CPU", {})
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds == (["Add", "LayerNormalization"] if precision == "f16" else ["SkipLayerNormalization"])


def test_the_amd_gpu_with_the_most_memory_is_opened(case, monkeypatch):
    library, given = placement._library(), []
    gpus = {0: AmdGpu("Raphael", "gfx1036", 1, "", 0), 1: AmdGpu("Navi31", "gfx1100", 24, "", 0)}
    gpus |= {2: AmdGpu("MI300X", "gfx942", 192, "", 0), 3: AmdGpu("Navi31", "gfx1100", 24, "", 0)}
    monkeypatch.setattr(placement.hip, "_gpus", lambda: gpus)
    monkeypatch.setattr(placement.hip, "addresses", lambda: ("",) * 4)
    monkeypatch.setattr(placement, "_taken", lambda session, provider: session)
    monkeypatch.setattr(library, "InferenceSession", lambda graph, options, providers, **_: given.append(providers))
    for device, options in (("MIGraphX", {}), ("MIGraphX-gfx1100", {}), ("MIGraphX", {"device_id": "0"})):
        placement.open_session("", library.SessionOptions(), device, options)
    assert given == [[("MIGraphXExecutionProvider", {"device_id": number})] for number in ("2", "1", "0")]
    tried = []
    monkeypatch.setattr(placement, "open_session", lambda *asked, **_: tried.append(asked[2:]))
    placement.fault.cache_clear()
    placement.fault("MIGraphX-gfx1100:3", "f16")
    placement.fault.cache_clear()
    assert tried[0] == ("MIGraphX-gfx1100", {"device_id": "3"}), "the trial runs on the profile's GPU"
    here = tuple(
        Gpu(name=gpu.name, vendor="AMD", architecture=gpu.architecture, driver="amdgpu") for gpu in gpus.values()
    )
    monkeypatch.setattr(provider_here, "machine", lambda: SimpleNamespace(gpus=here))
    monkeypatch.setattr(module.hip, "versions", dict)
    monkeypatch.setattr(module.hip, "loaded", lambda: {"migraphx": "libmigraphx.so.2019000.0"})
    monkeypatch.setenv("MIGRAPHX_DISABLE_MLIR", "1")
    more = {"migraphx": "libmigraphx.so.2019000.0", "MIGRAPHX_DISABLE_MLIR": "1"}
    adapter = ONNXRuntime()
    for device, architecture in (("MIGraphX", "gfx942"), ("MIGraphX-gfx1100", "gfx1100"), ("MIGraphX:0", "gfx1036")):
        assert adapter.device(device) == {"gpu": f"{architecture} amdgpu", **more}, "the opened one only"
    monkeypatch.setattr(module.hip, "denied", lambda _: None)
    monkeypatch.setattr(library, "get_available_providers", lambda: ["MIGraphXExecutionProvider"])
    monkeypatch.setattr(provider_here, "fault", lambda *_: None)
    assert adapter.missing("MIGraphX-gfx1100:3") is None
    assert adapter.missing("MIGraphX-gfx1100:2") == (
        "GPU 2 is a gfx942, not a gfx1100. Write the number of a gfx1100, or leave it out."
    )
    assert adapter.missing("MIGraphX:4") == "HIP has no GPU with number 4; it has 4, numbered from 0 on."
    assert "This machine has no gfx950 GPU; AMD GPUs found: gfx1036" in (adapter.missing("MIGraphX-gfx950") or "")


def test_a_shipped_profile_for_an_amd_gpu_opens_that_one():
    for profile in (load_profile(name) for name in profile_names()):
        if profile.device.startswith("MIGraphX"):
            assert (PROVIDERS[profile.device].architecture,) == profile.gpus


def test_two_cards_of_directml_have_numbers(case, monkeypatch, tmp_path):
    """With device_id its provider reads no preference and no filter (dml_provider_factory.cc)."""
    numbered = target_of(case, "DirectML", number=1)
    assert providers.settings(numbered, tmp_path) == {"device_id": "1"}
    with pytest.raises(ProfileError, match="ignores performance_preference where the device has a number, such as Dir"):
        providers.settings(replace(numbered, options={"performance_preference": "minimum_power"}), tmp_path)
    monkeypatch.setattr(module.platform, "system", lambda: "Windows")
    monkeypatch.setattr(placement._library(), "get_available_providers", lambda: ["DmlExecutionProvider"])
    tried = []
    monkeypatch.setattr(provider_here, "fault", lambda *asked: tried.append(asked))
    assert ONNXRuntime().missing("DirectML:1") is None
    assert tried == [("DirectML:1", "f32")]
    assert ONNXRuntime().drivers("DirectML:1")["device_id"] == "1", "each card is proved by itself"


def test_a_gpu_of_webgpu_that_the_user_cannot_open_is_said(monkeypatch):
    monkeypatch.setattr(placement._library(), "get_available_providers", lambda: ["WebGpuExecutionProvider"])
    monkeypatch.setattr(provider_here, "fault", lambda *_: "no adapter")
    closed = "this user cannot open /dev/dri/renderD128. Add the user"
    monkeypatch.setattr(provider_here, "shut", lambda pattern: closed)
    assert ONNXRuntime().missing("WebGPU") == f"WebGpuExecutionProvider does not work: {closed}"
    monkeypatch.setattr(provider_here, "shut", lambda pattern: None)
    assert (ONNXRuntime().missing("WebGPU") or "").endswith("no adapter. It requires a GPU and its driver.")
    monkeypatch.setattr(provider_here, "fault", lambda *_: None)
    monkeypatch.setattr(module.vulkan, "denied", lambda: closed)
    assert ONNXRuntime().missing("WebGPU") == f"WebGpuExecutionProvider finds only a software GPU: {closed}"
    monkeypatch.setattr(module.vulkan, "drivers", lambda: {"Arc A770": "Mesa 26.1.2"})
    assert ONNXRuntime().drivers("WebGPU")["Arc A770"] == "Mesa 26.1.2", "it compiles the shaders"


@pytest.mark.parametrize("profile", [one for one in map(load_profile, profile_names()) if one.runtime == "onnxruntime"])
def test_the_settings_of_every_shipped_profile_go_together(bundle, profile, tmp_path):
    adapter, opened = ONNXRuntime(), bundle("sd1")
    adapter.check(profile.options, profile.device)
    free = adapter.takes_free_sizes(profile.device, profile.options)
    for name, part in opened.manifest.parts.items():
        for shape in shapes(opened, profile, name, free=free):
            precision = profile.wishes(name, part.role)[0]
            target = Target("onnxruntime", profile.device, precision, profile.options, part.inputs, part.outputs, shape)
            given = providers.settings(target, tmp_path)
            assert given.keys() >= profile.options.keys() & PROVIDERS[profile.device].options.keys()


def test_a_part_that_cannot_be_captured_is_left_out_by_its_name(bundle, tmp_path):
    opened, adapter, profile = bundle("sd1"), ONNXRuntime(), load_profile("h100")
    has = ("f32", "tf32", "f16")
    assert all(target.options["enable_cuda_graph"] for _, target in targets(opened, profile, adapter, has))
    without = {"text_encoder": {"enable_cuda_graph": False}}
    found = targets(opened, profile.model_copy(update={"part_options": without}), adapter, has)
    captured = {name: target.options["enable_cuda_graph"] for name, target in found}
    assert captured == {"text_encoder": False, "unet": True, "vae_decoder": True, "vae_encoder": True}
    assert [name for name, target in found if target.shape is None] == ["text_encoder"], "it may have free sizes then"
    for _, target in found:
        providers.settings(target, tmp_path)
    for part, options, says in (
        ("text_encoder", {"enable_cuda_graf": False}, "Did you mean 'enable_cuda_graph'"),
        ("text_encodr", {"enable_cuda_graph": False}, "gives options for 'text_encodr', which is neither a role nor"),
        ("default", {"enable_cuda_graph": False}, "gives options for 'default'"),
    ):
        with pytest.raises(ProfileError, match=says):
            targets(opened, profile.model_copy(update={"part_options": {part: options}}), adapter, has)
    unsized = profile.model_copy(update={"shapes": Shapes(), "part_options": without})
    with pytest.raises(ProfileError, match="compiles for fixed sizes only"):
        targets(opened, unsized, adapter, has)


def test_another_providers_option_is_refused_on_the_cpu(case, tmp_path):
    with pytest.raises(ProfileError, match="CPUExecutionProvider has no option 'prefer_nhwc'"):
        case.compile(tmp_path / "out", options={"prefer_nhwc": True})


def test_a_library_for_another_system_is_not_advised():
    reason = ONNXRuntime().missing("DirectML")
    if platform.system() != "Windows":
        assert reason == f"DmlExecutionProvider is available on Windows only, and this is {platform.system()}."


@pytest.mark.parametrize(("device", "vendor"), [("CUDA", "NVIDIA"), ("MIGraphX", "AMD")])
def test_without_the_gpu_no_working_library_is_to_be_removed(monkeypatch, device, vendor):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(provider_here, "machine", lambda: SimpleNamespace(gpus=()))
    reason = ONNXRuntime().missing(device)
    assert reason is not None
    assert reason.startswith(f"This machine has no {vendor} GPU")
    assert "uninstall" not in reason
    monkeypatch.setattr(provider_here, "machine", lambda: SimpleNamespace(gpus=(SimpleNamespace(vendor=vendor),)))
    assert "pip uninstall -y onnxruntime && pip install" in (ONNXRuntime().missing(device) or "")


def test_tf32_is_asked_for_as_a_precision(monkeypatch):
    with pytest.raises(ProfileError, match="no option 'use_tf32'"):
        ONNXRuntime().check({"use_tf32": True})
    cuda, tensorrt = PROVIDERS["CUDA"], PROVIDERS["TensorRT"]
    assert providers.offered(cuda, tf32=True) == ("f32", "tf32", "f16")
    assert providers.offered(cuda, tf32=False) == providers.offered(tensorrt, tf32=False) == ("f32", "f16")
    assert providers.offered(tensorrt, tf32=True) == ("tf32", "f16"), "its f32 is TF32, without an option against it"
    monkeypatch.setattr(module, "fault", lambda device, precision: None)
    monkeypatch.setattr(provider_here, "capabilities", lambda: ["sm90", "sm75"])
    assert ONNXRuntime().precisions("TensorRT") == ("tf32", "f16")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert ONNXRuntime().precisions("TensorRT") == ONNXRuntime().precisions("CUDA") == ("f32", "f16")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert ONNXRuntime().precisions("CUDA") == ("tf32", "f16"), "cuBLAS and cuDNN would use TF32 against use_tf32=0"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    monkeypatch.setattr(provider_here, "capabilities", lambda: ["sm75"])
    assert ONNXRuntime().precisions("CUDA") == ("f32", "f16"), "Turing has no TF32"


def test_f32_that_would_be_computed_in_tf32_is_refused_with_the_way_out():
    profile = load_profile("h100-onnxruntime-tensorrt").model_copy(update={"precision": {"default": ("f32",)}})
    with pytest.raises(ProfileError, match=r"supports tf32, f16 through .*NVIDIA_TF32_OVERRIDE=0 in the environment"):
        choices(profile, "unet", "denoiser", ("tf32", "f16"))
    with pytest.raises(ProfileError) as refused:
        choices(profile, "unet", "denoiser", ("f16",))
    assert "TF32" not in str(refused.value)


def test_tensorrts_own_wheel_is_loaded_before_its_provider(monkeypatch):
    """pip's libnvinfer.so.10 isn't on the loader's path; importing its module loads it."""
    named, load = [], placement.import_module
    monkeypatch.setattr(placement, "import_module", lambda name: named.append(name) or load(name))
    for device in ("TensorRT", "CUDA"):
        placement.fault.__wrapped__(device, "f16")
        assert ("tensorrt" in named) == (device == "TensorRT")
        named.clear()


def test_what_libraries_print_while_they_are_tried_is_kept_off_standard_output(monkeypatch, capfd):
    """`preload_dlls` prints what it can't load, C libraries write to the descriptor; lines of JSON go there."""
    wrote = []

    def preload():
        sys.stdout.write("Failed to load libcudnn.so.9\n")
        wrote.append(os.write(1, b"as a library in C does\n"))

    monkeypatch.setattr(placement._library(), "preload_dlls", preload)
    sys.stdout.write("before\n")
    for device in ("CUDA", "TensorRT"):
        assert placement.fault.__wrapped__(device, "f16")
    sys.stdout.write("after\n")
    assert len(wrote) == 2
    assert capfd.readouterr().out == "before\nafter\n"


@pytest.mark.parametrize(
    ("built_with", "supported", "least"),
    [("13.0", (12, 4), "13 require an NVIDIA driver 580"), ("12.8", (11, 8), "12 require an NVIDIA driver 535")],
)
def test_a_driver_that_is_too_old_for_the_wheel_is_named(monkeypatch, built_with, supported, least):
    library = placement._library()
    monkeypatch.setattr(library, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(library, "cuda_version", built_with)
    monkeypatch.setattr(provider_here, "fault", lambda device, precision: None)
    monkeypatch.setattr(cuda, "driver_version", lambda: supported)
    assert ONNXRuntime().missing("CUDA") == (
        f"ONNX Runtime's wheels for CUDA {least} or later; this machine's supports CUDA {supported[0]}.{supported[1]} "
        "only. Update the driver."
    )
    monkeypatch.setattr(cuda, "driver_version", lambda: (13, 0))
    assert ONNXRuntime().missing("CUDA") is None
    monkeypatch.undo()
    monkeypatch.setattr(library, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(library, "cuda_version", built_with)
    monkeypatch.setattr(cuda, "LIBRARY", "libnowhere.so.1")
    assert "NVIDIA's driver cannot be loaded (libnowhere" in ONNXRuntime().missing("CUDA")


def test_tensorrt_of_another_version_is_named(monkeypatch):
    has = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(placement._library(), "get_available_providers", lambda: has)
    monkeypatch.setattr(
        provider_here, "fault", lambda device, precision: "libnvinfer.so.10: cannot open shared object file"
    )
    versions = {"11.4.0.106": True, "10.16.1.11": False}
    for version, named in versions.items():
        monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
        reason = ONNXRuntime().missing("TensorRT")
        assert reason.startswith("TensorrtExecutionProvider does not work: libnvinfer.so.10")
        assert "TensorRT 10 (pip:" in reason
        assert (f"Version {version} of tensorrt is installed, which the provider cannot use" in reason) == named
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # the import fails, as without libnvinfer.so.11
    version = provider_here.metadata.version
    monkeypatch.setattr(
        provider_here.metadata, "version", lambda name: "11.4.0" if name == "tensorrt" else version(name)
    )
    assert "Version 11.4.0 of tensorrt is installed" in ONNXRuntime().missing("TensorRT")
    monkeypatch.undo()


def test_one_of_several_nvidia_gpus_is_chosen_by_its_number(case, bundle, monkeypatch, tmp_path):
    stand_in(monkeypatch, vendor="NVIDIA")
    gpus = (SimpleNamespace(vendor="NVIDIA", driver="nvidia 580.65", architecture="sm_90", name="unused"),) * 2
    monkeypatch.setattr(module, "machine", lambda: SimpleNamespace(gpus=gpus))
    monkeypatch.setattr(provider_here, "capabilities", lambda: ["sm90", "sm75"])
    monkeypatch.setattr(module, "gpu_name", lambda device: {"sm90:0": "H200", "sm75:1": "T4"}[device])
    keys = {}
    for device in ("DSP", "DSP:0", "DSP:1"):
        profile = load_profile("cpu-onnxruntime").model_copy(update={"device": device, "options": {}})
        _, found = wanted_by(bundle("sd1"), profile, to_run=True)
        assert {want.target.place for want in found} == {device}
        assert {want.target.device for want in found} == {"DSP"}
        keys[device] = found[0].fields
    assert keys["DSP"] == keys["DSP:0"]
    assert keys["DSP"].device == {"name": "DSP", "gpu": "H200 sm90 nvidia 580.65"}
    assert keys["DSP:1"].device == {"name": "DSP", "gpu": "T4 sm75 nvidia 580.65"}
    assert "no NVIDIA GPU with number 2" in ONNXRuntime().missing("DSP:2")
    assert ONNXRuntime().missing("CPU:1") == ("CPUExecutionProvider has no numbered devices. Write device = 'CPU'.")
    asked = providers.settings(target_of(case, "TensorRT", number=1), tmp_path)
    assert asked["device_id"] == "1"
    assert placement.DeviceCall(None, target_of(case, "CUDA", number=1), "cuda")._memory == ("cuda", 1)
    opened = []
    monkeypatch.setattr(placement, "_taken", lambda session, provider: session)
    monkeypatch.setattr(
        placement._library(), "InferenceSession", lambda *_, providers, **__: opened.append(dict(providers))
    )
    placement.open_session(b"", None, "TensorRT", asked)
    placement.fault.__wrapped__("CUDA:1", "f32")
    assert [one["CUDAExecutionProvider"] for one in opened] == [{"use_tf32": "0", "device_id": "1"}] * 2


def test_the_tensorrt_provider_always_has_options(case, tmp_path):
    """Without any it reads ORT_TENSORRT_FP16_ENABLE and such (`has_trt_options` in tensorrt_provider_factory.cc)."""
    for precision in PROVIDERS["TensorRT"].precisions:
        assert providers.settings(target_of(case, "TensorRT", precision=precision), tmp_path)


def target_of(case, device, **changes):
    return replace(case.target, device=device, **changes)


def test_what_providers_are_told(case, tmp_path):
    settings = providers.settings
    assert settings(target_of(case, "CUDA"), tmp_path) == {"use_tf32": "0"}
    assert settings(target_of(case, "CUDA", precision="tf32"), tmp_path) == {"use_tf32": "1"}
    asked = {"prefer_nhwc": True, "cudnn_conv_algo_search": "HEURISTIC", "intra_op_num_threads": 1}
    assert settings(target_of(case, "CUDA", options=asked), tmp_path) == {
        "use_tf32": "0",
        "prefer_nhwc": "1",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    given = settings(target_of(case, "TensorRT", precision="f16"), tmp_path)
    assert "trt_fp16_enable" not in given  # the graph's types are kept as they are
    assert given["trt_engine_cache_enable"] == given["trt_timing_cache_enable"] == "True"
    assert given["trt_engine_cache_path"] == given["trt_timing_cache_path"] == str(tmp_path)
    assert given["trt_profile_min_shapes"] == "sample:1x4x8x8,timestep:1,encoder_hidden_states:1x77x16"
    assert given["trt_profile_max_shapes"].startswith("sample:8x4x128x128,")
    given = settings(target_of(case, "TensorRT", lengths=(40, 40, 160)), tmp_path)
    assert given["trt_profile_min_shapes"].endswith(",encoder_hidden_states:1x40x16")
    assert given["trt_profile_max_shapes"].endswith(",encoder_hidden_states:8x160x16")
    shape = {name: array.shape for name, array in case.feeds().items()}
    recorded = settings(target_of(case, "TensorRT", shape=shape, options={"trt_cuda_graph_enable": True}), tmp_path)
    assert "trt_profile_min_shapes" not in recorded
    assert recorded["trt_cuda_graph_enable"] == "True"  # its parser raises for 1 and true
    assert settings(target_of(case, "DirectML", options={"disable_metacommands": False}), tmp_path) == {
        "disable_metacommands": "false",
        "performance_preference": "high_performance",
    }
    assert settings(target_of(case, "MIGraphX"), tmp_path) == {"migraphx_model_cache_dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        ("MIGraphX", {"prefer_nhwc": False}, "MIGraphXExecutionProvider has no option 'prefer_nhwc'"),
        ("CUDA", {"enable_cuda_graph": True}, "enable_cuda_graph requires fixed shapes. Write sizes"),
        ("TensorRT", {"trt_cuda_graph_enable": True}, "trt_cuda_graph_enable requires fixed shapes"),
    ],
)
def test_settings_that_a_device_refuses(case, tmp_path, device, options, message):
    case.adapter.check(options)
    with pytest.raises(ProfileError, match=message):
        providers.settings(target_of(case, device, options=options), tmp_path)


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


def test_a_precision_that_it_only_casts_to_is_refused(case, tmp_path):
    assert case.adapter.precisions("CPU") == ("f32",)
    with pytest.raises(CompileError, match="does not compute in f16 on CPU; it supports: f32"):
        case.compile(tmp_path / "out", precision="f16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intra_op_threads": 1}, "Did you mean 'intra_op_num_threads'"),
        ({"graph_optimization_level": "most"}, "one of: all, layout, extended, basic, off"),
        ({"intra_op_num_threads": True}, "an integer"),
        ({"enable_mem_pattern": 1}, "true or false"),
        ({"enable_cuda_graf": True}, "Did you mean 'enable_cuda_graph'"),
        ({"preferredLayout": "NCWH"}, "one of: NCHW, NHWC"),
        ({"gpu_mem_limit": True}, "an integer"),
        ({"gpu_mem_limit": -1}, "an integer from 0"),
        ({"trt_builder_optimization_level": 99}, "an integer from 0 to 5"),
        ({"trt_auxiliary_streams": -2}, "an integer from -1 to"),
        ({"trt_max_workspace_size": 1 << 63}, "an integer from 0 to 9,223,372,036,854,775,807"),
        ({"sdpa_kernel": 1024}, "an integer from 0 to 1,023"),
        ({"soc_model": 0}, "an integer from 1 to"),
        ({"enableGraphCapture": True}, "no option 'enableGraphCapture'"),  # it answers wrongly with host inputs
        ({"migraphx_arena_extend_strategy": 1}, "one of: kNextPowerOfTwo, kSameAsRequested"),
        ({"allow_nodes_on_cpu": 1}, "true or false"),
        ({"session.intra_op.allow_spinning": 0}, "true or false"),
        ({"session.dynamic_block_base": "four"}, "an integer from 0"),
    ],
)
def test_options_that_it_refuses(case, options, message):
    with pytest.raises(ProfileError, match=message):
        case.adapter.check(options)


@pytest.mark.parametrize("level", ["off", "basic", "extended", "layout", "all"])
def test_what_was_optimized_is_computed_as_it_was(case, tmp_path, level):
    """Loading optimizes nothing: outputs equal those of a session that optimized the graph itself, to the bit."""
    import onnxruntime

    options = {
        "graph_optimization_level": level,
        "intra_op_num_threads": 1,
        "enable_mem_pattern": False,
        "session.intra_op.allow_spinning": False,
    }
    case.adapter.check(options)
    case.build(tmp_path / "out", options=options)
    engine = case.load(tmp_path / "out", options=options)
    session = onnxruntime.SessionOptions()
    session.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, module.LEVELS[level])
    session.intra_op_num_threads = 1
    direct = onnxruntime.InferenceSession(case.bundle.graph("unet"), session, providers=["CPUExecutionProvider"])
    feeds = case.feeds()
    names = [tensor.name for tensor in case.target.outputs]
    for name, wanted in zip(names, direct.run(names, feeds), strict=True):
        np.testing.assert_array_equal(engine.run(feeds)[name], wanted)
    engine.close()


def test_the_weights_lie_outside_the_graph(case):
    sizes = {path.name: path.stat().st_size for path in case.artifact.iterdir()}
    assert sorted(sizes) == ["engine.data", "engine.onnx", "key.json"]
    assert sizes["engine.data"] > 0


def test_a_graph_that_names_other_files_or_loops_is_never_opened(make_case, tmp_path, monkeypatch):
    import onnx

    case = make_case("onnxruntime")
    artifact = tmp_path / "artifact"
    shutil.copytree(case.artifact, artifact)
    whole = onnx.load(artifact / "engine.onnx", load_external_data=False)
    elsewhere, loop = onnx.ModelProto(), onnx.ModelProto()
    for model in (elsewhere, loop):
        model.CopyFrom(whole)
    stored = next(tensor for tensor in elsewhere.graph.initializer if tensor.external_data)
    next(entry for entry in stored.external_data if entry.key == "location").value = "../secret"
    body = onnx.helper.make_graph([], "body", [], [])
    loop.graph.node.append(onnx.helper.make_node("Loop", ["count", ""], ["y"], body=body))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("it was opened"))
    for hostile, says in ((elsewhere, r"'\.\./secret'; expected: .*'engine.data'"), (loop, r"control flow \(Loop\)")):
        (artifact / "engine.onnx").write_bytes(hostile.SerializeToString())
        with pytest.raises(CompileError, match=rf"{says}.*Remove .*\. Build again"):
            case.adapter.load(artifact, case.target, files_in(artifact))


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
