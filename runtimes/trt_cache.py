"""Caches of TensorRT: timings of the builder's kernels, beside the artifacts, and code that TensorRT for RTX compiled.

TensorRT for RTX compiles a plan for the GPU and driver when it is loaded. The compiled code is kept in one file for
each plan, GPU and driver, so that later loads don't compile it again. It is code for the GPU that no digest of an
artifact covers, so it is kept in this user's state folder: a bundle that came from elsewhere cannot bring any. The
library refuses the cache of another version, GPU or newer driver (docstring of `IRuntimeCache.deserialize`).
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import CompileError
from ..core.files import sha256, write_bytes
from ..core.reading import read_bounded
from ..core.records import state_folder
from .base import TIMING, numbered
from .cuda import driver_version, gpu_name
from .machine import machine

COMPILED = "compiled"
"""Folder of the compiled code, in the state folder."""

MOST_BYTES = 1 << 28


def cache_path(folder: Path, *about: str) -> Path:
    """The file of a cache, named after what it depends on."""
    name = re.sub(r"[^\w.]+", "-", " ".join(about))
    return folder / f"{name}.cache"


def timing_path(engines: Path, *about: str) -> Path:
    """The file of the builder's timings."""
    return cache_path(engines / TIMING, *about)


def read_cache(path: Path) -> bytes:
    """A stored cache; empty where it can't be read."""
    try:
        return read_bounded(path, MOST_BYTES)
    except (OSError, ValueError):
        return b""


def _compiled_path(plan: Path, version: str, device: str) -> Path:
    """The file of the code that TensorRT for RTX compiled for a plan and GPU."""
    seen = plan.stat()
    digest = _sha256(plan, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)[:16]
    about = version, numbered(device)[0], gpu_name(device), _driver(), digest
    return cache_path(state_folder() / COMPILED, "rtx", *about)


def compiled_digest(plan: Path, version: str, device: str) -> str:
    """Digest of the stored code of a plan; empty without any. Raises `RuntimeMissing` without the GPU."""
    stored = read_cache(_compiled_path(plan, version, device))
    return _digest(stored) if stored else ""


class RuntimeCache:
    """The code that TensorRT for RTX compiles for one plan. The GPU's context must be current.

    Engines are proved with the code of this file, whose digest is part of the proof. A later load doesn't add to it:
    what it compiles for other shapes, it compiles again.
    """

    def __init__(self, config: Any, plan: Path, version: str, device: str) -> None:
        self._path = _compiled_path(plan, version, device)
        self._cache = config.create_runtime_cache()
        stored = read_cache(self._path)
        self._loaded = bool(stored)
        if stored and not self._cache.deserialize(stored):
            self._path.unlink(missing_ok=True)
            raise CompileError(
                "TensorRT for RTX refuses the code that was compiled for this engine and stored. It was removed: run "
                "again, so that the code that replaces it is compared."
            )
        self._stored = ""
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Store what was compiled since, unless stored code was loaded, or the state folder is read-only."""
        if self._loaded:
            return
        code = self._cache.serialize()
        if code is None or (digest := _digest(code)) == self._stored:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, bytes(code))
            self._stored = digest


def _digest(code: Any) -> str:
    return hashlib.sha256(code).hexdigest()


@cache
def _sha256(plan: Path, *_: int) -> str:
    """Digest of a plan, computed once per process while its number, size and times stay."""
    return sha256(plan)


@cache
def _driver() -> str:
    """Version of NVIDIA's driver; the CUDA version that it supports, where the system doesn't report it."""
    own = (gpu.driver for gpu in machine().gpus if gpu.vendor == "NVIDIA" and gpu.driver != "nvidia")
    return next(filter(None, own), None) or "CUDA {}.{}".format(*driver_version())
