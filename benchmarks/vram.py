"""GPU memory, as the vendor's library reports it for each GPU: NVML for NVIDIA, AMD SMI for AMD.

Both are imported when they are asked for. Without a driver both fail, and not with ImportError alone (amdsmi 7.0.2
raises KeyError), so that any failure means that there is nothing to ask.

A library that names our processes is believed. In a container it may name them by the host's numbers, or report no
figure for a process at all; then what a device holds more than before is taken, and marked `device`.
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
    """One GPU. Both questions may raise anything: a driver may go away, or a process end in the middle."""

    name: str
    """As `NVIDIA 0`."""
    by_process: Callable[[], Mapping[int, int]]
    """Bytes of each process that holds some of its memory."""
    used: Callable[[], int]
    """Bytes that all processes hold."""


@dataclass
class _Seen:
    """Of one GPU, since a watch began."""

    idle: int | None
    now: dict[str, int] = field(default_factory=dict[str, int])
    peak: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, by: str, held: int) -> None:
        self.now[by] = held
        self.peak[by] = max(held, self.peak.get(by, 0))


class MemoryHeld(Record):
    """Bytes that a tree of processes holds; None where the system doesn't report it."""

    now: int | None = None
    peak: int | None = None
    """Since the watch began; of `peak`, since the process began."""
    vram: tuple[Vram, ...] = ()
    """Of each GPU that held something since the first watch of the process."""


class VramWatch:
    """The GPU memory of one tree of processes. What devices hold when it is made is their idle value."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._seen = {device.name: _Seen(_asked(device.used)) for device in devices}

    def see(self, pids: Collection[int], alone: bool = True) -> None:
        """Look once. `alone` is False where others may have loaded since: then processes are asked for only."""
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
        """What was seen on each GPU that held something; by process where any was named on a GPU of the vendor."""
        named = {_vendor(name) for name, seen in self._seen.items() if "process" in seen.peak}
        found: list[Vram] = []
        for name, seen in self._seen.items():
            by: Literal["process", "device"] = "process" if _vendor(name) in named else "device"
            if seen.peak.get(by):
                found.append(Vram(device=name, resting_bytes=seen.now[by], peak_bytes=seen.peak[by], by=by))
        return tuple(found)


def devices() -> list[Device]:
    """Every GPU of each library that works here; none without a GPU."""
    found: list[Device] = []
    for begin in (_nvml, _amdsmi):
        try:
            listed = begin()
        except Exception:  # whatever it is, this library has nothing to report
            continue
        found += [one for one in listed if _asked(one.used) is not None or _asked(one.by_process) is not None]
    return found


def _asked(question: Callable[[], Answer]) -> Answer | None:
    try:
        return question()
    except Exception:  # not supported here, in each library's own class of errors: the figure is not reported
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
                raise LookupError("neither list of processes can be had")
            # A process that computes and draws is in both lists, with the same figure.
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
