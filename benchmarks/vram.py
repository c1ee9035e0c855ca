"""GPU memory by process, as the vendor's library tells it: NVML for NVIDIA, AMD SMI for AMD.

Both are imported when they are asked for. Without a driver both fail, and not with ImportError alone (amdsmi 7.0.2
raises KeyError), so that any failure means that there is nothing to ask. In a container the driver may name processes
by the host's numbers; then none of ours is found, and nothing is told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

Ask = Callable[[], Mapping[int, int]]
"""Bytes of each process that holds GPU memory, over all GPUs."""


def askers() -> list[Ask]:
    """One for each library that answers here; none without a GPU."""
    found: list[Ask] = []
    for begin in (_nvml, _amdsmi):
        try:
            ask = begin()
            ask()
        except Exception:  # whatever it is, this library has nothing to tell
            continue
        found.append(ask)
    return found


def vram_bytes(pids: Collection[int], asked: Collection[Ask]) -> int | None:
    """What these processes hold together; None where no library knows one of them."""
    held: list[int] = []
    for ask in asked:
        try:
            told = ask()
        except Exception:  # the driver may go away, or a process end in the middle of the answer
            continue
        held += [told[pid] for pid in pids if pid in told]
    return sum(held) if held else None


def _nvml() -> Ask:
    nvml: Any = import_module("pynvml")
    nvml.nvmlInit()
    devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]

    def ask() -> Mapping[int, int]:
        found: dict[int, int] = {}
        for device in devices:
            of_device: dict[int, int] = {}  # a process that computes and draws is in both lists, with the same figure
            for listed in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
                of_device |= {each.pid: each.usedGpuMemory for each in listed(device) if each.usedGpuMemory is not None}
            for pid, held in of_device.items():
                found[pid] = found.get(pid, 0) + held
        return found

    return ask


def _amdsmi() -> Ask:
    smi: Any = import_module("amdsmi")
    smi.amdsmi_init(smi.AmdSmiInitFlags.INIT_AMD_GPUS)
    devices = smi.amdsmi_get_processor_handles()

    def ask() -> Mapping[int, int]:
        found: dict[int, int] = {}
        for device in devices:
            for each in smi.amdsmi_get_gpu_process_list(device):
                found[each["pid"]] = found.get(each["pid"], 0) + each["memory_usage"]["vram_mem"]
        return found

    return ask
