"""A process that has a pipeline open, as the process that started it sees it."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Mapping
from itertools import count
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

from ..core.progress import Progress
from .queue import Interrupted
from .worker import About, MessagePipe, Opening, work

LOOK_SECONDS = 1.0
"""After which a call without a message looks whether it has taken too long."""
END_SECONDS = 10.0
"""For which a process may take to close its engines."""

log = logging.getLogger("latentc.serving")

Asked = Callable[..., bool]
"""What a call asks, with what the answer is."""


class ReplicaProcess(Protocol):
    """A process that was started; one of `multiprocessing` is one."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def pid(self) -> int | None:
        """Its id on its machine."""
        ...

    @property
    def exitcode(self) -> int | None:
        """Its exit code; None while it runs, or where it isn't known."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def join(self, timeout: float | None = None, /) -> None:
        """Wait up to so many seconds for its end."""
        ...


Begin = Callable[[Opening, str], tuple[MessagePipe, ReplicaProcess]]
"""Starts a process of a name that answers the calls of `worker`."""


def spawned(opening: Opening, name: str) -> tuple[MessagePipe, ReplicaProcess]:
    """A process of this machine, which ends with this one."""
    context = multiprocessing.get_context("spawn")  # engines don't survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, opening), name=f"latentc {name}", daemon=True)
    process.start()
    theirs.close()
    return ours, process


class Replica:
    """A process with an open pipeline. Its methods may be called from several threads."""

    def __init__(self, opening: Opening, name: str, begin: Begin = spawned) -> None:
        self._ours, self.process = begin(opening, name)
        self._lock, self._sending = Lock(), Lock()
        self._numbers = count()
        self._calls: dict[int, SimpleQueue[tuple[Any, ...]]] = {}
        self._ended = False

    def open(self, tell: Progress) -> About:
        """Wait until the pipeline is open and has generated an image. Raises the error of the opening, and
        `Interrupted`.
        """
        while True:
            try:
                message = self._ours.recv()
            except (EOFError, OSError):
                raise Interrupted(began=True) from None
            match message:
                case ("progress", what, share):
                    tell(what, share)
                case ("open", About() as facts):
                    return facts
                case ("failed", Exception() as exc):
                    raise exc
                case _:
                    raise AssertionError(message)

    def start(self, at_end: Callable[[], None]) -> None:
        """Begin to receive, after `open`; `at_end` is called in a thread when the process has ended, before its calls
        raise.
        """
        Thread(target=self._hear, args=(at_end,), name=f"{self.process.name} replies", daemon=True).start()

    def call(
        self,
        name: str,
        *arguments: object,
        asked: Mapping[object, Asked] | None = None,
        hangs: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Call a method of the process, and return its result. What it asks is answered by `asked`, in this thread.
        While it says nothing, `hangs` is asked whether it has taken too long; if so, the process is killed.

        Raises the method's error, and `Interrupted` if the process ends.
        """
        inbox = SimpleQueue[tuple[Any, ...]]()
        with self._lock:
            if self._ended:
                raise Interrupted(began=False)
            number = next(self._numbers)
            self._calls[number] = inbox
        try:
            self._send(("call", number, name, arguments))
            while True:
                try:
                    message = inbox.get(timeout=LOOK_SECONDS)
                except Empty:
                    if hangs():
                        log.warning("%s does not answer %s, and is killed", self.process.name, name)
                        self.process.kill()  # and `_hear` says that it has ended
                    continue
                match message:
                    case ("ask", key, found):
                        self._send(("answer", number, key, (asked or {})[key](*found)))
                    case ("result", value):
                        return value
                    case ("error", Exception() as exc):
                        raise exc
                    case _:
                        raise Interrupted(began=True)
        finally:
            with self._lock:
                del self._calls[number]

    def end(self) -> None:
        """Let the process close its pipeline and end."""
        self._send(("end",))
        self.process.join(END_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.join()

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            with self._sending:
                self._ours.send(message)
        except OSError:  # it has ended, and `_hear` says so to every call
            return

    def _hear(self, at_end: Callable[[], None]) -> None:
        try:
            while True:
                kind, number, *rest = self._ours.recv()
                with self._lock:
                    inbox = self._calls.get(number)
                if inbox is not None:
                    inbox.put((kind, *rest))
        except (EOFError, OSError):
            pass
        with self._lock:
            self._ended = True
            waiting = [*self._calls.values()]
        try:
            at_end()
        finally:
            for inbox in waiting:
                inbox.put(("ended",))
