"""Variables in the environment that change what libraries compute, and that no option of a profile sets.

They select kernels, instruction sets, or types for sums: `ORT_CUDA_GEMM_OPTIONS=compute_16f=1` has ONNX Runtime sum
products of f16 in f16. Those that are set are part of a proof's key, so engines are proved again under other values.
Names are prefixes, since versions add variables; a variable that changes nothing costs one more proof.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from . import RUNTIMES, Runtime, runtime

READ: Mapping[str, tuple[str, ...]] = {
    "cuda": ("NVIDIA_TF32_OVERRIDE", "CUBLAS_", "CUBLASLT_", "CUDNN_", "CUDA_FORCE_", "CUDA_DISABLE_", "__LUNOWUD"),
    "hip": ("HIPBLASLT_", "HSA_OVERRIDE_GFX_VERSION", "MIGRAPHX_", "MIOPEN_", "ROCBLAS_", "TENSILE_"),
}
"""Names, or what they begin with, by kind of device (`Runtime.kinds`). `__LUNOWUD` is TensorRT's."""

IGNORED = frozenset({"ORT_DISABLE_TELEMETRY", "TORCHINDUCTOR_CACHE_DIR"})
"""Variables that latentc or a library sets while it runs, and that change no result."""


SECRET = re.compile("(^|_)(KEY|TOKEN|SECRET|PASSWORD)(_|$)")
"""Words in names of variables that are never read."""


def environment(adapter: Runtime, device: str) -> dict[str, str]:
    """The variables that are set and change what an adapter's libraries compute on a device, with their values."""
    kinds = {kind.casefold() for kind in adapter.kinds(device)}
    named = [*adapter.facts.variables, *(name for kind in kinds for name in READ.get(kind, ()))]
    return _set_here(named)


def every_environment() -> dict[str, str]:
    """The same for every runtime and kind of device."""
    own = [runtime(name).facts.variables for name in RUNTIMES]
    return _set_here([name for names in (*own, *READ.values()) for name in names])


def _set_here(named: list[str]) -> dict[str, str]:
    found = {name: value for name, value in sorted(os.environ.items()) if name.startswith(tuple(named))}
    return {name: value for name, value in found.items() if name not in IGNORED and not SECRET.search(name)}
