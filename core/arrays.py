"""Arrays on disk as `.npz`, with a digest of what they are: damage that the archive's own checks miss is found."""

from __future__ import annotations

import hashlib
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .errors import BundleError, LatentcError
from .files import sync
from .tensors import Array

SEAL = "sha256"


def arrays_digest(arrays: Mapping[str, Array]) -> str:
    """Hex SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays and their digest, whole or not at all. Raises `OSError`."""
    fresh = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with fresh.open("wb") as file:
            np.savez(file, allow_pickle=False, **{SEAL: np.array(arrays_digest(arrays))}, **arrays)
        sync(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def read_arrays(path: Path, advice: str, error: type[LatentcError] = BundleError) -> dict[str, Array]:
    """The arrays of an `.npz` file as numpy wrote it; raises `error` for one that can't be read."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # numpy leaves a damaged one open
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, KeyError, MemoryError, zipfile.BadZipFile, NotImplementedError) as exc:
        raise error(f"{path} can't be read ({exc}). {advice}") from exc


def read_sealed_arrays(path: Path, advice: str, error: type[LatentcError] = BundleError) -> dict[str, Array]:
    """What `write_arrays` wrote; raises `error` where it isn't that."""
    arrays = read_arrays(path, advice, error)
    seal = arrays.pop(SEAL, None)
    if seal is None or str(seal) != arrays_digest(arrays):
        raise error(f"{path} isn't what was written: its digest differs. {advice}")
    return arrays
