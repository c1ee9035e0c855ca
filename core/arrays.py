"""Arrays on disk as `.npz`, with a digest that detects damage which the archive's own checks miss."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .errors import BundleError, LatentcError
from .files import sync
from .reading import read_arrays
from .tensors import Array

SEAL = "sha256"

ARRAYS_BYTES = 4 << 30
"""Size limit of one part's references: those of SDXL at its own size take 0.1 GB."""


def arrays_digest(arrays: Mapping[str, Array]) -> str:
    """Hex SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays and their digest atomically. Raises `OSError`."""
    fresh = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with fresh.open("wb") as file:
            np.savez(file, allow_pickle=False, **{SEAL: np.array(arrays_digest(arrays))}, **arrays)
        sync(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def read_sealed_arrays(
    path: Path, advice: str, error: type[LatentcError] = BundleError, limit_bytes: int = ARRAYS_BYTES
) -> dict[str, Array]:
    """Read what `write_arrays` wrote; raises `error` if the file was modified."""
    arrays = read_arrays(path, limit_bytes, error, advice)
    seal = arrays.pop(SEAL, None)
    if seal is None or str(seal) != arrays_digest(arrays):
        raise error(f"{path} was modified or damaged: its digest does not match. {advice}")
    return arrays
