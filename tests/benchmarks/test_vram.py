"""GPU memory by process, by stand-ins for the vendors' libraries: there is no GPU here."""

import sys
from types import ModuleType, SimpleNamespace

from latentc.benchmarks.vram import askers, vram_bytes


def nvml(compute, graphics=((), ())):
    """Two GPUs, each with processes as (pid, bytes)."""
    module = ModuleType("pynvml")

    def listed(rows):
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in rows]

    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: 2
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetComputeRunningProcesses = lambda device: listed(compute[device])
    module.nvmlDeviceGetGraphicsRunningProcesses = lambda device: listed(graphics[device])
    return module


def amdsmi(rows):
    module = ModuleType("amdsmi")
    module.AmdSmiInitFlags = SimpleNamespace(INIT_AMD_GPUS=2)
    module.amdsmi_init = lambda flag: None
    module.amdsmi_get_processor_handles = lambda: [0]
    module.amdsmi_get_gpu_process_list = lambda device: [
        {"pid": pid, "memory_usage": {"vram_mem": held, "gtt_mem": 7, "cpu_mem": 7}} for pid, held in rows
    ]
    return module


def test_a_tree_s_memory_is_added_over_gpus_and_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml((((10, 100), (99, 5)), ((11, 20), (10, 1))), (((10, 100),), ())))
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi([(12, 3000)]))
    asked = askers()
    assert len(asked) == 2
    assert vram_bytes([10, 11], asked) == 121, "a process that computes and draws counts once"
    assert vram_bytes([10, 11, 12], asked) == 3121
    assert vram_bytes([13], asked) is None, "absent, not zero"


def test_what_the_driver_doesn_t_tell_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml((((10, None),), ())))
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert vram_bytes([10], askers()) is None


def test_libraries_that_fail_in_odd_ways_are_none(monkeypatch):
    def fail():
        raise KeyError("libamd_smi.so")

    for name in ("pynvml", "amdsmi"):
        module = ModuleType(name)
        module.nvmlInit = fail
        monkeypatch.setitem(sys.modules, name, module)
    assert askers() == []


def test_a_driver_that_goes_away_is_survived(monkeypatch):
    module = nvml((((10, 100),), ()))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    asked = askers()
    module.nvmlDeviceGetComputeRunningProcesses = None
    assert vram_bytes([10], asked) is None
