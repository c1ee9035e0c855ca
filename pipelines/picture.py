"""The image of a request: a file, a Pillow image or an array, decoded to pixels before any work is spent on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from ..core.errors import RequestError
from ..core.images import pixels_sha256
from ..core.manifest import Manifest
from ..core.model import Model
from ..core.reading import regular, unreadable
from ..core.record import in_a_line
from ..core.request import Request
from ..core.tensors import Array
from ..core.units import counted
from ..sampling.image import Pixels
from .layout import enlarged

T = TypeVar("T")

ImageLike = Path | str | bytes | Image.Image | Array
"""An image file, its contents, a Pillow image, or an array [height, width, 3]: uint8, or floats from 0 to 1."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats that are opened: others of Pillow's are rare, and are not decoded."""
PHOTO = "MPO"
"""Pillow's name for a JPEG behind which further pictures lie, such as a camera's preview or a phone's gain map."""
MAX_BYTES = 1 << 28
MAX_PIXELS = 50_000_000
LEAST_SIDE = 16

ROUNDED = 16
"""Pixels by which rounding may change an image's proportions: sizes are multiples of 8 or 16."""

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ALPHA = ("LA", "PA", "RGBA")
_ORIENTATION = 0x0112
_SPACES = {"RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK", "L": "L", "LA": "L", "P": "RGB", "PA": "RGB"}
"""Colour spaces of the profiles that images of these modes have."""


@dataclass(frozen=True)
class Decoded:
    """A decoded image, and what was changed of it."""

    pixels: Pixels
    """[height, width, 3], sRGB."""
    notices: tuple[str, ...] = ()


def size_in(picture: Decoded | None) -> tuple[int, int] | None:
    """Width and height of an image in pixels; None without one."""
    return None if picture is None else (picture.pixels.shape[1], picture.pixels.shape[0])


def load_picture(image: ImageLike | Decoded) -> Decoded:
    """Decode an image: turned as its EXIF says, and without transparency, as in diffusers' `load_image`.

    Raises `RequestError` for a file that is missing, damaged, animated, too large or of another format, for more than
    8 bits per colour, and for an array of another shape or type.
    """
    return _loaded(image, "image")


def read_picture(request: Request, manifest: Manifest, image: ImageLike | Decoded | None) -> Decoded | None:
    """The decoded image of a request; None without one, for a model that needs none.

    Raises `RequestError` as `load_picture` does, if it is missing or can't be used, or isn't the one that the request
    was made with.
    """
    if image is not None and not (manifest.model.reads_image or manifest.encodes):
        raise RequestError(
            "This bundle has no VAE encoder, so it generates from a prompt alone and does not take an image. Leave it "
            "out, or use a bundle with an encoder."
        )
    if request.hires is not None and not manifest.encodes:
        raise RequestError(
            "This bundle has no VAE encoder, which hires needs to read images again. Leave hires out, or use a bundle "
            "with an encoder."
        )
    if image is None and not manifest.model.reads_image:
        return None
    if image is None:
        named = f" with the SHA-256 {request.image_sha256[:12]}..." if request.image_sha256 else ""
        raise RequestError(
            f"This model generates a video from an image{named}, and none was given. Pass it with --image (in Python: "
            "image=...)."
        )
    picture = load_picture(image)
    if request.image_sha256 not in (None, found := pixels_sha256(picture.pixels)):
        wanted = str(request.image_sha256)
        raise RequestError(
            f"The request was made with another image: the SHA-256 of its pixels is {wanted[:12]}..., and that of this "
            f"one {found[:12]}.... Pass that image, or make a new request for this one."
        )
    return picture


def load_controls(control: ImageLike | Decoded | Sequence[ImageLike | Decoded] | None) -> tuple[Decoded, ...]:
    """The decoded images of one or several ControlNets; raises `RequestError` as `load_picture` does."""
    if control is None:
        return ()
    one = isinstance(control, Path | str | bytes | Image.Image | np.ndarray | Decoded)
    return tuple(_loaded(each, "control image") for each in ([control] if one else control))


def load_style(style: ImageLike | Decoded) -> Decoded:
    """The decoded style image; raises `RequestError` as `load_picture` does."""
    return _loaded(style, "style image")


def load_mask(mask: ImageLike | Decoded) -> Decoded:
    """Decode a mask as `load_picture` does, or an array [height, width], also of bools: pixels [height, width], uint8.

    White is where inpainting generates. Raises `RequestError`.
    """
    if isinstance(mask, np.ndarray) and mask.ndim == 2:
        grey: NDArray[Any] = mask.astype(np.uint8) * 255 if mask.dtype == np.bool_ else mask
        mask = np.repeat(grey[..., None], 3, axis=2)
    decoded = _loaded(mask, "mask")
    return Decoded(np.asarray(Image.fromarray(decoded.pixels).convert("L")), decoded.notices)


def check_file(image: bytes, kind: str, most: int | None = None) -> None:
    """Check the header of an image file, which may have up to `most` pixels; none of them is decoded. Messages call it
    `kind`.

    Raises the errors of `load_picture` that a header shows.
    """
    most = MAX_PIXELS if most is None else min(most, MAX_PIXELS)
    _read(BytesIO(image), f"The {kind}", kind, lambda what, opened, _: _check(what, opened, most), most)


def load_clear(image: bytes) -> Decoded:
    """The mask of the transparent area of an image file: pixels [height, width], uint8, white where it is transparent.

    Raises `RequestError` as `load_picture` does, and for an image without transparency.
    """
    return _read(BytesIO(image), "The mask", "mask", _clear)


def load_painted(image: bytes) -> Decoded:
    """The mask in an image file as AUTOMATIC1111's web UI reads it: pixels [height, width], uint8. It is white where an
    image with transparency is opaque, in more than half, and else the image in grey.

    Raises `RequestError` as `load_picture` does. Source: `create_binary_mask` of its `modules/processing.py`.
    """
    return _read(BytesIO(image), "The mask", "mask", _painted) or load_mask(image)


def read_mask(
    request: Request, model: Model, image: Decoded | None, mask: ImageLike | Decoded | None
) -> Decoded | None:
    """The decoded mask of a request; None without one.

    Raises `RequestError` as `load_mask` does, for a mask without an image, and for one that isn't the request's.
    """
    if mask is None:
        if request.mask_sha256 is not None:
            raise RequestError(
                f"The request was made with a mask with the SHA-256 {request.mask_sha256[:12]}..., and none was given. "
                "Pass it with --mask (in Python: mask=...), or leave mask_sha256 out."
            )
        return None
    if model.reads_image:
        raise RequestError("This model generates a video from an image, and does not take a mask. Leave the mask out.")
    if image is None:
        raise RequestError("A mask selects what to generate of an image. Pass an image too, or leave the mask out.")
    found = mask if isinstance(mask, Decoded) else load_mask(mask)
    if request.mask_sha256 not in (None, digest := pixels_sha256(found.pixels)):
        raise RequestError(
            f"The request was made with another mask: the SHA-256 of its pixels is {str(request.mask_sha256)[:12]}..., "
            f"and that of this one {digest[:12]}.... Pass that mask, or make a new request for this one."
        )
    return found


def about_picture(picture: Decoded, mask: Decoded | None, request: Request, made: int, total: int) -> list[str]:
    """Notices about the image and the mask of a completed request; `made` of `total` denoiser calls were made."""
    height, width = picture.pixels.shape[:2]
    notices = [*picture.notices, *(mask.notices if mask is not None else ())]
    if request.crop is None and enlarged(request, (width, height)) != (request.width, request.height):
        like = height * (request.width or 0) / width
        more = ", which changes its proportions" if abs(like - (request.height or 0)) > ROUNDED else ""
        notices.append(f"The image of {width}x{height} pixels was resized to {request.width}x{request.height}{more}.")
    if mask is not None and mask.pixels.shape != picture.pixels.shape[:2]:
        notices.append(
            f"The mask has {mask.pixels.shape[1]}x{mask.pixels.shape[0]} pixels, and the image {width}x{height}: the "
            "mask was resized to fit."
        )
    if request.strength is not None:
        calls = f"{counted(made, 'denoiser call')} of {total}"
        notices.append(f"The image was changed with a strength of {request.strength:g}, in {calls}.")
    return notices


def _loaded(image: ImageLike | Decoded, kind: str) -> Decoded:
    """The decoded image; `kind` is image or mask, for messages."""
    if isinstance(image, Decoded):
        return image
    if isinstance(image, Path | str):
        return _file(image, kind)
    if isinstance(image, bytes):
        return _read(BytesIO(image), f"The {kind}", kind, _decoded)
    if isinstance(image, Image.Image):
        return _decoded(f"The {kind}", image, kind)
    return Decoded(_array(image, kind))


def _file(path: Path | str, kind: str) -> Decoded:
    try:
        with regular(path) as file:
            return _read(file, path, kind, _decoded)
    except (OSError, ValueError) as exc:
        raise RequestError(unreadable(path, exc, "Check the path.")) from exc


def _read(
    file: BinaryIO, what: object, kind: str, read: Callable[[object, Image.Image, str], T], most: int | None = None
) -> T:
    """What `read` returns of the image of a file that is open, which errors call `what`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes are checked here
            file.seek(0, 2)
            if (size := file.tell()) > MAX_BYTES:
                raise RequestError(f"{what} has {size:,} bytes, but the limit is {MAX_BYTES:,}. Pass a smaller image.")
            file.seek(0)
            with Image.open(file, formats=FORMATS) as opened:
                return read(what, opened, kind)
    except RequestError:
        raise
    except Image.UnidentifiedImageError as exc:
        raise RequestError(f"{what} is not an image of a known format. Use one of: {', '.join(FORMATS)}.") from exc
    except Image.DecompressionBombError as exc:
        raise RequestError(
            f"{what} has too many pixels; the limit is {most or MAX_PIXELS:,}. Pass a smaller image."
        ) from exc
    except Exception as exc:  # Pillow raises many kinds of errors for untrusted bytes
        raise RequestError(f"{what} is damaged ({type(exc).__name__}). Save it again.") from exc


def _clear(what: object, image: Image.Image, _kind: str) -> Decoded:
    _check(what, image)
    if image.mode not in _ALPHA and "transparency" not in image.info:
        raise RequestError(
            f"{what} has no transparency, which selects what is generated. Send a PNG with an alpha channel."
        )
    return Decoded(255 - np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))[..., 3])


def _painted(what: object, image: Image.Image, _kind: str) -> Decoded | None:
    _check(what, image)
    table = image.mode in ("RGB", "P") and isinstance(image.info.get("transparency"), bytes)
    if image.mode != "RGBA" and not table:
        return None
    alpha = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))[..., 3]
    if alpha.min() == 255:
        return None
    return Decoded((alpha > 128) * np.uint8(255), ("The mask is the opaque area of its file, as in the web UI.",))


def _decoded(what: object, image: Image.Image, kind: str) -> Decoded:
    _check(what, image)
    notices: list[str] = []
    if image.mode in _ALPHA or "transparency" in image.info:
        notices.append(f"The transparency of the {kind} was ignored.")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        notices.append(f"The {kind} was turned as its EXIF says.")
    if image.format == PHOTO:
        notices.append(f"The file of the {kind} holds several pictures; the first is used.")
    turned = ImageOps.exif_transpose(image)
    return Decoded(np.asarray(_in_srgb(turned, kind, notices)), tuple(notices))


def _check(what: object, image: Image.Image, most: int | None = None) -> None:
    """Raise `RequestError` for an image that is too large, too small, animated, or of more than 8 bits per colour."""
    width, height = image.size
    most = MAX_PIXELS if most is None else most
    if width * height > most:
        raise RequestError(
            f"{what} has {width}x{height} pixels, but the limit is {most:,} pixels. Pass a smaller image."
        )
    _check_sides(what, width, height)
    frames = 1 if image.format == PHOTO else getattr(image, "n_frames", 1)
    if frames > 1:
        raise RequestError(f"{what} is animated ({frames} frames). Pass a single frame of it.")
    tiles = cast("list[Any]", getattr(image, "tile", None) or [])
    stored = next((str(tile[3]) for tile in tiles), "") if image.format == "PNG" else ""
    if image.mode not in _MODES or ";16" in stored:  # which Pillow cuts to 8 bits where there are several colours
        pixels = image.mode if image.mode not in _MODES else stored
        raise RequestError(
            f"{what} has pixels of type {pixels}, which is not 8 bits per colour. Convert it to 8-bit RGB."
        )


def _in_srgb(image: Image.Image, kind: str, notices: list[str]) -> Image.Image:
    """The image in sRGB, converted from the colour profile that it has, if any; adds notices."""
    stored: object = image.info.get("icc_profile")
    space = _SPACES.get(image.mode)
    if kind == "mask" or not isinstance(stored, bytes) or space is None:  # a mask has shares, not colours
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(stored))
        name = ImageCms.getProfileDescription(profile).strip()
        plain = name.lower().startswith("srgb") and space == "RGB"
        found = image.convert(space)
        if not plain:
            made = ImageCms.profileToProfile(
                found, profile, cast("Any", ImageCms).createProfile("sRGB"), outputMode="RGB"
            )
            assert made is not None
            notices.append(f"The {kind} was converted from its colour profile ({in_a_line(ValueError(name))}) to sRGB.")
            return made
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notices.append(f"The colour profile of the {kind} was ignored: it cannot be read, or is one of other colours.")
    return image.convert("RGB")


def _array(image: Array, kind: str) -> Pixels:
    array: NDArray[Any] = np.zeros(0) if not isinstance(cast("object", image), np.ndarray) else image
    if array.ndim != 3 or array.shape[2] != 3:
        found = (
            f"an array of shape {list(array.shape)}" if isinstance(cast("object", image), np.ndarray) else type(image)
        )
        shape = "[height, width]" if kind == "mask" else "[height, width, 3]"
        raise RequestError(f"The {kind} is {found}; a path, a Pillow image or an array {shape} was expected.")
    height, width, _ = array.shape
    _check_sides(f"The {kind}", width, height)
    if width * height > MAX_PIXELS:
        raise RequestError(
            f"The {kind} has {width}x{height} pixels, but the limit is {MAX_PIXELS:,} pixels. Pass a smaller {kind}."
        )
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise RequestError(f"The {kind} is {array.dtype}; uint8, or floats from 0 to 1, were expected.")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise RequestError(f"The {kind} has values outside 0 to 1. Scale floats to that range, or pass uint8.")
    return (array.astype(np.float64) * 255).round().astype(np.uint8)


def _check_sides(what: object, width: int, height: int) -> None:
    if min(width, height) < LEAST_SIDE:
        raise RequestError(f"{what} has {width}x{height} pixels; at least {LEAST_SIDE} a side are needed.")
