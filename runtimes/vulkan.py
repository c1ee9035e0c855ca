"""Vulkan's GPUs, through the C interface of its loader: what they are, and their drivers.

Structures and values are those of Vulkan 1.1 and its extension for driver properties (registry.khronos.org/vulkan).
"""

from __future__ import annotations

import ctypes
import os
import platform
from ctypes import POINTER, byref, c_char, c_char_p, c_uint8, c_uint32, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .machine import shut

LIBRARIES = {"Windows": "vulkan-1.dll", "Darwin": "libvulkan.dylib"}
LINUX_LIBRARY = "libvulkan.so.1"
LIBRARY = "IREE_HAL_VULKAN_LIBVULKAN_PATH"
"""Environment variable: the loader that IREE uses, or its folder."""

NODES = "dev/dri/renderD*"
"""The GPUs' files on Linux."""

CHOSEN = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_LOADER_DRIVERS_SELECT")
"""Variables that name the loader's drivers: with one, a CPU is used on purpose."""

VERSION_1_1 = 1 << 22 | 1 << 12
APPLICATION_INFO, INSTANCE_CREATE_INFO = 0, 1
PROPERTIES, ID_PROPERTIES, DRIVER_PROPERTIES = 1000059001, 1000071004, 1000196000

KINDS = ("other", "integrated", "discrete", "virtual", "cpu")
"""Types of devices, by number."""

PREFERENCE = ("discrete", "virtual", "integrated", "other", "cpu")
"""Types of devices, the fastest first."""


class _Application(ctypes.Structure):
    _fields_ = (
        *(("type", c_uint32), ("next", c_void_p), ("name", c_char_p), ("version", c_uint32)),
        *(("engine", c_char_p), ("engine_version", c_uint32), ("api", c_uint32)),
    )


class _Instance(ctypes.Structure):
    _fields_ = (
        *(("type", c_uint32), ("next", c_void_p), ("flags", c_uint32), ("application", POINTER(_Application))),
        *(("layers", c_uint32), ("layer_names", c_void_p), ("extensions", c_uint32), ("extension_names", c_void_p)),
    )


class _Driver(ctypes.Structure):
    _fields_ = (
        *(("type", c_uint32), ("next", c_void_p), ("id", c_uint32), ("name", c_char * 256), ("info", c_char * 256)),
        ("conformance", c_uint8 * 4),
    )


class _Identity(ctypes.Structure):
    _fields_ = (
        *(("type", c_uint32), ("next", c_void_p), ("device", c_uint8 * 16), ("driver", c_uint8 * 16)),
        *(("luid", c_uint8 * 8), ("nodes", c_uint32), ("has_luid", c_uint32)),
    )


class _Properties(ctypes.Structure):
    _fields_ = (
        *(("type", c_uint32), ("next", c_void_p), ("api", c_uint32), ("driver", c_uint32), ("vendor", c_uint32)),
        *(("device", c_uint32), ("kind", c_uint32), ("name", c_char * 256), ("rest", c_uint8 * 1024)),
    )
    """`rest` has more than the 548 bytes of the limits and of what follows them."""


@dataclass(frozen=True)
class VulkanGpu:
    """One device of Vulkan, which may be a CPU (llvmpipe, SwiftShader)."""

    name: str
    kind: str
    """One of `KINDS`."""
    driver: str
    """The driver's name and versions."""
    uuid: str
    """32 hexadecimal digits, which stay the same on a machine."""


@cache
def gpus() -> tuple[VulkanGpu, ...]:
    """Vulkan's devices, in its order; none where its loader can't be used."""
    try:
        return _gpus(ctypes.CDLL(_loader()))
    except (OSError, AttributeError):  # no loader, or one of Vulkan 1.0
        return ()


def _loader() -> str:
    name, stated = LIBRARIES.get(platform.system(), LINUX_LIBRARY), os.environ.get(LIBRARY)
    return str(Path(stated) / name) if stated and Path(stated).is_dir() else stated or name


def _gpus(library: Any) -> tuple[VulkanGpu, ...]:
    application = _Application(APPLICATION_INFO, api=VERSION_1_1)
    settings = _Instance(INSTANCE_CREATE_INFO, application=ctypes.pointer(application))
    instance, count = c_void_p(), c_uint32()
    if library.vkCreateInstance(byref(settings), None, byref(instance)):
        return ()
    try:
        library.vkEnumeratePhysicalDevices(instance, byref(count), None)
        handles = (c_void_p * count.value)()
        library.vkEnumeratePhysicalDevices(instance, byref(count), handles)
        return tuple(_gpu(library, c_void_p(handle)) for handle in handles)
    finally:
        library.vkDestroyInstance(instance, None)


def _gpu(library: Any, handle: c_void_p) -> VulkanGpu:
    driver = _Driver(DRIVER_PROPERTIES)
    identity = _Identity(ID_PROPERTIES, ctypes.cast(byref(driver), c_void_p))
    found = _Properties(PROPERTIES, ctypes.cast(byref(identity), c_void_p))
    library.vkGetPhysicalDeviceProperties2(handle, byref(found))
    kind: int = found.kind
    return VulkanGpu(
        name=_text(found.name),
        kind=KINDS[kind] if kind < len(KINDS) else KINDS[0],
        driver=" ".join(filter(None, (_text(driver.name), _text(driver.info), f"{found.driver:#x}"))),
        uuid=bytes(identity.device).hex(),
    )


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def drivers() -> dict[str, str]:
    """Names of Vulkan's devices, and their drivers."""
    return {gpu.name: gpu.driver for gpu in gpus()}


def denied() -> str | None:
    """Why Vulkan has no GPU, and what to do; None where it has one, or the environment names its drivers."""
    found = gpus()
    if any(gpu.kind != "cpu" for gpu in found):
        return None
    if reason := shut(NODES):
        return reason
    if not found or any(map(os.environ.get, CHOSEN)):
        return None
    return f"install the GPU's Vulkan driver, or set {CHOSEN[0]} to the driver's file to compute on the CPU on purpose."
