"""The style image of a request, which an IP-Adapter reads, and its strength."""

from __future__ import annotations

from ..core.errors import RequestError
from ..core.images import pixels_sha256
from ..core.model import Model
from ..core.request import STYLE_STRENGTH, Request
from .picture import Decoded, ImageLike, load_style


def with_style(request: Request, model: Model, *, style: bool) -> Request:
    """The request with the strength of its style image filled in; `style` is whether one was passed in.

    Raises `RequestError` for a bundle without an IP-Adapter, and for settings without an image.
    """
    given = [name for name in ("style_strength", "style_sha256") if getattr(request, name) is not None]
    if not model.takes_style and (style or given):
        what = "a style image" if style else given[0]
        raise RequestError(
            f"This bundle has no IP-Adapter, and the request has {what}. Export the checkpoint with --ip-adapter, or "
            "leave it out."
        )
    if not style and given:
        raise RequestError(
            f"The request has {given[0]}, and no style image was given. Pass it with --style (in Python: style=...), "
            f"or leave {given[0]} out."
        )
    if not style or request.style_strength is not None:
        return request
    return request.model_copy(update={"style_strength": STYLE_STRENGTH})


def read_style(request: Request, style: ImageLike | Decoded | None) -> tuple[Request, Decoded | None]:
    """The request with the digest of its style image, and the decoded image, if there is one.

    Raises `RequestError` as `load_picture` does, and if the request was made with another image.
    """
    if style is None:
        return request, None
    decoded = load_style(style)
    if request.style_sha256 not in (None, found := pixels_sha256(decoded.pixels)):
        raise RequestError(
            f"The request was made with another style image: the SHA-256 of its pixels is "
            f"{str(request.style_sha256)[:12]}..., and that of this one {found[:12]}.... Pass that image, or make a "
            "new request for this one."
        )
    return request.model_copy(update={"style_sha256": found}), decoded


def about_style(model: Model, style: Decoded | None) -> list[str]:
    """Notices about the style image of a completed request."""
    if style is None:
        message = "No style image was given for the IP-Adapter of this bundle: it has no effect, but takes its time."
        return [f"{message} For the same image in less time, use a bundle without it."] if model.takes_style else []
    height, width = style.pixels.shape[:2]
    cut = f"Of the style image of {width}x{height} pixels, the IP-Adapter sees only the square in the middle."
    return [*style.notices, *([cut] if width != height else [])]
