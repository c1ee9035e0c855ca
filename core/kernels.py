"""Operators that the installed ONNX Runtime has kernels for on the CPU."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

CPU = "CPUExecutionProvider"


@cache
def cpu_kernels() -> frozenset[str] | None:
    """Operators of other domains than ONNX's with a CPU kernel, such as `com.microsoft.GroupNorm`.

    None where the library is missing, can't be loaded or was built without the list.
    """
    try:
        library: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        listed: Any = library.get_all_opkernel_def()
    except (ImportError, OSError, AttributeError):
        return None
    return frozenset(f"{one.domain}.{one.op_name}" for one in listed if one.domain and one.provider == CPU)
