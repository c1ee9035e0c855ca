"""Pictures on disk: PNG files that hold the request they were drawn from.

Two text chunks: `parameters`, in AUTOMATIC1111's form for other tools (iTXt where it isn't Latin-1),
and `latentc`, exact JSON with what drew it. Both lie before the pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from .. import __version__
from ..core.bundle import Bundle
from ..core.errors import RequestError
from ..core.files import sha256_json, unwritable, write_bytes
from ..core.reading import parse_json
from ..core.record import Record, complaints
from ..core.request import Request, Result
from .a1111 import OWN_KEYS, Parsed, parse, write
from .chunks import read_texts
from .complete import size_and_seed

PARAMETERS, OURS = "parameters", "latentc"


class Drawing(Record):
    """How a picture was drawn, exactly: the `latentc` chunk."""

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
    """SHA-256 over the digests of the bundle's parts."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Shown:
    """What a PNG says of itself."""

    request: Request
    text: str
    """The `parameters` chunk as it stands; empty if there is none."""
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


def save(result: Result, bundle: Bundle, path: Path | str) -> tuple[Path, ...]:
    """Write each image as a PNG: `out.png`, `out-1.png`, `out-2.png`... and return their paths.

    A file of that name is replaced, whole or not at all. Raises `RequestError` for a name that doesn't
    end in .png or a folder that can't be written.
    """
    first = check_name(path)
    make_place(first)
    written: list[Path] = []
    for index, drawing in enumerate(drawings(result, bundle)):
        target = first if index == 0 else first.with_name(f"{first.stem}-{index}{first.suffix}")
        _write(target, encoded(result.images[index], drawing))
        written.append(target)
    return tuple(written)


def check_name(path: Path | str) -> Path:
    """The path of a picture; raises `RequestError` for a name that doesn't end in .png."""
    if not str(path).lower().endswith(".png") or Path(path).name.lower() == ".png":
        raise RequestError(
            f"{str(path)!r} is no name for a picture. Name it NAME.png, the one format that carries the request."
        )
    return Path(path)


def make_place(path: Path) -> None:
    """Make a picture's folder; raises `RequestError` where it can't be saved there, before it is drawn."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long
        if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
            raise RequestError(f"{path} can't be written. Choose another name or folder.")
    except OSError as exc:
        raise RequestError(f"{path} can't be written ({exc.strerror}). Choose another name or folder.") from exc


def drawings(result: Result, bundle: Bundle) -> Iterator[Drawing]:
    """How each image of a result was drawn."""
    _, _, seed = size_and_seed(result.request)
    manifest = bundle.manifest
    for index in range(len(result.images)):
        yield Drawing(
            request=result.request.model_copy(update={"seed": seed + index, "count": 1}),
            index=index,
            count=len(result.images),
            seconds=dict(result.seconds),
            engines=dict(result.engines),
            notices=result.notices,
            model=PurePosixPath(manifest.source.location.replace("\\", "/")).name.removesuffix(".safetensors"),
            family=manifest.family,
            bundle=sha256_json({name: part.digest for name, part in manifest.parts.items()}),
            versions={"latentc": __version__, "numpy": np.__version__, **_prefixed(manifest.versions)},
        )


def encoded(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], drawing: Drawing) -> bytes:
    """One image, [height, width, 3], as the bytes of a PNG with its request inside."""
    info = PngInfo()
    info.add_text(PARAMETERS, _text(drawing))
    info.add_text(OURS, drawing.model_dump_json(ensure_ascii=True))
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read(path: Path | str) -> Shown:
    """The request inside a PNG, drawn by latentc or by any tool that writes AUTOMATIC1111's form.

    Exact JSON wins over the text; where they disagree, `notices` says so. No pixel is decoded. Raises `RequestError`
    for a file that isn't a PNG, is damaged or too large, or says nothing of how it was drawn.
    """
    found = read_texts(path, (PARAMETERS, OURS))
    text = found.texts.get(PARAMETERS, "")
    drawing, why = _drawing(found.texts.get(OURS))
    if drawing is None and PARAMETERS not in found.texts:
        others = ", ".join(sorted(found.keys)[:8])
        raise RequestError(
            f"{path} has no parameters: it doesn't say how it was drawn (text chunks: {others or 'none'}). "
            "Show a PNG that latentc or the AUTOMATIC1111 web UI saved; editors often drop its text."
        )
    parsed = parse(text)
    notices = list(found.notices)
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


def _write(target: Path, content: bytes) -> None:
    try:
        write_bytes(target, content)
    except OSError as exc:
        raise RequestError(unwritable(target, exc)) from exc
