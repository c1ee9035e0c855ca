"""The text in a PNG file, found by walking its chunks: pixels are skipped, not decoded.

Source: https://www.w3.org/TR/png-3/ (5.3 chunk layout, 11.3.3 textual information).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ..core.errors import RequestError
from ..core.reading import regular, unreadable
from ..core.request import MAX_SIDE

MAX_BYTES = 1 << 29
MAX_CHUNKS = 500_000
"""Chunks of all kinds; an image of 8192 x 8192 pixels has 25,000 of the usual 8 kB."""
MAX_TEXT = 8 << 20
"""Bytes of one text, decompressed; two prompts of 100,000 emoji take 2.4 MB."""

MAX_FOREIGN = 1 << 16
"""Texts that weren't requested are skipped if they have more bytes than this."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True)
class Texts:
    """The texts in an image file."""

    width: int
    height: int
    keys: frozenset[str]
    """Keywords of all its texts."""
    texts: dict[str, str]
    """The requested texts by keyword; the first of each."""
    notices: tuple[str, ...]
    """Problems that were found, in sentences."""


@contextmanager
def opened(source: Path | str | bytes) -> Generator[tuple[BinaryIO, int]]:
    """Open a file for reading, or the content of one, and yield it with its size in bytes; errors as `regular`'s."""
    if isinstance(source, bytes):
        yield BytesIO(source), len(source)
        return
    with regular(source) as file:
        yield file, os.fstat(file.fileno()).st_size


def named(source: Path | str | bytes) -> Path | str:
    """What messages call it."""
    return "The file" if isinstance(source, bytes) else source


def read_texts(source: Path | str | bytes, wanted: Collection[str]) -> Texts:
    """The texts of a PNG, a file or its content, with these keywords, before or after the pixels.

    Raises `RequestError` for a file that isn't a PNG, is damaged or too large. A file that is truncated in or after
    its pixels is read, with a notice, if a requested text was found before.
    """
    path = named(source)
    try:
        with opened(source) as (file, size):
            return _read(path, file, size, wanted)
    except Damaged as exc:
        raise RequestError(f"{path} is a damaged PNG ({exc}). Download or save it again.") from exc
    except (OSError, ValueError) as exc:
        raise RequestError(unreadable(path, exc, "Check the path.")) from exc


def _read(path: Path | str, file: BinaryIO, size: int, wanted: Collection[str]) -> Texts:
    width, height = _size(path, file, size)
    keys, texts, notices = set[str](), dict[str, str](), list[str]()
    try:
        for kind, body in _chunks(file, size, wanted):
            key, text = _text(kind, body, wanted)
            keys.add(key)
            if text is not None and texts.setdefault(key, text) != text:
                notices.append(f"The file has several different texts {key!r}: the first is used.")
    except CutShort:
        if not texts:
            raise
        notices.append("The file is truncated: some of its pixels are missing.")
    return Texts(width, height, frozenset(keys), texts, tuple(dict.fromkeys(notices)))


class Damaged(Exception):
    """The file is damaged; the message is half a sentence that says how."""


class CutShort(Damaged):
    """The file is truncated in or after its pixels."""


def _size(path: Path | str, file: BinaryIO, size: int) -> tuple[int, int]:
    head = file.read(33)
    if not head.startswith(_SIGNATURE) or len(head) < 24:
        raise RequestError(
            f"{path} is not a PNG, JPEG or WebP file, and not a GIF or MP4. Only these can hold a request; pass the "
            "original file, not a converted copy."
        )
    width, height = struct.unpack(">II", head[16:24])
    if head[8:16] != b"\0\0\0\x0dIHDR" or zlib.crc32(head[12:29]).to_bytes(4, "big") != head[29:] or not width * height:
        raise Damaged("its header is incomplete or corrupt")
    if width * height > MAX_SIDE * MAX_SIDE or size > MAX_BYTES:
        raise RequestError(
            f"{path} has {width}x{height} pixels and {size:,} bytes, but the limit is {MAX_SIDE}x{MAX_SIDE} pixels and "
            f"{MAX_BYTES:,} bytes. Pass a smaller file."
        )
    return width, height


def _chunks(file: BinaryIO, size: int, wanted: Collection[str]) -> Generator[tuple[bytes, bytes]]:
    """Kind and body of each text chunk, with its checksum verified; raises `CutShort` if pixels are missing."""
    total, cut = 0, Damaged("it is truncated")
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise cut
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if not kind.isalpha() or not kind.isascii():
            raise Damaged(f"a chunk has the invalid type {kind!r}")
        if kind == b"IDAT":
            cut = CutShort(*cut.args)
        if file.tell() + length + 4 > size:
            raise cut
        if kind == b"IEND":
            return
        if kind not in _TEXTS:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        key = file.read(min(length, 80)).partition(b"\0")[0]
        file.seek(-min(length, 80), os.SEEK_CUR)
        if length > MAX_FOREIGN and key.decode("latin-1") not in wanted:  # such as a workflow with embedded images
            file.seek(length + 4, os.SEEK_CUR)
            yield kind, key + b"\0"
            continue
        total += length
        if total > 4 * MAX_TEXT:
            raise Damaged(f"its texts have more than {4 * MAX_TEXT:,} bytes")
        body, check = file.read(length), file.read(4)
        if zlib.crc32(kind + body).to_bytes(4, "big") != check:
            raise Damaged(f"the checksum of a {kind.decode()} chunk is wrong")
        yield kind, body
    raise Damaged(f"it has more than {MAX_CHUNKS:,} chunks")


def _text(kind: bytes, body: bytes, wanted: Collection[str]) -> tuple[str, str | None]:
    """Keyword and text of a chunk; the text is None if it isn't requested."""
    name, mark, rest = body.partition(b"\0")
    key = name.decode("latin-1")
    if not mark or not 0 < len(name) < 80:
        raise Damaged("a text has no keyword")
    if key not in wanted:
        return key, None
    if kind == b"tEXt":
        return key, _checked(rest).decode("latin-1")
    if kind == b"zTXt":
        return key, _unpacked(rest[:1], rest[1:]).decode("latin-1")
    packed, rest = rest[:2], rest[2:]
    _language, _, rest = rest.partition(b"\0")
    _translated, _, rest = rest.partition(b"\0")
    content = _unpacked(packed[1:], rest) if packed[:1] == b"\1" else _checked(rest)
    try:
        return key, content.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Damaged(f"its text {key!r} is not UTF-8") from exc


def _unpacked(method: bytes, packed: bytes) -> bytes:
    if method != b"\0":
        raise Damaged("a text has an unknown compression method")
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(packed, MAX_TEXT + 1)
    except zlib.error as exc:
        raise Damaged(f"a text cannot be decompressed: {exc}") from exc
    if not unpacker.eof and len(content) <= MAX_TEXT:
        raise Damaged("a compressed text is truncated")
    return _checked(content)


def _checked(content: bytes) -> bytes:
    if len(content) > MAX_TEXT:
        raise Damaged(f"a text has more than {MAX_TEXT:,} bytes")
    return content
