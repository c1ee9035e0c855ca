"""AMD's HIP library through its C interface: where it is, the order of its GPUs, and whether this user may open them.

HIP counts the GPUs that it may use (`VISIBLE`), and an integrated GPU often comes first. Its GPUs are
matched by PCI address with those of the kernel's driver, which states their architectures.
"""

from __future__ import annotations

import ctypes
import os
import sysconfig
from contextlib import suppress
from ctypes.util import find_library
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.errors import RuntimeMissing
from ..core.limits import ROOT
from .machine import ENTER, amd_gpus

NAME = "libamdhip64.so"
VISIBLE = "HIP_VISIBLE_DEVICES"
ADDRESS_BYTES = 64
WHEELS = {"rocm": "rocm-sdk-core", "migraphx": "migraphx"}
"""AMD's Python distributions of ROCm and MIGraphX."""

INSTALL = "Install ROCm (rocm.docs.amd.com)."
SHARE = "In a container, start it with --device /dev/kfd --device /dev/dri --group-add with that group's number."


def roots() -> list[Path]:
    """Folders where ROCm may be: the one that `ROCM_PATH` names, the usual one, and that of AMD's Python wheels."""
    named = [Path(path)] if (path := os.environ.get("ROCM_PATH")) else []
    return [*named, Path("/opt/rocm"), Path(sysconfig.get_path("purelib")) / "_rocm_sdk_core"]


def library() -> str | None:
    """Path of HIP's library, or the name by which the system's loader finds it; None where there is none.

    Some packages have it only with its version in the name (`libamdhip64.so.7`).
    """
    for root in roots():
        if found := sorted((root / "lib").glob(f"{NAME}*"), key=lambda path: len(path.name)):
            return str(found[0])
    return find_library("amdhip64")


@cache
def _hip() -> Any:
    path = library()
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


def number_of(architecture: str | None = None) -> int:
    """HIP's number of the first GPU of an architecture, or of the GPU with the most memory.

    Raises `RuntimeMissing` where HIP has no such GPU, or can't be used.
    """
    places = [address.lower().partition(".")[0] for address in addresses()]
    usable = [gpu for gpu in amd_gpus() if gpu.address in places and architecture in (None, gpu.architecture)]
    if not usable:
        raise RuntimeMissing(
            f"HIP offers no {architecture or 'AMD'} GPU; it has {len(places)}. Check {VISIBLE} and "
            "ROCR_VISIBLE_DEVICES, and the GPU with: rocminfo."
        )
    if architecture:
        return min(places.index(gpu.address) for gpu in usable)
    return places.index(max(usable, key=lambda gpu: gpu.memory_bytes or 0).address)


def use(number: int) -> None:
    """Make a GPU the current one of this thread, as HIP's libraries use that one. Raises `RuntimeMissing`."""
    _call("hipSetDevice", number)


def alone(number: int) -> dict[str, str]:
    """The environment of a program that should use one GPU only, which is this one for this process."""
    visible = os.environ.get(VISIBLE)
    return {VISIBLE: visible.split(",")[number] if visible else str(number)}


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
