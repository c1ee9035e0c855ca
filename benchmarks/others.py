"""CPU time that other processes use during a measurement."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import psutil

from .memory import tree

UNUSED = ("idle", "iowait", "guest", "guest_nice")
"""Columns of CPU time in which a core was idle, or that other columns include."""


@dataclass(frozen=True)
class Taken:
    """CPU time in seconds, at one moment."""

    at: float
    all: float
    """Of all processes on the cores that this process may use, since the system started."""
    own: float
    """Of this process, its finished children, and the given process trees."""


def taken(pids: Iterable[int] = ()) -> Taken | None:
    """CPU time up to now; None if the system doesn't report it. `pids` are living children."""
    try:
        listed = psutil.cpu_times(percpu=True)
    except (psutil.Error, OSError, RuntimeError, IndexError, ValueError):
        return None
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(listed))
    cores = [listed[core]._asdict() for core in usable if core < len(listed)]
    if len(cores) < len(usable) or not any(any(core.values()) for core in cores):
        return None
    every = sum(seconds for core in cores for name, seconds in core.items() if name not in UNUSED)
    here = os.times()
    own = here.user + here.system + here.children_user + here.children_system
    return Taken(monotonic(), every, own + sum(map(_spent, pids)))


def other_cores(before: Taken | None, after: Taken | None) -> float | None:
    """Average number of cores used by other processes between two moments; None if unknown."""
    if before is None or after is None or after.at <= before.at or after.all <= before.all:
        return None
    return max(0.0, (after.all - before.all) - (after.own - before.own)) / (after.at - before.at)


def _spent(pid: int) -> float:
    """CPU seconds of a process tree, including finished children."""
    spent = 0.0
    for process in tree(pid):
        with suppress(psutil.Error):  # it ended meanwhile
            spent += sum(process.cpu_times()[:4])  # user and system, its own and its children's
    return spent
