"""GPU memory and clocks, from NVML for NVIDIA and AMD SMI for AMD.

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
from .records import Clocks, Vram

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
    clocks: Callable[[], Clocks]
    """Clocks, power and temperature at this moment."""


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


def clocks(listed: Sequence[Device]) -> tuple[Clocks, ...]:
    """The state of these GPUs at this moment; those that report nothing are left out."""
    found = [_asked(device.clocks) for device in listed]
    return tuple(one for one in found if one is not None and one.model_dump(exclude={"device"}, exclude_none=True))


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

        def clocks() -> Clocks:
            milliwatts = _asked(lambda: int(nvml.nvmlDeviceGetPowerUsage(handle)))
            return Clocks(
                device=f"NVIDIA {index}",
                core_mhz=_asked(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
                memory_mhz=_asked(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))),
                watts=None if milliwatts is None else milliwatts / 1000,
                celsius=_asked(lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            )

        return Device(f"NVIDIA {index}", by_process, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used), clocks)

    return [found for index in range(nvml.nvmlDeviceGetCount()) if (found := _asked(partial(device, index)))]


def _watts(power: Mapping[str, Any]) -> float:
    """Power of the socket. Some GPUs report the present one, others an average, and "N/A" in place of the other."""
    both = (power.get("current_socket_power"), power.get("average_socket_power"), power.get("socket_power"))
    return next(float(one) for one in both if isinstance(one, (int, float)))


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

        def clock(kind: Any) -> int | None:
            return _asked(lambda: int(smi.amdsmi_get_clock_info(handle, kind)["clk"]))

        def clocks() -> Clocks:
            sensor, current = smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CURRENT
            return Clocks(
                device=f"AMD {index}",
                core_mhz=clock(smi.AmdSmiClkType.GFX),
                memory_mhz=clock(smi.AmdSmiClkType.MEM),
                watts=_asked(lambda: _watts(smi.amdsmi_get_power_info(handle))),
                celsius=_asked(lambda: float(smi.amdsmi_get_temp_metric(handle, sensor, current))),
            )

        return Device(f"AMD {index}", by_process, used, clocks)

    return [device(index, handle) for index, handle in enumerate(smi.amdsmi_get_processor_handles())]
