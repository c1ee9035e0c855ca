"""The command line: thin commands over the packages below."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPED = 128 + signal.SIGINT
"""Exit code of a command stopped by Ctrl-C, as in shells and typer."""

BEFORE = "before"
"""Attribute of an exception: work finished before it, which `--json` reports beside the error."""


def main() -> None:
    """Run `latentc`: a `LatentcError` prints a line and exits with 1, wrong usage with 2. `--debug` shows the trace.

    With `--json` the error is also printed to standard output: `{"error": class, "message": ...}`. SIGTERM and SIGHUP
    clean up like Ctrl-C. If standard output is full, the exit code is 1; a closed pipe is not an error.
    """
    from .text import CLOSED, outputs, say

    with _ended_by_signals() as received, outputs() as output:
        code = _run(sys.argv[1:])
        if received and code == STOPPED:
            code = 128 + received[0]
        output.flush()
        if output.failure is not None and output.failure.errno not in CLOSED:
            say(
                f"latentc: standard output cannot be written ({output.failure.strerror}). Its output is lost; "
                "the work of the command is kept.",
                err=True,
            )
            code = code or 1
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run a command; returns its exit code."""
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
        _say_error(type(exc).__name__, f"out of memory ({exc or 'no details'}). {MEMORY_ADVICE}", exc, as_json=as_json)
        return 1
    except KeyboardInterrupt as exc:
        _say_error(CancelledError.__name__, "stopped", exc, as_json=as_json)
        return STOPPED
    except SystemExit as exc:
        if not isinstance(exc.code, int):
            raise
        if exc.code == STOPPED:  # typer's exit code for Ctrl-C
            _say_error(CancelledError.__name__, "stopped", exc, as_json=as_json)
        elif exc.code == 2 and as_json:  # typer has printed it to standard error
            message = getattr(exc.__context__, "format_message", lambda: "wrong usage")
            _say_json("UsageError", str(message()), exc)
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
    """Let SIGTERM and SIGHUP stop the command like Ctrl-C, unless ignored or handled; yields those received."""
    received: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:  # cleanup must not be interrupted by a second signal
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
