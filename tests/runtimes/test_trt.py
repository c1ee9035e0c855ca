"""TensorRT: plans of RTX's for GPUs that aren't here, TensorRT's own bindings, and the driver by a stand-in."""

import ctypes
import json
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import local
from types import SimpleNamespace
from weakref import ref

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latentc.compiler.build import build
from latentc.compiler.lower import lowered, needed_passes, weights_of
from latentc.compiler.targets import device_here, job_of, targets
from latentc.core.engine import Clocked
from latentc.core.errors import CompileError, ProfileError, RuntimeMissing
from latentc.core.manifest import TensorInfo
from latentc.core.progress import quiet
from latentc.profiles import load_profile
from latentc.profiles.profile import Shapes
from latentc.runtimes import Job, Target, trt_cache
from latentc.runtimes import trt as trt_module
from latentc.runtimes.base import files_in
from latentc.runtimes.cuda import RETAINED, Driver, gpu_name, open_driver
from latentc.runtimes.host import HostEngine
from latentc.runtimes.trt import RTX, _advice, tensorrt, tensorrt_rtx
from latentc.runtimes.trt_log import Messages, logger
from latentc.runtimes.trt_plan import ROOMS, LoadedPlan
from latentc.runtimes.trt_refit import without_weights

WHY_NOT = tensorrt_rtx().unbuildable("sm89")
installed = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture
def case(make_case):
    """The small part, as TensorRT is given it."""
    other = make_case("onnxruntime")
    target = replace(other.target, runtime="tensorrt-rtx", device="sm89")
    return replace(other, adapter=tensorrt_rtx(), target=target)


@installed
@pytest.mark.parametrize("device", RTX.capabilities)
def test_plans_are_built_for_gpus_that_are_not_here(case, tmp_path, device):
    out = tmp_path / "out"
    told = []
    out.mkdir()
    target = replace(case.target, device=device, precision="f16")
    passes = needed_passes(case.adapter, target)
    with lowered(case.bundle.graph("unet"), "half", 23, None, passes) as graph:  # sm75 multiplies no f32 matrices
        job = Job("unet", graph, weights_of(graph), target)
        case.adapter.compile(job, out, lambda what, share: told.append((what, share)))
    assert (out / "engine.plan").stat().st_size > 100_000
    memory = json.loads((out / "memory.json").read_text())
    assert memory["weights_bytes"] > 0
    assert memory["activation_bytes"] > 0
    assert told, "the builder's phases are told of"
    assert all(what.startswith("unet: ") and 0 < share <= 1 for what, share in told)


def parsed(graph):
    """The layers of a network as the parser makes them, by the library's own types."""
    trt, log = import_module(RTX.module), trt_module._logger(RTX.module)
    builder = trt.Builder(log)
    network = builder.create_network(trt_module._network_flags(trt))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(graph)), parser.get_error(0).desc()
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return [
        (one.type.name, {one.get_input(0).dtype.name, one.get_output(0).dtype.name})
        for one in layers
        if one.num_inputs and one.type.name in ("NORMALIZATION", "CONVOLUTION", "MATRIX_MULTIPLY")
    ]


@installed
@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("part", ["unet", "vae_decoder"])
def test_norms_of_a_network_in_f16_are_f32(bundle, part, opset):
    """Its layer of norms has no setting for the type of its sums, which may overflow in f16."""
    library = import_module(RTX.module)
    assert not hasattr(library.INormalizationLayer, "compute_precision"), "then norms could be f16 again"
    target, found = Target("tensorrt-rtx", "sm89", "f16", {}, (), ()), {}
    for name, passes in (("needed", needed_passes(tensorrt_rtx(), target)), ("narrow", ("half",))):
        with lowered(bundle("sd1").graph(part), name, opset, None, passes) as graph:
            found[name] = parsed(graph)
    norms, others = ({"NORMALIZATION"}, {"CONVOLUTION", "MATRIX_MULTIPLY"})
    assert {kind for kind, _ in found["needed"]} & others
    assert all(types == {"HALF"} for kind, types in found["needed"] if kind in others)
    if opset == 23 or part == "unet":  # in opset 18 group norms are smaller operators
        assert any(kind in norms for kind, _ in found["needed"])
        assert all(types == {"FLOAT"} for kind, types in found["needed"] if kind in norms)
        assert all(types == {"HALF"} for kind, types in found["narrow"] if kind in norms), "what is mended"


@installed
def test_one_plan_is_for_several_gpus_and_no_larger(case, tmp_path, monkeypatch):
    sizes = []
    for device in ("sm89", "sm86+sm89+sm120"):
        out = tmp_path / device
        out.mkdir()
        case.adapter.compile(
            job_of(case.bundle, "unet", case.bundle.graph("unet"), replace(case.target, device=device)), out, quiet
        )
        sizes.append((out / "engine.plan").stat().st_size)
    assert sizes[1] < 1.02 * sizes[0]
    assert case.adapter.precisions("sm86+sm89") == case.adapter.precisions("sm89")
    assert "does not support device 'sm86+sm90'. Supported NVIDIA GPUs: sm75, sm80," in case.adapter.unbuildable(
        "sm86+sm90"
    )
    assert case.adapter.unbuildable("sm86+sm86") is not None
    monkeypatch.setattr("latentc.runtimes.cuda._library", Memory)
    assert case.adapter.missing("sm86+sm89") is None
    assert case.adapter.missing("sm86+sm120").startswith("This machine has no sm86 or sm120 GPU")
    opened = []
    monkeypatch.setattr("latentc.runtimes.trt.LoadedPlan", lambda *args, **_: opened.append(args[3].device) or Opened())
    case.adapter.load(out, replace(case.target, device="sm86+sm89+sm120"), files_in(out)).close()
    assert opened == ["sm89"], "the one that is here"


class Opened:
    """Stands for a plan on a GPU."""

    use = None

    def call(self, feeds, sizes):
        raise AssertionError

    def release(self):
        pass


@pytest.mark.slow
@installed
def test_tf32_is_built_and_its_graph_proved_in_f32(own_bundle):
    opened = own_bundle("sd1")
    precision = {"default": ("f16",), "text_encoder": ("f32",), "decoder": ("tf32",), "encoder": ("tf32",)}
    profile = load_profile("rtx-4090").model_copy(update={"precision": precision, "shapes": Shapes(sizes=("64x64",))})
    made = {one.artifact.part: one.artifact for one in build(opened, profile).engines}
    decoder = made["vae_decoder"]
    assert decoder.fields.precision == "tf32"
    assert decoder.parity.graph_run_by.startswith("onnxruntime")
    assert decoder.parity.psnr_db > 100, "the graph is f32"
    plain = profile.model_copy(update={"precision": {**precision, "decoder": ("f32",)}})
    again = {one.artifact.part: one for one in build(opened, plain).engines}
    assert not again["vae_decoder"].hit, "another engine"
    assert again["vae_encoder"].hit


@installed
def test_turing_is_told_to_take_f16(case, tmp_path):
    with pytest.raises(CompileError, match=r"FP32 GEMM is not supported.*: use f16 for this part"):
        case.adapter.compile(
            job_of(case.bundle, "unet", case.bundle.graph("unet"), replace(case.target, device="sm75")), tmp_path, quiet
        )


@installed
def test_a_static_plan_and_a_broken_graph(case, tmp_path):
    case.static(tmp_path / "out", case.feeds())
    assert list((tmp_path / "out" / "engines").glob("*/engine.plan"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    (tmp_path / "other").mkdir()
    with pytest.raises(CompileError, match="TensorRT cannot read unet"):
        case.adapter.compile(Job("unet", broken, broken.parent, case.target), tmp_path / "other", quiet)


@installed
def test_an_engine_to_be_captured_allocates_nothing(case, tmp_path, monkeypatch):
    """The flag that TensorRT for RTX requires for capture; the library itself refuses streamed weights with it."""
    shape = {name: array.shape for name, array in case.feeds().items()}
    target, flags = replace(case.target, shape=shape), []
    library = import_module(RTX.module)
    configure = trt_module._configure

    def noted(trt, config, target):
        configure(trt, config, target)
        flags.append(config.get_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION))

    monkeypatch.setattr(trt_module, "_configure", noted)
    with lowered(case.bundle.graph("unet"), "fixed", 23, shape, ()) as graph:

        def compiled(name, options):
            (tmp_path / name).mkdir()
            job = Job("unet", graph, weights_of(graph), replace(target, options=options))
            case.adapter.compile(job, tmp_path / name, quiet)

        compiled("plain", {})
        compiled("graphed", {"cuda_graph": True})
        assert flags == [False, True]
        with pytest.raises(CompileError, match=r"kREQUIRE_USER_ALLOCATION is not compat.*Remove cuda_graph or weight"):
            compiled("streamed", {"cuda_graph": True, "weight_streaming_budget_mb": 1})


def quantized(kind):
    """A product of matrices in an 8-bit type, as Q/DQ says it."""
    rng = np.random.default_rng(0)
    zero = helper.make_tensor("zero", kind, [], [0])
    weights = helper.make_tensor("weights", kind, [64, 64], rng.integers(-8, 8, 64 * 64).tolist())
    scales = [numpy_helper.from_array(np.array(0.05, np.float16), "scale")]
    scales.append(numpy_helper.from_array(np.full(64, 0.01, np.float16), "scales"))
    nodes = [
        helper.make_node("Cast", ["sample"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("QuantizeLinear", ["half", "scale", "zero"], ["coded"]),
        helper.make_node("DequantizeLinear", ["coded", "scale", "zero"], ["left"]),
        helper.make_node("DequantizeLinear", ["weights", "scales"], ["right"], axis=1),
        helper.make_node("MatMul", ["left", "right"], ["product"]),
        helper.make_node("Cast", ["product"], ["out_sample"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 64, 64]) for name in ("sample", "out_sample")]
    graph = helper.make_graph(nodes, "quantized", ends[:1], ends[1:], [zero, weights, *scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    return model


@installed
@pytest.mark.parametrize("device", ["sm75", "sm80", "sm86", "sm89", "sm120"])
@pytest.mark.parametrize("kind", ["INT8", "FLOAT8E4M3FN"])
def test_quantized_graphs_are_built_or_refused_by_what_the_gpu_has(tmp_path, kind, device):
    onnx.save(quantized(getattr(TensorProto, kind)), tmp_path / "graph.onnx")
    ends = [TensorInfo(name=name, dtype="float32", shape=(1, 4, 64, 64)) for name in ("sample", "out_sample")]
    target = Target("tensorrt-rtx", device, "f16", {}, tuple(ends[:1]), tuple(ends[1:]), {"sample": (1, 4, 64, 64)})
    out = tmp_path / "out"
    out.mkdir()
    job = Job("unet", tmp_path / "graph.onnx", tmp_path, target, shared=tmp_path)
    if kind == "INT8" or device in ("sm89", "sm120"):
        tensorrt_rtx().compile(job, out, quiet)
        assert (out / "engine.plan").stat().st_size > 10_000
    else:
        with pytest.raises(CompileError, match=r"fp8_e4m3.*This GPU does not support the type"):
            tensorrt_rtx().compile(job, out, quiet)


@installed
def test_options_and_devices_are_strict(monkeypatch):
    adapter = tensorrt_rtx()
    adapter.check({"builder_optimization_level": 5, "cuda_graph": False})
    for value in (6, True, "3"):
        with pytest.raises(ProfileError, match="an integer from 0 to 5"):
            adapter.check({"builder_optimization_level": value})
    with pytest.raises(ProfileError, match="cuda_graph is 1; it must be true or false"):
        adapter.check({"cuda_graph": 1})
    with pytest.raises(ProfileError, match="no option 'refit'"):
        adapter.check({"refit": True})
    tensorrt().check({"refit": True})
    assert adapter.takes_free_sizes("sm89", {})
    assert not adapter.takes_free_sizes("sm89", {"cuda_graph": True})
    with pytest.raises(ProfileError, match="Did you mean 'builder_optimization_level'"):
        adapter.check({"builder_optimisation_level": 5})
    assert "Supported NVIDIA GPUs: sm75" in adapter.unbuildable("sm90")
    assert adapter.precisions("sm90") == ()
    assert adapter.precisions("sm86+sm89") == ("f32", "tf32", "f16")
    assert adapter.precisions("sm75") == adapter.precisions("sm75+sm86") == ("f32", "f16"), "Turing has no TF32"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert adapter.precisions("sm89") == ("f32", "f16")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert adapter.precisions("sm89") == ("tf32", "f16")
    assert adapter.precisions("sm75") == ("f32", "f16"), "Turing has no TF32"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    monkeypatch.setattr("latentc.runtimes.cuda._library", Memory)
    assert adapter.missing("sm89") is None
    assert adapter.missing("sm86") == "This machine has no sm86 GPU; NVIDIA GPUs found: sm75, sm89."
    assert adapter.devices() == ("sm75", "sm89")


def test_a_graph_without_its_weights(case, tmp_path):
    graph = case.bundle.graph("unet")
    model = onnx.load(graph)
    digests = [without_weights(graph, graph.parent)]
    for name, change in (
        ("weights", scale),
        ("nodes", lambda model: model.graph.node[0].input.append("")),
        ("sizes", resize),
    ):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        change(other)
        onnx.save(other, tmp_path / f"{name}.onnx")
        digests.append(without_weights(tmp_path / f"{name}.onnx", tmp_path))
    assert digests[0] == digests[1], "other weights"
    assert len(set(digests)) == 3, "another node, another size"


def scale(model):
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))


def resize(model):
    whole = next(tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64)
    whole.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(whole) + 1, whole.name))


BINDINGS = Path(sys.prefix) / "bindings"
SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getNvOnnxParserVersion"),
    *("getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins"),
)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="There is no C compiler here to make empty libraries with.")
@pytest.mark.parametrize("version", [11, 10])
def test_everything_that_is_asked_of_tensorrt_is_in_its_bindings(tmp_path, version):
    bindings = BINDINGS / f"tensorrt-{version}"
    if not (bindings / "tensorrt_bindings").exists():
        pytest.skip(f"The bindings of TensorRT {version} aren't in {bindings}: `make` found none for this machine.")
    source = tmp_path / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    (tmp_path / "lib").mkdir()
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        file = f"lib{name}.so.{version}"
        subprocess.run(
            ["cc", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", tmp_path / "lib" / file, source], check=True
        )
    program = Path(__file__).with_name("drive_tensorrt.py")
    command = [sys.executable, "-W", "ignore", program, bindings, tmp_path / "lib"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["version"].startswith(f"{version}.")
    assert ("NetworkDefinitionCreationFlag" in told["used"]) == (version == 10), "10 must be told to keep types"
    wanted = {
        *("Builder.build_serialized_network", "IOptimizationProfile.set_shape", "IBuilderConfig.set_timing_cache"),
        *("ICudaEngine.weight_streaming_budget_v2", "IExecutionContext.set_device_memory", "ParserError.desc"),
        *("IExecutionContext.execute_async_v3", "IAttention.decomposable", "IBuilderConfig.progress_monitor"),
        *("Refitter.refit_cuda_engine", "SerializationFlag", "ISerializationConfig.set_flag"),
        *("IBuilderConfig.clear_flag", "IBuilderConfig.profiling_verbosity"),
        *("ICudaEngine.create_engine_inspector", "EngineInspector.execution_context"),
    }
    assert wanted <= set(told["used"])


@pytest.mark.parametrize("fails", [False, True])
def test_what_builds_is_freed_while_the_context_is_current(monkeypatch, tmp_path, fails):
    memory, freed = Memory(), []

    class Held:
        def __getattr__(self, name):
            return lambda *_, **__: Held() if name != "build_serialized_network" else None if fails else b"plan"

        def __del__(self):
            freed.append(memory.is_current)

    kinds = {"Builder": lambda _: Held(), "OnnxParser": lambda *_: Held(), "BuilderFlag": SimpleNamespace(TF32=0)}
    library = SimpleNamespace(__version__="11.4.0", IProgressMonitor=object, **kinds)
    monkeypatch.setattr("latentc.runtimes.cuda._library", lambda: memory)
    monkeypatch.setattr("latentc.runtimes.trt._library", lambda module: library)
    monkeypatch.setattr("latentc.runtimes.trt._logger", lambda module: Messages())
    target = Target("tensorrt", "sm89", "f16", {}, (), (), {})
    outcome = pytest.raises(CompileError, match="cannot build unet") if fails else nullcontext()
    with outcome:
        tensorrt().compile(Job("unet", tmp_path / "graph.onnx", tmp_path, target), tmp_path, quiet)
    assert len(freed) >= 5
    assert all(freed)
    assert not memory.is_current


@pytest.mark.parametrize("fails", [False, True])
def test_what_loads_is_freed_while_the_context_is_current(monkeypatch, tmp_path, fails):
    memory, freed = Memory(), Counter()

    class Held:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, name):
            if name == "create_execution_context" and fails:
                return lambda how: None
            return lambda *_: Held(name)

        def __del__(self):
            freed[self.name, memory.is_current] += 1

    monkeypatch.setattr("latentc.runtimes.cuda._library", lambda: memory)
    monkeypatch.setattr("latentc.runtimes.trt_plan.RuntimeCache", lambda *_: SimpleNamespace(save=lambda: None))
    (tmp_path / "engine.plan").write_bytes(b"plan")
    library = SimpleNamespace(
        Runtime=lambda log: Held("runtime"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(NONE=3),
        __version__="1.7.1",
    )
    target = Target("tensorrt-rtx", "sm89", "f16", {}, (), (), {})
    outcome = pytest.raises(CompileError, match="cannot load") if fails else nullcontext()
    with outcome:
        LoadedPlan(library, Messages(), tmp_path / "engine.plan", target, compiles=True).release()
    names = {"runtime", "deserialize_cuda_engine", "create_runtime_config"}
    assert names <= {name for name, _ in freed}
    assert all(current for _, current in freed), freed
    ROOMS.clear()


@installed
def test_messages_belong_to_the_thread_that_they_were_reported_in():
    """One logger of the library's own class serves all threads, as the library keeps the first that it is given."""
    library = import_module(RTX.module)
    log, error = logger(library), library.ILogger.ERROR
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other, ThreadPoolExecutor(1) as theirs:
        for thread in (one, other):
            thread.submit(log.clear).result()
        one.submit(log.log, error, "one \n failed").result()
        one.submit(log.log, library.ILogger.INFO, "Total Weights Memory: 12 bytes").result()
        assert [thread.submit(lambda: log.worst).result() for thread in (one, other)] == ["one failed", ""]
        theirs.submit(log.log, error, "a worker failed").result()
        assert [thread.submit(lambda: log.worst).result() for thread in (one, other)] == [
            "one failed",
            "a worker failed",
        ]
        assert [thread.submit(lambda: dict(log.memory)).result() for thread in (one, other)] == [
            {"weights_bytes": 12},
            {},
        ]
        other.submit(log.clear).result()
        assert other.submit(lambda: log.worst).result() == ""
    assert log.worst == "", "this thread asked for nothing"


@pytest.mark.slow
@installed
def test_what_is_asked_of_tensorrt_for_rtx_at_load_is_in_its_bindings():
    program = Path(__file__).with_name("drive_tensorrt.py")
    done = subprocess.run([sys.executable, "-W", "ignore", program, "rtx"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = {
        *("ICudaEngine.create_runtime_config", "IRuntimeConfig.set_execution_context_allocation_strategy"),
        *("IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache", "IRuntimeCache.deserialize"),
        *("IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy", "IExecutionContext.is_stream_capturable"),
        *("IRuntimeCache.serialize", "EngineInspector.get_engine_information"),
    }
    assert wanted <= set(json.loads(done.stdout)["used"])


def test_tensorrt_builds_for_the_gpu_it_is_on(monkeypatch):
    monkeypatch.setattr("latentc.runtimes.cuda._library", Memory)
    adapter = tensorrt()
    monkeypatch.setattr("latentc.runtimes.trt._library", no_library)
    assert "TensorRT is not installed (libnvinfer.so.11" in adapter.missing("sm89")
    assert adapter.devices() == ()
    monkeypatch.setattr("latentc.runtimes.trt._library", lambda module: SimpleNamespace(__version__="11.4.0"))
    assert adapter.unbuildable("sm89") is None
    assert adapter.unbuildable("sm90") == "This machine has no sm90 GPU; NVIDIA GPUs found: sm75, sm89."
    assert adapter.unbuildable("sm70").startswith(
        "TensorRT does not support device 'sm70'. Supported NVIDIA GPUs: sm75, sm80"
    )
    assert adapter.device("sm89") == {"gpu": "GPU 1"} != adapter.device("sm75")
    assert tensorrt().facts.newest_opset == 18, "what doesn't know attention isn't given it"
    assert adapter.versions() == {"tensorrt": "11.4.0"}
    assert adapter.costs("sm89", {}, free=True) is None


def test_an_old_library_is_updated_and_not_worked_around_with_opset_18(bundle, monkeypatch):
    """At opset 18 the attention scores of SD 1.5 take 1 GB, of the 8 that a Jetson has."""
    monkeypatch.setattr("latentc.runtimes.trt._library", lambda module: SimpleNamespace(__version__="10.3.0"))
    profile = load_profile("jetson-orin")
    with pytest.raises(
        ProfileError, match=r"opset 23, but tensorrt supports none newer than 18\. Update .*JetPack 7\.2"
    ):
        targets(bundle("sd1"), profile, tensorrt(), ("f32", "f16"))
    assert "JetPack 7.2" in _advice(Target("tensorrt", "sm87", "f16", {}, (), ()))
    assert "opset" not in _advice(Target("tensorrt", "sm87", "f16", {}, (), ()))
    assert "opset = 18" in _advice(Target("tensorrt", "sm90", "f16", {}, (), ()))
    assert profile.checked == ("tensorrt-cu12-bindings==10.16.1.11",)
    found = BINDINGS / "tensorrt-10"
    if found.exists():
        assert [path.name for path in found.glob("*10.16.1.11.dist-info")], "the version that the tests drive"


@pytest.mark.parametrize(
    ("driver", "wheel", "advice"),
    [
        (13000, "13", None),
        (12040, "12", None),
        (12040, None, None),
        (12040, "13", ("13", 580, "12.4", ", or install tensorrt-cu12 in place of tensorrt-cu13")),
        (11080, "12", ("12", 535, "11.8", "")),
    ],
)
def test_wheels_fit_the_driver(monkeypatch, driver, wheel, advice):
    memory = Memory()
    memory.version = driver
    version = trt_module.metadata.version

    def installed(name):
        if name.startswith("tensorrt-cu") and name != f"tensorrt-cu{wheel}-bindings":
            raise trt_module.metadata.PackageNotFoundError(name)
        return "11.4.0" if name.startswith("tensorrt-cu") else version(name)

    monkeypatch.setattr("latentc.runtimes.cuda._library", lambda: memory)
    monkeypatch.setattr("latentc.runtimes.trt._library", lambda module: SimpleNamespace(__version__="11.4.0"))
    monkeypatch.setattr(trt_module.metadata, "version", installed)
    says = (
        "TensorRT's wheels for CUDA {} require an NVIDIA driver {} or later; this machine's supports CUDA {} only. "
        "Update the driver{}."
    )
    assert tensorrt().missing("sm89") == (advice and says.format(*advice))
    monkeypatch.setattr("latentc.runtimes.trt._library", no_library)
    reason = tensorrt().missing("sm89")
    assert ("tensorrt-cu12; or update the driver to 580 or later" in reason) == (driver < 13000)


def test_one_of_several_gpus_is_chosen_by_its_number(monkeypatch, tmp_path):
    names = ["sm89", "sm75", "sm89"]
    monkeypatch.setattr("latentc.runtimes.cuda._library", Memory)
    monkeypatch.setattr("latentc.runtimes.cuda.capabilities", lambda: names)
    monkeypatch.setattr("latentc.runtimes.trt.capabilities", lambda: names)
    monkeypatch.setattr("latentc.runtimes.trt._logger", lambda module: Messages())
    monkeypatch.setattr("latentc.runtimes.trt._library", lambda module: SimpleNamespace(__version__="11.4.0"))
    adapter = tensorrt()
    assert (gpu_name("sm89"), gpu_name("sm89:0"), gpu_name("sm89:2")) == ("GPU 0", "GPU 0", "GPU 2")
    assert adapter.device("sm89:2") == {"gpu": "GPU 2"}
    assert adapter.precisions("sm89:2") == adapter.precisions("sm89")
    assert adapter.missing("sm89:2") is adapter.missing("sm89") is None
    for other in ("sm89:1", "sm89:3"):
        assert adapter.missing(other).startswith(f"This machine has no sm89 GPU with number {other[-1]}; NVIDIA GPUs")
        with pytest.raises(RuntimeMissing, match=f"has no {other} GPU"):
            open_driver(other)
    assert "does not support device 'sm89:x'" in adapter.missing("sm89:x")
    open_driver("sm89:2").close()
    assert list(RETAINED) == [2]
    opened = []
    monkeypatch.setattr("latentc.runtimes.trt.LoadedPlan", lambda *args, **_: opened.append(args[3].device) or Opened())
    target = Target("tensorrt-rtx", "sm86+sm89", "f16", {}, (), (), number=2)
    assert target.place == "sm86+sm89:2"
    for number in (None, 2):
        tensorrt_rtx().load(tmp_path, replace(target, number=number), {}).close()
    assert opened == ["sm89", "sm89:2"]
    for device, number in (("sm89", 0), ("sm89:2", 2), ("sm86+sm89:2", 2), ("sm86+sm75", 1)):
        assert tensorrt_rtx().drivers(device)["gpu"] == f"GPU {number}", "each model is proved by itself"
    assert "gpu" not in tensorrt_rtx().drivers("sm120")
    assert device_here(tensorrt_rtx(), "sm75+sm89") == "sm75"
    assert device_here(tensorrt_rtx(), "sm75+sm89:2") == "sm89:2"
    assert device_here(tensorrt_rtx(), "sm75+sm89:3") is device_here(tensorrt_rtx(), "sm89:2") is None


def no_library(module):
    raise FileNotFoundError("libnvinfer.so.11: cannot open shared object file")


OUTSIDE_CONTEXTS = {
    *("cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetCount"),
    *("cuDeviceGetName", "cuDevicePrimaryCtxRetain", "cuDriverGetVersion", "cuGetErrorString"),
}
"""Functions that need no current context."""


@pytest.fixture(autouse=True)
def no_gpu_in_use():
    yield
    RETAINED.clear()


WORK_MILLISECONDS = 16


class Memory:
    """The driver's functions over the host's memory: what is copied in comes out."""

    def __init__(self):
        self.blocks, self.pinned, self.calls, self.fails = {}, {}, [], None
        self.captured = self.capturing = None
        self.entered, self.version = local(), 13000
        self.clock, self.events, self.marks = 0, 0, {}

    @property
    def is_current(self):
        """Whether the GPU's context is current in this thread."""
        return getattr(self.entered, "times", 0) > 0

    def do_cuCtxPushCurrent_v2(self, context):  # noqa: N802
        self.entered.times = getattr(self.entered, "times", 0) + 1
        return 0

    def do_cuCtxPopCurrent_v2(self, context):  # noqa: N802
        assert self.is_current
        self.entered.times -= 1
        return 0

    def __getattr__(self, name):
        if name.startswith("do_"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append(name)
            assert self.is_current or name in OUTSIDE_CONTEXTS, f"{name} without a current context"
            if self.fails == name:
                return 2
            return getattr(self, f"do_{name}", lambda *_: 0)(*arguments)

        return call

    def do_cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = 2
        return 0

    def do_cuDeviceGet(self, device, ordinal):  # noqa: N802
        device._obj.value = ordinal
        return 0

    def do_cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        value._obj.value = {75: (7, 8), 76: (5, 9)}[attribute][device.value]
        return 0

    def do_cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = self.version
        return 0

    def do_cuDeviceGetName(self, name, count, device):  # noqa: N802
        name.value = f"GPU {device.value}".encode()
        return 0

    def do_cuStreamBeginCapture_v2(self, stream, mode):  # noqa: N802
        self.capturing = []
        return 0

    def do_cuStreamEndCapture(self, stream, graph):  # noqa: N802
        self.captured, self.capturing = self.capturing, None
        return 0

    def do_cuGraphInstantiateWithFlags(self, ready, graph, flags):  # noqa: N802
        ready._obj.value = 5
        return 0

    def do_cuGraphLaunch(self, graph, stream):  # noqa: N802
        assert graph.value == 5
        for work in self.captured:
            work()
        return 0

    def do_cuEventCreate(self, event, flags):  # noqa: N802
        assert flags == 0, "an event without timing has no time"
        self.events += 1
        event._obj.value = self.events
        return 0

    def do_cuEventRecord(self, event, stream):  # noqa: N802
        self.marks[event.value] = self.clock
        return 0

    def do_cuEventElapsedTime(self, milliseconds, first, last):  # noqa: N802
        milliseconds._obj.value = self.marks[last.value] - self.marks[first.value]
        return 0

    def do_cuMemAlloc_v2(self, address, count):  # noqa: N802
        block = ctypes.create_string_buffer(count.value)
        address._obj.value = ctypes.addressof(block)
        self.blocks[address._obj.value] = block
        return 0

    def do_cuMemFree_v2(self, address):  # noqa: N802
        del self.blocks[address.value]
        return 0

    def do_cuMemHostAlloc(self, address, count, flags):  # noqa: N802
        block = ctypes.create_string_buffer(count.value)
        address._obj.value = ctypes.addressof(block)
        self.pinned[address._obj.value] = block
        return 0

    def do_cuMemFreeHost(self, address):  # noqa: N802
        del self.pinned[address.value]
        return 0

    def do_cuMemcpyHtoDAsync_v2(self, to, source, count, _):  # noqa: N802
        self.clock += 1000
        ctypes.memmove(to.value, source.value, count.value)
        return 0

    def do_cuMemcpyDtoHAsync_v2(self, to, source, count, _):  # noqa: N802
        self.clock += 1000
        ctypes.memmove(to.value, source.value, count.value)
        return 0

    def do_cuGetErrorString(self, _, text):  # noqa: N802
        text._obj.value = b"out of memory"
        return 0


def test_the_driver_copies_and_says_what_failed():
    library = Memory()
    driver = Driver(library, 0)
    array = np.arange(6, dtype=np.float32)
    address = driver.allocate(array.nbytes)
    driver.copy_in(address, array)
    found = np.empty_like(array)
    driver.copy_out(found, address)
    driver.wait()
    assert (found == array).all()
    driver.free(address)
    driver.close()
    assert library.blocks == {}
    assert library.calls[-2:] == ["cuStreamDestroy_v2", "cuCtxPopCurrent_v2"]
    assert not library.is_current
    library.fails = "cuMemAlloc_v2"
    with pytest.raises(CompileError, match=r"cuMemAlloc_v2 failed \(out of memory\)"):
        driver.allocate(8)


class Later(Memory):
    """A stream whose copies are made when it is waited for, as late as the driver may make them."""

    def __init__(self):
        super().__init__()
        self.work = []

    def do_cuMemcpyHtoDAsync_v2(self, *arguments):  # noqa: N802
        self.work.append((super().do_cuMemcpyHtoDAsync_v2, arguments))
        return 0

    def do_cuMemcpyDtoHAsync_v2(self, *arguments):  # noqa: N802
        self.work.append((super().do_cuMemcpyDtoHAsync_v2, arguments))
        return 0

    def do_cuStreamSynchronize(self, stream):  # noqa: N802
        work, self.work = self.work, []
        for copy, arguments in work:
            copy(*arguments)
        return 0


def test_copies_through_pinned_memory_keep_the_streams_order():
    library = Later()
    driver = Driver(library, 0)
    one, other, found = (np.full(6, value, np.float32) for value in (1, 2, 0))
    address, second = driver.allocate(one.nbytes), np.empty(6, np.float32)
    driver.copy_in(address, one)
    one[:] = 5
    driver.copy_out(found, address)
    assert (found == 0).all(), "it isn't there yet"
    driver.wait()
    assert (found == 1).all(), "what the array was when it was copied"
    driver.copy_in(address, other)
    driver.copy_out(second, address)
    driver.copy_in(address, np.full(3, 7, np.float32))  # a smaller one, before the copies before it were made
    driver.copy_out(found, address)
    driver.wait()
    assert (second == 2).all()
    assert found.tolist() == [7, 7, 7, 2, 2, 2]
    assert len(library.pinned) == 1, "one for each address"
    driver.free(address)
    driver.close()
    assert library.pinned == library.blocks == {}


def test_a_copy_that_fails_fills_no_array_later():
    library = Later()
    driver = Driver(library, 0)
    lost, found = np.zeros(2, np.float32), np.zeros(2, np.float32)
    address = driver.allocate(lost.nbytes)
    driver.copy_in(address, np.ones(2, np.float32))
    driver.copy_out(lost, address)
    library.fails = "cuStreamSynchronize"
    with pytest.raises(CompileError, match="cuStreamSynchronize failed"):
        driver.wait()
    with pytest.raises(CompileError, match="cuStreamSynchronize failed"):
        driver.copy_in(address, found)  # the pinned memory may still be read
    library.fails = None
    driver.copy_in(address, np.full(2, 3, np.float32))
    driver.copy_out(found, address)
    driver.wait()
    assert (lost == 0).all()
    assert (found == 3).all()


@pytest.mark.parametrize("limit", ["large", "refused"])
def test_what_cannot_be_pinned_is_copied_directly(monkeypatch, limit):
    library = Later()
    driver = Driver(library, 0)
    if limit == "large":
        monkeypatch.setattr("latentc.runtimes.cuda.PINNED_BYTES", 8)
    else:
        library.fails = "cuMemHostAlloc"
    array, found = np.arange(6, dtype=np.float32), np.zeros(6, np.float32)
    address = driver.allocate(array.nbytes)
    for _ in range(2):
        driver.copy_in(address, array)
        driver.copy_out(found, address)
        driver.wait()
        assert (found == array).all()
    assert library.calls.count("cuMemHostAlloc") == (limit == "refused"), "it isn't tried for each copy"
    driver.free(address)
    assert library.pinned == library.blocks == {}


def test_a_gpu_has_one_context_until_the_process_ends():
    library = Memory()
    for ordinal in (0, 1, 0):
        Driver(library, ordinal).close()
    assert library.calls.count("cuDevicePrimaryCtxRetain") == 2
    assert not [name for name in library.calls if "Release" in name or "Reset" in name]


class Context:
    """Doubles what it is fed: `sample` [1, 4, height, width] to `out_sample`. Works in as many bytes as it is fed."""

    def __init__(self, memory):
        self.shapes, self.addresses, self.memory, self.room = {}, {}, memory, None
        self.refuses = self.refuses_capture = False

    def __getattribute__(self, name):
        if not name.startswith("_") and callable(getattr(Context, name, None)):
            assert self.memory.is_current, f"{name} without a current context"
        return super().__getattribute__(name)

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return max(shape) <= 16

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self):
        return 4 * int(np.prod(self.shapes["sample"]))

    def set_device_memory(self, address, count):
        self.room = address, count

    def execute_async_v3(self, stream):
        if self.refuses or (self.refuses_capture and self.memory.capturing is not None):
            return False
        assert len(self.memory.blocks[self.room[0]]) >= self.room[1] >= self.update_device_memory_size_for_shapes()
        count, addresses = int(np.prod(self.shapes["sample"])), dict(self.addresses)

        def work():
            read = np.ctypeslib.as_array((ctypes.c_float * count).from_address(addresses["sample"]))
            np.ctypeslib.as_array((ctypes.c_float * count).from_address(addresses["out_sample"]))[:] = 2 * read
            self.memory.clock += WORK_MILLISECONDS

        if self.memory.capturing is None:
            work()
        else:
            self.memory.capturing.append(work)
        return True


class Config:
    """Stands for the configuration of a context of TensorRT for RTX, and for its cache: code is of one version."""

    code, version = b"", b"one "

    def create_runtime_cache(self):
        return self

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def set_runtime_cache(self, cache):
        self.taken = self.code

    def deserialize(self, blob):
        fits = blob.startswith(self.version)
        self.code = blob if fits else b""
        return fits

    def serialize(self):
        return self.code


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Makes an engine over the stand-ins, and its context; they share the device's memory."""
    shape = ("batch", 4, "height", "width")
    sample = (TensorInfo(name="sample", dtype="float32", shape=shape),)
    target = Target("tensorrt-rtx", "sm89", "f16", {}, sample, (sample[0].model_copy(update={"name": "out_sample"}),))
    memory, log = Memory(), Messages()
    monkeypatch.setattr("latentc.runtimes.cuda._library", lambda: memory)
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "state"))
    gpus = (SimpleNamespace(vendor="NVIDIA", driver="nvidia 580.65"),)
    monkeypatch.setattr("latentc.runtimes.trt_cache.machine", lambda: SimpleNamespace(gpus=gpus))
    trt_cache._driver.cache_clear()
    folder = tmp_path / "engines" / "unet-1"
    folder.mkdir(parents=True)
    (folder / "engine.plan").write_bytes(b"plan")
    strategies = SimpleNamespace(USER_MANAGED=2)

    def made(device="sm89", **how):
        context = Context(memory)
        config = Config()
        engine = SimpleNamespace(
            create_execution_context=lambda how: context if how in (config, 2) else None,
            create_runtime_config=lambda: config,
            streamable_weights_size=100,
        )
        library = SimpleNamespace(
            Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
            ExecutionContextAllocationStrategy=strategies,
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(NONE=3),
            __version__="1.7.1",
        )
        plan = LoadedPlan(library, log, folder / "engine.plan", replace(target, device=device), **how)
        context.engine, context.config = engine, config
        return HostEngine(target, plan.call, plan.release, plan.use), context

    made.memory, made.folder = memory, folder
    yield made
    assert not memory.is_current, "the thread's own context is current again"
    assert memory.blocks == memory.pinned == {}, "all was given back"
    ROOMS.clear()
    trt_cache._driver.cache_clear()


@pytest.fixture
def loaded(load):
    return *load(), load.memory


def test_an_engine_copies_in_runs_and_copies_out(loaded):
    engine, _, memory = loaded
    for side in (4, 8, 2):
        feed = np.random.default_rng(side).standard_normal((1, 4, side, side)).astype(np.float32)
        assert (engine.run({"sample": feed})["out_sample"] == 2 * feed).all()
    assert len(memory.blocks) == 3, "a buffer for each tensor and room to compute, made larger where it had to be"
    engine.close()
    assert memory.blocks == {}
    assert memory.calls[-2:] == ["cuStreamDestroy_v2", "cuCtxPopCurrent_v2"]


def test_what_goes_wrong_on_the_device_is_said_and_nothing_is_freed_twice(loaded):
    engine, context, memory = loaded
    feed = np.zeros((1, 4, 4, 4), np.float32)
    engine.run({"sample": feed})
    with pytest.raises(CompileError, match="outside the range that the engine was built for"):
        engine.run({"sample": np.zeros((1, 4, 32, 32), np.float32)})
    memory.fails = "cuMemAlloc_v2"
    with pytest.raises(CompileError, match=r"out of memory.* Request a smaller size"):
        engine.run({"sample": np.zeros((1, 4, 8, 8), np.float32)})
    memory.fails, context.refuses = None, True
    with pytest.raises(CompileError, match="TensorRT failed to run"):
        engine.run({"sample": feed})
    engine.close()
    assert memory.blocks == {}


def test_an_engine_is_called_and_closed_in_other_threads(load, monkeypatch):
    (engine, _), memory, freed = load(graphed=True), load.memory, []
    forget = LoadedPlan._forget
    monkeypatch.setattr(LoadedPlan, "_forget", lambda plan: freed.append(memory.is_current) or forget(plan))
    feed = np.ones((1, 4, 4, 4), np.float32)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for thread in (first, second):
            assert (thread.submit(engine.run, {"sample": feed}).result()["out_sample"] == 2).all()
        second.submit(engine.close).result()
    assert freed == [True]


def test_what_is_copied_in_is_kept_until_the_copy_ends(loaded, monkeypatch):
    engine, _, memory = loaded
    copied = []
    copy = Driver.copy_in
    monkeypatch.setattr(Driver, "copy_in", lambda self, to, array: copied.append(ref(array)) or copy(self, to, array))
    wait = Driver.wait
    monkeypatch.setattr(Driver, "wait", lambda self: [kept.append(one() is not None) for one in copied] + [wait(self)])
    kept = []
    across = np.ones((1, 4, 4, 8), np.float32)[..., ::2]
    assert (engine.run({"sample": across})["out_sample"] == 2).all()
    assert kept == [True]
    monkeypatch.setattr(Driver, "allocate", lambda *_: 1 / 0)  # the second copy isn't begun
    with pytest.raises(CompileError, match="division by zero"):
        engine.run({"sample": np.ones((1, 4, 8, 16), np.float32)[..., ::2]})
    assert memory.calls.count("cuMemcpyHtoDAsync_v2") == 1
    monkeypatch.undo()
    engine.close()


def test_what_is_bound_is_copied_in_once(loaded):
    engine, _, memory = loaded
    feed = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    run = engine.bind({"sample": feed})
    for _ in range(3):
        assert (run({})["out_sample"] == 2 * feed).all()
    assert memory.calls.count("cuMemcpyHtoDAsync_v2") == 1
    assert (engine.run({"sample": feed + 1})["out_sample"] == 2 * (feed + 1)).all()
    assert (run({})["out_sample"] == 2 * feed).all(), "another feed took its place, so it is copied in again"
    engine.close()


@pytest.mark.parametrize("name", ["sm89", "sm89:1"])
def test_engines_of_a_gpu_take_turns_in_one_room(load, name):
    (small, one), (large, other), memory = load(), load(name), load.memory
    feeds = [np.ones((1, 4, side, side), np.float32) for side in (4, 16)]
    small.run({"sample": feeds[0]})
    large.run({"sample": feeds[1]})
    assert one.room[0] != other.room[0], "it was moved to grow"
    assert (small.run({"sample": feeds[0]})["out_sample"] == 2).all()
    assert one.room == (other.room[0], 4 * feeds[0].size), "each has as much of it as it needs"
    small.close()
    assert other.room[0] in memory.blocks
    assert (large.run({"sample": feeds[1]})["out_sample"] == 2).all()
    large.close()


def test_a_captured_call_is_launched_until_its_room_moves(load):
    (graphed, _), (other, _), memory = load(graphed=True), load(), load.memory
    feed = np.random.default_rng(2).standard_normal((1, 4, 4, 4)).astype(np.float32)
    for factor in (1, 2, 3):
        assert (graphed.run({"sample": factor * feed})["out_sample"] == 2 * factor * feed).all()
    assert memory.calls.count("cuGraphLaunch") == 2
    other.run({"sample": np.ones((1, 4, 16, 16), np.float32)})
    assert (graphed.run({"sample": feed})["out_sample"] == 2 * feed).all()
    assert memory.calls.count("cuGraphExecDestroy") == 1
    assert memory.calls.count("cuGraphLaunch") == 2, "captured where its room was before, it isn't launched again"
    assert memory.calls.count("cuStreamBeginCapture_v2") == 2
    graphed.close()
    other.close()
    assert memory.calls.count("cuGraphExecDestroy") == 2


def test_the_device_s_own_clock_is_read_around_the_work_and_replays_are_counted(load):
    feed = {"sample": np.zeros((1, 4, 4, 4), np.float32)}
    for graphed in (False, True):
        engine, _ = load(graphed=graphed)
        assert isinstance(engine, Clocked)
        found = []
        for _ in range(3):
            engine.run(feed)
            found.append((engine.device_use.seconds, engine.device_use.calls, engine.device_use.replays))
        # the first call of a captured engine runs before the capture, which itself runs nothing
        assert [seconds for seconds, _, _ in found] == pytest.approx([0.016, 0.032, 0.048]), "without the copies"
        assert [(calls, replays) for _, calls, replays in found] == [(1, 0), (2, graphed), (3, 2 * graphed)]
        engine.close()
    created, dropped = load.memory.calls.count("cuEventCreate"), load.memory.calls.count("cuEventDestroy_v2")
    assert created == dropped == 4


def test_a_capture_that_fails_says_why(load):
    (engine, context), memory = load(graphed=True), load.memory
    context.refuses_capture = True
    feed = np.ones((1, 4, 4, 4), np.float32)
    with pytest.raises(CompileError, match="TensorRT failed to run"):
        engine.run({"sample": feed})
    assert memory.calls.count("cuStreamEndCapture") == memory.calls.count("cuGraphDestroy") == 1
    context.refuses_capture = False
    assert (engine.run({"sample": feed})["out_sample"] == 2).all()
    engine.close()


def test_what_fails_while_closing_keeps_nothing_else(load):
    (engine, _), memory = load(), load.memory
    engine.run({"sample": np.ones((1, 4, 4, 4), np.float32)})
    memory.fails = "cuMemFree_v2"
    with pytest.raises(CompileError, match="cuMemFree_v2 failed"):
        engine.close()
    assert memory.calls[-2:] == ["cuStreamDestroy_v2", "cuCtxPopCurrent_v2"]
    memory.fails = None
    memory.blocks.clear()
    assert memory.pinned == {}
    other, _ = load()
    assert (other.run({"sample": np.ones((1, 4, 4, 4), np.float32)})["out_sample"] == 2).all(), "in a room of its own"
    other.close()


def test_what_cannot_be_captured_is_refused_in_words(load):
    (engine, context), memory = load(graphed=True, compiles=True), load.memory
    feed = np.ones((1, 4, 4, 4), np.float32)
    context.is_stream_capturable = lambda stream: False
    with pytest.raises(
        CompileError, match=r"cannot capture this .* Write cuda_graph = false for its part, .*\[part_options\."
    ):
        engine.run({"sample": feed})
    assert "cuStreamBeginCapture_v2" not in memory.calls
    context.is_stream_capturable = lambda stream: True
    assert (engine.run({"sample": feed})["out_sample"] == 2).all()
    assert "cuStreamBeginCapture_v2" in memory.calls
    engine.close()


def test_compiled_code_is_kept_by_gpu_and_driver_outside_the_bundle(load, tmp_path, monkeypatch):
    feed = {"sample": np.ones((1, 4, 4, 4), np.float32)}
    kept = tmp_path / "state" / "compiled"
    brought = load.folder.parent / ".timing"

    def called(compiled):
        engine, context = load(compiles=True)
        assert (context.config.strategy, context.config.dynamic_shapes_kernel_specialization_strategy) == (2, 3)
        taken, context.config.code = context.config.taken, context.config.code or compiled
        assert (engine.run(feed)["out_sample"] == 2).all()
        engine.close()
        return taken

    assert called(b"one code") == b""
    (cache,) = kept.iterdir()
    assert cache.name.startswith("rtx-1.7.1-sm89-GPU-1-nvidia-580.65-")
    assert cache.read_bytes() == b"one code"
    assert called(b"") == b"one code"
    cache.write_bytes(b"code of another version")
    assert called(b"one other code") == b""
    assert cache.read_bytes() == b"one other code"
    brought.mkdir()
    cache.rename(brought / cache.name)
    assert called(b"one code") == b"", "code that a bundle brings is not run"
    gpus = (SimpleNamespace(vendor="NVIDIA", driver="nvidia"),)  # as in a container that hides the driver's version
    monkeypatch.setattr("latentc.runtimes.trt_cache.machine", lambda: SimpleNamespace(gpus=gpus))
    trt_cache._driver.cache_clear()
    assert called(b"one newer") == b""
    assert len(list(kept.iterdir())) == 2
    assert any("-CUDA-13.0-" in path.name for path in kept.iterdir())
    assert [path.name for path in load.folder.iterdir()] == ["engine.plan"], "the artifact is as it was"
    shutil.rmtree(kept)
    kept.write_text("not a folder")
    assert called(b"one code") == b"", "what can't be kept is compiled again"


def test_compiled_code_is_kept_after_the_first_call_of_each_shape(load, tmp_path, monkeypatch):
    """A server that is killed never releases its engines."""
    written = []
    write = trt_cache.write_bytes
    monkeypatch.setattr(trt_cache, "write_bytes", lambda path, code: written.append(code) or write(path, code))
    engine, context = load(compiles=True)
    calls = [(4, b"one a"), (4, b"one x"), (8, b"one b"), (4, b"one y"), (2, b"one b")]
    for side, code in calls:  # code of the same length was changed too
        context.config.code = code
        engine.run({"sample": np.ones((1, 4, side, side), np.float32)})
    assert written == [b"one a", b"one b"], "each once, and not what didn't change"
    engine.close()
    assert written == [b"one a", b"one b"]
    (cache,) = (tmp_path / "state" / "compiled").iterdir()
    assert cache.read_bytes() == b"one b"


def test_weights_that_are_streamed_have_a_budget(load):
    (engine, context), (ample, other) = load(streamed=30), load(streamed=300)
    assert context.engine.weight_streaming_budget_v2 == 30
    assert other.engine.weight_streaming_budget_v2 == 100, "no more than there are"
    engine.close()
    ample.close()


def test_without_a_driver_that_is_said(monkeypatch):
    monkeypatch.setattr("latentc.runtimes.cuda.LIBRARY", "libnowhere.so.1")
    for ask in (open_driver, gpu_name):
        with pytest.raises(RuntimeMissing, match="NVIDIA.s driver cannot be loaded .libnowhere"):
            ask("sm89")
