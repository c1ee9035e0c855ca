"""A model in several processes: which of them generates a batch, and what is done when one ends."""

from __future__ import annotations

import atexit
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Condition, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.bundle import Bundle
from ..core.errors import CancelledError, ProfileError
from ..core.progress import Progress, quiet
from ..core.request import Request, Result, Step
from ..pipelines.pipeline import preview_of
from ..profiles import Profile
from .errors import ApiError
from .queue import Interrupted
from .replica import Begin, Replica, spawned
from .worker import DRAW, WITHIN, About, Opening

RETRY_SECONDS = (1.0, 60.0)
"""Before a process that did not open is started again: at first, and at most, after doubling."""

ASK_SECONDS = 120.0
"""For which a process may take to answer what is no batch; then it is killed, and another one asked."""

log = logging.getLogger("latentc.serving")


class Replicas:
    """A model in several processes, each with a pipeline of its own. One that ends is started again.

    It is an `OpenModel`; `draw_many` may be called as many times at once as there are processes (`room`).
    """

    def __init__(
        self,
        name: str,
        openings: Sequence[Opening],
        tell: Progress = quiet,
        *,
        least: int | None = None,
        begin: Begin = spawned,
    ) -> None:
        """Start a process for each opening, or for the first `least`: the first alone, since it may have to prove
        engines. Raises its error, and `ProfileError` if one ends.
        """
        self.name, self.restarts = name, 0
        self.on_change: Callable[[], None] = lambda: None
        """Called when a process has ended or was started again, in any thread."""
        self.on_restart: Callable[[], None] = lambda: None
        """Called when a process was started again, before `on_change`."""
        self.hangs: Callable[[Sequence[Request]], bool] = lambda _: False
        """Asked whether the process that generates requests should have ended them; then it is killed."""
        self.least = len(openings) if least is None else least
        self._openings, self._turn, self._closed = openings, Condition(), False
        self._begin, self._wanted = begin, set(range(self.least))
        self._opening: dict[int, Replica] = {}
        self._starting: set[int] = set()
        """Those that `_restart` starts."""
        self._retry_at = -math.inf
        self._open: dict[int, Replica] = {}
        self._drawing: set[Replica] = set()
        atexit.register(self.close)  # a process ignores the signal by which multiprocessing would end it
        try:
            for indices in (range(1), range(1, self.least)):
                for index, replica in [(index, self._start(index)) for index in indices]:
                    self._about = self._finish(index, replica, tell)
        except Interrupted as exc:
            self.close()
            raise ProfileError(
                f"A process that opened {name} has ended, as one does that is out of memory. Serve fewer replicas."
            ) from exc
        except BaseException:
            self.close()
            raise

    @property
    def bundle(self) -> Bundle:
        """`Pipeline.bundle`."""
        return self._about.bundle

    @property
    def profile(self) -> Profile:
        """`Pipeline.profile`."""
        return self._about.profile

    @property
    def scheduler(self) -> str | None:
        """`Pipeline.scheduler`."""
        return self._about.scheduler

    @property
    def schedulers(self) -> tuple[str, ...]:
        """`Pipeline.schedulers`."""
        return self._about.schedulers

    @property
    def adapters(self) -> dict[str, float]:
        """`Pipeline.adapters`."""
        return self._about.adapters

    @property
    def takes_strengths(self) -> bool:
        """`Pipeline.takes_strengths`."""
        return self._about.takes_strengths

    @property
    def processes(self) -> tuple[int, ...]:
        """Ids of the processes that are open."""
        with self._turn:
            return tuple(one.process.pid or 0 for one in self._open.values())

    @property
    def count(self) -> int:
        """How many processes there may be."""
        return len(self._openings)

    def room(self) -> int:
        """How many batches can be generated at once now."""
        with self._turn:
            return len(self._open)

    def state(self) -> dict[str, int]:
        """How many processes are open, of how many, and how often one was started again."""
        return {"open": self.room(), "count": len(self._wanted), "restarts": self.restarts}

    def describe(self) -> dict[str, str]:
        """`Pipeline.describe`."""
        return self._about.engines

    def preview(self, step: Step) -> NDArray[np.uint8]:
        """`Pipeline.preview`."""
        return preview_of(self.bundle, step)

    def check(
        self, request: Request, *, within: Callable[[Request, tuple[int, int]], None] | None = None, **inputs: Any
    ) -> Request:
        """`Pipeline.check`."""
        beyond: list[Exception] = []

        def asked(completed: Request, size: tuple[int, int]) -> bool:
            try:
                if within is not None:
                    within(completed, size)
            except Exception as exc:  # raised here, not in the other process
                beyond.append(exc)
            return not beyond

        try:
            return self._ask("check", request, inputs, asked={WITHIN: asked})
        except CancelledError:
            raise (beyond or [CancelledError("The request was cancelled.")])[0] from None

    def check_decoding(self) -> None:
        """`Pipeline.check_decoding`."""
        self._ask("check_decoding")

    def decode_step(self, request: Request, step: Step) -> NDArray[np.uint8]:
        """`Pipeline.decode_step`."""
        return self._ask("decode_step", request, step, hangs=lambda: self.hangs([request]))

    def draw_many(
        self,
        requests: Sequence[Request],
        on_step: Sequence[Callable[[Step], bool | None]],
        *,
        inputs: Sequence[Mapping[str, Any]],
        return_exceptions: bool = True,
    ) -> list[Result | Exception]:
        """`Pipeline.draw_many` with `return_exceptions`, in a process that generates nothing else.

        Raises `Interrupted` if it ends, or none is free.
        """
        assert return_exceptions
        answers: dict[object, Callable[..., bool]] = {index: _answering(one) for index, one in enumerate(on_step)}
        with self._turn:
            replica = next((one for one in self._open.values() if one not in self._drawing), None)
            if replica is None:
                raise Interrupted(began=False)
            self._drawing.add(replica)
        try:
            return replica.call(DRAW, requests, inputs, asked=answers, hangs=lambda: self.hangs(requests))
        finally:
            with self._turn:
                self._drawing.discard(replica)

    def load(self) -> None:
        """`Pipeline.load` in each process; one that is started again loads its engines with its first batch."""
        self._each("load")

    def unload(self) -> None:
        """`Pipeline.unload` in each process."""
        self._each("unload")

    def _each(self, name: str) -> None:
        with self._turn:
            each = [*self._open.values()]
        for replica in each:
            with suppress(Interrupted):  # it has ended, and so holds nothing
                replica.call(name)

    def grow(self) -> bool:
        """Start another process, unless one is being started, there are as many as there may be, or one has just failed
        to open.
        """
        with self._turn:
            index = next((one for one in range(self.count) if one not in self._wanted), None)
            busy = self._starting or time.monotonic() < self._retry_at
            if self._closed or busy or index is None:
                return False
            thread = Thread(target=self._restart, args=(index, False), name=f"latentc {self.name} start", daemon=True)
            thread.start()  # it waits for the lock
            self._wanted.add(index)
            self._starting.add(index)
        return True

    def shrink(self) -> bool:
        """End a process that isn't open yet, or else one that generates nothing, unless only `least` are open."""
        with self._turn:
            free = [index for index, one in self._open.items() if one not in self._drawing]
            pending = self._wanted - self._open.keys()
            if self._closed or not (pending or free) or len(self._wanted) <= self.least or len(self._open) < self.least:
                return False
            index = max(pending or free)
            self._wanted.remove(index)
            opening, opened = self._opening.get(index), self._open.pop(index, None)
        if opening is not None:
            opening.kill()
        if opened is not None:
            self.on_change()
            Thread(target=opened.end, name=f"latentc {self.name} end", daemon=True).start()
        return True

    @property
    def idle(self) -> bool:
        """Whether a process generates nothing."""
        with self._turn:
            return len(self._drawing) < len(self._open)

    def close(self) -> None:
        """End all processes."""
        atexit.unregister(self.close)
        with self._turn:
            self._closed = True
            opened, opening, self._open = [*self._open.values()], [*self._opening.values()], {}
            self._turn.notify_all()
        for replica in opening:
            replica.kill()
        for replica in opened:
            replica.end()

    def _ask(
        self,
        name: str,
        *arguments: object,
        asked: Mapping[object, Callable[..., bool]] | None = None,
        hangs: Callable[[], bool] = lambda: True,
    ) -> Any:
        """Call a method of a process, preferably of one that generates nothing; if it ends, of another, once. After
        `ASK_SECONDS`, it is killed as soon as `hangs` is true.
        """
        for _ in range(2):
            with self._turn:
                free = sorted(self._open.values(), key=self._drawing.__contains__)
            if not free:
                break
            try:
                return free[0].call(name, *arguments, asked=asked, hangs=_later(hangs))
            except Interrupted:
                continue
        raise ApiError(503, "The model's processes are being restarted. Try again.", code="restarting", retry_seconds=5)

    def _start(self, index: int) -> Replica:
        with self._turn:
            self._check_wanted(index)
            replica = Replica(self._openings[index], f"{self.name} {index + 1}", self._begin)
            self._opening[index] = replica
        return replica

    def _check_wanted(self, index: int) -> None:
        if self._closed or index not in self._wanted:  # `close` or `shrink`
            raise Interrupted(began=False)

    def _finish(self, index: int, replica: Replica, tell: Progress) -> About:
        """Wait until a process is open, and let it be used."""
        try:
            facts = replica.open(tell)
            with self._turn:
                self._check_wanted(index)
                replica.start(lambda: self._ended(index, replica))
                self._open[index] = replica
            return facts
        except BaseException:
            replica.kill()
            raise
        finally:
            with self._turn:
                del self._opening[index]

    def _ended(self, index: int, replica: Replica) -> None:
        """Start a process again that has ended."""
        with self._turn:
            if self._closed or self._open.get(index) is not replica:  # `shrink` has ended it
                return
            del self._open[index]
            self._starting.add(index)
        replica.kill()
        log.warning("process %d of %s has ended (%s) and is restarted", index + 1, self.name, replica.process.exitcode)
        self.on_change()
        Thread(target=self._restart, args=(index, True), name=f"latentc {self.name} restart", daemon=True).start()

    def _restart(self, index: int, again: bool) -> None:
        """Start a process until it is open. One that doesn't open is given up if more than `least` are wanted."""
        seconds, most = RETRY_SECONDS
        try:
            while not self._try(index, seconds):
                seconds = min(most, 2 * seconds)
        finally:
            with self._turn:
                self._starting.discard(index)
        with self._turn:
            opened = index in self._open
        if opened and again:
            self.restarts += 1
            self.on_restart()
        self.on_change()

    def _try(self, index: int, seconds: float) -> bool:
        """Start a process; returns whether it is open, or no longer wanted, and otherwise waits for so long."""
        try:
            self._finish(index, self._start(index), quiet)
        except Exception as exc:
            with self._turn:
                if self._closed or index not in self._wanted:
                    return True
                give_up = len(self._wanted) > self.least
                if give_up:
                    self._wanted.remove(index)
                    self._retry_at = time.monotonic() + RETRY_SECONDS[1]
                said = " and is given up" if give_up else ""
                log.warning("process %d of %s did not open%s: %a", index + 1, self.name, said, str(exc))
                return give_up or self._turn.wait_for(lambda: self._closed, seconds)
        return True


def _later(hangs: Callable[[], bool]) -> Callable[[], bool]:
    """`hangs`, but not within `ASK_SECONDS` from now."""
    until = time.monotonic() + ASK_SECONDS
    return lambda: time.monotonic() >= until and hangs()


def _answering(on_step: Callable[[Step], bool | None]) -> Callable[[Step], bool]:
    return lambda step: on_step(step) is not False
