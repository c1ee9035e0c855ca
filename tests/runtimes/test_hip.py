"""AMD's GPUs by HIP's numbers: an integrated one before the card, and a library whose name has a version only."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from latentc.compiler.devices import each_device
from latentc.core.errors import ProfileError
from latentc.profiles import load_profile
from latentc.runtimes import hip, runtime
from latentc.runtimes.machine import AmdGpu, amd_gpus

CARD = AmdGpu("Navi31", "gfx1100", 24 << 30, "0000:03:00", 128)
INTEGRATED = AmdGpu("Raphael", "gfx1036", 512 << 20, "0000:0d:00", 129)
NODES = "sys/class/kfd/kfd/topology/nodes"


def test_addresses_and_device_files_as_the_kernel_states_them(tmp_path, monkeypatch):
    for node, text in (
        (0, "cpu_cores_count 16\nsimd_count 0\n"),
        (1, "simd_count 192\ngfx_target_version 110000\nlocation_id 768\ndomain 0\ndrm_render_minor 128\n"),
        (2, "simd_count 4\ngfx_target_version 100306\nlocation_id 3328\ndomain 1\ndrm_render_minor 129\n"),
    ):
        folder = tmp_path / NODES / str(node)
        folder.mkdir(parents=True)
        (folder / "properties").write_text(text)
    card, integrated = amd_gpus(tmp_path)
    assert (card.architecture, card.address, card.render) == ("gfx1100", "0000:03:00", 128)
    assert (integrated.architecture, integrated.address, integrated.render) == ("gfx1036", "0001:0d:00", 129)
    assert "dev/kfd does not exist here. In a container" in (hip.denied(root=tmp_path) or "")
    (tmp_path / "dev/dri").mkdir(parents=True)
    (tmp_path / "dev/kfd").touch()
    assert "renderD128 does not exist here" in (hip.denied("gfx1100", tmp_path) or "")
    (tmp_path / "dev/dri/renderD129").touch()
    assert hip.denied(root=tmp_path) is None, "one is enough"
    assert "renderD128 does not exist here" in (hip.denied("gfx1100", tmp_path) or "")
    (tmp_path / "dev/dri/renderD128").touch()
    assert hip.denied("gfx1100", tmp_path) is None
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "renderD128")
    assert re.match(r"This user cannot open .*renderD128.*usermod -aG render", hip.denied("gfx1100", tmp_path) or "")
    assert hip.denied(root=tmp_path / "nothing") is None, "without a GPU there is nothing to open"


def test_a_gpu_is_found_by_its_architecture_and_the_largest_without_one(monkeypatch):
    monkeypatch.setattr(hip, "amd_gpus", lambda: [CARD, INTEGRATED])
    monkeypatch.setattr(hip, "addresses", lambda: ("0000:0D:00.0", "0000:03:00.0"))
    assert hip.number_of("gfx1100") == hip.number_of() == 1
    assert hip.number_of("gfx1036") == 0
    monkeypatch.setattr(hip, "addresses", lambda: ("0000:0d:00.0",))
    with pytest.raises(hip.RuntimeMissing, match="HIP offers no gfx1100 GPU; it has 1. Check HIP_VISIBLE_DEVICES"):
        hip.number_of("gfx1100")


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({}, "1"),
        ({"ROCR_VISIBLE_DEVICES": "GPU-4b2c1a9f8d3e6f7a,3,0"}, "1"),  # it acts below HIP, also in the other program
        ({"HIP_VISIBLE_DEVICES": "4,5,7"}, "5"),
        ({"CUDA_VISIBLE_DEVICES": "4,5,7"}, "5"),
        ({"HIP_VISIBLE_DEVICES": "2,1,0", "CUDA_VISIBLE_DEVICES": "4,5,7", "GPU_DEVICE_ORDINAL": "9"}, "1"),
        ({"HIP_VISIBLE_DEVICES": "4,4,5,7"}, "5"),
        ({"HIP_VISIBLE_DEVICES": "GPU-4b2c1a9f8d3e6f7a,GPU-5,7"}, "GPU-5"),
        ({"HIP_VISIBLE_DEVICES": "4,5"}, "HIP_VISIBLE_DEVICES is '4,5', but HIP has 3 GPUs, so they cannot be matched"),
        ({"CUDA_VISIBLE_DEVICES": "0,9"}, "CUDA_VISIBLE_DEVICES is '0,9', but HIP has 3 GPUs"),
        ({"GPU_DEVICE_ORDINAL": "0,2,1"}, "Use HIP_VISIBLE_DEVICES instead, and run: unset GPU_DEVICE_ORDINAL"),
    ],
)
def test_another_program_sees_the_same_gpu_only(monkeypatch, variables, shown):
    for name in (hip.VISIBLE, hip.CUDA_VISIBLE, hip.ROCR_VISIBLE, hip.ORDINAL):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hip, "addresses", lambda: ("0000:03:00.0", "0000:0d:00.0", "0000:0e:00.0"))
    if " " in shown:
        with pytest.raises(hip.RuntimeMissing, match=shown):
            hip.alone(1)
    else:
        assert hip.alone(1) == {"HIP_VISIBLE_DEVICES": shown}


def test_an_architecture_is_the_one_that_rocm_is_made_to_report(tmp_path, monkeypatch):
    """As libhsakmt reads it: by the topology's node, or for all; three numbers, or it fails itself."""
    for node, version in ((1, 100301), (2, 100302)):
        folder = tmp_path / NODES / str(node)
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"simd_count 4\ngfx_target_version {version}\n")

    def seen():
        return [gpu.architecture for gpu in amd_gpus(tmp_path)]

    assert seen() == ["gfx1031", "gfx1032"]
    monkeypatch.setenv("HSA_OVERRIDE_GFX_VERSION_2", "9.0.10")
    assert seen() == ["gfx1031", "gfx90a"]
    monkeypatch.setenv("HSA_OVERRIDE_GFX_VERSION", "10.3.0")
    assert seen() == ["gfx1030", "gfx90a"]
    monkeypatch.setenv("HSA_OVERRIDE_GFX_VERSION", "gfx1030")
    assert seen() == ["gfx1031", "gfx90a"]


def test_the_packages_of_rocm_7_14_and_later_are_found(tmp_path, monkeypatch):
    for name in ("core-7.9", "core-7.14", "core-10.1", "core", "extras-7", "extras-10", "lib"):
        (tmp_path / name / "lib").mkdir(parents=True)
    (tmp_path / "core-10.1/lib/libamdhip64.so.8").touch()
    (tmp_path / "extras-10/lib/libmigraphx.so").touch()
    monkeypatch.setattr(hip, "ROCM", tmp_path)
    monkeypatch.delenv("ROCM_PATH", raising=False)
    names = ["core", "core-10.1", "core-7.14", "core-7.9", "extras-10", "extras-7"]
    assert hip.roots()[:-1] == [tmp_path, *(tmp_path / name for name in names)]
    assert hip.shared_library() == str(tmp_path / "core-10.1/lib/libamdhip64.so.8")
    assert hip.versions()["migraphx"] == "libmigraphx.so"


LOAD = """
import ctypes, sys
from latentc.runtimes import hip
print(hip.loaded())
for path in sys.argv[1:]:
    ctypes.CDLL(path)
print(hip.loaded())
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="no C compiler, or not Linux")
def test_the_versions_are_those_of_the_libraries_that_were_loaded(tmp_path, monkeypatch):
    """Whatever lies in the usual folders: real libraries, in another folder, through their links."""
    (tmp_path / "empty.c").write_text("int nothing(void) { return 0; }")
    paths = []
    for name, version in (
        ("libmigraphx.so", ".2019000.0"),
        ("libamdhip64.so", ".7.2.70204"),
        ("libmigraphx_c.so", ".3"),
    ):
        file = tmp_path / f"{name}{version}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", file, tmp_path / "empty.c"], check=True)
        (tmp_path / name).symlink_to(file.name)
        paths.append(tmp_path / name)
    done = subprocess.run([sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, check=True)
    versions = {"migraphx": "libmigraphx.so.2019000.0", "amdhip64": "libamdhip64.so.7.2.70204"}
    assert done.stdout.splitlines() == ["{}", str(versions)]
    monkeypatch.setattr(hip, "versions", lambda: {"rocm": "7.2.4", "migraphx": "libmigraphx.so.2015000.0"})
    monkeypatch.setattr(hip, "loaded", lambda: versions)
    monkeypatch.setattr(hip, "machine_drivers", lambda: {"Navi31": "amdgpu 6.14"})
    assert hip.drivers() == {"Navi31": "amdgpu 6.14", "rocm": "7.2.4", **versions}


def test_a_library_without_its_short_name_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(hip, "roots", lambda: [tmp_path / "nothing", tmp_path])
    monkeypatch.setattr(hip, "find_library", lambda name: f"lib{name}.so.6")
    monkeypatch.setattr(hip.metadata, "version", lambda name: f"{name} of a wheel")
    assert hip.versions() == {"rocm": "rocm-sdk-core of a wheel", "migraphx": "migraphx of a wheel"}
    assert hip.shared_library() == "libamdhip64.so.6", "what the system's loader knows"
    (tmp_path / "lib").mkdir()
    for name in ("libamdhip64.so.7.2.70204", "libamdhip64.so.7"):
        (tmp_path / "lib" / name).touch()
    assert hip.shared_library() == str(tmp_path / "lib/libamdhip64.so.7")
    (tmp_path / "lib/libmigraphx.so.2016000.0").touch()
    (tmp_path / "lib/libmigraphx.so").symlink_to("libmigraphx.so.2016000.0")
    (tmp_path / ".info").mkdir()
    (tmp_path / ".info/version").write_text("7.14.0\n")
    assert hip.versions() == {"rocm": "7.14.0", "migraphx": "libmigraphx.so.2016000.0"}


THREE_GPUS = """
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
int hipInit(unsigned flags) { return 0; }
int hipGetDeviceCount(int *count) { *count = 3; return 0; }
int hipDeviceGet(int *device, int number) { *device = number; return 0; }
int hipDeviceGetName(char *name, int size, int device) { snprintf(name, size, "GPU %d", device); return 0; }
int hipDeviceGetUuid(char *id, int device) { memset(id, device, 16); return 0; }
int hipDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, device ? "0000:0%d:00.0" : "0000:0d:00.0", device + 2); return 0;
}
int hipDevicePrimaryCtxRetain(void **context, int device) {
    FILE *file = fopen(getenv("OPENED"), "w"); fprintf(file, "%d", device); fclose(file); _exit(0);
}
"""
OPEN = """
import sys
import iree.runtime as runtime
from latentc.compiler.devices import each_device, with_device
from latentc.profiles import load_profile
from latentc.runtimes import hip
from latentc.runtimes.iree import IREE, _place
from latentc.runtimes.machine import AmdGpu, Gpu, machine
import latentc.runtimes.iree as module
hip.amd_gpus = lambda: [
    AmdGpu("card", "gfx942", 192 << 30, "0000:03:00", 0),
    AmdGpu("card", "gfx942", 192 << 30, "0000:04:00", 0),
    AmdGpu("inside", "gfx1036", 1, "0000:0d:00", 0),
]
hip.denied = lambda architecture: None
here = machine().model_copy(update={"gpus": (Gpu(name="card", vendor="AMD", architecture="gfx942"),)})
module.machine = lambda: here
print(IREE().missing("gfx942"), _place("gfx942"), flush=True)
print(IREE().missing("gfx942:0"), IREE().missing("gfx942:3"), sep="\\n", flush=True)
profile = load_profile("mi300x")
print([one.device for one in each_device(profile, "hip")], with_device(profile, "hip:2").device, flush=True)
runtime.Config(_place(sys.argv[1]))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("device", "opened"), [("gfx942", "1"), ("gfx942:2", "2")])
def test_irees_own_runtime_opens_a_card_through_a_library_with_a_version_in_its_name(tmp_path, device, opened):
    """Its real runtime, on a HIP that only counts: the call that opens a GPU notes which, and ends."""
    binding = Path(pytest.importorskip("iree._runtime_libs").__path__[0])
    (path,) = binding.glob("_runtime*.so")
    known = {name.decode() for name in re.findall(rb"hip[A-Z]\w+", path.read_bytes())}
    stubs = sorted(known - set(re.findall(r"int (hip\w+)\(", THREE_GPUS)))
    source = tmp_path / "hip.c"
    source.write_text(THREE_GPUS + "".join(f"int {name}(void) {{ return 1; }}\n" for name in stubs))
    (tmp_path / "rocm/lib").mkdir(parents=True)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", tmp_path / "rocm/lib/libamdhip64.so.7", source], check=True)
    environment = {**os.environ, "ROCM_PATH": str(tmp_path / "rocm"), "OPENED": str(tmp_path / "opened")}
    environment.pop("IREE_HIP_DYLIB_PATH", None)
    command = [sys.executable, "-c", OPEN, device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "None hip://1",
        "GPU 0 is a gfx1036, not a gfx942. Write the number of a gfx942, or leave it out.",
        "HIP has no GPU with number 3; it has 3, numbered from 0 on.",
        "['gfx942:1', 'gfx942:2'] gfx942:2",
    ], done.stderr
    assert (tmp_path / "opened").read_text() == opened


def test_gpus_of_one_architecture_are_proved_by_model(monkeypatch):
    """An MI300X and an MI300A are both gfx942 (AMD's table of GPUs): 192 and 128 GB."""
    gpus = {0: AmdGpu("MI300X", "gfx942", 192 << 30, "", 0), 1: AmdGpu("MI300A", "gfx942", 128 << 30, "", 0)}
    monkeypatch.setattr(hip, "_gpus", lambda: gpus)
    monkeypatch.setattr(hip, "drivers", dict)
    for name, profile in (("iree", "mi300x"), ("migraphx", "mi300x-mxr"), ("onnxruntime", "mi300x-migraphx")):
        adapter, device = runtime(name), load_profile(profile).device
        found = [adapter.drivers(one) for one in adapter.places(device).values()]
        assert found == [{"gpu": "MI300X gfx942, 192 GiB"}, {"gpu": "MI300A gfx942, 128 GiB"}]
        with pytest.raises(ProfileError, match="are different devices, which don't share engines"):
            each_device(load_profile(profile), "hip:0,hip:1")
