"""The request inside a picture: PNG, JPEG or WebP.

A PNG has two text chunks: `parameters`, in AUTOMATIC1111's form for other tools (iTXt where it isn't Latin-1),
and `latentc`, exact JSON with what drew it. Both lie before the pixels. The others have the same in EXIF (`exif.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from pydantic import ValidationError

from ..core.bundle import Bundle
from ..core.errors import RequestError
from ..core.reading import parse_json
from ..core.record import Record, complaints
from ..core.request import Origin, Request, Result
from ..core.version import __version__
from ..sampling.draw import drawing_digest
from .a1111 import OWN_KEYS, Parsed, parse, write
from .complete import size_and_seed
from .exif import read_texts

PARAMETERS, OURS = "parameters", "latentc"

FRAMES = "This model draws frames, and files hold pictures. Draw with a Pipeline, and take the frames from `images`."
"""Why nothing of it is saved."""


class Drawing(Record):
    """How a picture was drawn, exactly: the `latentc` record."""

    schema_version: Literal[1] = 1
    request: Request
    """For this image alone: its own seed, and a count of 1."""
    index: int
    """Which of the images that were drawn together."""
    count: int
    """How many were."""
    seconds: dict[str, float]
    """Wall time by stage, for all of them."""
    engines: dict[str, str]
    notices: tuple[str, ...]
    model: str
    family: str
    bundle: str
    """`drawing_digest`: SHA-256 over all of the bundle that decides the picture."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Shown:
    """What a picture says of itself."""

    request: Request
    text: str
    """The `parameters` text as it stands; empty if there is none."""
    rest: Mapping[str, str]
    """Its pairs that a request has no room for, or can't take."""
    drawing: Drawing | None
    """What latentc wrote beside it, if latentc drew it."""
    width: int
    height: int
    notices: tuple[str, ...] = ()
    """What is doubtful about the file, in sentences: records that disagree, or can't be read."""
    differ: tuple[str, ...] = ()
    """Fields that the text and latentc's own record say differently; `request` is the latter's."""


def origin(bundle: Bundle) -> Origin:
    """What a result, and a picture, keep of the bundle that drew it."""
    manifest = bundle.manifest
    return Origin(
        model=PurePosixPath(manifest.source.location.replace("\\", "/")).name.removesuffix(".safetensors"),
        family=manifest.family,
        bundle=drawing_digest(bundle),
        versions={"latentc": __version__, "numpy": np.__version__, **_prefixed(manifest.versions)},
    )


def drawings(result: Result) -> Iterator[Drawing]:
    """How each image of a result was drawn; raises `RequestError` for frames, and for what no pipeline made."""
    if (made := result.origin) is None:
        raise RequestError("No pipeline made this result, so it can't be saved. Draw it with a Pipeline.")
    if result.images.ndim > 4:
        raise RequestError(FRAMES)
    _, _, seed = size_and_seed(result.request)
    for index in range(len(result.images)):
        yield Drawing(
            request=result.request.model_copy(update={"seed": seed + index, "count": 1}),
            index=index,
            count=len(result.images),
            seconds=dict(result.seconds),
            engines=dict(result.engines),
            notices=result.notices,
            model=made.model,
            family=made.family,
            bundle=made.bundle,
            versions=dict(made.versions),
        )


def texts(drawing: Drawing) -> dict[str, str]:
    """What a picture of it holds, by keyword: the text in AUTOMATIC1111's form, and exact JSON."""
    return {PARAMETERS: _text(drawing), OURS: drawing.model_dump_json(ensure_ascii=True)}


def read(path: Path | str) -> Shown:
    """The request inside a PNG, JPEG or WebP, drawn by latentc or by any tool that writes AUTOMATIC1111's form.

    Exact JSON wins over the text; where they disagree, `notices` says so. No pixel is decoded. Raises `RequestError`
    for a file that is none of these, is damaged or too large, or says nothing of how it was drawn.
    """
    found = read_texts(path, (PARAMETERS, OURS))
    text = found.texts.get(PARAMETERS, "")
    drawing, why = _drawing(found.texts.get(OURS))
    if drawing is None and PARAMETERS not in found.texts:
        others = ", ".join(sorted(found.keys)[:8])
        raise RequestError(
            f"{path} has no parameters: it doesn't say how it was drawn (texts: {others or 'none'}). "
            "Show a picture that latentc or the AUTOMATIC1111 web UI saved; editors often drop its text."
        )
    parsed = parse(text)
    notices = [*found.notices, *(() if drawing else parsed.notices)]
    differ = _differences(drawing, parsed) if drawing and PARAMETERS in found.texts else []
    if differ:
        notices.append(
            f"Its two records disagree about {', '.join(differ)}: the text was edited, or belongs to another picture. "
            "The request is that of latentc's own record."
        )
    if why:
        notices.append(f"Its latentc record can't be read ({why}): the request is that of the text.")
    request = drawing.request if drawing else parsed.request
    return Shown(request, text, parsed.rest, drawing, found.width, found.height, tuple(notices), tuple(differ))


def _prefixed(versions: Mapping[str, str]) -> dict[str, str]:
    return {f"export {name}": version for name, version in versions.items()}


def _drawing(text: str | None) -> tuple[Drawing | None, str]:
    """What latentc wrote; where that can't be read, None and why."""
    if text is None:
        return None, ""
    try:
        parse_json(text)
        return Drawing.model_validate_json(text), ""
    except ValidationError as exc:  # of another version, or edited: the parameters still hold
        return None, complaints(exc, Drawing)
    except (RequestError, ValueError) as exc:
        return None, str(exc)


def _differences(drawing: Drawing, found: Parsed) -> list[str]:
    """What the text says otherwise than it was written for this drawing; a key that it lacks says nothing."""
    wrote = parse(_text(drawing))
    names = [name for name in sorted(found.stated) if getattr(found.request, name) != getattr(wrote.request, name)]
    return names + [key for key in (*OWN_KEYS, "Model") if key in found.rest and found.rest[key] != wrote.rest.get(key)]


def _text(drawing: Drawing) -> str:
    """The `parameters` chunk of a drawing. PNG's text has no NUL; the JSON beside it keeps it, escaped."""
    made = {"Model": drawing.model, "Version": f"latentc {drawing.versions.get('latentc', __version__)}"}
    return write(drawing.request, made).replace("\0", " ")
