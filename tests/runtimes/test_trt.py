"""TensorRT: plans of RTX's for GPUs that aren't here, and TensorRT's own bindings."""

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
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latentc.compiler.build import build
from latentc.compiler.lower import lowered, needed_passes, weights_of
from latentc.compiler.targets import device_here, job_of, targets
from latentc.core.errors import CompileError, ProfileError, RuntimeMissing
from latentc.core.manifest import TensorInfo
from latentc.core.progress import quiet
from latentc.profiles import load_profile
from latentc.profiles.profile import Shapes
from latentc.runtimes import Job, Target
from latentc.runtimes import trt as trt_module
from latentc.runtimes.base import files_in
from latentc.runtimes.cuda import RETAINED, gpu_name, open_driver
from latentc.runtimes.trt import RTX, _advice, tensorrt, tensorrt_rtx
from latentc.runtimes.trt_log import Messages, logger
from latentc.runtimes.trt_plan import ROOMS, LoadedPlan
from latentc.runtimes.weights import without_weights

from .gpu_driver import Memory, no_library

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
