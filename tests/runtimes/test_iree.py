"""IREE: code for devices that aren't here."""

import pytest

from latentc.core.errors import CompileError, ProfileError
from latentc.core.progress import quiet
from latentc.runtimes import Job
from latentc.runtimes.iree import HIP, IREE, PTX
from latentc.runtimes.machine import Gpu, machine

pytestmark = pytest.mark.skipif(IREE().unbuildable("CPU") is not None, reason=str(IREE().unbuildable("CPU")))

MACH = {"gfx90a": 0x3F, "gfx942": 0x4C, "gfx950": 0x4F, "gfx1100": 0x41, "gfx1101": 0x46, "gfx1201": 0x4E}
"""LLVM's EF_AMDGPU_MACH: llvm.org/docs/AMDGPUUsage.html."""


@pytest.mark.parametrize("device", MACH)
def test_real_code_is_made_for_gpus_that_are_not_here(make_case, tmp_path, device):
    case = make_case("iree")
    out = tmp_path / "out"
    feeds = case.feeds()
    shape = {name: array.shape for name, array in feeds.items()}
    case.static(tmp_path / "cpu", feeds)  # leaves the graph with these shapes beside it
    case.compile(out, tmp_path / "static" / "model.onnx", device=device, shape=shape)
    program = (out / "engine.vmfb").read_bytes()
    start = program.index(b"\x7fELF")
    assert int.from_bytes(program[start + 18 : start + 20], "little") == 224, "EM_AMDGPU"
    assert program[start + 48] == MACH[device]


@pytest.mark.parametrize("device", ["sm_80", "sm_120"])
def test_ptx_is_written_for_nvidias_gpus(make_case, tmp_path, device):
    case = make_case("iree")
    out = tmp_path / "out"
    feeds = case.feeds()
    case.static(tmp_path / "cpu", feeds)
    shape = {name: array.shape for name, array in feeds.items()}
    case.compile(out, tmp_path / "static" / "model.onnx", device=device, shape=shape)
    assert f".target {device}".encode() in (out / "engine.vmfb").read_bytes()


def test_ptx_runs_on_that_gpu_and_on_later_ones(monkeypatch):
    assert set(PTX) == {"sm_80", "sm_86", "sm_89", "sm_120"}
    assert "There is no GPU for the PTX of sm_80 here" in IREE().missing("sm_80")
    monkeypatch.setattr("latentc.runtimes.iree.capabilities", lambda: ["sm75", "sm90"])
    assert IREE().missing("sm_80") is None
    assert IREE().missing("sm_120").endswith("NVIDIA GPUs found: sm75, sm90.")


def test_a_gpu_that_is_here_needs_its_driver(monkeypatch):
    gpu = Gpu(name="Radeon", vendor="AMD", architecture="gfx1100")
    here = machine().model_copy(update={"gpus": (gpu,)})
    monkeypatch.setattr("latentc.runtimes.iree.machine", lambda: here)
    assert "Install ROCm" in IREE().missing("gfx1100")
    assert "AMD GPUs found: gfx1100" in IREE().missing("gfx942")


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
    with pytest.raises(CompileError, match="can't be read as an ONNX graph"):
        adapter.compile(Job(case.bundle, "unet", broken, case.target), tmp_path / "out", quiet)
