"""Pictures to files: names that are checked before anything is drawn, and formats that hold the request.

    .png            exact pixels; the request in text chunks
    .webp           exact pixels (lossless); the request in EXIF
    .jpg, .jpeg     quality 95, without subsampling of colours; the request in EXIF, which has room for 64 kB

More pictures of one name are numbered: `out.png`, `out-1.png`, `out-2.png`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import count as numbers
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..core.errors import RequestError
from ..core.files import why_unwritable, write_bytes
from ..core.request import Request, Result
from . import exif
from .png import Drawing, drawings, texts

Pixels = NDArray[np.uint8]

ROOM = 50_000
"""Bytes of a request's two texts in a JPEG, whose EXIF has 65,533: engines and notices take some more."""


def save(result: Result, path: Path | str, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write each image of a result, with its request inside, and return their paths.

    The name's end is the format: .png, .jpg, .jpeg or .webp. Later images are numbered: `out.png`, `out-1.png`. Each
    file appears whole or not at all. Raises `RequestError` for another end, for a folder that can't be written and,
    unless `overwrite`, where one of the names is taken, before any is written; where one can't be written, the others
    are all the same, and the error names both.
    """
    paths = check_names(path, len(result.images), (result.request,), overwrite=overwrite)
    make_place(paths[0])
    return write(result, paths, overwrite=overwrite)


def numbered(first: Path, index: int) -> Path:
    """The name of picture `index`, from 0."""
    return first if index == 0 else first.with_name(f"{first.stem}-{index}{first.suffix}")


def check_names(
    path: Path | str, count: int, requests: Sequence[Request] = (), *, overwrite: bool = False, taken: bool = False
) -> list[Path]:
    """The names of so many pictures; raises `RequestError` where one can't be written, before any is drawn.

    Nothing is made. Names that are taken are refused unless `overwrite`; with `taken` they are none of its business.
    """
    first = Path(path)
    if first.suffix.lower() not in _FORMATS:
        raise RequestError(
            f"{str(path)!r} is no name for a picture. Name it NAME.png, NAME.jpg or NAME.webp: these carry the request."
        )
    if _FORMATS[first.suffix.lower()] is _jpeg:
        for request in requests:
            _check_room(request)
    names = [numbered(first, index) for index in range(count)]
    try:
        place = next(parent for parent in first.parents if parent.exists())
        if not place.is_dir():
            raise RequestError(f"{first} can't be written: {place} is a file, not a folder. Choose another name.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise RequestError(f"{first} can't be written: {place} is read-only here. Choose another folder.")
        there = [name for name in names if _is_there(name, place)]
    except (OSError, ValueError) as exc:  # a name that is too long or has a NUL, or a file in place of a folder
        raise _unwritable(first, exc) from exc
    if folder := next((name for name in there if name.is_dir() and not taken), None):
        raise RequestError(f"{folder} can't be written: it is a folder. Choose another name.")
    if there and not (overwrite or taken):
        listed = ", ".join(map(str, there[:4])) + (f" and {len(there) - 4} more" if len(there) > 4 else "")
        raise RequestError(
            f"{listed} {'is' if len(there) == 1 else 'are'} there already. Choose another name, or say "
            "--overwrite to replace what is there (in Python: overwrite=True)."
        )
    return names


def _is_there(name: Path, place: Path) -> bool:
    """Whether a file has this name; raises `OSError` for one that is too long for `place`, which is there."""
    for path in (name, place / name.name):
        try:
            os.lstat(path)
        except FileNotFoundError:
            continue
        if path == name:
            return True
    return False


def make_place(path: Path) -> None:
    """Make a picture's folder; raises `RequestError` where it can't be saved there, before it is drawn."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise RequestError(f"{path} can't be written. Choose another name or folder.")
        with NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp"):  # some places refuse files all the same
            pass
    except OSError as exc:
        raise _unwritable(path, exc) from exc


def write(result: Result, paths: Sequence[Path], *, overwrite: bool = False) -> tuple[Path, ...]:
    """As `attempt`; raises `RequestError`, at the end, naming those that couldn't be written and those that are."""
    written, lost = attempt(result, paths, overwrite=overwrite)
    if lost:
        raise failed(lost, written)
    return written


def attempt(
    result: Result, paths: Sequence[Path], *, overwrite: bool = False
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write each image to its path; returns where they are, and each that couldn't be written with its reason.

    Without `overwrite`, a name that was taken meanwhile is numbered on: a drawn picture isn't lost, and nobody's is
    replaced.
    """
    written: list[Path] = []
    lost: list[str] = []
    for image, drawing, path in zip(result.images, drawings(result), paths, strict=True):
        try:
            written.append(_write(path, encoded(image, drawing, path.suffix), overwrite))
        except OSError as exc:
            lost.append(f"{path} ({why_unwritable(path, exc)})")
        except RequestError as exc:
            lost.append(f"{path} ({exc})")
    return tuple(written), tuple(lost)


def failed(lost: Sequence[str], written: Sequence[Path | str]) -> RequestError:
    """What to raise where some couldn't be written."""
    kept = f" Written: {', '.join(map(str, written))}." if written else ""
    return RequestError(f"{', '.join(lost)} can't be written. Choose another folder, or free space there.{kept}")


def encoded(image: Pixels, drawing: Drawing, suffix: str = ".png") -> bytes:
    """One image, [height, width, 3], as the bytes of a file with its request inside."""
    return _FORMATS[suffix.lower()](image, texts(drawing))


def _write(path: Path, content: bytes, overwrite: bool) -> Path:
    for index in numbers():
        target = numbered(path, index)
        if not overwrite and os.path.lexists(target):
            continue
        try:
            write_bytes(target, content, replace=overwrite)
        except FileExistsError:
            continue
        return target
    raise AssertionError("numbers end")


def _png(image: Pixels, held: Mapping[str, str]) -> bytes:
    info = PngInfo()
    for key, text in held.items():
        info.add_text(key, text)
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _webp(image: Pixels, held: Mapping[str, str]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, exif=exif.packed(held))
    return buffer.getvalue()


def _jpeg(image: Pixels, held: Mapping[str, str]) -> bytes:
    packed = exif.packed(held)
    if len(packed) > exif.JPEG_ROOM:
        raise _too_long(len(packed))
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0, exif=packed)
    return buffer.getvalue()


_FORMATS: dict[str, Callable[[Pixels, Mapping[str, str]], bytes]] = {
    ".png": _png,
    ".webp": _webp,
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
}


def _check_room(request: Request) -> None:
    words = (request.prompt + request.negative_prompt).encode("utf-16-be", "replace")
    if (needed := len(words) + len(request.model_dump_json(ensure_ascii=True))) > ROOM:
        raise _too_long(needed)


def _too_long(needed: int) -> RequestError:
    return RequestError(
        f"The request takes {needed:,} bytes in a JPEG, which has room for {ROOM:,}. Save it as .png or .webp."
    )


def _unwritable(path: Path, exc: Exception) -> RequestError:
    reason = getattr(exc, "strerror", None) or exc
    return RequestError(f"{path} can't be written ({reason}). Choose another name or folder.")
