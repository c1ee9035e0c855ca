"""Every function of a driver's library that is called exists under that name, in the vendor's own package.

The packages aren't downloaded here: the names are kept with the versions that they were compared with.
"""

import re
from pathlib import Path

import pytest

import latentc
from latentc.benchmarks import vram

from ..benchmarks.test_vram import Gpus
from ..profiles.test_checked import elf, wheel
from .gpu_driver import DECLARED, Memory

ROOT = Path(latentc.__file__).parent
HIP = {"hipDeviceGetPCIBusId", "hipGetDeviceCount", "hipSetDevice"}
"""Exports of libamdhip64.so.5 in Debian's libamdhip64-5 5.2.3-8; also loaded by rocm-bindings-hip 10.0.0.0.1.2."""

AMDSMI = {
    *("AmdSmiClkType.GFX", "AmdSmiClkType.MEM", "AmdSmiInitFlags.INIT_AMD_GPUS", "AmdSmiMemoryType.VRAM"),
    *("AmdSmiTemperatureMetric.CURRENT", "AmdSmiTemperatureType.HOTSPOT", "amdsmi_get_clock_info"),
    *("amdsmi_get_gpu_memory_usage", "amdsmi_get_gpu_process_list", "amdsmi_get_power_info"),
    *("amdsmi_get_processor_handles", "amdsmi_get_temp_metric", "amdsmi_init"),
}
"""Functions and members of enumerations of PyPI's amdsmi 7.0.2 (64 kB), which can't be imported without its library.
The keys that `benchmarks.vram` reads are in what these functions return there.
"""


def called(pattern, *folders):
    sources = [path.read_text() for folder in folders for path in (ROOT / folder).glob("*.py")]
    return {name for text in sources for name in re.findall(pattern, text)}


def test_functions_of_nvidias_driver():
    names = called(r"(?:\"|library\.)(cu[A-Z]\w+)", "runtimes", "benchmarks")
    assert len(names) > 20
    assert names == DECLARED, "compare a new name with cuda.h"
    with pytest.raises(AttributeError, match="cuMemAlloc_v3"):
        _ = Memory().cuMemAlloc_v3


def test_functions_of_hip():
    assert called(r"\"(hip[A-Z]\w+)", "runtimes", "benchmarks") == HIP, "compare a new name with libamdhip64"


def test_functions_of_hip_in_rocm_7():
    """What ONNX Runtime's MIGraphX provider, built with ROCm 7.2, needs of the same library."""
    provider = wheel("onnxruntime-migraphx") / "onnxruntime" / "capi" / "libonnxruntime_providers_migraphx.so"
    needed = {name for names in elf(provider).functions.values() for name in names}
    assert {"hipGetDeviceCount", "hipSetDevice"} <= needed


def test_functions_of_amd_smi():
    names = called(r"\bsmi\.(AmdSmi\w+\.\w+|amdsmi_\w+)", "benchmarks")
    assert names == AMDSMI, "compare a new name with amdsmi"


def test_stand_ins_have_no_name_that_the_libraries_lack():
    ours = {name for name in vars(Gpus().amdsmi()) if not name.startswith("__")}
    assert ours <= {name.partition(".")[0] for name in AMDSMI}
    nvml = pytest.importorskip("pynvml")
    assert {name for name in vars(Gpus().nvml()) if not name.startswith("__")} <= vars(nvml).keys()
    assert "pynvml" in Path(vram.__file__).read_text()
