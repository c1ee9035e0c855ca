"""Which of several devices a profile uses; this machine has a CPU only, so that the libraries' lists are replaced."""

from types import SimpleNamespace

import pytest

from latentc.cli import placing
from latentc.compiler.devices import each_device, with_device
from latentc.compiler.targets import wanted
from latentc.core.errors import ProfileError, RuntimeMissing
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.runtimes import hip, iree, onnxruntime, openvino, providers, runtime, trt
from latentc.runtimes.base import Target


def profile(device, runtime="onnxruntime"):
    return load_profile("cpu-onnxruntime").model_copy(update={"name": "mine", "runtime": runtime, "device": device})


@pytest.fixture
def nvidia(monkeypatch):
    """Two equal GPUs and a third one."""
    names = ["A", "A", "B"]
    for room in (onnxruntime, trt, iree):
        monkeypatch.setattr(room, "capabilities", lambda: ["sm89", "sm89", "sm120"])
        monkeypatch.setattr(room, "gpu_name", lambda device: names[int(device.rpartition(":")[2] or 0)], raising=False)
    monkeypatch.setattr(onnxruntime, "capability_of", lambda number: ["sm89", "sm89", "sm120"][number])


@pytest.mark.parametrize(
    ("runtime", "device", "asked", "found"),
    [
        ("onnxruntime", "CUDA", "cuda:1", "CUDA:1"),
        ("onnxruntime", "TensorRT", "cuda:2", "TensorRT:2"),
        ("onnxruntime", "TensorRT", "tensorrt:0", "TensorRT:0"),
        ("tensorrt", "sm89", "cuda:1", "sm89:1"),
        ("tensorrt-rtx", "sm86+sm89", "cuda:1", "sm86+sm89:1"),
        ("iree", "sm_80", "cuda:2", "sm_80:2"),
        ("onnxruntime", "CUDA:1", "cuda:0", "CUDA:0"),
        ("onnxruntime", "DirectML", "directml:1", "DirectML:1"),
        ("onnxruntime", "CPU", "cpu", "CPU"),
    ],
)
def test_names_of_devices(nvidia, runtime, device, asked, found):
    assert with_device(profile(device, runtime), asked).device == found


def test_the_options_of_onnxruntime(nvidia, tmp_path):
    """`device_id` is how its providers name a GPU."""
    chosen = with_device(profile("CUDA"), "cuda:1").device
    name, number = chosen.split(":")
    asked = Target("onnxruntime", name, "f32", {}, (), (), number=int(number))
    assert providers.settings(asked, tmp_path)["device_id"] == "1"


def test_gpus_of_other_makers(monkeypatch):
    monkeypatch.setattr(hip, "_gpus", lambda: {0: gfx("gfx1036"), 1: gfx("gfx1100"), 2: gfx("gfx1100")})
    assert with_device(profile("MIGraphX-gfx1100"), "hip:2").device == "MIGraphX-gfx1100:2"
    with pytest.raises(ProfileError, match=r"no hip:0 .* it has: MIGraphX-gfx1100:1, MIGraphX-gfx1100:2"):
        with_device(profile("MIGraphX-gfx1100"), "hip:0")
    monkeypatch.setattr(iree, "_vulkan_gpus", lambda: (SimpleNamespace(name="a"), SimpleNamespace(name="b")))
    assert with_device(profile("Vulkan", "iree"), "vulkan:1").device == "Vulkan:1"


def gfx(architecture):
    return SimpleNamespace(architecture=architecture)


def test_gpus_of_openvino_share_engines(monkeypatch, bundle):
    """`GPU.1` has the key of `GPU`, if they are equal, and each model is proved by itself."""
    models = {"GPU.0": "Arc A", "GPU.1": "Arc A", "GPU.2": "Arc B", "GPU": "Arc A"}
    core = SimpleNamespace(available_devices=["CPU", "GPU.0", "GPU.1", "GPU.2"])
    monkeypatch.setattr(openvino, "_core", lambda: core)
    monkeypatch.setattr(openvino, "_property", lambda device, _: models[device])
    monkeypatch.setattr(openvino, "_facts", lambda device: {"architecture": "v12"})
    monkeypatch.setattr(openvino, "_capabilities", lambda _: ("FP32", "FP16"))
    monkeypatch.setattr(openvino, "_opened", lambda device: device)
    asked = load_profile("intel-gpu")
    assert with_device(asked, "gpu:1").device == with_device(asked, "GPU.1").device == "GPU.1"
    opened = bundle("sd1")
    keys = [
        {one.key for one in wanted(opened, asked.model_copy(update={"device": device}), to_run=False)[1]}
        for device in ("GPU", "GPU.1")
    ]
    assert keys[0] == keys[1]
    adapter = runtime("openvino")
    assert adapter.drivers("GPU.0") == adapter.drivers("GPU.1") != adapter.drivers("GPU.2")
    with pytest.raises(ProfileError, match=r"GPU\.1 and GPU\.2 are different devices, .*Arc A, and .*Arc B"):
        each_device(asked, "gpu:1,gpu:2")


def test_a_device_that_is_not_there(nvidia):
    with pytest.raises(ProfileError, match=r"no cuda:7 for profile mine; it has: CUDA:0, CUDA:1, CUDA:2\."):
        with_device(profile("CUDA"), "cuda:7")
    with pytest.raises(ProfileError, match=r"no cuda:2 for profile mine; it has: sm89:0, sm89:1\."):
        with_device(profile("sm89", "tensorrt"), "cuda:2")
    for asked in ("cuda:1", "gpu", "1", "", "cuda:x", "cuda:1:2"):
        with pytest.raises(ProfileError, match=r"is for CPU, so its device can't be .* Write it like CPU"):
            with_device(profile("CPU"), asked)
    with pytest.raises(ProfileError, match=r"cuda may be CUDA:0, CUDA:1 and CUDA:2. Name one"):
        with_device(profile("CUDA"), "cuda")


def test_without_a_driver(monkeypatch):
    def none():
        raise RuntimeMissing("NVIDIA's driver cannot be loaded. Install it.")

    monkeypatch.setattr(onnxruntime, "capabilities", none)
    with pytest.raises(ProfileError, match="Profile mine has no device here: NVIDIA's driver cannot"):
        with_device(profile("CUDA"), "cuda:1")


def test_replicas_are_spread_over_equal_devices(nvidia):
    found = placing.spread(profile("CUDA"), "cuda:0,cuda:1", 3)
    assert [one.device for one in found] == ["CUDA:0", "CUDA:1", "CUDA:0"]
    assert [one.device for one in placing.spread(profile("sm89", "tensorrt"), "cuda", None)] == ["sm89:0", "sm89:1"]
    with pytest.raises(ProfileError, match="CUDA:0 and CUDA:2 are different devices"):
        placing.spread(profile("CUDA"), "cuda", 3)
    with pytest.raises(ProfileError, match="CUDA:1 is named twice"):
        placing.spread(profile("CUDA"), "cuda:1,cuda:1", 2)
    with pytest.raises(ProfileError, match="1 replica can't use 2 devices"):
        placing.spread(profile("CUDA"), "cuda:0,cuda:1", 1)


def test_memory_of_each_device(nvidia, monkeypatch):
    one = SimpleNamespace(held_bytes=6 * 10**9, on_host=False, free_bytes=10**9, device_bytes=10**10, device="CUDA:0")
    monkeypatch.setattr(placing, "plan", lambda *_: one)
    placing.check_memory({"a": None}, {"a": placing.spread(profile("CUDA"), "cuda:0,cuda:1", 2)})
    with pytest.raises(ProfileError, match=r"2 replicas on a device of 1 bundle .* 12.00 GB"):
        placing.check_memory({"a": None}, {"a": placing.spread(profile("CUDA"), "cuda:0,cuda:1", 3)})


def test_a_pipeline_on_a_device_that_is_named(opened):
    here = opened("sd1", "cpu-openvino-f32")
    with Pipeline.open(here.bundle, "cpu-openvino-f32", device="cpu") as found:
        assert found.describe() == here.describe()
    with pytest.raises(ProfileError, match="is for CPU, so its device can't be 'GPU.1'"):
        Pipeline.open(here.bundle, "cpu-openvino-f32", device="GPU.1")
