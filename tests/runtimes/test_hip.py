"""AMD's GPUs by HIP's numbers: an integrated one before the card, and a library whose name has a version only."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from latentc.runtimes import hip
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


def test_a_library_without_its_short_name_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(hip, "roots", lambda: [tmp_path / "nothing", tmp_path])
    monkeypatch.setattr(hip, "find_library", lambda name: f"lib{name}.so.6")
    monkeypatch.setattr(hip.metadata, "version", lambda name: f"{name} of a wheel")
    assert hip.versions() == {"rocm": "rocm-sdk-core of a wheel", "migraphx": "migraphx of a wheel"}
    assert hip.library() == "libamdhip64.so.6", "what the system's loader knows"
    (tmp_path / "lib").mkdir()
    for name in ("libamdhip64.so.7.2.70204", "libamdhip64.so.7"):
        (tmp_path / "lib" / name).touch()
    assert hip.library() == str(tmp_path / "lib/libamdhip64.so.7")
    (tmp_path / "lib/libmigraphx.so.2016000.0").touch()
    (tmp_path / "lib/libmigraphx.so").symlink_to("libmigraphx.so.2016000.0")
    (tmp_path / ".info").mkdir()
    (tmp_path / ".info/version").write_text("7.14.0\n")
    assert hip.versions() == {"rocm": "7.14.0", "migraphx": "libmigraphx.so.2016000.0"}


TWO_GPUS = """
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
int hipInit(unsigned flags) { return 0; }
int hipGetDeviceCount(int *count) { *count = 2; return 0; }
int hipDeviceGet(int *device, int number) { *device = number; return 0; }
int hipDeviceGetName(char *name, int size, int device) { snprintf(name, size, "GPU %d", device); return 0; }
int hipDeviceGetUuid(char *id, int device) { memset(id, device, 16); return 0; }
int hipDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, device ? "0000:03:00.0" : "0000:0d:00.0"); return 0;
}
int hipDevicePrimaryCtxRetain(void **context, int device) {
    FILE *file = fopen(getenv("OPENED"), "w"); fprintf(file, "%d", device); fclose(file); _exit(0);
}
"""
OPEN = """
import iree.runtime as runtime
from latentc.runtimes import hip
from latentc.runtimes.iree import IREE, _place
from latentc.runtimes.machine import AmdGpu, Gpu, machine
import latentc.runtimes.iree as module
hip.amd_gpus = lambda: [AmdGpu("card", "gfx1100", 24, "0000:03:00", 0), AmdGpu("inside", "gfx1036", 1, "0000:0d:00", 0)]
hip.denied = lambda architecture: None
here = machine().model_copy(update={"gpus": (Gpu(name="card", vendor="AMD", architecture="gfx1100"),)})
module.machine = lambda: here
print(IREE().missing("gfx1100"), _place("gfx1100"), flush=True)
runtime.Config(_place("gfx1100"))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_irees_own_runtime_opens_the_second_gpu_through_a_library_with_a_version_in_its_name(tmp_path):
    """Its real runtime, on a HIP that only counts: the call that opens a GPU notes which, and ends."""
    binding = Path(pytest.importorskip("iree._runtime_libs").__path__[0])
    (path,) = binding.glob("_runtime*.so")
    known = {name.decode() for name in re.findall(rb"hip[A-Z]\w+", path.read_bytes())}
    stubs = sorted(known - set(re.findall(r"int (hip\w+)\(", TWO_GPUS)))
    source = tmp_path / "hip.c"
    source.write_text(TWO_GPUS + "".join(f"int {name}(void) {{ return 1; }}\n" for name in stubs))
    (tmp_path / "rocm/lib").mkdir(parents=True)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", tmp_path / "rocm/lib/libamdhip64.so.7", source], check=True)
    environment = {**os.environ, "ROCM_PATH": str(tmp_path / "rocm"), "OPENED": str(tmp_path / "opened")}
    environment.pop("IREE_HIP_DYLIB_PATH", None)
    done = subprocess.run([sys.executable, "-c", OPEN], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None hip://1\n", done.stderr
    assert (tmp_path / "opened").read_text() == "1"
