"""Versions of NVIDIA's libraries that compute engines through ONNX Runtime, by their C interfaces.

Sources: cudnnGetVersion (cuDNN's API), cublasGetProperty (cuBLAS), cudaRuntimeGetVersion (CUDA Runtime API) and
getInferLibVersion (TensorRT's NvInferRuntime.h).
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t
from typing import Any

from .machine import mapped

CUDNN, TENSORRT = "9", "10"
"""Major versions that ONNX Runtime's wheels load; that of CUDA they state."""
PARTS = 3
"""MAJOR_VERSION, MINOR_VERSION and PATCH_LEVEL of libraryPropertyType."""


def versions(cuda: str) -> dict[str, str]:
    """Versions of cuBLAS, CUDA's runtime and cuDNN, for a major version of CUDA, without those that can't be loaded.
    They must have been loaded before where the system doesn't find them.
    """
    # The function is in a library beside libcudnn.so, which ends the process where it can't load that.
    beside = next((f"{path.parent}/" for path in sorted(mapped()) if path.name.startswith("libcudnn.so.")), "")
    found = {
        "cublas": _version("cublas", cuda, _cublas),
        "cudart": _version("cudart", cuda, _runtime),
        "cudnn": _version("cudnn_graph", CUDNN, _cudnn, beside),
    }
    return {name: text for name, text in found.items() if text}


def tensorrt() -> dict[str, str]:
    """The version of TensorRT's library, which compiles the engines of ONNX Runtime's provider; empty without it."""
    found = _version("nvinfer", TENSORRT, lambda library: library.getInferLibVersion())
    return {"tensorrt": found} if found else {}


def _version(name: str, major: str, ask: Callable[[Any], object], folder: str = "") -> str:
    windows = f"{name}_{major}.dll" if name == "nvinfer" else f"{name}64_{major}.dll"
    try:
        return str(ask(ctypes.CDLL(windows if platform.system() == "Windows" else f"{folder}lib{name}.so.{major}")))
    except (OSError, AttributeError):
        return ""


def _cudnn(library: Any) -> int:
    library.cudnnGetVersion.restype = c_size_t
    return library.cudnnGetVersion()


def _cublas(library: Any) -> str:
    found = [c_int() for _ in range(PARTS)]
    for kind, value in enumerate(found):
        library.cublasGetProperty(kind, byref(value))
    return ".".join(str(value.value) for value in found)


def _runtime(library: Any) -> int:
    found = c_int()
    library.cudaRuntimeGetVersion(byref(found))
    return found.value
