"""IREE: code for devices that aren't here."""

import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from latentc.core.errors import CompileError, ProfileError
from latentc.core.progress import quiet
from latentc.runtimes import Job
from latentc.runtimes.border import call_program
from latentc.runtimes.iree import HIP, IREE, PTX, _flags, _place, _plain
from latentc.runtimes.machine import Gpu, machine

from .conftest import lower, write_graph

pytestmark = pytest.mark.skipif(IREE().unbuildable("CPU") is not None, reason=str(IREE().unbuildable("CPU")))

SLOW = pytest.mark.slow
MACH = {
    "gfx90a": 0x3F, "gfx942": 0x4C, "gfx950": 0x4F, "gfx1100": 0x41, "gfx1101": 0x46, "gfx1103": 0x44,
    "gfx1150": 0x43, "gfx1151": 0x4A, "gfx1200": 0x48, "gfx1201": 0x4E,
}  # fmt: skip
"""LLVM's EF_AMDGPU_MACH: llvm.org/docs/AMDGPUUsage.html."""


@pytest.fixture(scope="module")
def compiled(make_case, tmp_path_factory):
    """`compiled(device)`: the folder of the small part, compiled for one shape."""
    case = make_case("iree")
    folder = tmp_path_factory.mktemp("fixed")
    shape = {name: array.shape for name, array in case.feeds().items()}
    graph = write_graph(folder / "model.onnx", shape)
    lower(case.adapter, "CPU", graph, shape)

    def compiled(device):
        case.compile(folder / device, graph, device=device, shape=shape)
        return folder / device

    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("device", [pytest.param(name, marks=[] if name == "gfx942" else SLOW) for name in MACH])
def test_real_code_is_made_for_gpus_that_are_not_here(compiled, device):
    out = compiled(device)
    program = (out / "engine.vmfb").read_bytes()
    start = program.index(b"\x7fELF")
    assert int.from_bytes(program[start + 18 : start + 20], "little") == 224, "EM_AMDGPU"
    assert program[start + 48] == MACH[device]


def test_the_compiler_does_not_know_two_of_amds_architectures_yet(tmp_path):
    """When it does, add them to HIP and MACH."""
    (tmp_path / "empty.mlir").write_text(
        "func.func @f(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }"
    )
    for device in ("gfx1030", "gfx1102"):
        assert device not in HIP
        with pytest.raises(CompileError, match=f"Unknown ROCM target '{device}'"):
            call_program(
                "IREE", sys.executable, "-m", "iree.compiler.tools.scripts.iree_compile", tmp_path / "empty.mlir",
                *_flags(device), "-o", tmp_path / "out",
            )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("device", ["sm_80", pytest.param("sm_120", marks=SLOW)])
def test_ptx_is_written_for_nvidias_gpus(compiled, device):
    assert f".target {device}".encode() in (compiled(device) / "engine.vmfb").read_bytes()


def test_ptx_runs_on_that_gpu_and_on_later_ones(monkeypatch):
    assert set(PTX) == {"sm_80", "sm_86", "sm_89", "sm_120"}
    monkeypatch.setattr("latentc.runtimes.cuda.LIBRARY", "libnowhere.so.1")
    assert "No GPU is available for sm_80 code" in IREE().missing("sm_80")
    monkeypatch.setattr("latentc.runtimes.iree.capabilities", lambda: ["sm90", "sm75"])
    assert IREE().missing("sm_80") is None
    assert IREE().missing("sm_120").endswith("NVIDIA GPUs found: sm90, sm75.")
    monkeypatch.setattr("latentc.runtimes.iree.capabilities", lambda: ["sm75", "sm90"])
    assert IREE().missing("sm_80") is None
    assert _place("sm_80") == "cuda://1", "the first that fits"


def test_without_vulkans_loader_the_reason_is_one_sentence_and_what_to_install():
    """In a process of its own: a driver that is found once stays."""
    ask = "from latentc.runtimes.iree import IREE; print(IREE().missing('Vulkan'))"
    nowhere = {**os.environ, "IREE_HAL_VULKAN_LIBVULKAN_PATH": "/nowhere/libvulkan.so"}
    said = subprocess.run([sys.executable, "-c", ask], env=nowhere, capture_output=True, text=True, check=True).stdout
    assert said.startswith("Vulkan's loader (libvulkan.so.1) was not found or cannot be loaded. Install the loader ")
    assert len(said) < 160
    assert "NOT_FOUND" not in said


def test_what_vulkan_is_given_computes_the_same(tmp_path):
    """f16 weights, a table of 64-bit positions, 64-bit ids and a mask of minus infinity, as text encoders have them."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((9, 8)).astype(np.float16),
        "places": np.arange(80).reshape(1, 80),
        "positions": rng.standard_normal((80, 8)).astype(np.float16),
        "mask": np.triu(np.full((80, 80), -np.inf, np.float32), 1),
    }
    text = """<ir_version: 10, opset_import: ["": 18]> g (int64[2, 80] ids) => (float[2, 80, 8] seen) {
        narrow = Gather(table, ids)
        place = Gather(positions, places)
        both = Add(narrow, place)
        x = Cast<to = 1>(both)
        keys = Transpose<perm = [0, 2, 1]>(x)
        scores = MatMul(x, keys)
        masked = Add(scores, mask)
        shares = Softmax<axis = -1>(masked)
        seen = MatMul(shares, x)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    given = tmp_path / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), given)
    (tmp_path / "out").mkdir()
    plain = onnx.load(_plain(given, tmp_path, tmp_path / "out"))
    onnx.checker.check_model(plain, full_check=True)
    assert plain.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT32
    kinds = {
        tensor.name: onnx.numpy_helper.to_array(tensor, str(tmp_path / "out")) for tensor in plain.graph.initializer
    }
    assert {array.dtype for array in kinds.values()} == {np.dtype(np.float32), np.dtype(np.int32)}
    assert all(np.isfinite(array).all() for array in kinds.values())
    ids = rng.integers(0, 9, (2, 80))
    (wanted,) = ReferenceEvaluator(str(given)).run(None, {"ids": ids})
    (found,) = ReferenceEvaluator(plain).run(None, {"ids": ids.astype(np.int32)})
    np.testing.assert_allclose(found, wanted, atol=1e-2)  # sums of f16 are now sums of f32
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weights["places"] << 40, "places"))
    onnx.save(model, given)
    with pytest.raises(CompileError, match="places contains 64-bit integers"):
        _plain(given, tmp_path, tmp_path / "out")


def test_a_gpu_that_is_here_needs_its_driver(monkeypatch):
    gpu = Gpu(name="Radeon", vendor="AMD", architecture="gfx1100")
    here = machine().model_copy(update={"gpus": (gpu,)})
    monkeypatch.setattr("latentc.runtimes.iree.machine", lambda: here)
    assert "Install ROCm" in IREE().missing("gfx1100")
    assert "AMD GPUs found: gfx1100" in IREE().missing("gfx942")


@pytest.mark.slow
def test_what_it_is_asked_for_is_checked(make_case, tmp_path):
    adapter = IREE()
    assert "CPU" in adapter.devices()
    assert MACH.keys() == set(HIP), "code for each was looked at"
    assert "Did you mean 'gfx942'" in adapter.unbuildable("gfx941")
    assert adapter.precisions("gfx941") == ()
    with pytest.raises(ProfileError, match="optimization_level"):
        adapter.check({"optimisation_level": "O2"})
    with pytest.raises(ProfileError, match="one of: O0, O1, O2, O3"):
        adapter.check({"optimization_level": "fast"})
    case = make_case("iree")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    (tmp_path / "out").mkdir()
    with pytest.raises(CompileError, match="cannot be read as ONNX"):
        adapter.compile(Job("unet", broken, broken.parent, case.target), tmp_path / "out", quiet)


THREE_GPUS = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 3; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "GPU %d", device); return 0; }
int cuDeviceGetUuid(char *id, int device) { memset(id, device, 16); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? (device ? 8 : 7) : which == 76 ? (device ? 9 : 5) : 1; return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    FILE *file = fopen(getenv("OPENED"), "w"); fprintf(file, "%d", device); fclose(file); _exit(0);
}
static int unknown(void) { return 1; }
#define IS(one) if (!strcmp(name, #one)) { *found = (void *)one; return 0; }
int cuGetProcAddress(const char *name, void **found, int version, unsigned long long flags) {
    IS(cuInit) IS(cuDriverGetVersion) IS(cuDeviceGetCount) IS(cuDeviceGet) IS(cuDeviceGetName) IS(cuDeviceGetUuid)
    IS(cuDeviceGetAttribute) IS(cuDevicePrimaryCtxRetain) IS(cuGetProcAddress)
    *found = (void *)unknown; return 0;
}
"""
OPEN = """
import sys
import iree.runtime as runtime
from latentc.runtimes.iree import IREE, _place
print([IREE().missing(device) for device in ("sm_80", "sm_80:0", "sm_80:2", "sm_120", "sm_80:3")], flush=True)
print(_place("sm_80"), _place("sm_80:2"), flush=True)
print([IREE().drivers(device).get("gpu") for device in ("sm_80", "sm_80:2", "sm_120", "CPU")], flush=True)
runtime.Config(_place(sys.argv[1]))
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="no C compiler for Linux")
@pytest.mark.parametrize(("device", "opened"), [("sm_80", "1"), ("sm_80:2", "2")])
def test_irees_own_runtime_opens_the_nvidia_gpu_that_fits(tmp_path, device, opened):
    """Its real runtime, on a driver that only counts: a Turing card, then two newer ones."""
    source = tmp_path / "cuda.c"
    source.write_text(THREE_GPUS)
    for name in ("libcuda.so", "libcuda.so.1"):  # IREE's name for it, and ours
        subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", tmp_path / name, source], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "OPENED": str(tmp_path / "opened")}
    command = [sys.executable, "-c", OPEN, device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = "NVIDIA GPUs found: sm75, sm89, sm89."
    reasons = [
        None,
        f"This machine has no GPU with number 0 for sm_80 code; {found}",
        None,
        f"This machine has no GPU for sm_120 code; {found}",
        f"This machine has no GPU with number 3 for sm_80 code; {found}",
    ]
    models = ["GPU 1", "GPU 2", None, None]
    assert done.stdout == f"{reasons}\ncuda://1 cuda://2\n{models}\n", done.stderr
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "opened").read_text() == opened


def test_numbers_are_for_gpus():
    assert IREE().unbuildable("sm_80:1") is None
    assert IREE().unbuildable("gfx942:1") is None
    assert IREE().unbuildable("CPU:1") == "IREE's CPU has no number. Write device = 'CPU'."
    assert IREE().precisions("sm_80:1") == IREE().precisions("sm_80")
