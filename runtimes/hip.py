"""AMD's HIP library through its C interface: where it is, the order of its GPUs, and whether this user may open them.

HIP counts the GPUs that it may use (`VISIBLE`, `CUDA_VISIBLE`, `ROCR_VISIBLE`), and an integrated GPU often comes
first. Its GPUs are matched by PCI address with those of the kernel's driver, which states their architectures.
"""

from __future__ import annotations

import ctypes
import os
import re
import sysconfig
from contextlib import suppress
from ctypes.util import find_library
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.errors import RuntimeMissing
from ..core.limits import ROOT
from .base import NUMBERED
from .machine import ENTER, AmdGpu, amd_gpus, mapped
from .machine import drivers as machine_drivers

NAME = "libamdhip64.so"
VISIBLE, CUDA_VISIBLE = "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"
"""Variables with the GPUs that HIP shows to a program, separated by commas; it follows the first that is set."""

ROCR_VISIBLE = "ROCR_VISIBLE_DEVICES"
"""The variable for the layer below: HIP counts the GPUs that it leaves."""

ORDINAL = "GPU_DEVICE_ORDINAL"
"""AMD documents that HIP follows it, but in its source only OpenCL does (rocclr/device/rocm/rocdevice.cpp)."""

ENVIRONMENT = "MIGRAPHX_"
"""Prefix of variables that change the code that MIGraphX makes."""

LOADED = ("libmigraphx.so", NAME)
"""Libraries whose loaded versions are stated."""

ADDRESS_BYTES = 64
WHEELS = {"rocm": "rocm-sdk-core", "migraphx": "migraphx"}
"""AMD's Python distributions of ROCm and MIGraphX."""

ROCM = Path("/opt/rocm")
INSTALL = "Install ROCm (rocm.docs.amd.com)."
SHARE = "In a container, start it with --device /dev/kfd --device /dev/dri --group-add with that group's number."


def roots() -> list[Path]:
    """Folders where ROCm may be: the one that `ROCM_PATH` names, the usual ones, and that of AMD's Python wheels.

    From ROCm 7.14 on, packages install into folders such as /opt/rocm/core-7.14 and, for what isn't part of the core,
    /opt/rocm/extras-7.
    """
    named = [Path(path)] if (path := os.environ.get("ROCM_PATH")) else []
    parts = [part for pattern in ("core*", "extras-*") for part in sorted(ROCM.glob(pattern), key=_newest)]
    return [*named, ROCM, *parts, Path(sysconfig.get_path("purelib")) / "_rocm_sdk_core"]


def _newest(folder: Path) -> list[int]:
    return [-int(number) for number in re.findall(r"\d+", folder.name)]


def shared_library() -> str | None:
    """Path of HIP's library, or the name by which the system's loader finds it; None where there is none.

    Some packages have it only with its version in the name (`libamdhip64.so.7`).
    """
    for root in roots():
        if found := sorted((root / "lib").glob(f"{NAME}*"), key=lambda path: len(path.name)):
            return str(found[0])
    return find_library("amdhip64")


@cache
def _hip() -> Any:
    path = shared_library()
    if path is None:
        raise RuntimeMissing(f"HIP's library ({NAME}) was not found. {INSTALL}")
    try:
        return ctypes.CDLL(path)
    except OSError as exc:
        raise RuntimeMissing(f"HIP's library cannot be loaded ({exc}). {INSTALL}") from exc


def _call(name: str, *arguments: object) -> None:
    if code := getattr(_hip(), name)(*arguments):
        raise RuntimeMissing(f"{name} of HIP failed with error {code}. Check the GPU with: rocminfo.")


@cache
def addresses() -> tuple[str, ...]:
    """PCI addresses of HIP's GPUs, by its numbers. Raises `RuntimeMissing`."""
    count = ctypes.c_int()
    _call("hipGetDeviceCount", ctypes.byref(count))
    found: list[str] = []
    for number in range(count.value):
        address = ctypes.create_string_buffer(ADDRESS_BYTES)
        _call("hipDeviceGetPCIBusId", address, ADDRESS_BYTES, number)
        found.append(address.value.decode())
    return tuple(found)


def number_of(architecture: str | None = None, number: int | None = None) -> int:
    """HIP's number of the first GPU of an architecture, or of the GPU with the most memory; `number` itself where it is
    given.

    Raises `RuntimeMissing` where HIP has no such GPU, or can't be used.
    """
    if number is not None:
        found = gpu_at(number).architecture
        if architecture in (None, found):
            return number
        raise RuntimeMissing(
            f"GPU {number} is a {found}, not a {architecture}. Write the number of a {architecture}, or leave it out."
        )
    usable = {number: gpu for number, gpu in _gpus().items() if architecture in (None, gpu.architecture)}
    if not usable:
        raise RuntimeMissing(
            f"HIP offers no {architecture or 'AMD'} GPU; it has {len(addresses())}. Check {VISIBLE}, {CUDA_VISIBLE} "
            f"and {ROCR_VISIBLE}, and the GPU with: rocminfo."
        )
    if architecture:
        return min(usable)
    return max(usable, key=lambda number: (usable[number].memory_bytes or 0, -number))


def places(architecture: str) -> dict[int, str]:
    """The GPUs of an architecture by HIP's numbers, with their names as devices. Raises `RuntimeMissing`."""
    return {number: f"{architecture}{NUMBERED}{number}" for number in numbers_of(architecture)}


def model(architecture: str | None, number: int | None) -> dict[str, str]:
    """What tells GPUs of one architecture apart, such as an MI300X and an MI300A: the kernel's name and the memory of
    the one that `number_of` finds. Empty where HIP has none.
    """
    try:
        gpu = gpu_at(number_of(architecture, number))
    except RuntimeMissing:
        return {}
    return {"gpu": f"{gpu.name} {gpu.architecture}, {(gpu.memory_bytes or 0) >> 30} GiB"}


def numbers_of(architecture: str | None = None) -> list[int]:
    """HIP's numbers of the GPUs of an architecture, or of all. Raises `RuntimeMissing`."""
    return sorted(number for number, gpu in _gpus().items() if architecture in (None, gpu.architecture))


def gpu_at(number: int) -> AmdGpu:
    """The GPU with HIP's number. Raises `RuntimeMissing` where there is none."""
    if number not in (found := _gpus()):
        raise RuntimeMissing(f"HIP has no GPU with number {number}; it has {len(addresses())}, numbered from 0 on.")
    return found[number]


def _gpus() -> dict[int, AmdGpu]:
    """The kernel's GPUs, by HIP's numbers."""
    known = {gpu.address: gpu for gpu in amd_gpus()}
    places = [address.lower().partition(".")[0] for address in addresses()]
    return {number: known[place] for number, place in enumerate(places) if place in known}


def use(number: int) -> None:
    """Make a GPU the current one of this thread, as HIP's libraries use that one. Raises `RuntimeMissing`."""
    _call("hipSetDevice", number)


def alone(number: int) -> dict[str, str]:
    """The environment of a program that should use one GPU only, which is this one for this process.

    Raises `RuntimeMissing` where the variables of this process don't state which one that is.
    """
    name = next((one for one in (VISIBLE, CUDA_VISIBLE) if os.environ.get(one)), None)
    if name is None and os.environ.get(ORDINAL):
        raise RuntimeMissing(
            f"{ORDINAL} is set, and it is not documented reliably whether HIP follows it. Use {VISIBLE} instead, and "
            f"run: unset {ORDINAL}."
        )
    if name is None:
        return {VISIBLE: str(number)}
    shown = list(dict.fromkeys(os.environ[name].split(",")))  # HIP leaves repeated ones out
    if len(shown) != len(addresses()):
        raise RuntimeMissing(
            f"{name} is {os.environ[name]!r}, but HIP has {len(addresses())} GPUs, so they cannot be matched. Set only "
            f"{VISIBLE}, to existing numbers such as 0 or 0,1."
        )
    return {VISIBLE: shown[number]}


def denied(architecture: str | None = None, root: Path = ROOT) -> str | None:
    """Why this user can open no AMD GPU, or none of an architecture, and what to do; None where one can be opened.

    A container often has the device files of some GPUs only, although the kernel reports all of them.
    """
    gpus = [gpu for gpu in amd_gpus(root) if architecture in (None, gpu.architecture)]
    nodes = [root / f"dev/dri/renderD{gpu.render}" for gpu in gpus if gpu.render]
    for choice in ([root / "dev/kfd"], nodes) if gpus else ():
        if not choice or any(os.access(path, os.R_OK | os.W_OK) for path in choice):
            continue
        if there := next((path for path in choice if path.exists()), None):
            return f"This user cannot open {there}, which ROCm requires. {ENTER}"
        return f"The AMD GPU's device file {choice[0]} does not exist here. {SHARE}"
    return None


def environment() -> dict[str, str]:
    """Variables that change MIGraphX's code, for keys of what it compiles; empty where none is set."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT)}


def loaded(root: Path = ROOT) -> dict[str, str]:
    """File names, which end in the version, of ROCm's libraries in this process, which may come from any folder."""
    files = {path.name for path in mapped(root)}
    stems = {name.removeprefix("lib").partition(".")[0]: name for name in LOADED}
    found = {stem: sorted(file for file in files if file.startswith(name)) for stem, name in stems.items()}
    return {stem: " ".join(names) for stem, names in found.items() if names}


def drivers() -> dict[str, str]:
    """Versions of what runs engines on AMD's GPUs: those of ROCm, of the loaded libraries, and of the kernel's driver.

    The libraries are loaded first, so that the answer doesn't depend on what this process did before.
    """
    with suppress(RuntimeMissing):
        _hip()
    return machine_drivers() | versions() | loaded()


def versions() -> dict[str, str]:
    """Versions of ROCm and MIGraphX, from the files of the installations that are found, or of AMD's Python wheels."""
    found: dict[str, str] = {}
    for root in roots():
        if (stated := root / ".info" / "version").is_file():
            found.setdefault("rocm", stated.read_text(encoding="utf-8").strip())
        if (linked := root / "lib" / "libmigraphx.so").exists():
            found.setdefault("migraphx", linked.resolve().name)  # it ends in the version
    for name, wheel in WHEELS.items():
        with suppress(metadata.PackageNotFoundError):
            found.setdefault(name, metadata.version(wheel))
    return found
