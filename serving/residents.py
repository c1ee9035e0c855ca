"""Which models have their engines in memory, where not all fit: loaded when a job waits, and freed for others."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Literal, Protocol

from ..core.errors import ProfileError
from ..core.units import sized
from .queue import Queue

Presence = Literal["closed", "loading", "open", "closing"]

PATIENCE = 10.0
"""Seconds for which a model waits for others to be idle; then they generate no further batch until it was loaded."""

END_SECONDS = 10.0
"""For which the end of a server waits for what is being loaded."""

POLL_SECONDS = 0.02
"""Between two looks for a model that may be freed."""

log = logging.getLogger("latentc.serving")


class Loads(Protocol):
    """What can load and free its engines; a `Pipeline` is one."""

    def load(self) -> None:
        """`Pipeline.load`."""
        ...

    def unload(self) -> None:
        """`Pipeline.unload`."""
        ...


@dataclass
class _Resident:
    model: Loads
    bytes: int
    queue: Queue | None = None
    state: Presence = "closed"
    used: float = 0.0
    """Time at which a job was last waiting."""
    wanted: float | None = None
    """Time since which a job waits for it to be loaded."""
    served: bool = False
    """Whether it could generate something since it was loaded."""


@dataclass
class Residents:
    """The models of a server within a budget of memory. `start` begins to load what is asked for, in a thread."""

    budget: int
    patience: float = PATIENCE
    _models: dict[str, _Resident] = field(default_factory=dict[str, _Resident], init=False)
    _turn: Condition = field(default_factory=Condition, init=False)
    _closed: bool = field(default=False, init=False)
    _thread: Thread | None = field(default=None, init=False)

    def add(self, name: str, model: Loads, held_bytes: int) -> None:
        """Add a model whose engines are predicted to hold some memory, and aren't loaded."""
        self._models[name] = _Resident(model, held_bytes)

    def start(self, queues: Mapping[str, Queue]) -> None:
        """Begin to load models."""
        for name, queue in queues.items():
            self._models[name].queue = queue
        self._thread = Thread(target=self._work, name="latentc loading", daemon=True)
        self._thread.start()

    def state(self, name: str) -> Presence:
        """Whether a model's engines are in memory."""
        with self._turn:
            return self._models[name].state

    def ask(self, name: str) -> bool:
        """Whether a model can generate now; if not, it will be loaded. Called while jobs of it wait."""
        with self._turn:
            one, now = self._models[name], time.monotonic()
            one.used = now
            if one.state == "open":
                one.served = True
                return True
            if one.wanted is None:
                one.wanted = now
                self._turn.notify_all()
            return False

    def close(self) -> None:
        """Load nothing more, and wait up to `END_SECONDS` for what is being loaded."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        if self._thread is not None:
            self._thread.join(END_SECONDS)

    def _work(self) -> None:
        while (name := self._next()) is not None:
            one = self._models[name]
            try:
                if self._room_for(name):
                    one.model.load()
                    self._set(name, "open")
            except Exception as exc:
                if not self._closed:
                    log.exception("%s could not be loaded", name)
                with suppress(Exception):  # what was loaded before the error
                    one.model.unload()
                self._set(name, "closed")
                if one.queue is not None:
                    one.queue.fail(exc)
            self._wake(name)

    def _next(self) -> str | None:
        """The model that has waited longest; None at the end."""
        with self._turn:
            while not self._closed:
                waiting = {name: one.wanted for name, one in self._models.items() if one.wanted is not None}
                if waiting:
                    name = min(waiting, key=waiting.__getitem__)
                    self._models[name].state = "loading"
                    return name
                self._turn.wait()
        return None

    def _room_for(self, name: str) -> bool:
        """Free models that were not used for longest until another fits; False at the end of the server.

        Idle ones are freed first. After `patience`, others generate no further batch.
        """
        needed, began = self._models[name].bytes, time.monotonic()
        while True:
            with self._turn:
                held = {other: one for other, one in self._models.items() if one.state in ("open", "closing")}
                fits = sum(one.bytes for one in held.values()) + needed <= self.budget
                stopped = [other for other, one in held.items() if one.state == "closing"]
                oldest = sorted(held, key=lambda other: (other not in stopped, held[other].used))
                served = [other for other in oldest if held[other].served]
            if fits:
                for other in stopped:  # which another one has made unnecessary
                    self._set(other, "open")
                    self._wake(other)
                return True
            if any(self._freed(other) for other in oldest if other not in stopped):
                continue
            if served and time.monotonic() - began >= self.patience and self._freed(served[0], insist=True):
                continue
            with self._turn:
                if self._turn.wait_for(lambda: self._closed, POLL_SECONDS):
                    return False

    def _freed(self, name: str, *, insist: bool = False) -> bool:
        """Free a model unless it generates something or has jobs that wait. With `insist`, those wait longer, and it
        generates nothing after its batch.
        """
        one = self._models[name]
        self._set(name, "closing")  # from now on its queue hands out nothing
        queue = one.queue
        if queue is not None and insist and queue.generates:
            return False
        if queue is not None and not insist and not queue.empty:
            self._set(name, "open")
            self._wake(name)
            return False
        try:
            one.model.unload()
        finally:
            self._set(name, "closed")
            self._wake(name)  # so that its waiting jobs have it loaded again
        return True

    def _set(self, name: str, state: Presence) -> None:
        with self._turn:
            one = self._models[name]
            one.state = state
            one.served = one.served and state != "closed"
            if state in ("open", "closed"):
                one.wanted = None

    def _wake(self, name: str) -> None:
        queue = self._models[name].queue
        if queue is not None:
            queue.wake()


def check_each(sizes: Mapping[str, int], budget: int) -> None:
    """Raise `ProfileError` for a model that is predicted not to fit in a budget alone."""
    for name, size in sizes.items():
        if size > budget:
            raise ProfileError(
                f"{name} is predicted to hold {sized(size)}, more than the {sized(budget)} of --memory. Raise it to "
                f"{-(-size // 10**7) / 100:g} at least, or leave {name} out."
            )
