"""How many processes generate a model's images: more while jobs wait, fewer while some generate nothing."""

from __future__ import annotations

import logging
import time
from threading import Event, Thread

from .queue import Queue
from .replicas import Replicas

WAIT_SECONDS = 5.0
"""For which jobs wait before another process is started."""
IDLE_SECONDS = 60.0
"""For which a process generates nothing before it is ended."""
LOOK_SECONDS = 0.5
"""Between two looks at the queue."""

log = logging.getLogger("latentc.serving")


class Scaling:
    """Starts and ends processes of a model, from `Replicas.least` to `Replicas.count`."""

    def __init__(self, replicas: Replicas, queue: Queue) -> None:
        self._replicas, self._queue = replicas, queue
        self._waiting: float | None = None
        self._idle: float | None = None
        self._closed = Event()

    def start(self) -> None:
        """Begin to look."""
        Thread(target=self._work, name="latentc scaling", daemon=True).start()

    def close(self) -> None:
        """Start and end no more processes."""
        self._closed.set()

    def look(self, now: float) -> None:
        """Start or end a process if the queue has been in a state for long enough; `now` is in seconds."""
        waits = self._queue.waits
        self._waiting = (self._waiting or now) if waits else None
        self._idle = (self._idle or now) if not waits and self._replicas.idle else None
        if self._waiting is not None and now - self._waiting >= WAIT_SECONDS:
            self._waiting = now
            self._replicas.grow()
        if self._idle is not None and now - self._idle >= IDLE_SECONDS:
            self._idle = now
            self._replicas.shrink()

    def _work(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                self.look(time.monotonic())
            except Exception:  # such as a thread that can't be started; it looks again
                log.exception("the processes of %s were not scaled", self._replicas.name)
