"""A process of a server that has a pipeline open, and answers the calls that come through a pipe.

Messages are tuples. To the process: `("call", id, method, arguments)`, `("answer", id, key, value)` and `("end",)`.
From it: `("progress", what, share)`, `("open", About)` or `("failed", error)`, then `("ask", id, key, arguments)`,
`("result", id, value)` and `("error", id, error)`. They are pickled, which is safe between a process and the one that
started it.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

from ..core.bundle import Bundle
from ..core.errors import CancelledError
from ..core.progress import Progress
from ..core.request import Request, Result, Step
from ..pipelines.pipeline import Pipeline
from ..profiles import Profile
from .opened import first_request

DRAW = "draw_many"
"""The method whose calls are run in turn, in the main thread. Others run beside it."""
WITHIN = "within"
"""Key under which `check` asks."""


class MessagePipe(Protocol):
    """One end of what messages go through; a `Connection` is one."""

    def send(self, message: tuple[Any, ...], /) -> None:
        """Send a message; raises `OSError` if the other process has ended."""
        ...

    def recv(self) -> tuple[Any, ...]:
        """Wait for the next message; raises `EOFError` or `OSError` if the other process has ended."""
        ...


@dataclass(frozen=True)
class Opening:
    """What a process opens: the arguments of `Pipeline.open`."""

    bundle: Bundle
    profile: Profile
    adapters: Mapping[str, float]
    embeddings: tuple[str, ...] = ()
    loaded: bool = True
    """Whether engines are loaded at once, and a first image is generated."""

    def open(self, on_progress: Progress) -> Pipeline:
        """Open it in this process."""
        return Pipeline.open(
            self.bundle,
            self.profile,
            on_progress,
            adapters=self.adapters,
            embeddings=self.embeddings,
            loaded=self.loaded,
        )


@dataclass(frozen=True)
class About:
    """What a process says of its open pipeline: the attributes of those names."""

    bundle: Bundle
    profile: Profile
    scheduler: str | None
    schedulers: tuple[str, ...]
    adapters: dict[str, float]
    takes_strengths: bool
    engines: dict[str, str]
    """`Pipeline.describe`."""


def work(connection: Connection, opening: Opening) -> None:
    """`answer` in a process of its own, which ends at once with the one that started it; that also decides what signals
    do.
    """
    for each in (signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)])):
        signal.signal(each, signal.SIG_IGN)
    answer(connection, opening)


def answer(messages: MessagePipe, opening: Opening) -> None:
    """Open a pipeline, generate a first image, and answer calls until `("end",)`. When the connection is lost, the
    process ends at once.
    """
    calls = _Calls(messages)
    Thread(target=calls.hear, daemon=True).start()
    try:
        with opening.open(lambda what, share=None: calls.send(("progress", what, share))) as pipeline:
            if opening.loaded:
                request, inputs = first_request(pipeline)
                pipeline(request, **inputs)
            calls.begin(pipeline)
    except Exception as exc:
        calls.send(("failed", portable(exc)))


def portable(exc: Exception) -> Exception:
    """An error that can be sent: itself, or its class and message where it can't be pickled or read elsewhere."""
    try:
        if type(exc).__module__ == "builtins" or type(exc).__module__.startswith(__name__.partition(".")[0] + "."):
            return pickle.loads(pickle.dumps(exc))  # as the other process will read it
    except Exception:  # of a class that takes other arguments
        return RuntimeError(f"{type(exc).__name__}: {exc}")
    return RuntimeError(f"{type(exc).__name__}: {exc}")


class _Calls:
    """The calls of a process."""

    def __init__(self, messages: MessagePipe) -> None:
        self._messages, self._sending = messages, Lock()
        self._draws: SimpleQueue[tuple[int, tuple[Any, ...]] | None] = SimpleQueue()
        self._answers: dict[tuple[int, object], SimpleQueue[bool]] = {}
        self._pipeline: Pipeline

    def send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            self._messages.send(message)

    def hear(self) -> None:
        """Receive messages."""
        try:
            while (message := self._messages.recv())[0] != "end":
                match message:
                    case ("answer", int(number), key, bool(value)):
                        if (answers := self._answers.get((number, key))) is not None:  # else the call has ended
                            answers.put(value)
                    case ("call", int(number), str(name), arguments) if name == DRAW:
                        self._draws.put((number, arguments))
                    case ("call", int(number), str(name), arguments):
                        Thread(target=self._run, args=(number, name, arguments), daemon=True).start()
                    case _:
                        raise AssertionError(message)
        except (EOFError, OSError):  # the process that started this one has ended
            os._exit(1)
        self._draws.put(None)

    def begin(self, pipeline: Pipeline) -> None:
        """Say that the pipeline is open, and generate images until the end."""
        self._pipeline = one = pipeline
        facts = (one.bundle, one.profile, one.scheduler, one.schedulers, one.adapters, one.takes_strengths)
        self.send(("open", About(*facts, one.describe())))
        while (draw := self._draws.get()) is not None:
            self._run(draw[0], DRAW, draw[1])

    def _run(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        methods: dict[str, Callable[..., Any]] = {
            DRAW: partial(self._draw, number),
            "check": partial(self._check, number),
            "check_decoding": self._pipeline.check_decoding,
            "decode_step": self._pipeline.decode_step,
            "load": self._pipeline.load,
            "unload": self._pipeline.unload,
        }
        try:
            self.send(("result", number, methods[name](*arguments)))
        except Exception as exc:
            self.send(("error", number, portable(exc)))
        for key in [key for key in tuple(self._answers) if key[0] == number]:
            del self._answers[key]

    def _draw(
        self, number: int, requests: Sequence[Request], inputs: Sequence[Mapping[str, Any]]
    ) -> list[Result | Exception]:
        steps = [self._stepping(number, index) for index in range(len(requests))]
        found = self._pipeline.draw_many(requests, steps, inputs=inputs, return_exceptions=True)
        return [portable(one) if isinstance(one, Exception) else one for one in found]

    def _stepping(self, number: int, index: int) -> Callable[[Step], bool]:
        """What sends each step, and goes on if the answer to the one before it was True: no step waits for an answer
        that is on its way.
        """
        answers = self._answers[number, index] = SimpleQueue[bool]()
        answers.put(True)

        def stepped(step: Step) -> bool:
            if not answers.get():
                return False
            self.send(("ask", number, index, (step,)))
            return True

        return stepped

    def _check(self, number: int, request: Request, inputs: Mapping[str, Any]) -> Request:
        answers = self._answers[number, WITHIN] = SimpleQueue[bool]()

        def within(asked: Request, size: tuple[int, int]) -> None:
            self.send(("ask", number, WITHIN, (asked, size)))
            if not answers.get():
                raise CancelledError("The request is beyond the limits.")

        return self._pipeline.check(request, within=within, **inputs)
