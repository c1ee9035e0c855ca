"""How much memory processes hold, and have held.

psutil lists a process's tree and what each holds. The exact peak of one process is the kernel's own account, which
psutil doesn't report on Linux: `VmHWM`, that can also be set back there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

PROC = Path("/proc")


def tree(pid: int) -> list[psutil.Process]:
    """A process and all its descendants that live; empty where it ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except (psutil.Error, RuntimeError):  # the latter in a sandbox whose /proc lacks what psutil needs
        return []


def resident_bytes(processes: Iterable[psutil.Process]) -> int | None:
    """What processes hold now, each page counted in every process that has it; None where none of them lives."""
    found: list[int] = []
    for process in processes:
        with suppress(psutil.Error):  # it ended meanwhile
            found.append(process.memory_info().rss)
    return sum(found) if found else None


def peak_bytes(pid: int | None = None) -> int | None:
    """The most that one process has held since it began, or since `reset_peak`; None where that isn't known.

    `pid` None is this process.
    """
    try:
        text = (PROC / str(pid or "self") / "status").read_text(encoding="utf-8", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    if sys.platform == "win32":
        with suppress(psutil.Error):
            return psutil.Process(pid).memory_info().peak_wset
    elif pid is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return None


def reset_peak(pid: int) -> bool:
    """Set the peak of a process back to what it holds now; False where that isn't possible."""
    try:
        (PROC / str(pid) / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
