"""Resident and GPU memory of a tree of processes, sampled by a process that sleeps unless something is watched.

Resident memory on Linux only. The peak of the first process is the kernel's own (`VmHWM`, set back when a watch
begins), so that no peak between two samples is missed; those of its children, and all of the GPU's, are sampled.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from .line import serve
from .vram import VramHeld, VramWatch, devices

INTERVAL_SECONDS = 0.02
PROC = Path("/proc")


@dataclass(frozen=True)
class Held:
    """Bytes that a tree of processes holds; None where the system doesn't tell."""

    now: int | None
    peak: int | None
    """Since the watch began; of `peak`, since the process began."""
    vram: tuple[VramHeld, ...] = ()
    """Of each GPU that held something since the first watch of the process."""


def resident_bytes(pid: int) -> int | None:
    """What a process and all its descendants hold now, each page counted in every process that has it."""
    own = status_bytes(pid, "VmRSS")
    if own is None:
        return None
    return own + sum(status_bytes(each, "VmRSS") or 0 for each in tree(pid)[1:])


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    return [pid, *(below for child in children(pid) for below in tree(child))]


def status_bytes(pid: int, field: str) -> int | None:
    """A size in `/proc/<pid>/status`; None where the process ended or the system has no such file."""
    try:
        text = (PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def children(pid: int) -> list[int]:
    """Processes that the threads of a process started, and that live."""
    found: list[int] = []
    for tell in (PROC / str(pid) / "task").glob("*/children"):
        with suppress(OSError):  # a thread ended meanwhile
            found += [int(child) for child in tell.read_text(encoding="ascii").split()]
    return found


def reset_peak(pid: int) -> bool:
    """Set `VmHWM` of a process back to what it holds now; False where that isn't allowed."""
    try:
        (PROC / str(pid) / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


class Sampler:
    """Watches one process at a time; remembers the peak of each over its life."""

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

    def watch(self, pid: int) -> Held:
        """Begin to watch a process."""
        now = resident_bytes(pid)
        with self._lock:
            self._remember(pid, status_bytes(pid, "VmHWM"))
            self._exact = reset_peak(pid)
            self._watched, self._peak = pid, now or 0
            self._watch_of(pid)
        self._awake.set()
        return Held(now, now)

    def stop(self) -> Held:
        """End the watch: what is held now, and the most since it began."""
        self._awake.clear()
        with self._lock:
            pid, self._watched = self._watched, None
            now = None if pid is None else resident_bytes(pid)
            if pid is not None:
                self._vram[pid].see(tree(pid))
            if pid is None or now is None:
                return Held(None, None)
            highest = status_bytes(pid, "VmHWM") if self._exact else None
            peak = max(self._peak, now, highest or 0)
            self._remember(pid, peak)
            return Held(now, peak, self._vram[pid].held())

    def peak(self, pid: int) -> Held:
        """The most that a process held in its life, as far as it was seen."""
        now = resident_bytes(pid)
        with self._lock:
            self._remember(pid, status_bytes(pid, "VmHWM"))
            self._remember(pid, now)
            watch = self._watch_of(pid)
            watch.see(tree(pid), alone=False)
            return Held(now, self._lives.get(pid), watch.held())

    def _watch_of(self, pid: int) -> VramWatch:
        """The one that began with the process: making another asks the devices for their idle value again."""
        if pid not in self._vram:
            self._vram[pid] = VramWatch(self._devices)
        return self._vram[pid]

    def _remember(self, pid: int, peak: int | None) -> None:
        if peak is not None:
            self._lives[pid] = max(self._lives.get(pid, 0), peak)

    def _sample(self) -> None:
        pause = Event()
        while True:
            self._awake.wait()
            with self._lock:
                if self._watched is not None:
                    self._peak = max(self._peak, resident_bytes(self._watched) or 0)
                    self._vram[self._watched].see(tree(self._watched))
            pause.wait(INTERVAL_SECONDS)


def main() -> None:
    """Answer the harness until it hangs up."""
    sampler = Sampler()

    def stop(_: dict[str, Any]) -> Held:
        return sampler.stop()

    serve(
        {"watch": lambda what: sampler.watch(what["pid"]), "stop": stop, "peak": lambda what: sampler.peak(what["pid"])}
    )


if __name__ == "__main__":
    main()
