"""Facts of a machine, from made-up `/proc` and `/sys` trees as well as this one."""

import platform
import subprocess
import sys

import pytest

from latentc.runtimes import RUNTIMES, runtime
from latentc.runtimes import diagnose as diagnosis
from latentc.runtimes import machine as module
from latentc.runtimes.diagnose import RuntimeState, advise, diagnose
from latentc.runtimes.machine import Gpu, Machine, machine, shut


@pytest.fixture
def tree(tmp_path):
    """`tree({path: content})`: a root with these files."""

    def make(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


def test_this_machine():
    here = machine()
    assert here.cores >= 1
    assert here.python == platform.python_version()
    assert Machine.model_validate_json(here.model_dump_json()) == here
    if sys.platform == "linux":
        assert here.memory_bytes is not None
        assert here.available_bytes is not None
        assert 0 < here.available_bytes <= here.memory_bytes


def test_nothing_is_known_of_an_empty_system(tmp_path):
    empty = machine(tmp_path)
    assert (empty.instructions, empty.gpus) == ((), ())
    assert empty.memory_bytes is None or platform.system() == "Darwin"


def test_an_intel_server(tree):
    root = tree(
        {
            "proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) 8480+\n"
            "flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni avx512_fp16 amx_bf16 amx_int8\n\nprocessor\t: 1\n",
            "proc/meminfo": "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:   600 kB\n",
        }
    )
    found = machine(root)
    assert (found.cpu, found.vendor) == ("Intel(R) Xeon(R) 8480+", "GenuineIntel")
    assert found.instructions == (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_int8",
        "amx_bf16",
    )
    assert (found.memory_bytes, found.available_bytes) == (1000 << 10, 600 << 10)


def test_an_arm_server(tree):
    root = tree(
        {
            "proc/cpuinfo": "processor : 0\nFeatures : fp asimd asimdhp asimddp i8mm bf16 sve\nCPU implementer : 0x41\n"
            "CPU part : 0xd4f\n\n"
        }
    )
    found = machine(root)
    assert found.cpu == "Arm implementer 0x41 part 0xd4f"
    assert found.instructions == ("neon", "asimdhp", "asimddp", "bf16", "i8mm", "sve")


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/box/memory.max": "409600\n",
            "sys/fs/cgroup/pod/box/memory.current": "102400\n",
        },
        {
            "proc/self/cgroup": "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/x\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "409600\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "102400\n",
        },
    ],
    ids=["v2", "v1"],
)
def test_a_containers_limits(tree, files):
    found = machine(tree(files | {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 600 kB\n"}))
    assert found.cores == 1
    assert (found.memory_bytes, found.available_bytes) == (409600, 307200)


def test_gpus_as_the_kernel_tells_them(tree):
    nodes = "sys/class/kfd/kfd/topology/nodes"
    root = tree(
        {
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue\nGCC: 12\n",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA H200\nIRQ: 1\n",
            f"{nodes}/0/properties": "cpu_cores_count 8\nsimd_count 0\n",
            f"{nodes}/1/properties": "simd_count 1216\ngfx_target_version 90402\n",
            f"{nodes}/1/name": "aqua_vanjaram\n",
            f"{nodes}/1/mem_banks/0/properties": "heap_type 1\nsize_in_bytes 205000000000\n",
            f"{nodes}/2/properties": "simd_count 64\ngfx_target_version 90010\n",
            "sys/module/amdgpu/version": "6.10.5\n",
            "sys/class/drm/card0/device/vendor": "0x8086\n",
            "sys/class/drm/card0/device/device": "0x56a0\n",
            "sys/class/drm/card0/device/uevent": "DRIVER=i915\nPCI_ID=8086:56A0\n",
            "sys/class/drm/card1/device/vendor": "0x1002\n",
            "sys/class/drm/card2/device/vendor": "0x1a03\n",
        }
    )
    nvidia, amd, older, intel = machine(root).gpus
    assert (nvidia.name, nvidia.vendor, nvidia.driver) == ("NVIDIA H200", "NVIDIA", "nvidia 580.95.05")
    assert (amd.architecture, amd.memory_bytes, amd.driver) == ("gfx942", 205_000_000_000, "amdgpu 6.10.5")
    assert older.architecture == "gfx90a"
    assert (intel.name, intel.vendor, intel.driver) == ("PCI device 0x56a0", "Intel", "i915")


def test_gpus_as_nvidia_smi_tells_them(monkeypatch):
    said = "NVIDIA H200, 143771, 580.95.05, 9.0\nNVIDIA RTX 4090, [N/A], 580.95.05, [N/A]"
    monkeypatch.setattr(module, "_run", lambda *command: said if command[0] == "nvidia-smi" else None)
    first, second = list(module._nvidia(module.ROOT))
    assert (first.name, first.architecture, first.memory_bytes) == ("NVIDIA H200", "sm_90", 143771 << 20)
    assert (second.architecture, second.memory_bytes) == (None, None)


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_do_not_fail(monkeypatch, tmp_path, system):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    module._sysctl.cache_clear()
    found = machine(tmp_path)
    module._sysctl.cache_clear()
    assert found.cores >= 1
    assert ("neon" in found.instructions) == (system == "Darwin")


def test_every_runtime_is_diagnosed():
    states = diagnose()
    assert [state.name for state in states] == list(RUNTIMES)
    for state in states:
        assert isinstance(state, RuntimeState)
        assert state.works == bool(state.devices) == (state.missing is None)
        assert not set(state.builds) & set(state.devices)
        assert bool(state.versions) == bool(state.devices or state.builds)
    assert states[-1].works
    rtx = next(state for state in states if state.name == "tensorrt-rtx")
    assert rtx.works or ("sm89" in rtx.builds) == (runtime("tensorrt-rtx").unbuildable("sm89") is None)


def test_the_profile_that_pays_is_advised(monkeypatch):
    here = machine()
    old = here.model_copy(update={"instructions": ("avx2",)})
    new = here.model_copy(update={"instructions": ("avx2", "amx_bf16")})
    openvino = type(runtime("openvino"))
    monkeypatch.setattr(openvino, "missing", lambda self, device: None)
    monkeypatch.setattr(openvino, "precisions", lambda self, device: ("f32", "bf16"))
    assert advise(old).name == "cpu-openvino-f32"
    assert advise(new).name == "cpu-openvino"
    monkeypatch.setattr(openvino, "missing", lambda self, device: "It isn't here.")
    monkeypatch.setattr(type(runtime("onnxruntime")), "missing", lambda self, device: None)
    assert advise(new).name == "cpu-onnxruntime"
    monkeypatch.setattr(type(runtime("iree")), "missing", lambda self, device: None if device == "gfx942" else "no")
    assert advise(new).name == "cpu-onnxruntime", "a GPU of software, which the kernel doesn't know"
    instinct = Gpu(name="AMD Instinct MI300X", vendor="AMD", architecture="gfx942")
    assert advise(new.model_copy(update={"gpus": (instinct,)})).name == "mi300x", "a GPU that is here goes first"
    monkeypatch.setattr(type(runtime("onnxruntime")), "precisions", lambda self, device: ("f32", "f16"))
    monkeypatch.setattr(diagnosis, "capabilities", lambda: ["sm90"])
    hopper = Gpu(name="NVIDIA H200", vendor="NVIDIA", architecture="sm_90")
    monkeypatch.setattr(type(runtime("iree")), "missing", lambda self, device: "no")
    assert advise(new.model_copy(update={"gpus": (hopper,)})).name == "h100-onnxruntime-tensorrt"
    monkeypatch.setattr(type(runtime("tensorrt")), "missing", lambda self, device: None if device == "sm90" else "no")
    assert advise(new.model_copy(update={"gpus": (hopper,)})).name == "h100-tensorrt", "itself before the detour"
    monkeypatch.setattr(type(runtime("tensorrt")), "missing", lambda self, device: "no")
    monkeypatch.setattr(
        type(runtime("onnxruntime")), "missing", lambda self, device: None if device in ("CPU", "CUDA") else "no"
    )
    assert advise(new.model_copy(update={"gpus": (hopper,)})).name == "h100"
    monkeypatch.setattr(diagnosis, "capabilities", lambda: ["sm75", "sm90"])
    name = advise(new.model_copy(update={"gpus": (hopper,)})).name
    assert name == "cpu-onnxruntime", "CUDA's first GPU isn't the system's, or the H200 is hidden"
    assert advise(new).name == "cpu-onnxruntime", "CUDA's profile is for other GPUs than are here"


BARE = """
import sys
for name in "torch diffusers transformers onnx onnxruntime openvino iree tensorrt tensorrt_rtx_bindings".split():
    sys.modules[name] = None
from importlib import import_module
from pathlib import Path
import latentc.runtimes
for path in Path(latentc.runtimes.__file__).parent.glob("*.py"):
    import_module(f"latentc.runtimes.{path.stem}")
from latentc.runtimes.diagnose import diagnose
for state in diagnose():
    print(state.name, state.works, state.missing)
"""


def test_without_any_library_each_says_what_to_install():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    openvino, onnxruntime, web, iree, migraphx, tensorrt, rtx, torch, null = done.stdout.splitlines()
    assert "apt install migraphx" in migraphx
    assert 'constraints.txt ".[iree]"' in iree
    assert 'constraints.txt ".[tensorrt]"' in tensorrt
    assert 'constraints.txt ".[tensorrt-rtx]"' in rtx
    assert 'constraints.txt ".[openvino]"' in openvino
    assert 'constraints.txt ".[onnxruntime]"' in onnxruntime
    assert 'constraints.txt ".[export]"' in torch
    assert "Chromium" in web or "npm pack onnxruntime-web" in web or web.endswith("True None")
    assert null == "null True None"


def test_a_device_file_that_cannot_be_opened(tree, monkeypatch):
    root = tree({"dev/dri/renderD128": "", "dev/dri/renderD129": ""})
    assert shut("dev/dri/renderD*", root) is None
    assert shut("dev/accel/accel*", root) is None, "there is none"
    monkeypatch.setattr("os.access", lambda path, mode: path.name == "renderD129")
    assert shut("dev/dri/renderD*", root) is None, "one is enough"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "renderD128. Add the user to the group" in (shut("dev/dri/renderD*", root) or "")


WINDOWS = r""""Name","DriverVersion","PNPDeviceID"
"Microsoft Remote Display Adapter","10.0.26100.1","SWD\REMOTEDISPLAYENUM\RDPIDD"
"AMD Radeon RX 7900 XTX","32.0.21013.1000","PCI\VEN_1002&DEV_744C&SUBSYS_E471100&REV_C8\6&3A9C1D&0&00000019"
"Intel(R) Arc(TM) A770 Graphics","32.0.101.6314","PCI\VEN_8086&DEV_56A0&SUBSYS_10208086&REV_08\6&1"
"NVIDIA GeForce RTX 4090","32.0.15.6614","PCI\VEN_10DE&DEV_2684&SUBSYS_889D1043&REV_A1\4&1"
"""


def test_gpus_and_drivers_of_windows():
    """The names of properties are those of Win32_VideoController; NVIDIA's are stated by nvidia-smi."""
    found = [(gpu.name, gpu.vendor, gpu.driver) for gpu in module._windows(WINDOWS)]
    assert found == [
        ("AMD Radeon RX 7900 XTX", "AMD", "32.0.21013.1000"),
        ("Intel(R) Arc(TM) A770 Graphics", "Intel", "32.0.101.6314"),
    ]
    assert list(module._windows("")) == []
