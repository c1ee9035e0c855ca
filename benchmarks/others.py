"""How much of the cores other processes take while something is measured. Linux only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from .sampler import PROC, tree


@dataclass(frozen=True)
class Taken:
    """Seconds of processor time, at one moment."""

    at: float
    all: float
    """Of the cores that this process may use, by whatever runs there, since the system started."""
    own: float
    """Of this process, of what it started and waited for, and of the trees that were named."""


def taken(pids: Iterable[int] = ()) -> Taken | None:
    """Processor time up to now; None where the system doesn't report it. `pids` are living children."""
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        fields = [line.split() for line in (PROC / "stat").read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError, AttributeError):
        return None
    listed = [[int(value) for value in line[1:]] for line in fields if line and line[0] in cores]
    if len(listed) != len(cores) or not any(map(any, listed)):
        return None
    every = sum(sum(line[:3]) + sum(line[5:8]) for line in listed)  # all but idle, waiting for disks, and guests
    here = os.times()
    own = here.user + here.system + here.children_user + here.children_system
    return Taken(monotonic(), every / ticks, own + sum(_spent(pid, ticks) for pid in pids))


def other_cores(before: Taken | None, after: Taken | None) -> float | None:
    """Cores that others kept busy on average between two moments; None where either isn't known."""
    if before is None or after is None or after.at <= before.at or after.all <= before.all:
        return None
    return max(0.0, (after.all - before.all) - (after.own - before.own)) / (after.at - before.at)


def _spent(pid: int, ticks: int) -> float:
    """Processor seconds of a tree of processes, with those that it waited for."""
    spent = 0
    for each in tree(pid):
        with suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            after = Path(PROC / str(each) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
            spent += sum(map(int, after.split()[11:15]))
    return spent / ticks
