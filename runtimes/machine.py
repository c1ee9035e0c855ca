"""Description of this machine, read from the operating system without loading any runtime.

Linux reports everything. On other systems unknown values are None or empty, and nothing fails.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..core.limits import ROOT, cores, memory
from ..core.limits import number as _number
from ..core.limits import read as _read
from ..core.record import Record

INSTRUCTIONS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni",
    "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16",
    "neon", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip
"""Instruction sets by which libraries select kernels, by Linux's names."""

VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
"""PCI vendors of GPUs."""

ENTER = "Add the user to the group that owns it (usually: sudo usermod -aG render,video $USER) and log in again."
"""Advice on a device file that can't be opened."""

WINDOWS_GPUS = (
    *("powershell", "-NoProfile", "-NonInteractive", "-Command"),
    "Get-CimInstance Win32_VideoController | Select-Object Name,DriverVersion,PNPDeviceID | ConvertTo-Csv -NoType",
)
"""The command that lists GPUs on Windows, with the versions of their drivers."""

OVERRIDE = "HSA_OVERRIDE_GFX_VERSION"
"""Variable of ROCm: the architecture of all GPUs as `10.3.0`, or, with `_1` behind it, that of the topology's node 1
(libhsakmt/src/topology.c)."""

NVIDIA_FIELDS = "name,memory.total,driver_version,compute_cap"


class Gpu(Record):
    """One GPU, by the system's names."""

    name: str
    vendor: str
    architecture: str | None = None
    """For example `sm_90` or `gfx942`."""
    memory_bytes: int | None = None
    driver: str | None = None
    """Name and version of the kernel driver."""


class Machine(Record):
    """A machine's hardware and system."""

    system: str
    architecture: str
    libc: str | None = None
    python: str
    cpu: str
    vendor: str
    cores: int
    """Cores that this process may use: affinity and the container's quota are respected."""
    instructions: tuple[str, ...]
    """Those of `INSTRUCTIONS` that the CPU has."""
    memory_bytes: int | None = None
    """Memory that this process may use: the machine's, or the container's limit."""
    available_bytes: int | None = None
    """The part of it that is free now."""
    gpus: tuple[Gpu, ...]


def machine(root: Path = ROOT) -> Machine:
    """Describe this machine at this moment; `root` is the folder that contains `proc` and `sys`."""
    info = _cpu_info(root)
    libc = " ".join(platform.libc_ver()).strip()
    total, available = _memory(root)
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        libc=libc or None,
        python=platform.python_version(),
        cpu=_cpu_name(info),
        vendor=info.get("vendor_id") or info.get("CPU implementer") or _sysctl("machdep.cpu.vendor") or "unknown",
        cores=cores(root),
        instructions=instructions(root),
        memory_bytes=total,
        available_bytes=available,
        gpus=tuple(_gpus(root)),
    )


@cache
def instructions(root: Path = ROOT) -> tuple[str, ...]:
    """Those of `INSTRUCTIONS` that the CPU has."""
    info = _cpu_info(root)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    if "asimd" in flags:
        flags.add("neon")
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        flags |= {"neon", "asimdhp", "asimddp"}
        flags |= {name for name in ("bf16", "i8mm") if _sysctl(f"hw.optional.arm.FEAT_{name.upper()}") == "1"}
    return tuple(name for name in INSTRUCTIONS if name in flags)


def shut(pattern: str, root: Path = ROOT) -> str | None:
    """Why none of the device files of a pattern can be opened, and what to do; None where one can, or there is none."""
    found = _glob(root, pattern)
    if not found or any(os.access(path, os.R_OK | os.W_OK) for path in found):
        return None
    return f"this user cannot open {found[0]}. {ENTER}"


def mapped(root: Path = ROOT) -> set[Path]:
    """The files that this process has mapped, such as libraries; empty on other systems than Linux."""
    lines = (_read(root / "proc/self/maps") or "").splitlines()
    return {Path(line.split(maxsplit=5)[5]) for line in lines if len(line.split(maxsplit=5)) == 6}


@cache
def drivers() -> dict[str, str]:
    """Names of this machine's GPUs, and the versions of their kernel drivers; read once per process."""
    return {gpu.name: gpu.driver for gpu in machine().gpus if gpu.driver}


def processor() -> str:
    """Description of this CPU for keys: its instruction sets, or its name where they are not reported."""
    return " ".join(instructions()) or _cpu_name(_cpu_info(ROOT))


def _cpu_info(root: Path) -> dict[str, str]:
    """The first processor of `/proc/cpuinfo`."""
    first = (_read(root / "proc/cpuinfo") or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_name(info: dict[str, str]) -> str:
    if "CPU part" in info:
        return f"Arm implementer {info.get('CPU implementer', '?')} part {info['CPU part']}"
    return info.get("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor() or "unknown"


def _memory(root: Path) -> tuple[int | None, int | None]:
    """Total and available memory, in bytes."""
    total, available = memory(root)
    return total or _number(_sysctl("hw.memsize") or ""), available


def _gpus(root: Path) -> Iterator[Gpu]:
    yield from _nvidia(root)
    yield from _amd(root)
    if platform.system() == "Windows":
        yield from _windows(_run(*WINDOWS_GPUS) or "")
    for card in _cards(root):
        if card.vendor not in ("NVIDIA", "AMD"):  # already found, with more details
            yield card


def _nvidia(root: Path) -> Iterator[Gpu]:
    """From nvidia-smi where it works, else from the driver's files under `/proc`."""
    rows = _run("nvidia-smi", f"--query-gpu={NVIDIA_FIELDS}", "--format=csv,noheader,nounits") if root == ROOT else None
    if rows:
        for row in csv.reader(rows.splitlines(), skipinitialspace=True):
            if len(row) == NVIDIA_FIELDS.count(",") + 1:
                name, mebibytes, driver, capability = (value.strip() for value in row)
                size = _number(mebibytes)
                yield Gpu(
                    name=name,
                    vendor="NVIDIA",
                    architecture=f"sm_{capability.replace('.', '')}" if capability[:1].isdigit() else None,
                    memory_bytes=None if size is None else size << 20,
                    driver=f"nvidia {driver}",
                )
        return
    version = re.search(r"Kernel Module\D*([\d.]+)", _read(root / "proc/driver/nvidia/version") or "")
    for path in _glob(root / "proc/driver/nvidia/gpus", "*/information"):
        name = re.search(r"^Model:\s*(.+)$", _read(path) or "", re.MULTILINE)
        yield Gpu(
            name=name[1].strip() if name else "unknown",
            vendor="NVIDIA",
            driver=f"nvidia {version[1]}" if version else "nvidia",
        )


@dataclass(frozen=True)
class AmdGpu:
    """One GPU of AMD's compute driver."""

    name: str
    architecture: str | None
    memory_bytes: int | None
    address: str
    """PCI domain, bus and device, for example `0000:03:00`."""
    render: int
    """The number of its device file `/dev/dri/renderD...`; 0 where it has none."""


def amd_gpus(root: Path = ROOT) -> list[AmdGpu]:
    """GPUs of the compute driver's topology, in its order; nodes without SIMDs are CPUs.

    Architectures are those that ROCm reports: it follows `OVERRIDE`.
    """
    found: list[AmdGpu] = []
    for path in _glob(root / "sys/class/kfd/kfd/topology/nodes", "*/properties"):
        pairs = (line.split() for line in (_read(path) or "").splitlines())
        properties = {pair[0]: _number(pair[1]) or 0 for pair in pairs if len(pair) == 2}
        if not properties.get("simd_count"):
            continue
        banks = [_read(bank) or "" for bank in _glob(path.parent / "mem_banks", "*/properties")]
        sizes = [int(size[1]) for bank in banks if (size := re.search(r"^size_in_bytes (\d+)$", bank, re.MULTILINE))]
        target, place = properties.get("gfx_target_version", 0), properties.get("location_id", 0)
        found.append(
            AmdGpu(
                name=_read(path.parent / "name") or "unknown",
                architecture=_overridden(path.parent.name) or (_gfx(target) if target else None),
                memory_bytes=sum(sizes) or None,
                address=f"{properties.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}",
                render=properties.get("drm_render_minor", 0),
            )
        )
    return found


def _windows(rows: str) -> Iterator[Gpu]:
    """From the output of `WINDOWS_GPUS`, except NVIDIA's, of which nvidia-smi states more, and devices without a PCI
    vendor of GPUs, such as remote desktops.
    """
    for row in csv.DictReader(rows.splitlines()):
        vendor = re.search(r"VEN_([0-9A-F]{4})", row.get("PNPDeviceID") or "")
        name = VENDORS.get(f"0x{vendor[1].lower()}") if vendor else None
        if name not in (None, "NVIDIA"):
            yield Gpu(name=row.get("Name") or "unknown", vendor=name, driver=row.get("DriverVersion") or None)


def _amd(root: Path) -> Iterator[Gpu]:
    version = _read(root / "sys/module/amdgpu/version")
    for gpu in amd_gpus(root):
        yield Gpu(
            name=gpu.name,
            vendor="AMD",
            architecture=gpu.architecture,
            memory_bytes=gpu.memory_bytes,
            driver=f"amdgpu {version}" if version else "amdgpu",
        )


def _overridden(node: str) -> str | None:
    """The architecture that ROCm takes a GPU for, whatever it is; None without such a variable."""
    stated = os.environ.get(f"{OVERRIDE}_{node}") or os.environ.get(OVERRIDE)
    numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", stated or "")
    return numbers and f"gfx{numbers[1]}{int(numbers[2]):x}{int(numbers[3]):x}"


def _gfx(target: int) -> str:
    """Name of a target version: 90402 is gfx942, 110001 is gfx1101. The stepping is one hexadecimal digit."""
    return f"gfx{target // 10000}{target // 100 % 100:x}{target % 100:x}"


def _cards(root: Path) -> Iterator[Gpu]:
    """GPUs of known vendors, from the kernel's display drivers."""
    for path in _glob(root / "sys/class/drm", "card*/device/vendor"):
        vendor = VENDORS.get(_read(path) or "")
        if vendor is not None:
            kernel = re.search(r"^DRIVER=(.+)$", _read(path.parent / "uevent") or "", re.MULTILINE)
            device = _read(path.parent / "device") or "unknown"
            yield Gpu(name=f"PCI device {device}", vendor=vendor, driver=kernel[1] if kernel else None)


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _run(*command: str) -> str | None:
    """Output of a command; None where it fails or was not found."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _sysctl(name: str) -> str | None:
    """A system setting of macOS; None on other systems."""
    return _run("sysctl", "-n", name) if platform.system() == "Darwin" else None
