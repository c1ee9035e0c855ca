"""Saving images: names that are checked before anything is generated, and formats that hold the request.

    .png            exact pixels; the request in text chunks
    .webp           exact pixels (lossless); the request in EXIF
    .jpg, .jpeg     quality 95, without chroma subsampling; the request in EXIF, which is limited to 64 kB

Several images are numbered: `out.png`, `out-1.png`, `out-2.png`. Videos have other formats (`video.py`).
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
from ..core.files import fresh_folder, why_unwritable, write_bytes
from ..core.request import Request, Result
from . import exif, video
from .png import FRAME_NAME, Drawing, drawings, texts

Pixels = NDArray[np.uint8]

ROOM = 50_000
"""Limit of a request's two texts in a JPEG, in bytes. EXIF has 65,533; engines and notices take some of it."""


SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType="{}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
"""XMP of a generated image. Source: https://www.iptc.org/std/photometadata/specification/IPTC-PhotoMetadata, Digital
Source Type."""


def save(result: Result, path: Path | str, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write each image of a result, with its request inside, and return their paths.

    The suffix selects the format: .png, .jpg, .jpeg or .webp; for videos .mp4, .webp or .gif, and none for a folder of
    PNGs. Later images are numbered: `out.png`, `out-1.png`. Each file appears complete or not at all. Raises
    `RequestError` before anything is written for another suffix, for a folder that isn't writable and, unless
    `overwrite`, if one of the files exists; `RuntimeMissing` for .mp4 without its library. If one file fails to be
    written, the others are written nevertheless, and the error names both.
    """
    videos = result.images.ndim > 4
    paths = check_names(path, len(result.images), (result.request,), overwrite=overwrite, videos=videos)
    make_place(paths[0])
    return write(result, paths, overwrite=overwrite)


def numbered(first: Path, index: int) -> Path:
    """The path of image `index`, from 0."""
    return first if index == 0 else first.with_name(f"{first.stem}-{index}{first.suffix}")


def check_names(
    path: Path | str,
    count: int,
    requests: Sequence[Request] = (),
    *,
    overwrite: bool = False,
    taken: bool = False,
    videos: bool = False,
) -> list[Path]:
    """The paths of `count` images or `videos`; raises `RequestError` if one can't be written, before any is generated.

    Creates nothing. Existing files are refused unless `overwrite`; with `taken` they are not checked at all.
    """
    first = Path(path)
    if videos:
        video.check_suffix(first.suffix.lower())
    elif first.suffix.lower() not in _FORMATS:
        raise RequestError(
            f"{str(path)!r} is not a valid name for an image: use NAME.png, NAME.jpg or NAME.webp, which can hold the "
            "request."
        )
    if _FORMATS.get(first.suffix.lower()) is _jpeg:
        for request in requests:
            check_jpeg(request)
    names = [numbered(first, index) for index in range(count)]
    try:
        place = next(parent for parent in first.parents if parent.exists())
        if not place.is_dir():
            raise RequestError(f"{first} cannot be written: {place} is a file, not a folder. Choose another name.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise RequestError(f"{first} cannot be written: {place} is read-only. Choose another folder.")
        there = [name for name in names if _is_there(name, place)]
    except (OSError, ValueError) as exc:  # a name that is too long or has a NUL, or a file in place of a folder
        raise _unwritable(first, exc) from exc
    frames = videos and not first.suffix
    if frames and (full := next((name for name in there if name.is_dir() and not taken and any(name.iterdir())), None)):
        raise RequestError(f"{full} already exists and is not empty. Choose another name: no folder is overwritten.")
    if frames:
        there = [name for name in there if not name.is_dir()]
    if folder := next((name for name in there if name.is_dir() and not taken), None):
        raise RequestError(f"{folder} cannot be written: it is a folder. Choose another name.")
    if there and not (overwrite or taken):
        listed = ", ".join(map(str, there[:4])) + (f" and {len(there) - 4} more" if len(there) > 4 else "")
        raise RequestError(
            f"{listed} already {'exists' if len(there) == 1 else 'exist'}. Choose another name, or pass "
            "--overwrite to replace existing files (in Python: overwrite=True)."
        )
    return names


def _is_there(name: Path, place: Path) -> bool:
    """Whether the file exists; raises `OSError` if its name is too long for `place`, an existing folder."""
    for path in (name, place / name.name):
        try:
            os.lstat(path)
        except FileNotFoundError:
            continue
        if path == name:
            return True
    return False


def make_place(path: Path) -> None:
    """Create an image's folder; raises `RequestError` if it isn't writable, before the image is generated."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise RequestError(f"{path} cannot be written. Choose another name or folder.")
        with NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp"):  # some file systems refuse it even so
            pass
    except OSError as exc:
        raise _unwritable(path, exc) from exc


def write(result: Result, paths: Sequence[Path], *, overwrite: bool = False) -> tuple[Path, ...]:
    """As `attempt`, but raises `RequestError` at the end if any failed, naming failed and written files."""
    written, lost = attempt(result, paths, overwrite=overwrite)
    if lost:
        raise failed(lost, written)
    return written


def attempt(
    result: Result, paths: Sequence[Path], *, overwrite: bool = False
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write each image to its path; returns the paths written, and a message for each that failed.

    Without `overwrite`, if a file has appeared meanwhile, the next free number is used: no image is lost and no file
    is replaced.
    """
    written: list[Path] = []
    lost: list[str] = []
    for image, drawing, path in zip(result.images, drawings(result), paths, strict=True):
        try:
            if image.ndim > 3 and not path.suffix:
                written.append(_write_frames(path, image, drawing))
            else:
                written.append(_write(path, encoded(image, drawing, path.suffix), overwrite))
        except OSError as exc:
            lost.append(f"{path} ({why_unwritable(path, exc)})")
        except RequestError as exc:
            lost.append(f"{path} ({exc})")
    return tuple(written), tuple(lost)


def failed(lost: Sequence[str], written: Sequence[Path | str]) -> RequestError:
    """The error to raise if some files couldn't be written."""
    kept = f" Written: {', '.join(map(str, written))}." if written else ""
    return RequestError(f"{', '.join(lost)} cannot be written. Choose another folder, or free some space.{kept}")


def encoded(
    image: Pixels, drawing: Drawing, suffix: str = ".png", *, quality: int | None = None, marked: bool = False
) -> bytes:
    """One image, [height, width, 3], or a video, as the bytes of a file with its request inside.

    `quality`, from 1 to 100, is that of a JPEG (95), and of a WebP, which is lossless at 100 and without it. An image
    that is `marked` says in XMP that a model generated it (IPTC's digital source type).
    """
    if image.ndim > 3:
        return video.encoded(image, texts(drawing), suffix, drawing.request.fps)
    return _FORMATS[suffix.lower()](
        image, texts(drawing), quality, _XMP.format(source_type(drawing.request)) if marked else ""
    )


def source_type(request: Request) -> str:
    """IPTC's digital source type of the image of a completed request: a composite if a part of another one was kept."""
    part = request.mask_sha256 is not None or request.extends
    return SOURCE_TYPES + ("compositeWithTrainedAlgorithmicMedia" if part else "trainedAlgorithmicMedia")


def _write_frames(path: Path, frames: Pixels, drawing: Drawing) -> Path:
    """Write a folder of PNGs, each with the request inside; if one has appeared meanwhile, the next free number."""
    for index in numbers():
        target = numbered(path, index)
        if target.is_dir() and any(target.iterdir()):
            continue
        with fresh_folder(target, RequestError) as fresh:
            for number, frame in enumerate(frames):
                (fresh / FRAME_NAME.format(number)).write_bytes(encoded(frame, drawing))
        return target
    raise AssertionError("numbers end")


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


def _png(image: Pixels, held: Mapping[str, str], _quality: int | None = None, xmp: str = "") -> bytes:
    info = PngInfo()
    for key, text in held.items():
        info.add_text(key, text)
    if xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp)
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _webp(image: Pixels, held: Mapping[str, str], quality: int | None = None, xmp: str = "") -> bytes:
    buffer, lossless = BytesIO(), quality in (None, 100)
    Image.fromarray(image).save(
        buffer,
        "WEBP",
        lossless=lossless,
        exif=exif.packed(held),
        xmp=xmp.encode(),
        **({} if lossless else {"quality": quality}),
    )
    return buffer.getvalue()


def _jpeg(image: Pixels, held: Mapping[str, str], quality: int | None = None, xmp: str = "") -> bytes:
    packed = exif.packed(held)
    if len(packed) > exif.JPEG_ROOM:
        raise _too_long(len(packed))
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality or 95, subsampling=0, exif=packed, xmp=xmp.encode())
    return buffer.getvalue()


_FORMATS: dict[str, Callable[..., bytes]] = {
    ".png": _png,
    ".webp": _webp,
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
}


def check_jpeg(request: Request) -> None:
    """Raise `RequestError` for a request that a JPEG has no room for."""
    words = (request.prompt + request.negative_prompt).encode("utf-16-be", "replace")
    if (needed := len(words) + len(request.model_dump_json(ensure_ascii=True))) > ROOM:
        raise _too_long(needed)


def _too_long(needed: int) -> RequestError:
    return RequestError(
        f"The request takes {needed:,} bytes, but a JPEG has room for {ROOM:,}. Save it as .png or .webp."
    )


def _unwritable(path: Path, exc: Exception) -> RequestError:
    reason = getattr(exc, "strerror", None) or exc
    return RequestError(f"{path} cannot be written ({reason}). Choose another name or folder.")
