"""The request in the EXIF of JPEG and WebP, found by walking their segments: pixels are skipped, not decoded.

The text is the tag `UserComment`, as the AUTOMATIC1111 web UI writes it (`modules/images.py`: `UNICODE` and big-endian
UTF-16); latentc's exact JSON is the tag `MakerNote`, after the bytes `latentc`.
Sources: https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf (Exif 2.3, 4.6.5),
https://www.w3.org/Graphics/JPEG/itu-t81.pdf (B.1.1), https://developers.google.com/speed/webp/docs/riff_container.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from PIL import Image

from ..core.errors import RequestError
from ..core.reading import unreadable
from . import chunks, containers
from .chunks import MAX_CHUNKS, MAX_TEXT, CutShort, Damaged, Texts, named, opened

COMMENT, NOTE, EXIF_IFD = 0x9286, 0x927C, 0x8769
TAGS = {"parameters": COMMENT, "latentc": NOTE}
JPEG_ROOM = 65_533
"""Bytes that a JPEG segment can hold."""

END = b"\xff\xd9"

_UNICODE, _ASCII, _OURS, _EXIF = b"UNICODE\0", b"ASCII\0\0\0", b"latentc\0", b"Exif\0\0"


def packed(texts: Mapping[str, str]) -> bytes:
    """Texts as EXIF: `parameters` for all tools, `latentc` for latentc."""
    exif = Image.Exif()
    exif.endian = ">"  # as UTF-16 in the comment
    values = {
        COMMENT: _UNICODE + texts["parameters"].encode("utf-16-be"),
        NOTE: _OURS + texts["latentc"].encode("ascii"),
    }
    exif.get_ifd(EXIF_IFD).update(values)
    return exif.tobytes()


def read_texts(source: Path | str | bytes, wanted: Collection[str]) -> Texts:
    """The texts of a PNG, JPEG, WebP, GIF or MP4, a file or its content, by keyword.

    Raises `RequestError` for a file of another format, or one that is damaged or too large.
    """
    kind, path = "image", named(source)
    try:
        with opened(source) as (file, size):
            head = file.read(12)
            if head.startswith(b"\xff\xd8\xff"):
                kind, read = "JPEG", _jpeg
            elif head.startswith(b"RIFF") and head[8:] == b"WEBP":
                kind, read = "WebP", _webp
            elif (found := containers.kind_of(head)) is not None:
                kind = found
                return containers.read_texts(found, file, size, wanted)
            else:
                return chunks.read_texts(source, wanted)
            return _texts(*read(file, size), wanted)
    except Damaged as exc:
        raise RequestError(f"{path} is a damaged {kind} ({exc}). Download or save it again.") from exc
    except (OSError, ValueError) as exc:
        raise RequestError(unreadable(path, exc, "Check the path.")) from exc


def _texts(width: int, height: int, exif: bytes, cut: bool, wanted: Collection[str]) -> Texts:
    found: dict[str, str] = {}
    tags = _tags(exif) if exif else {}
    for key in wanted:
        value = tags.get(TAGS[key])
        if isinstance(value, bytes) and (key != "latentc" or value.startswith(_OURS)):
            found[key] = _comment(value) if key != "latentc" else value[len(_OURS) :].decode("utf-8", "replace")
    if cut and not found:
        raise CutShort("it is truncated")
    notices = ("The file is truncated: some of its pixels are missing.",) if cut else ()
    return Texts(width, height, frozenset(found), found, notices)


def _tags(exif: bytes) -> dict[int, object]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about invalid tags, which it leaves out
            read = Image.Exif()
            read.load(exif if exif.startswith(_EXIF) else _EXIF + exif)
            return cast("dict[int, object]", read.get_ifd(EXIF_IFD))
    except Exception as exc:  # Pillow raises many kinds of errors for untrusted bytes
        raise Damaged(f"its EXIF cannot be read: {type(exc).__name__}") from exc


def _comment(value: bytes) -> str:
    """The text of a `UserComment`, whose first eight bytes name its encoding."""
    mark, body = value[:8], value[8:]
    if mark == _UNICODE:
        texts = [body.decode(f"utf-16-{order}", "replace").rstrip("\0") for order in ("be", "le")]
        return next((text for text in texts if "Steps: " in text), texts[0])
    return (body if mark in (_ASCII, bytes(8)) else value).rstrip(b"\0").decode("utf-8", "replace")


def _jpeg(file: BinaryIO, size: int) -> tuple[int, int, bytes, bool]:
    """Width, height, EXIF, and whether the file is truncated; stops where the pixels begin."""
    width = height = 0
    exif = b""
    file.seek(2)
    for _ in range(MAX_CHUNKS):
        mark = file.read(2)
        while mark == b"\xff\xff":  # fill bytes
            mark = mark[:1] + file.read(1)
        if len(mark) < 2 or mark in (b"\xff\xda", END):  # the pixels, or the end
            ended = len(mark) == 2 and (mark == END or _ends(file))
            return width, height, exif, not ended
        if mark[0] != 0xFF or mark[1] < 0xC0:
            raise Damaged("a segment has no marker")
        length = int.from_bytes(file.read(2), "big")
        if length < 2 or file.tell() + length - 2 > size:
            raise Damaged("it is truncated")
        if mark[1] == 0xE1 and not exif:
            body = file.read(length - 2)
            exif = body if body.startswith(_EXIF) else b""
        elif 0xC0 <= mark[1] <= 0xCF and mark[1] not in (0xC4, 0xC8, 0xCC) and length >= 7:
            body = file.read(length - 2)
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        else:
            file.seek(length - 2, os.SEEK_CUR)
    raise Damaged(f"it has more than {MAX_CHUNKS:,} segments")


def _ends(file: BinaryIO) -> bool:
    """Whether the end marker follows the pixels, which can't contain it; bytes after it are harmless."""
    last = b""
    while block := file.read(1 << 20):
        if END in last + block:
            return True
        last = block[-1:]
    return False


def _webp(file: BinaryIO, size: int) -> tuple[int, int, bytes, bool]:
    """As `_jpeg`; here EXIF comes after the pixels."""
    width = height = 0
    file.seek(4)
    whole = int.from_bytes(file.read(8)[:4], "little") + 8
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if not head:
            return width, height, b"", size < whole
        length = int.from_bytes(head[4:], "little")
        if len(head) < 8 or file.tell() + length > size:
            return width, height, b"", True
        if head[:4] == b"EXIF":
            if length > 2 * MAX_TEXT + 4096:
                raise Damaged(f"its EXIF has {length:,} bytes")
            return width, height, file.read(length), False
        body = file.read(min(length, 10))
        if head[:4] == b"VP8X" and len(body) == 10:
            width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
        file.seek(length - len(body) + length % 2, os.SEEK_CUR)
    raise Damaged(f"it has more than {MAX_CHUNKS:,} chunks")
