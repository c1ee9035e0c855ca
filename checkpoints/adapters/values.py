"""Values of an adapter's tensors."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from ...core.errors import CheckpointError, RuntimeMissing
from ...core.install import pip
from ...core.reading import unreadable
from ...core.tensors import Array
from ..stored import FLOATS, StoredTensor, stored_bytes

_PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_SMALL = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


def values_of(tensor: StoredTensor) -> Array:
    """The tensor in f32.

    Raises CheckpointError for a type that isn't floating-point, and for NaN or Inf; RuntimeMissing for fp8 without
    ml_dtypes.
    """
    if tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"{tensor.file}: {tensor.name!r} is {tensor.dtype}: quantized. Download the F16, BF16 or F32 form."
        )
    try:
        raw = b"".join(stored_bytes(tensor))
    except (OSError, ValueError) as exc:
        raise CheckpointError(unreadable(tensor.file, exc, "If it was moved, restore it.")) from exc
    if tensor.dtype == "BF16":
        found = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif tensor.dtype in _SMALL:
        found = np.frombuffer(raw, _fp8(tensor)).astype(np.float32)
    else:
        with np.errstate(over="ignore"):  # an f64 that f32 has no room for is reported below
            found = np.frombuffer(raw, _PLAIN[tensor.dtype]).astype(np.float32)
    if not np.isfinite(found).all():
        raise CheckpointError(
            f"{tensor.file}: {tensor.name!r} holds NaN or Inf. The adapter is damaged, or its training diverged: "
            "download it again, or use an earlier epoch."
        )
    return found.reshape(tensor.shape)


def _fp8(tensor: StoredTensor) -> Any:
    try:
        library: Any = import_module("ml_dtypes")
    except ImportError as exc:
        raise RuntimeMissing(
            f"{tensor.file} is stored in fp8, which ml_dtypes reads. Install it with: {pip('build')}."
        ) from exc
    return getattr(library, _SMALL[tensor.dtype])
