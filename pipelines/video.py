"""Videos as files that hold their request.

    .mp4            H.264, nearly exact (4:2:0); needs the extra `video`; the request as a comment
    .webp           exact pixels (lossless), animated; the request in EXIF
    .gif            256 colours, animated; the request as a comment

A name without a suffix is a folder of PNGs, `0000.png` and so on: exact pixels, and the request in each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import RequestError, RuntimeMissing
from ..core.install import install
from ..core.request import MOTION
from . import exif

Frames = NDArray[np.uint8]
"""[frames, height, width, 3], sRGB."""

FPS = int(MOTION["fps"])
"""Frames per second of a video whose request doesn't say."""

QUALITY = "17"
"""x264's constant rate factor: visually lossless."""


def check_suffix(suffix: str) -> None:
    """Raise `RequestError` for a suffix that videos don't have, and `RuntimeMissing` if its library isn't installed."""
    if suffix and suffix not in FORMATS:
        raise RequestError(
            f"{suffix!r} is not a format for videos: use NAME{', NAME'.join(FORMATS)}, or a name without a suffix for "
            "a folder of PNGs."
        )
    if suffix == ".mp4" and find_spec("av") is None:
        raise RuntimeMissing(
            f"Saving .mp4 requires av, which is not installed. {install('video')} Or save .webp or .gif."
        )


def encoded(frames: Frames, held: Mapping[str, str], suffix: str, fps: int | None) -> bytes:
    """The frames as the bytes of a file with these texts inside."""
    return FORMATS[suffix.lower()](frames, held, fps or FPS)


def _mp4(frames: Frames, held: Mapping[str, str], fps: int) -> bytes:
    av: Any = import_module("av")
    buffer = BytesIO()
    _, height, width, _ = frames.shape
    with av.open(buffer, mode="w", format="mp4") as file:
        file.metadata["comment"] = held["latentc"]
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": QUALITY, "x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709"}
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def _webp(frames: Frames, held: Mapping[str, str], fps: int) -> bytes:
    return _animated(frames, "WEBP", fps, lossless=True, exif=exif.packed(held))


def _gif(frames: Frames, held: Mapping[str, str], fps: int) -> bytes:
    return _animated(frames, "GIF", fps, comment=held["latentc"].encode("ascii"))


def _animated(frames: Frames, kind: str, fps: int, **given: Any) -> bytes:
    first, *others = (cast("Any", Image).fromarray(np.ascontiguousarray(one)) for one in frames)
    buffer = BytesIO()
    first.save(buffer, kind, save_all=True, append_images=others, duration=round(1000 / fps), loop=0, **given)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Frames, Mapping[str, str], int], bytes]] = {".mp4": _mp4, ".webp": _webp, ".gif": _gif}
