"""Pictures on disk: PNG files that hold the request they were drawn from.

Two text chunks: `parameters`, in AUTOMATIC1111's form for other tools (iTXt where it isn't Latin-1),
and `latentc`, exact JSON with what drew it. Both lie before the pixels.
"""

from __future__ import annotations

import os
import struct
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
from ..core.files import sha256_json, write_bytes
from ..core.record import Record
from ..core.request import MAX_SIDE, Request, Result
from .a1111 import parse, write
from .complete import size_and_seed

PARAMETERS, OURS = "parameters", "latentc"
MAX_PIXELS = MAX_SIDE * MAX_SIDE
MAX_BYTES = 1 << 29
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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
    text = write(drawing.request, {"Model": drawing.model, "Version": f"latentc {__version__}"})
    info = PngInfo()
    # PNG's text has no NUL; the JSON below keeps it, escaped.
    info.add_text(PARAMETERS, text.replace("\0", " "))
    info.add_text(OURS, drawing.model_dump_json(ensure_ascii=True))
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read(path: Path | str) -> Shown:
    """The request inside a PNG, drawn by latentc or by any tool that writes AUTOMATIC1111's form.

    Exact JSON wins over the text. Raises `RequestError` for a file that isn't a PNG, is damaged or too
    large, or says nothing of how it was drawn.
    """
    path = Path(path)
    width, height, chunks = _chunks(path)
    text = chunks.get(PARAMETERS, "")
    drawing = _drawing(chunks.get(OURS))
    if drawing is None and PARAMETERS not in chunks:
        others = ", ".join(sorted(chunks)[:8])
        raise RequestError(
            f"{path} has no parameters: it doesn't say how it was drawn (text chunks: {others or 'none'}). "
            "Show a PNG that latentc or the AUTOMATIC1111 web UI saved; editors often drop its text."
        )
    parsed = parse(text)
    return Shown(drawing.request if drawing else parsed.request, text, parsed.rest, drawing, width, height)


def _prefixed(versions: Mapping[str, str]) -> dict[str, str]:
    return {f"export {name}": version for name, version in versions.items()}


def _drawing(text: str | None) -> Drawing | None:
    if text is None:
        return None
    try:
        return Drawing.model_validate_json(text)
    except (ValidationError, RequestError):  # of another version, or edited: the parameters still hold
        return None


def _chunks(path: Path) -> tuple[int, int, dict[str, str]]:
    """Width, height and text chunks, with no pixels decoded where the text lies before them."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as exc:
        raise RequestError(f"{path} can't be read ({exc.strerror or exc}). Check the path.") from exc
    if not head.startswith(_SIGNATURE) or len(head) < 24:
        raise RequestError(f"{path} is not a PNG. Only PNG files hold a request; a converted copy has lost it.")
    width, height = struct.unpack(">II", head[16:24])
    if width * height > MAX_PIXELS or size > MAX_BYTES:
        raise RequestError(
            f"{path} is {width}x{height} pixels in {size:,} bytes; {MAX_SIDE}x{MAX_SIDE} in {MAX_BYTES:,} are the most "
            "that is read. Show a smaller one."
        )
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = _texts(image.info)
            if not found.keys() & {PARAMETERS, OURS}:
                image.load()  # some tools put the text behind the pixels
                found |= _texts(image.info)
    except Exception as exc:  # whatever the library makes of damaged files
        raise RequestError(f"{path} is a damaged PNG ({exc}). Fetch or save it again.") from exc
    return width, height, found


def _texts(info: Mapping[str | tuple[int, int], object]) -> dict[str, str]:
    return {key: str(value) for key, value in info.items() if isinstance(key, str) and isinstance(value, str)}


def _write(target: Path, content: bytes) -> None:
    try:
        write_bytes(target, content)
    except OSError as exc:
        raise RequestError(
            f"{target} can't be written ({exc.strerror or exc}). Free space there or choose another folder."
        ) from exc
