"""Output to a terminal, a pipe or a file: text without control characters, in any encoding.

A command's work is kept even if its output cannot be written: an output that is closed, full or not UTF-8 raises no
traceback.
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
"""Columns if the output is not a terminal, so that no line is wrapped."""

MAX_DIGITS = 9

CLOSED = frozenset({errno.EPIPE, errno.ESHUTDOWN, *({errno.EINVAL} if sys.platform == "win32" else ())})
"""Errors of an output whose reader has closed it."""

_CONTROLS = (
    *(code for code in range(0x20) if chr(code) not in "\n\t"),
    *range(0x7F, 0xA0),
    *(0x061C, 0x200E, 0x200F),  # change the direction of writing
    *range(0x2028, 0x202F),  # line separators, and more direction changes
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
)
_ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROLS}


def plain(text: str) -> str:
    """Escape control characters as JSON does, except line feeds and tabs."""
    return text.translate(_ESCAPES)


def say(text: object, err: bool = False) -> None:
    """Print a line to standard output, or to standard error."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{plain(str(text))}\n")
    stream.flush()


def is_number(text: str) -> bool:
    """Whether the text is a whole number of at most `MAX_DIGITS` digits."""
    return text.isdecimal() and len(text) <= MAX_DIGITS


def emit_bytes(content: bytes) -> None:
    """Write bytes, such as an image's, to standard output."""
    (sys.stdout if isinstance(sys.stdout, Output) else Output(sys.stdout)).write_bytes(content)


def as_json(value: Any, indent: int | None = 2) -> str:
    """A value as JSON text; characters that standard output cannot encode are escaped."""
    universal = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    return json.dumps(value, indent=indent, ensure_ascii=not universal, default=str)


class Screen(Console):
    """rich's console. Only its colours produce control characters, and only a terminal wraps lines at its width."""

    def __init__(self, *, file: TextIO | None = None, highlight: bool = True) -> None:
        super().__init__(file=cast("Any", file), highlight=highlight)
        if not self.is_terminal:
            self.width = WIDTH

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render like rich, with control characters in the content escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))


class Output:
    """A text stream that accepts every character and never raises; the first failure is kept in `failure`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        with suppress(AttributeError, ValueError, OSError):
            cast("Any", stream).reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write text; nothing is written after a failure."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def write_bytes(self, content: bytes) -> None:
        """Write bytes to the underlying binary stream."""
        self._try(lambda: self._stream.buffer.write(content))
        self.flush()

    def flush(self) -> None:
        """Flush the stream."""
        self._try(self._stream.flush)

    def _try(self, act: Any) -> None:
        if self.failure is not None:
            return
        try:
            act()
        except ValueError as exc:  # the stream is closed
            self.failure = OSError(errno.EPIPE, str(exc))
        except OSError as exc:
            self.failure = exc
            with suppress(OSError, ValueError):  # discard what is left in the buffer, also when Python exits
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def outputs() -> Generator[Output]:
    """Replace standard output and standard error by `Output`s in the block; yields the former."""
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
    """A stand-in for a standard stream that the program was started without."""
    return Path(os.devnull).open("w", encoding="utf-8")
