"""Adapters to the libraries that compile and run graphs, one file each."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from ..core.errors import ProfileError, RuntimeMissing
from ..core.record import in_a_line, suggest
from .base import CheckpointOrigin, Costs, Facts, Job, Refits, Runtime, Target
from .host import HostEngine

RUNTIMES = {
    "openvino": ".openvino:OpenVINO",
    "onnxruntime": ".onnxruntime:ONNXRuntime",
    "iree": ".iree:IREE",
    "migraphx": ".migraphx:MIGraphX",
    "tensorrt": ".trt:tensorrt",
    "tensorrt-rtx": ".trt:tensorrt_rtx",
    "torch": ".torch:Torch",
    "null": ".null:Null",
}


ENTRY_POINTS = "latentc.runtimes"
"""The group in which other distributions name adapters of their own, as `name = "module:Class"`."""


def known_runtimes() -> dict[str, str]:
    """Every runtime's adapter by name: latentc's own, which none replaces, and those of installed distributions."""
    return RUNTIMES | {one.name: one.value for one in entry_points(group=ENTRY_POINTS) if one.name not in RUNTIMES}


def distribution(name: str) -> dict[str, str]:
    """The distribution that a runtime comes with, and its version, which shapes its engines; empty of latentc's own."""
    found = (one for one in entry_points(group=ENTRY_POINTS) if one.name == name and name not in RUNTIMES)
    return {one.dist.name: one.dist.version for one in found if one.dist is not None}


def runtime(name: str) -> Runtime:
    """The adapter of this name.

    Raises `ProfileError` for an unknown one, and `RuntimeMissing` for one of another distribution that can't be loaded.
    """
    place = RUNTIMES.get(name) or known_runtimes().get(name)
    if place is None:
        raise ProfileError(f"There is no runtime {name!r}. {suggest(name, list(known_runtimes()))}")
    module, _, kind = place.partition(":")
    try:
        adapter: Runtime = getattr(import_module(module, __package__), kind)()
    except Exception as exc:  # whatever another distribution's module raises
        if name in RUNTIMES:
            raise
        raise RuntimeMissing(
            f"The runtime {name!r} of another distribution ({place}) can't be loaded: {in_a_line(exc)}. Update that "
            "distribution, or uninstall it."
        ) from exc
    return adapter


__all__ = [
    "RUNTIMES",
    "CheckpointOrigin",
    "Costs",
    "Facts",
    "HostEngine",
    "Job",
    "Refits",
    "Runtime",
    "Target",
    "distribution",
    "known_runtimes",
    "runtime",
]
