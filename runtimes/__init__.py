"""Adapters to the libraries that compile and run graphs, one file each."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from ..core.errors import ProfileError, RuntimeMissing
from ..core.record import in_a_line, suggest
from .base import Calibration, CheckpointOrigin, Costs, Facts, Job, Opens, Refits, Runtime, Target
from .host import HostEngine

RUNTIMES = {
    "openvino": ".openvino:OpenVINO",
    "onnxruntime": ".onnxruntime:ONNXRuntime",
    "onnxruntime-web": ".onnxruntime_web:ONNXRuntimeWeb",
    "iree": ".iree:IREE",
    "migraphx": ".migraphx:MIGraphX",
    "tensorrt": ".trt:tensorrt",
    "tensorrt-rtx": ".trt:tensorrt_rtx",
    "torch": ".torch:Torch",
    "null": ".null:Null",
}


ENTRY_POINTS = "latentc.runtimes"
"""The entry point group in which other distributions register adapters, as `name = "module:Class"`."""


def known_runtimes() -> dict[str, str]:
    """Places of all adapters by runtime: latentc's own, which can't be replaced, and those of other distributions."""
    return RUNTIMES | {one.name: one.value for one in entry_points(group=ENTRY_POINTS) if one.name not in RUNTIMES}


def distribution(name: str) -> dict[str, str]:
    """Name and version of the distribution that registers a runtime, part of the key; empty for latentc's own."""
    found = (one for one in entry_points(group=ENTRY_POINTS) if one.name == name and name not in RUNTIMES)
    return {one.dist.name: one.dist.version for one in found if one.dist is not None}


def runtime(name: str) -> Runtime:
    """The adapter of this name.

    Raises `ProfileError` for an unknown one, and `RuntimeMissing` for one of another distribution that can't be loaded.
    """
    place = RUNTIMES.get(name) or known_runtimes().get(name)
    if place is None:
        raise ProfileError(f"{name!r} is not a known runtime. {suggest(name, list(known_runtimes()))}")
    module, _, kind = place.partition(":")
    try:
        adapter: Runtime = getattr(import_module(module, __package__), kind)()
    except Exception as exc:  # another distribution's module may raise anything
        if name in RUNTIMES:
            raise
        raise RuntimeMissing(
            f"The runtime {name!r} of another distribution ({place}) cannot be loaded: {in_a_line(exc)}. Update that "
            "distribution, or uninstall it."
        ) from exc
    return adapter


__all__ = [
    "RUNTIMES",
    "Calibration",
    "CheckpointOrigin",
    "Costs",
    "Facts",
    "HostEngine",
    "Job",
    "Opens",
    "Refits",
    "Runtime",
    "Target",
    "distribution",
    "known_runtimes",
    "runtime",
]
