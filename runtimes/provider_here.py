"""Whether a provider of ONNX Runtime can be used on this machine; if not, why, and what to install or to change.

All flavours of the library (onnxruntime, onnxruntime-gpu...) are installed into one folder, where the last one wins;
and a session whose provider can't be loaded silently runs on the CPU. Both are detected here.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib import import_module, metadata
from typing import Any, cast

from ..core.errors import RuntimeMissing
from ..core.install import install, pip, uninstall
from ..core.record import suggest
from ..core.telemetry import switch_off_events
from . import hip, vulkan
from .base import numbered
from .border import first_line
from .cuda import capabilities, old_driver
from .machine import machine, shut
from .placement import fault, plugged
from .providers import PROVIDERS, Provider

EXTRA = "onnxruntime"


def why_not(place: str, *, elsewhere: bool) -> str | None:
    """Why a device can't be used, or with `elsewhere` not be built for, and what to do; None where it can."""
    device, number = numbered(place)
    try:
        has: list[str] = library().get_available_providers()
    except ModuleNotFoundError as exc:
        return f"ONNX Runtime is not installed ({first_line(exc)}). {install(EXTRA)}"
    except Exception as exc:  # a damaged installation may raise anything
        return _damage(f"cannot be loaded ({first_line(exc)})")
    if len(flavours()) > 1:
        return _damage("is installed in several flavours")
    if device not in PROVIDERS:
        known = suggest(device, list(PROVIDERS))
        return f"latentc does not support device {device!r} through ONNX Runtime. {known}"
    provider = PROVIDERS[device]
    if number is not None and not provider.numbered:
        return f"{provider.name} has no numbered devices. Write device = {device!r}."
    if provider.system not in (None, platform.system()):
        return f"{provider.name} is available on {provider.system} only, and this is {platform.system()}."
    if provider.plugin:
        try:
            found = plugged(device, elsewhere=elsewhere)
        except Exception as exc:  # an incompatible plugin may raise anything
            return f"{provider.name} cannot be loaded ({first_line(exc)}). {install(provider.extra)}"
        if not found:
            return f"{provider.name} finds no {provider.hardware}. It requires {provider.needs}."
    elif provider.name not in has:
        if provider.vendor and not elsewhere and all(gpu.vendor != provider.vendor for gpu in machine().gpus):
            return (
                f"This machine has no {provider.vendor} GPU, which {provider.name} requires. On a machine with "
                f"one, install the flavour of ONNX Runtime for it in a separate environment: {pip(provider.extra)}."
            )
        first = f"{uninstall(*flavours())} && " if flavours() else ""
        return (
            f"The installed ONNX Runtime has no {provider.name}; it has: {', '.join(has)}. Only one flavour can be "
            f"installed: {first}{pip(provider.extra)}."
        )
    if override := _override(provider):
        return override
    if provider.vendor == "AMD" and (reason := _no_amd(provider, number)):
        return reason
    if number is not None and provider.vendor == "NVIDIA" and capability_of(number) is None:
        return f"This machine has no NVIDIA GPU with number {number}; they are numbered from 0 on."
    if device != "CPU" and not elsewhere and (reason := _old_driver(provider)):
        return reason
    if device != "CPU" and not elsewhere and (reason := fault(place, provider.precisions[0])):
        if provider.nodes and (denied := shut(provider.nodes)):
            return f"{provider.name} does not work: {denied}"
        why = f"{provider.name} does not work: {reason.rstrip('.')}. It requires {provider.needs}."
        return f"{why} {_other_version(provider)}".rstrip()
    if provider.nodes and platform.system() == "Linux" and (denied := vulkan.denied()):
        return f"{provider.name} finds only a software GPU: {denied}"
    return None


def capability_of(number: int) -> str | None:
    """Compute capability of the NVIDIA GPU with a number, by the driver's order; None without one."""
    try:
        return capabilities()[number]
    except (RuntimeMissing, IndexError):
        return None


def _no_amd(provider: Provider, number: int | None) -> str | None:
    """Why a provider can't open its AMD GPU; None where it can."""
    architecture = provider.architecture
    has = [gpu.architecture for gpu in machine().gpus if gpu.vendor == "AMD"]
    if architecture and architecture not in has:
        return f"This machine has no {architecture} GPU; AMD GPUs found: {', '.join(filter(None, has)) or 'none'}."
    if reason := hip.denied(architecture):
        return reason
    if number is None:
        return None
    try:
        hip.number_of(architecture, number)
    except RuntimeMissing as exc:
        return str(exc)
    return None


def amd_gpu(provider: Provider, number: int | None) -> str:
    """Architecture and driver of the AMD GPU that a provider opens, or of all where HIP can't be used."""
    gpus = [gpu for gpu in machine().gpus if gpu.vendor == "AMD"]
    try:
        opened = hip.gpu_at(hip.number_of(provider.architecture, number)).architecture
    except RuntimeMissing:
        return "; ".join(f"{gpu.architecture or gpu.name} {gpu.driver}" for gpu in gpus) or "unknown"
    return f"{opened} {next((gpu.driver for gpu in gpus), '')}".strip()


def _old_driver(provider: Provider) -> str | None:
    """Report a driver that is too old for the CUDA version that the library was built with."""
    if provider.vendor != "NVIDIA" or not (cuda := built_with()):
        return None
    try:
        return old_driver("ONNX Runtime's wheels", cuda)
    except RuntimeMissing as exc:
        return str(exc)


def built_with() -> str:
    """The major version of CUDA that the library was built with; empty without CUDA."""
    return str(getattr(library(), "cuda_version", "")).partition(".")[0]


def _other_version(provider: Provider) -> str:
    """A sentence on an installed library of another major version than the provider's; empty without one."""
    if provider.loads is None:
        return ""
    name, major = provider.loads
    try:
        found = str(import_module(name).__version__)
    except Exception:  # without its own libraries it may raise anything
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            return ""
    if found.partition(".")[0] == major:
        return ""
    return f"Version {found} of {name} is installed, which the provider cannot use; use a separate environment."


def _override(provider: Provider) -> str | None:
    """Why a provider wouldn't follow a profile: variables in the environment that take precedence; None without any."""
    prefix = provider.environment
    if prefix is None:
        return None
    found = sorted(name for name, text in os.environ.items() if text and name.startswith(prefix))
    if not found:
        return None
    return (
        f"{', '.join(found)} in the environment would override the options of {provider.name}, such as its precision "
        f"and its cache. Remove it: unset {' '.join(found)}."
    )


def _damage(what: str) -> str:
    """A message on what is installed in the folder that all flavours share, and how to repair it."""
    has = ", ".join(f"{name} {version}" for name, version in flavours().items()) or "none that pip reports"
    names = tuple(flavours()) or ("onnxruntime",)
    return (
        f"ONNX Runtime {what}. All flavours are installed into the same folder and overwrite each other; installed: "
        f"{has}. Reinstall one: {uninstall(*names)} && {pip('onnxruntime')}."
    )


@cache
def flavours() -> dict[str, str]:
    """Installed distributions that own the `onnxruntime` folder, and their versions."""
    found: dict[str, str] = {}
    for package in metadata.distributions(name=None):
        name = cast("str | None", package.metadata["Name"])
        if name and name.lower().replace("_", "-").startswith("onnxruntime"):
            record = package.read_text("RECORD") or ""
            if any(line.startswith("onnxruntime/__init__.py") for line in record.splitlines()):
                found[name] = package.version
    return found


def library() -> Any:
    """The library, which sends no events; raises an error where it isn't installed, or files of it are gone."""
    import onnxruntime

    library: Any = onnxruntime
    switch_off_events(library)
    library.InferenceSession  # noqa: B018  the import succeeds even if files of the package are gone
    return library
