"""GPU memory, from NVML for NVIDIA and AMD SMI for AMD.

Both are imported on demand. Without a driver both fail, and not only with ImportError (amdsmi 7.0.2 raises KeyError),
so any exception means that the library is unavailable.

Figures by process are used if the library lists our processes. In a container it may list them by the host's ids, or
report no figure for a process; then the increase of the whole device is used, and marked `device`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, Literal, TypeVar

from ..core.record import Record
from .records import Vram

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Device:
    """One GPU. Both functions may raise anything, for example if the driver stops or a process ends."""

    name: str
    """Vendor and index, for example `NVIDIA 0`."""
    by_process: Callable[[], Mapping[int, int]]
    """Bytes by process id."""
    used: Callable[[], int]
    """Bytes used by all processes."""


@dataclass
class _Seen:
    """Samples of one GPU since a watch began."""

    idle: int | None
    now: dict[str, int] = field(default_factory=dict[str, int])
    peak: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, by: str, held: int) -> None:
        self.now[by] = held
        self.peak[by] = max(held, self.peak.get(by, 0))


class MemoryHeld(Record):
    """Bytes that a process tree uses; None if the system doesn't report it."""

    now: int | None = None
    peak: int | None = None
    """Since the watch began; in the answer to `peak`, since the process began."""
    vram: tuple[Vram, ...] = ()
    """GPUs used since the first watch of the process."""


class VramWatch:
    """GPU memory of one process tree. The use of each device at construction is its idle value."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._seen = {device.name: _Seen(_asked(device.used)) for device in devices}

    def see(self, pids: Collection[int], alone: bool = True) -> None:
        """Take one sample. `alone` False skips figures of whole devices, as other subjects may have loaded since."""
        for device in self._devices:
            seen, reported = self._seen[device.name], _asked(device.by_process) or {}
            if ours := [reported[pid] for pid in pids if pid in reported]:
                seen.add("process", sum(ours))
            elif "process" in seen.now:
                seen.add("process", 0)
            used = _asked(device.used) if alone and seen.idle is not None else None
            if used is not None and seen.idle is not None:
                seen.add("device", max(0, used - seen.idle))

    def held(self) -> tuple[Vram, ...]:
        """Figures of each GPU that was used; by process if the vendor's library listed any of our processes."""
        named = {_vendor(name) for name, seen in self._seen.items() if "process" in seen.peak}
        found: list[Vram] = []
        for name, seen in self._seen.items():
            by: Literal["process", "device"] = "process" if _vendor(name) in named else "device"
            if seen.peak.get(by):
                found.append(Vram(device=name, resting_bytes=seen.now[by], peak_bytes=seen.peak[by], by=by))
        return tuple(found)


def devices() -> list[Device]:
    """All GPUs of the libraries that work on this machine; empty without a GPU."""
    found: list[Device] = []
    for begin in (_nvml, _amdsmi):
        try:
            listed = begin()
        except Exception:  # the library is unavailable
            continue
        found += [one for one in listed if _asked(one.used) is not None or _asked(one.by_process) is not None]
    return found


def _asked(question: Callable[[], Answer]) -> Answer | None:
    try:
        return question()
    except Exception:  # each library has its own errors for unsupported queries
        return None


def _vendor(name: str) -> str:
    return name.partition(" ")[0]


def _nvml() -> list[Device]:
    nvml: Any = import_module("pynvml")
    nvml.nvmlInit()

    def device(index: int) -> Device:
        handle: Any = nvml.nvmlDeviceGetHandleByIndex(index)

        def by_process() -> Mapping[int, int]:
            listed = (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses)
            answers = [reported for one in listed if (reported := _asked(partial(one, handle))) is not None]
            if not answers:
                raise LookupError("neither list of processes is available")
            # A process that uses compute and graphics is in both lists, with the same figure.
            return {
                each.pid: each.usedGpuMemory
                for reported in answers
                for each in reported
                if each.usedGpuMemory is not None
            }

        return Device(f"NVIDIA {index}", by_process, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used))

    return [found for index in range(nvml.nvmlDeviceGetCount()) if (found := _asked(partial(device, index)))]


def _amdsmi() -> list[Device]:
    smi: Any = import_module("amdsmi")
    smi.amdsmi_init(smi.AmdSmiInitFlags.INIT_AMD_GPUS)

    def device(index: int, handle: Any) -> Device:
        def by_process() -> Mapping[int, int]:
            found: dict[int, int] = {}
            for each in smi.amdsmi_get_gpu_process_list(handle):
                found[each["pid"]] = found.get(each["pid"], 0) + each["memory_usage"]["vram_mem"]
            return found

        def used() -> int:
            return int(smi.amdsmi_get_gpu_memory_usage(handle, smi.AmdSmiMemoryType.VRAM))

        return Device(f"AMD {index}", by_process, used)

    return [device(index, handle) for index, handle in enumerate(smi.amdsmi_get_processor_handles())]
