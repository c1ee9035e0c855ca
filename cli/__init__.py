"""The command line: thin commands over the rooms below."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C stopped, as shells and typer have it."""

BEFORE = "before"
"""Attribute of an exception: what was done before it, which `--json` says beside the error."""


def main() -> None:
    """Run `latentc`: an error of ours is one line and exit code 1, wrong usage is 2; `--debug` shows the trace.

    With `--json` the error is on standard output too: `{"error": class, "message": ...}`. SIGTERM and SIGHUP clean up
    as Ctrl-C does. Where standard output is full, the exit code is 1; that its reader closed it is no error.
    """
    from .text import CLOSED, outputs, say

    with _ended_by_signals() as received, outputs() as output:
        code = _run(sys.argv[1:])
        if received and code == STOPPED:
            code = 128 + received[0]
        output.flush()
        if output.failure is not None and output.failure.errno not in CLOSED:
            say(
                f"latentc: standard output can't be written ({output.failure.strerror}). What this command had to say "
                "is lost; what it did stands.",
                err=True,
            )
            code = code or 1
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run a command; its exit code."""
    from ..core.errors import CancelledError, LatentcError
    from ..core.limits import MEMORY_ADVICE
    from .app import app

    as_json = "--json" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="latentc")
    except LatentcError as exc:
        if "--debug" in arguments:
            raise
        _say_error(type(exc).__name__, str(exc), exc, as_json=as_json)
        return 1
    except MemoryError as exc:
        _say_error(
            type(exc).__name__, f"memory ran out ({exc or 'no more is known'}). {MEMORY_ADVICE}", exc, as_json=as_json
        )
        return 1
    except KeyboardInterrupt as exc:
        _say_error(CancelledError.__name__, "stopped", exc, as_json=as_json)
        return STOPPED
    except SystemExit as exc:
        if not isinstance(exc.code, int):
            raise
        if exc.code == STOPPED:  # typer's word for Ctrl-C
            _say_error(CancelledError.__name__, "stopped", exc, as_json=as_json)
        elif exc.code == 2 and as_json:  # typer has said it on standard error
            said = getattr(exc.__context__, "format_message", lambda: "wrong usage")
            _say_json("UsageError", str(said()), exc)
        return exc.code
    return 0


def _say_error(kind: str, message: str, exc: BaseException, *, as_json: bool) -> None:
    from .text import say

    say(f"latentc: {message}", err=True)
    if as_json:
        _say_json(kind, message, exc)


def _say_json(kind: str, message: str, exc: BaseException | None) -> None:
    from .text import as_json, say

    before: dict[str, Any] = {}
    while exc is not None:
        before |= vars(exc).get(BEFORE, {})
        exc = exc.__cause__ or exc.__context__
    say(as_json({"error": kind, "message": message, **before}))


@contextmanager
def _ended_by_signals() -> Generator[list[int]]:
    """Let SIGTERM and SIGHUP end what runs as Ctrl-C does, unless they are ignored or handled; gives those received."""
    received: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:  # what it ends cleans up, and takes no second one
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    try:
        taken = {each: signal.signal(each, end) for each in numbers if signal.getsignal(each) is signal.SIG_DFL}
    except ValueError:  # not in the main thread
        taken = {}
    try:
        yield received
    finally:
        for each, before in taken.items():
            signal.signal(each, before)
