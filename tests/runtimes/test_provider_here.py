"""Which flavour of ONNX Runtime, which device and which GPU is found, and why one can't be used."""

import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.compiler.targets import wanted as wanted_by
from latentc.core.errors import ProfileError
from latentc.profiles import load_profile, profile_names
from latentc.runtimes import cuda, nvidia, placement, provider_here, providers
from latentc.runtimes import onnxruntime as module
from latentc.runtimes.machine import AmdGpu, Gpu
from latentc.runtimes.onnxruntime import ONNXRuntime
from latentc.runtimes.providers import PROVIDERS

from .pretended_device import stand_in, target_of


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


def test_proofs_are_of_the_versions_of_nvidias_libraries(monkeypatch):
    """cuDNN, cuBLAS and TensorRT are installed apart from ONNX Runtime; the functions were tried in the real ones."""
    named = []

    def opened(name):
        named.append(name)
        if "nvinfer" in name:
            return SimpleNamespace(getInferLibVersion=lambda: 101601)
        if "cublas" in name:
            raise OSError("it isn't here")
        asked = SimpleNamespace(cudaRuntimeGetVersion=lambda _: 0)
        asked.cudnnGetVersion = type("Function", (), {"__call__": lambda self: 92801})()
        return asked

    monkeypatch.setattr(nvidia.ctypes, "CDLL", opened)
    monkeypatch.setattr(nvidia, "mapped", lambda: {Path("/venv/nvidia/cudnn/lib/libcudnn.so.9")})
    monkeypatch.setattr(module, "built_with", lambda: "13")
    monkeypatch.setattr(module, "fault", lambda *_: named.append("loaded") and None)
    monkeypatch.setattr(module, "capability_of", lambda _: "sm90")
    monkeypatch.setattr(module, "gpu_name", lambda _: "H200")
    adapter, drivers = ONNXRuntime(), {"cudart": "0", "cudnn": "92801"}
    assert adapter.drivers("CUDA").items() >= drivers.items()
    found = ["libcublas.so.13", "libcudart.so.13", "/venv/nvidia/cudnn/lib/libcudnn_graph.so.9"]
    assert named == ["loaded", *found], "they are loaded before"
    assert adapter.device("CUDA") == {"gpu": "H200 sm90"}
    assert adapter.device("TensorRT") == {"gpu": "H200 sm90", "tensorrt": "101601"}
