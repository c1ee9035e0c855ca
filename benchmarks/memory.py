"""Current and peak resident memory of processes, and their CPU time.

psutil lists the process tree and the memory of each process. The exact peak of one process comes from the kernel:
`VmHWM` on Linux, which psutil doesn't report and which can be reset.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

PROC = Path("/proc")


def tree(pid: int) -> list[psutil.Process]:
    """A process and all its living descendants; empty if it ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except (psutil.Error, RuntimeError):  # RuntimeError in a sandbox whose /proc is incomplete
        return []


def resident_bytes(processes: Iterable[psutil.Process]) -> int | None:
    """Resident bytes of processes now, with shared pages counted in each; None if none is alive."""
    found: list[int] = []
    for process in processes:
        with suppress(psutil.Error):  # it ended meanwhile
            found.append(process.memory_info().rss)
    return sum(found) if found else None


def cpu_seconds(processes: Iterable[psutil.Process]) -> float | None:
    """CPU time that processes have used since they started, in seconds; None if none is alive."""
    found: list[float] = []
    for process in processes:
        with suppress(psutil.Error):  # it ended meanwhile
            times = process.cpu_times()
            found.append(times.user + times.system)
    return sum(found) if found else None


def pss_bytes(processes: Iterable[psutil.Process]) -> int | None:
    """Proportional set size of processes now, with shared pages divided among those that share them; None if the
    system doesn't report it, as only Linux does.
    """
    found: list[int] = []
    for process in processes:
        with suppress(psutil.Error):  # it ended meanwhile
            pss = getattr(process.memory_full_info(), "pss", None)
            if pss is None:
                return None
            found.append(int(pss))
    return sum(found) if found else None


def peak_bytes(pid: int | None = None) -> int | None:
    """Peak resident bytes of one process since it started or since `reset_peak`; None if unknown.

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
    """Reset the peak of a process to its current memory; False if that isn't possible."""
    try:
        (PROC / str(pid) / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
