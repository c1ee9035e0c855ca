"""What reaches the terminal: text of files, without the control characters that they may hold."""

from __future__ import annotations

from collections.abc import Iterable

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

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
    typer.echo(plain(str(text)), err=err)


class Screen(Console):
    """rich's console; only its own colours are control characters."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, without the control characters of what is rendered."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))
