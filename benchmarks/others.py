"""How much of the cores other processes take while something is measured."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import psutil

from .memory import tree

UNUSED = ("idle", "iowait", "guest", "guest_nice")
"""Columns of a core's time in which it did nothing, or that others hold too."""


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
    """Cores that others kept busy on average between two moments; None where either isn't known."""
    if before is None or after is None or after.at <= before.at or after.all <= before.all:
        return None
    return max(0.0, (after.all - before.all) - (after.own - before.own)) / (after.at - before.at)


def _spent(pid: int) -> float:
    """Processor seconds of a tree of processes, with those that it waited for."""
    spent = 0.0
    for process in tree(pid):
        with suppress(psutil.Error):  # it ended meanwhile
            spent += sum(process.cpu_times()[:4])  # user and system, its own and its children's
    return spent
