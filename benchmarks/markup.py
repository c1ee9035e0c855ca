"""HTML and SVG from calls: whatever isn't markup already is escaped, so that no record can write into a page."""

from __future__ import annotations

from html import escape

VOID = ("br", "img", "meta")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *inside: str, **attributes: str | float | None) -> Html:
    """An element. Strings inside are escaped unless they are `Html`; an attribute of None is left out.

    `stroke_width` is written as stroke-width and `class_` as class; numbers have two decimals at most.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{said}>")
    return Html(f"<{name}{said}>{join(*inside)}</{name}>")


def join(*pieces: str) -> Html:
    """Pieces one after the other; what isn't `Html` is escaped."""
    return Html("".join(piece if isinstance(piece, Html) else escape(piece) for piece in pieces))


def number(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else number(value)
