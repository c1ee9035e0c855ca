"""The images of ControlNets in a request, and their settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.errors import RequestError
from ..core.images import pixels_sha256
from ..core.model import Model
from ..core.request import Request
from ..core.units import counted

if TYPE_CHECKING:
    from .picture import Decoded

FIELDS = ("control_scale", "control_start", "control_end", "guess_mode")
DEFAULTS = {"control_scale": 1.0, "control_start": 0.0, "control_end": 1.0}


def with_controls(request: Request, model: Model, count: int) -> Request:
    """The request with a value of each setting for each ControlNet; `count` is the number of images passed in.

    Raises `RequestError` for another number of images or values than the model has ControlNets, and for settings
    without images.
    """
    has, kind = len(model.controls), title(model)
    given = [name for name in (*FIELDS, "control_sha256") if getattr(request, name) is not None]
    if not has:
        if given or count:
            what = f"{counted(count, 'image')} of ControlNets" if count else given[0]
            raise RequestError(
                f"This bundle has no ControlNet, and the request has {what}. Export the checkpoint with --controlnet, "
                "or leave it out."
            )
        return request
    if not count:
        if given:
            raise RequestError(
                f"The request has {given[0]}, and no image for the {counted(has, kind)} of this bundle. Pass "
                f"it with --control (in Python: control=...), or leave {given[0]} out."
            )
        return request
    if count != has:
        raise RequestError(
            f"{counted(count, 'image')} of {kind}s were passed, but this bundle has {counted(has, kind)}. "
            "Pass one for each, in the order of export. A scale of 0 disables one."
        )
    if request.guess_mode and not all(one.guesses for one in model.controls):
        raise RequestError(f"The {kind}s of this bundle have no guess mode. Leave guess_mode out.")
    settings: dict[str, object] = {"guess_mode": bool(request.guess_mode)}
    for name, default in DEFAULTS.items():
        values: tuple[float, ...] = getattr(request, name) or (default,)
        if len(values) not in (1, has):
            raise RequestError(
                f"{name} has {len(values)} values, but this bundle has {counted(has, kind)}. Give one for "
                "each, or one for all."
            )
        settings[name] = values * has if len(values) == 1 else values
    filled = request.model_copy(update=settings)
    for start, end in zip(filled.control_start or (), filled.control_end or (), strict=True):
        if start >= end:
            raise RequestError(
                f"A {kind} begins at {start:g} of the steps and ends at {end:g}, so it has no effect. Give a "
                "control_end above control_start."
            )
    return filled


def title(model: Model) -> str:
    """What the model's ControlNets are: all of them are of one kind."""
    return model.controls[0].kind if model.controls else "ControlNet"


def digested(request: Request, controls: Sequence[Decoded]) -> Request:
    """The request with the digests of these images; raises `RequestError` if it was made with others."""
    if not controls:
        return request
    found = tuple(pixels_sha256(one.pixels) for one in controls)
    if request.control_sha256 not in (None, found):
        raise RequestError(
            f"The request was made with other images for its ControlNets: the SHA-256 of their pixels are "
            f"{_short(request.control_sha256 or ())}, and those of these {_short(found)}. Pass those images, or make a "
            "new request for these."
        )
    return request.model_copy(update={"control_sha256": found})


def about_controls(model: Model, controls: Sequence[Decoded], request: Request) -> list[str]:
    """Notices about the images of ControlNets of a completed request."""
    if model.controls and not controls:
        message = (
            f"No image was given for the {title(model)}s of this bundle: they have no effect, but take their time."
        )
        return [f"{message} For the same image in less time, use a bundle without them."]
    notices = [notice for one in controls for notice in one.notices]
    for one in controls:
        height, width = one.pixels.shape[:2]
        if width * (request.height or 0) != height * (request.width or 0):
            notices.append(
                f"A {title(model)}'s image of {width}x{height} pixels was resized to {request.width}x{request.height}, "
                "which changes its proportions."
            )
    return notices


def _short(digests: Sequence[str]) -> str:
    return " and ".join(f"{one[:12]}..." for one in digests)
