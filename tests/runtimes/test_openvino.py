"""OpenVINO: precision above all, which a blob forgets."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.core.errors import CompileError, ProfileError, RuntimeMissing
from latentc.profiles import load_profile
from latentc.runtimes import openvino as module
from latentc.runtimes.base import Target, files_in
from latentc.runtimes.openvino import CACHE, CACHED, OpenVINO, _config, _Pipe


@pytest.fixture
def case(make_case):
    return make_case("openvino")


def errors(case, engine):
    feeds = case.feeds()
    outputs = engine.run(feeds)
    return max(np.abs(outputs[name] - wanted).max() for name, wanted in case.expected(feeds).items())


@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
def test_a_precision_survives_loading(case, tmp_path, precision):
    if precision not in case.adapter.precisions("CPU"):
        pytest.skip(f"this CPU has no {precision}")
    case.build(tmp_path / "out", precision=precision)
    engine = case.load(tmp_path / "out", precision=precision)
    assert (errors(case, engine) < 1e-4) == (precision == "f32")
    assert errors(case, engine) < 0.2
    engine.close()


def test_only_the_precisions_that_the_cpu_has_are_listed(case, monkeypatch):
    monkeypatch.setattr(module, "_capabilities", lambda device: ("WINOGRAD", "FP32", "INT8", "BF16"))
    assert case.adapter.precisions("CPU") == ("f32", "bf16", "w8", "int8")
    assert case.adapter.precisions("GPU") == ("f32", "bf16")  # where quantized models were not tried
    monkeypatch.setattr(module, "_capabilities", lambda device: ("WINOGRAD", "FP32", "BF16"))
    assert case.adapter.precisions("CPU") == ("f32", "bf16")


def test_another_precision_than_asked_for_is_refused(case, tmp_path, monkeypatch):
    """What a CPU without FP16 does: it is asked for f16 and takes bf16."""
    config = module._config
    monkeypatch.setattr(module, "_config", lambda target: config(target) | {"INFERENCE_PRECISION_HINT": "f32"})
    with pytest.raises(CompileError, match=r"should be computed in bf16 on CPU, but OpenVINO chose f32"):
        case.compile(tmp_path / "out", precision="bf16")


def test_a_blob_of_another_openvino_is_refused_in_its_words(case, tmp_path):
    """The key is another one; this is the library's own check, behind it."""
    target = case.compile(tmp_path / "out")
    blob = tmp_path / "out" / "engine.blob"
    version = case.adapter.versions()["openvino"].encode()
    blob.write_bytes(blob.read_bytes().replace(version, b"2" * len(version)))
    with pytest.raises(CompileError, match=r"built for a different runtime configuration.*Build again"):
        case.adapter.load(tmp_path / "out", target, files_in(tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"NUM_STREAM": 1}, "Did you mean 'NUM_STREAMS'"),
        ({"INFERENCE_PRECISION_HINT": "f16"}, r"set the profile's \[precision\]"),
        ({"CACHE_DIR": "/tmp"}, "latentc stores engines itself"),
        ({"SUPPORTED_PROPERTIES": "all"}, "no option 'SUPPORTED_PROPERTIES'"),
        ({"SCHEDULING_CORE_TYPE": "BEST"}, "refuses SCHEDULING_CORE_TYPE = 'BEST'"),
    ],
)
def test_options_that_it_refuses(case, options, message):
    with pytest.raises(ProfileError, match=message):
        case.adapter.check(options)


def test_options_reach_the_engine(case, tmp_path):
    options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "THROUGHPUT"}
    case.adapter.check(options)
    case.build(tmp_path / "out", options=options)
    engine = case.load(tmp_path / "out", options=options)
    compiled = engine._call.__self__.compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("THROUGHPUT")
    assert errors(case, engine) < 1e-4
    engine.close()


@pytest.mark.parametrize("device", ["AUTO", "AUTO:CPU", "HETERO:CPU,GPU", "MULTI:CPU", "BATCH:CPU"])
def test_devices_that_pick_by_themselves_are_refused(device):
    assert "selects a device automatically" in (OpenVINO().missing(device) or "")


def test_a_missing_driver_is_named():
    if any(device.startswith("GPU") for device in OpenVINO().devices()):
        pytest.skip("this machine has an Intel GPU")
    assert "intel-opencl-icd" in (OpenVINO().missing("GPU") or "")
    assert "finds no GPU.1; devices found: CPU" in (OpenVINO().missing("GPU.1") or "")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_said(case, tmp_path, monkeypatch):
    """The library takes no notice of what the file raises, and leaves a blob with a hole."""
    init = _Pipe.__init__
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(_Pipe, "__init__", lambda self, file: init(self, full))
        with pytest.raises(CompileError, match=r"engine.blob cannot be written: .*No space left on device"):
            case.compile(tmp_path / "out")


def test_the_pipe_holds_nothing(tmp_path):
    with (tmp_path / "file").open("w+b") as file:
        pipe = _Pipe(file)
        assert isinstance(pipe, io.BytesIO)
        pipe.write(b"0123456789")
        pipe.seek(2)
        pipe.write(b"ab")
        assert pipe.tell() == 4
        assert pipe.getvalue() == b""
    assert (tmp_path / "file").read_bytes() == b"01ab456789"


def test_the_cache_of_sizes_is_bounded_and_can_be_bounded_otherwise():
    def given(device="CPU", **options):
        return _config(Target("openvino", device, "f32", options, (), ())).get(CACHE)

    assert given() == CACHED
    assert given(**{CACHE: 7}) == 7
    assert given("GPU") is None, "which doesn't have it"
    adapter = OpenVINO()
    adapter.check({CACHE: 0})
    with pytest.raises(ProfileError, match=f"Did you mean '{CACHE}'"):
        adapter.check({"CPU_RUNTIME_CACHE_CAPACTIY": 7})
    with pytest.raises(ProfileError, match=CACHE):
        adapter.check({CACHE: "several"})


def devices_of(monkeypatch, **kinds):
    """A core with these GPUs beside the CPU; the types are the library's own."""
    types = module._library().properties.device.Type
    facts = {name.replace("_", "."): getattr(types, kind) for name, kind in kinds.items()}
    core = SimpleNamespace(
        available_devices=["CPU", *facts],
        get_property=lambda name, key: facts[name] if key == "DEVICE_TYPE" else f"Intel {facts[name].name.lower()}",
    )
    monkeypatch.setattr(module, "_core", lambda: core)
    return OpenVINO()


def test_a_card_is_chosen_before_the_integrated_gpu(monkeypatch):
    adapter = devices_of(monkeypatch, GPU_0="INTEGRATED", GPU_1="DISCRETE")
    assert [module._opened(device) for device in ("GPU", "GPU.0", "CPU", "NPU")] == ["GPU.1", "GPU.0", "CPU", "NPU"]
    assert adapter.missing("GPU") is None
    devices_of(monkeypatch, GPU="INTEGRATED")
    assert module._opened("GPU") == "GPU", "the only one"
    for second in ("DISCRETE", "INTEGRATED"):
        adapter = devices_of(monkeypatch, GPU_0=second, GPU_1=second)
        assert "several devices called GPU: GPU.0 (Intel " in (adapter.missing("GPU") or "")
        assert adapter.missing("GPU.1") is None


def test_what_is_compiled_loaded_and_asked_is_the_chosen_device(case, tmp_path, monkeypatch):
    """With the CPU in the place of the card."""
    monkeypatch.setattr(module, "_opened", lambda device: "CPU")
    monkeypatch.setattr(OpenVINO, "missing", lambda self, device: None)
    module._facts.cache_clear()
    assert case.adapter.device("GPU") == case.adapter.device("CPU")
    target = case.compile(tmp_path / "out", device="GPU")
    case.adapter.load(tmp_path / "out", target, files_in(tmp_path / "out")).close()
    module._facts.cache_clear()


def test_a_device_that_the_user_cannot_open_is_said(monkeypatch):
    if any(device != "CPU" for device in OpenVINO().devices()):
        pytest.skip("this machine has more than a CPU")
    monkeypatch.setattr(module, "shut", lambda pattern: f"this user cannot open {pattern}.")
    assert OpenVINO().missing("NPU") == "OpenVINO finds no NPU: this user cannot open dev/accel/accel*."


def test_an_npu_takes_fixed_sizes():
    adapter, profile = OpenVINO(), load_profile("intel-npu")
    assert profile.shapes.sizes
    assert not adapter.takes_free_sizes(profile.device, profile.options)
    assert adapter.takes_free_sizes("GPU.1", {})


def plugin(kind):
    (found,) = Path(module._library().__file__).parent.rglob(f"*openvino_intel_{kind}_plugin.so")
    return found.read_bytes()


def test_too_large_an_allocation_is_answered_with_the_option_for_it(case, tmp_path, monkeypatch):
    """For an Arc with more memory than one allocation may have; the message and the option are the plugin's."""
    ((words, advice),) = module.LIMITS.items()
    assert words.encode() in plugin("gpu")
    assert b"GPU_ENABLE_LARGE_ALLOCATIONS" in plugin("gpu")
    message = f"[GPU] {words} object allocation: requested 8589934592 bytes, but max alloc size is 4294959104 bytes."

    def refuse(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(module, "_core", lambda: SimpleNamespace(compile_model=refuse))
    monkeypatch.setattr(OpenVINO, "missing", lambda self, device: None)
    monkeypatch.setattr(module, "_opened", lambda device: device)
    with pytest.raises(CompileError) as refused:
        case.compile(tmp_path / "out", device="GPU")
    assert "write GPU_ENABLE_LARGE_ALLOCATIONS = true under [options]" in advice
    assert str(refused.value) == f"OpenVINO refuses unet on GPU: {message} {advice}"


def test_versions_of_what_compiles_for_a_gpu_or_npu_are_in_the_key(monkeypatch):
    for name in module.DRIVER_VERSIONS:
        assert name.encode() in plugin("gpu" if name.startswith("GPU") else "npu")
    core = module._core()

    def stated(device, name):
        if name == "SUPPORTED_PROPERTIES":
            return {"NPU_DRIVER_VERSION": "RO", "NPU_COMPILER_VERSION": "RO", "DEVICE_TYPE": "RO"}
        return {"NPU_DRIVER_VERSION": 1688, "NPU_COMPILER_VERSION": 458759}.get(name) or core.get_property("CPU", name)

    monkeypatch.setattr(module, "_property", stated)
    monkeypatch.setattr(module, "_opened", lambda device: "CPU")
    module._facts.cache_clear()
    facts = OpenVINO().device("NPU")
    module._facts.cache_clear()
    assert facts["npu_driver_version"] == "1688"
    assert facts["npu_compiler_version"] == "458759"
    assert "gpu_driver_version" not in facts
    monkeypatch.undo()
    assert OpenVINO().device("CPU").keys() == {"architecture", "capabilities", "requirements"}, "a CPU has none"
    module._facts.cache_clear()


def test_an_option_is_checked_against_the_profiles_device(monkeypatch):
    adapter = OpenVINO()
    options = {"GPU_ENABLE_LARGE_ALLOCATIONS": True}
    if not any(device.startswith("GPU") for device in adapter.devices()):
        adapter.check(options, "GPU")  # a machine without one can't know; building fails for the GPU's sake
    monkeypatch.setattr(OpenVINO, "missing", lambda self, device: None)
    monkeypatch.setattr(OpenVINO, "devices", lambda self: ("CPU", "GPU"))
    known = {"CPU": frozenset({"NUM_STREAMS"}), "GPU": frozenset(options)}
    monkeypatch.setattr(module, "_settable", known.__getitem__)
    tried = []
    core = SimpleNamespace(compile_model=lambda model, *asked: tried.append(asked), available_devices=["CPU", "GPU"])
    monkeypatch.setattr(module, "_core", lambda: core)
    monkeypatch.setattr(module, "_small_model", lambda: None)
    with pytest.raises(ProfileError, match="has no option 'GPU_ENABLE_LARGE_ALLOCATIONS' for CPU. Known: NUM_STREAMS"):
        adapter.check(options, "CPU")
    adapter.check(options, "GPU")
    assert tried == [("GPU", options)]


def test_pages_of_weights_are_given_back(case, tmp_path, monkeypatch):
    """After the first call of each size, when the kernels have their copies; later calls give the same."""
    given: list[int] = []
    give_back = module.give_back
    monkeypatch.setattr(module, "give_back", lambda mapped: (given.append(len(mapped)), give_back(mapped)))
    case.build(tmp_path / "out")
    engine = case.load(tmp_path / "out")
    feeds = case.feeds()
    first = engine.run(feeds)
    assert given == [1]
    if sys.platform == "linux":
        assert resident(tmp_path / "out" / "engine.blob") == 0
    again = engine.run(feeds)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert given == [1], "this size was called before"
    more = {name: np.concatenate([array, array]) if len(array) > 1 else array for name, array in feeds.items()}
    engine.run(more)
    assert given == [1, 1]
    engine.close()


def resident(path):
    """Kilobytes of a mapped file that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.fixture
def quantizing(case):
    """The case, on a CPU that has int8."""
    if "w8" not in case.adapter.precisions("CPU"):
        pytest.skip("this CPU has no int8")
    return case


def weights_of(graph):
    """The weights of matrix products in an ONNX graph, by name: [in, out]."""
    import onnx

    model = onnx.load(graph)
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    return {node.input[1]: arrays[node.input[1]] for node in model.graph.node if node.op_type == "MatMul"}


def test_w8_rounds_weights_of_products_to_the_nearest_step_of_their_channel(quantizing, tmp_path, monkeypatch):
    """255 steps from the smallest to the largest weight of a channel, and 0 among them; convolutions stay exact."""
    graph = quantizing.bundle.graph("unet")
    model = module.quantize.compressed(module._core().read_model(str(graph)))
    kinds = [op.get_element_type().to_string() for op in model.get_ops() if op.get_type_name() == "Constant"]
    assert kinds.count("u8") == 2 * len(weights_of(graph))  # and the zero point of each channel
    monkeypatch.setattr(module, "DEFAULTS", ("f32",))
    quantizing.build(tmp_path / "out", precision="w8")
    engine, feeds = quantizing.load(tmp_path / "out", precision="w8"), quantizing.feeds()
    given = feeds["encoder_hidden_states"]
    unit = {**feeds, "encoder_hidden_states": np.eye(given.shape[-1], dtype=np.float32)[None].repeat(len(given), 0)}
    found, weight = engine.run(unit)["context"][0], weights_of(graph)["to_v"]  # times the unit matrix: the weights
    engine.close()
    step = (np.maximum(weight.max(0), 0) - np.minimum(weight.min(0), 0)) / 255
    assert np.all(np.abs(found - weight) <= step / 2 + np.abs(weight) * 2**-11 + 1e-6)  # NNCF keeps scales in f16
    assert np.any(np.abs(found - weight) > step * 0.25)


def test_w8_computes_the_rest_in_the_cpus_default(quantizing, tmp_path, monkeypatch):
    target = quantizing.compile(tmp_path / "out", precision="w8")
    default = module._core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    assert {"f32": "f32", "bf16": "bf16"}[module._config(target)["INFERENCE_PRECISION_HINT"]] == default
    monkeypatch.setattr(module, "_capabilities", lambda device: ("FP32", "INT8"))
    assert module._config(target)["INFERENCE_PRECISION_HINT"] == "f32"


def test_without_nncf_engines_load_and_a_build_says_what_to_install(quantizing, tmp_path, monkeypatch):
    target = quantizing.compile(tmp_path / "out", precision="w8")
    monkeypatch.setattr(module.quantize, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert quantizing.adapter.uncompilable(target).endswith('pip install -c constraints.txt ".[quantize]".')
    assert quantizing.adapter.uncompilable(quantizing.target) is None
    with pytest.raises(RuntimeMissing, match="NNCF"):
        quantizing.compile(tmp_path / "other", precision="w8")
    quantizing.adapter.load(tmp_path / "out", target, files_in(tmp_path / "out")).close()
