"""Every function of a driver's library that is called exists under that name.

The vendors' packages aren't downloaded: names are kept with the versions that they were compared with.
"""

import re
from pathlib import Path

import pytest

import latentc

from ..benchmarks.test_vram import Gpus
from ..profiles.test_checked import elf, wheel
from .gpu_driver import DECLARED, Memory

HIP = {"hipDeviceGetPCIBusId", "hipGetDeviceCount", "hipSetDevice"}
"""Exports of libamdhip64.so.5 in Debian's libamdhip64-5 5.2.3-8; rocm-bindings-hip 10.0.0.0.1.2 loads them too."""

AMDSMI = {
    *("AmdSmiClkType.GFX", "AmdSmiClkType.MEM", "AmdSmiInitFlags.INIT_AMD_GPUS", "AmdSmiMemoryType.VRAM"),
    *("AmdSmiTemperatureMetric.CURRENT", "AmdSmiTemperatureType.HOTSPOT", "amdsmi_get_clock_info"),
    *("amdsmi_get_gpu_memory_usage", "amdsmi_get_gpu_process_list", "amdsmi_get_power_info"),
    *("amdsmi_get_processor_handles", "amdsmi_get_temp_metric", "amdsmi_init"),
}
"""Of PyPI's amdsmi 7.0.2, whose functions also return the keys that `benchmarks.vram` reads."""


@pytest.mark.parametrize(
    ("pattern", "known"),
    [
        (r"(?:\"|library\.)(cu[A-Z]\w+)", DECLARED),
        (r"\"(hip[A-Z]\w+)", HIP),
        (r"\bsmi\.(AmdSmi\w+\.\w+|amdsmi_\w+)", AMDSMI),
    ],
)
def test_functions_that_are_called_were_compared(pattern, known):
    paths = (
        path for room in ("runtimes", "benchmarks") for path in Path(latentc.__file__).with_name(room).glob("*.py")
    )
    assert {name for path in paths for name in re.findall(pattern, path.read_text())} == known


def test_functions_of_hip_in_rocm_7():
    """ONNX Runtime's MIGraphX provider for ROCm 7.2 needs the same ones."""
    provider = wheel("onnxruntime-migraphx") / "onnxruntime" / "capi" / "libonnxruntime_providers_migraphx.so"
    assert {"hipGetDeviceCount", "hipSetDevice"} <= set().union(*elf(provider).functions.values())


def test_stand_ins_have_no_name_that_the_libraries_lack():
    with pytest.raises(AttributeError, match="cuMemAlloc_v3"):
        _ = Memory().cuMemAlloc_v3
    nvml = pytest.importorskip("pynvml")
    for stand_in, known in ((Gpus().amdsmi(), {name.partition(".")[0] for name in AMDSMI}), (Gpus().nvml(), dir(nvml))):
        assert {name for name in vars(stand_in) if not name.startswith("__")} <= set(known)
