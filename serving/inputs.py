"""The images that clients send beside a request: from base64 or files, and only those that the model takes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from ..core.model import Model
from ..core.units import counted, listed
from .errors import ApiError

CONTROLS = ("control", "style")
"""Fields of images that guide what is generated: of ControlNets, and of an IP-Adapter."""


def from_base64(name: str, text: Any) -> bytes:
    """The file of an image in base64, which may be a data URL; raises `ApiError` 400 that names the field."""
    if not isinstance(text, str):
        raise ApiError(400, f"The {name} is not a text in base64.", param=name)
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ApiError(400, f"The {name} is not valid base64 ({exc}).", param=name) from exc


def check_files(sent: Mapping[str, Sequence[bytes]], known: Collection[str]) -> None:
    """Raise `ApiError` 400 that names a file of a form which is not among the known ones. Empty ones may be: clients of
    Stability's API send `files={"none": ""}` to make a form.
    """
    if unknown := next((name[:80] for name, files in sent.items() if name not in known and any(files)), None):
        takes = f"Send {listed(list(known))} only." if known else "Leave it out."
        raise ApiError(400, f"Unknown file {unknown!a}. {takes}", param=unknown, code="unknown_parameter")


def take_controls(left: dict[str, Any]) -> dict[str, Any]:
    """Take `control`, one text in base64 or a list of them, and `style`, a text, from a body's fields: their files, as
    `Pipeline.__call__` takes them. In a list, null is the first image again, so that it is sent once. Raises `ApiError`
    400 that names the field.
    """
    found: dict[str, Any] = {}
    if "control" in left:
        given = left.pop("control")
        texts = cast("list[Any]", given) if isinstance(given, list) else [given]
        files = [None if one is None else from_base64("control", one) for one in texts]
        first = next((one for one in files if one is not None), None)
        if texts and first is None:
            raise ApiError(400, "control has no image. null is the list's first image again.", param="control")
        found["control"] = [first if one is None else one for one in files]
    if "style" in left:
        found["style"] = from_base64("style", left.pop("style"))
    return found


def check_taken(model: Model, inputs: Mapping[str, Any]) -> None:
    """Raise `ApiError` 400 that names the field for images that guide a model without a part that reads them, and for
    another number than it has ControlNets. No image is decoded before.
    """
    if "style" in inputs and not model.takes_style:
        raise ApiError(400, "This model has no IP-Adapter, which reads a style image. Leave style out.", param="style")
    if "control" not in inputs:
        return
    given, has = len(cast("Sequence[object]", inputs["control"])), len(model.controls)
    if not has:
        raise ApiError(
            400, "This model has no ControlNet, which reads a control image. Leave control out.", param="control"
        )
    if given != has:
        raise ApiError(
            400,
            f"control has {counted(given, 'image')}, but this model has {counted(has, model.controls[0].kind)}. "
            "Send one for each, in the order of export; in a list in JSON, null is its first image again. A "
            "control_scale of 0 disables one.",
            param="control",
        )


def files_of(inputs: Mapping[str, Any]) -> dict[str, bytes]:
    """The files among the inputs of a request, by what messages call them."""
    found: dict[str, bytes] = {}
    for name, one in inputs.items():
        shown = f"{name} image" if name in CONTROLS else name
        if isinstance(one, bytes):
            found[shown] = one
        elif isinstance(one, list):
            each = cast("list[object]", one)
            numbered = {f"{shown} {index}" if len(each) > 1 else shown: file for index, file in enumerate(each, 1)}
            found |= {title: file for title, file in numbered.items() if isinstance(file, bytes)}
    return found
