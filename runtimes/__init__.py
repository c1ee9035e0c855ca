"""Adapters to the libraries that compile and run graphs, one file each."""

from __future__ import annotations

from importlib import import_module

from ..core.errors import ProfileError
from ..core.record import suggest
from .base import Costs, Job, Refits, Runtime, Target

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


def runtime(name: str) -> Runtime:
    """The adapter of this name; raises `ProfileError` for an unknown one."""
    try:
        module, kind = RUNTIMES[name].split(":")
    except KeyError:
        raise ProfileError(f"There is no runtime {name!r}. {suggest(name, list(RUNTIMES))}") from None
    adapter: Runtime = getattr(import_module(module, __package__), kind)()
    return adapter


__all__ = ["RUNTIMES", "Costs", "Job", "Refits", "Runtime", "Target", "runtime"]
