"""Sample resident and GPU memory of a process tree, in a process that sleeps unless a tree is watched.

On Linux the peak of the first process comes from the kernel and is reset when a watch begins, so that no peak between
samples is missed. Elsewhere, and for children and GPU memory, the peak is the largest sample.
"""

from __future__ import annotations

from collections.abc import Collection
from threading import Event, Lock, Thread
from typing import Any

import psutil

from .line import serve
from .memory import peak_bytes, reset_peak, resident_bytes, tree
from .vram import MemoryHeld, VramWatch, devices

INTERVAL_SECONDS = 0.02
LISTED_EVERY = 10
"""Samples between two listings of the tree, as listing reads all processes of the system."""


class MemorySampler:
    """Watches one process at a time, and keeps the peak of each over its life."""

    def __init__(self) -> None:
        self._lives: dict[int, int] = {}
        self._devices = devices()
        self._vram: dict[int, VramWatch] = {}
        self._watched: int | None = None
        self._peak = 0
        self._exact = False
        self._lock = Lock()
        self._awake = Event()
        Thread(target=self._sample, daemon=True).start()

    def watch(self, pid: int) -> MemoryHeld:
        """Start watching a process."""
        now = resident_bytes(tree(pid))
        with self._lock:
            self._remember(pid, peak_bytes(pid))
            self._exact = reset_peak(pid)
            self._watched, self._peak = pid, now or 0
            self._watch_of(pid)
        self._awake.set()
        return MemoryHeld(now=now, peak=now)

    def stop(self) -> MemoryHeld:
        """Stop watching; returns the current memory and the peak since the watch began."""
        self._awake.clear()
        with self._lock:
            pid, self._watched = self._watched, None
            if pid is None:
                return MemoryHeld()
            now = self._look(pid, tree(pid))
            if now is None:
                return MemoryHeld()
            if self._exact:
                self._peak = max(self._peak, peak_bytes(pid) or 0)
            self._remember(pid, self._peak)
            return MemoryHeld(now=now, peak=self._peak, vram=self._vram[pid].held())

    def peak(self, pid: int) -> MemoryHeld:
        """Peak memory of a process over its life, as far as it was sampled."""
        processes = tree(pid)
        now = resident_bytes(processes)
        with self._lock:
            self._remember(pid, peak_bytes(pid))
            self._remember(pid, now)
            watch = self._watch_of(pid)
            watch.see([one.pid for one in processes], alone=False)
            return MemoryHeld(now=now, peak=self._lives.get(pid), vram=watch.held())

    def _look(self, pid: int, processes: Collection[psutil.Process]) -> int | None:
        now = resident_bytes(processes)
        self._peak = max(self._peak, now or 0)
        self._vram[pid].see([one.pid for one in processes])
        return now

    def _watch_of(self, pid: int) -> VramWatch:
        """The GPU watch of a process, created once because it records the idle value of the devices."""
        if pid not in self._vram:
            self._vram[pid] = VramWatch(self._devices)
        return self._vram[pid]

    def _remember(self, pid: int, peak: int | None) -> None:
        if peak is not None:
            self._lives[pid] = max(self._lives.get(pid, 0), peak)

    def _sample(self) -> None:
        pause, count, listed = Event(), 0, list[psutil.Process]()
        while True:
            self._awake.wait()
            with self._lock:
                if self._watched is not None:
                    if count % LISTED_EVERY == 0 or not listed or listed[0].pid != self._watched:
                        listed = tree(self._watched)
                    self._look(self._watched, listed)
            count += 1
            pause.wait(INTERVAL_SECONDS)


def main() -> None:
    """Answer the harness until it disconnects."""
    sampler = MemorySampler()

    def stop(_: dict[str, Any]) -> MemoryHeld:
        return sampler.stop()

    serve(
        {"watch": lambda what: sampler.watch(what["pid"]), "stop": stop, "peak": lambda what: sampler.peak(what["pid"])}
    )


if __name__ == "__main__":
    main()
