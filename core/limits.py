"""Cores and memory that this process may use, by its affinity mask and control groups; and out-of-memory errors.

On Linux both versions of control groups are read. They may be mounted together, and nested: the tightest limit of a
group and its ancestors applies. Other systems have no limits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cores(root: Path = ROOT) -> int:
    """Cores that this process may use, at least 1. A quota of 2.5 gives 2, so that threads wait less for each other.

    `root` is the folder that contains `/proc` and `/sys`.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, min([usable, *map(int, quotas)]))


def threads(root: Path = ROOT) -> int | None:
    """Number of compute threads if this process may not use all cores; None leaves the choice to the library."""
    found = cores(root)
    return found if found < (os.cpu_count() or 1) else None


def memory(root: Path = ROOT) -> tuple[int | None, int | None]:
    """Memory that this process may use, and how much of it is free, in bytes; None if the system does not report it."""
    info = _meminfo(root)
    total, available = info.get("MemTotal"), info.get("MemAvailable")
    for folder in _groups(root, "memory"):
        limit = number(read(folder / "memory.max") or read(folder / "memory.limit_in_bytes") or "")
        used = number(read(folder / "memory.current") or read(folder / "memory.usage_in_bytes") or "")
        if limit is not None and total is not None and limit < total:
            total = limit
            if used is not None and available is not None:
                available = min(available, max(0, limit - used + _reclaimable(folder)))
    return total, available


def swap(root: Path = ROOT) -> int:
    """Free swap in bytes; 0 in a container with a memory limit, which may have none."""
    info = _meminfo(root)
    return info.get("SwapFree", 0) if memory(root)[0] == info.get("MemTotal") else 0


def _meminfo(root: Path) -> dict[str, int]:
    """Contents of `/proc/meminfo`, in bytes, keyed by name."""
    pairs = (line.partition(":") for line in (read(root / "proc/meminfo") or "").splitlines())
    return {key: 1024 * (number(value.split()[0]) or 0) for key, _, value in pairs if value.split()}


def _reclaimable(folder: Path) -> int:
    """Bytes of a group's page cache that are reclaimed when it needs memory."""
    lines = (line.split() for line in (read(folder / "memory.stat") or "").splitlines())
    found = {pair[0]: number(pair[1]) or 0 for pair in lines if len(pair) == 2}
    return found.get("total_inactive_file", found.get("inactive_file", 0))


def _quota(folder: Path) -> float | None:
    """Cores that a control group may use; None if it is not limited."""
    values = (read(folder / "cpu.max") or "").split()
    if not values:
        values = [read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    numbers = [number(value) for value in values]
    if len(numbers) == 2 and numbers[0] and numbers[1] and numbers[0] > 0:
        return numbers[0] / numbers[1]
    return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups for a controller, with their ancestors, of both versions."""
    tree = root / "sys/fs/cgroup"
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        named = controllers.split(",")
        if controllers and controller not in named:
            continue
        bases = [tree / controllers, tree / controller] if controllers else [tree, tree / "unified"]
        for base in dict.fromkeys(bases):
            inside = base / path.lstrip("/")
            yield base
            while inside != base and inside.is_relative_to(base):
                yield inside
                inside = inside.parent


def read(path: Path) -> str | None:
    """The text of a small system file, or None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def number(text: str) -> int | None:
    """The text as an integer, or None."""
    try:
        return int(text)
    except ValueError:
        return None


SIGNS = (
    *("out of memory", "outofmemory", "bad alloc", "badalloc", "memoryerror", "not enough memory"),
    *("insufficient memory", "lack of memory", "more memory than", "allocate memory", "failed to allocate"),
    *("unable to allocate", "failed allocation", "out of host memory", "out of device memory"),
    *("resource exhausted", "out of resources", "object allocation failure"),
)
"""Phrases of out-of-memory errors, in lower case, with spaces for underscores: from C++, the system, numpy, PyTorch,
ONNX Runtime, CUDA, HIP, OpenCL, Vulkan and IREE."""

MEMORY_ADVICE = (
    "Free memory, request a smaller size or fewer images, or set a narrower type under [precision] in the profile."
)


def is_out_of_memory(words: str | BaseException) -> bool:
    """Whether an error or a library's message means that memory ran out."""
    if isinstance(words, MemoryError):
        return True
    text = str(words).lower().replace("_", " ")
    return any(sign in text for sign in SIGNS)
