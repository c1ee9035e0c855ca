"""Caches of TensorRT, beside the artifacts: timings of the builder's kernels, and code that TensorRT for RTX compiled.

TensorRT for RTX compiles a plan for the GPU and driver when it is loaded. The compiled code is kept in one file for
each plan, GPU and driver, so that later loads don't compile it again. An artifact is never changed. The library refuses
the cache of another version, GPU or newer driver (docstring of `IRuntimeCache.deserialize`).
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.files import write_bytes
from ..core.reading import read_bounded
from .base import TIMING, numbered
from .cuda import driver_version, gpu_name

MOST_BYTES = 1 << 28
HASHED_BYTES = 1 << 20
"""How much of a plan the name of its cache depends on, beside its size. Two plans of one name would share a file."""


def cache_path(engines: Path, *about: str) -> Path:
    """The file of a cache, named after what it depends on."""
    name = re.sub(r"[^\w.]+", "-", " ".join(about))
    return engines / TIMING / f"{name}.cache"


def read_cache(path: Path) -> bytes:
    """A stored cache; empty where it can't be read."""
    try:
        return read_bounded(path, MOST_BYTES)
    except (OSError, ValueError):
        return b""


class RuntimeCache:
    """The code that TensorRT for RTX compiles for one plan. The GPU's context must be current."""

    def __init__(self, config: Any, plan: Path, version: str, device: str) -> None:
        with plan.open("rb") as file:
            head = file.read(HASHED_BYTES)
        digest = hashlib.sha256(head + str(plan.stat().st_size).encode()).hexdigest()[:16]
        driver = "CUDA {}.{}".format(*driver_version())
        self._path = cache_path(plan.parents[1], "rtx", version, numbered(device)[0], gpu_name(device), driver, digest)
        self._cache = config.create_runtime_cache()
        stored = read_cache(self._path)
        self._stored = len(stored) if stored and self._cache.deserialize(stored) else 0
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Store what was compiled since, unless the bundle is read-only."""
        code = self._cache.serialize()
        if code is None or len(bytes(code)) == self._stored or self._path.parent.is_symlink():
            return
        with suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            write_bytes(self._path, bytes(code))
