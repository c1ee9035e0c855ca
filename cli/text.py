"""What reaches the terminal, a pipe or a file: text without control characters, in whatever encoding, while it is open.

What a command did stands, whether or not it can be said: an output that is closed, full or not UTF-8 is no traceback.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

WIDTH = 1 << 15
"""Columns where no terminal shows the lines: none is cut."""

MAX_DIGITS = 9

CLOSED = frozenset({errno.EPIPE, errno.ESHUTDOWN, *({errno.EINVAL} if sys.platform == "win32" else ())})
"""Whoever read it has read enough."""

_CONTROLS = (
    *(code for code in range(0x20) if chr(code) not in "\n\t"),
    *range(0x7F, 0xA0),
    *(0x061C, 0x200E, 0x200F),  # what turns the direction of writing
    *range(0x2028, 0x202F),  # line separators, and the same
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
)
_ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROLS}


def plain(text: str) -> str:
    """The text with control characters but line feeds and tabs written as JSON writes them."""
    return text.translate(_ESCAPES)


def say(text: object, err: bool = False) -> None:
    """Print a line, to standard error if asked."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{plain(str(text))}\n")
    stream.flush()


def is_number(text: str) -> bool:
    """Whether it is a whole number that isn't absurdly long."""
    return text.isdecimal() and len(text) <= MAX_DIGITS


def emit_bytes(content: bytes) -> None:
    """Write bytes, as a picture's, to standard output."""
    (sys.stdout if isinstance(sys.stdout, Output) else Output(sys.stdout)).write_bytes(content)


def as_json(value: Any, indent: int | None = 2) -> str:
    """A JSON value; characters that standard output can't encode are written as JSON escapes them."""
    universal = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    return json.dumps(value, indent=indent, ensure_ascii=not universal, default=str)


class Screen(Console):
    """rich's console; only its own colours are control characters, and only a terminal's lines end at its width."""

    def __init__(self, *, file: TextIO | None = None, highlight: bool = True) -> None:
        super().__init__(file=cast("Any", file), highlight=highlight)
        if not self.is_terminal:
            self.width = WIDTH

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, without the control characters of what is rendered."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))


class Output:
    """A stream that takes every character, and whatever happens to what is behind it; the first failure is kept."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        with suppress(AttributeError, ValueError, OSError):
            cast("Any", stream).reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """As the stream does; after a failure nothing is written."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def write_bytes(self, content: bytes) -> None:
        """Write bytes to the stream behind the text."""
        self._try(lambda: self._stream.buffer.write(content))
        self.flush()

    def flush(self) -> None:
        """As the stream does."""
        self._try(self._stream.flush)

    def _try(self, act: Any) -> None:
        if self.failure is not None:
            return
        try:
            act()
        except ValueError as exc:  # it was closed
            self.failure = OSError(errno.EPIPE, str(exc))
        except OSError as exc:
            self.failure = exc
            with suppress(OSError, ValueError):  # what is left in its buffer goes nowhere, at Python's end too
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def outputs() -> Generator[Output]:
    """Standard output and standard error as `Output`s in the block; gives the former."""
    kept = sys.stdout, sys.stderr
    found = [Output(stream or _nowhere()) for stream in kept]
    sys.stdout, sys.stderr = (cast("TextIO", each) for each in found)
    try:
        yield found[0]
    finally:
        for each in found:
            each.flush()
        sys.stdout, sys.stderr = kept


def _nowhere() -> TextIO:
    """Where a program was started without such a stream."""
    return Path(os.devnull).open("w", encoding="utf-8")
