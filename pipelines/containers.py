"""latentc's record in a GIF or an MP4, found by walking their blocks: frames are skipped, not decoded.

In a GIF it is a comment; in an MP4 the comment of iTunes' metadata, `moov/udta/meta/ilst/©cmt`, which players show.
Sources: https://www.w3.org/Graphics/GIF/spec-gif89a.txt (sections 17 to 24), ISO/IEC 14496-12 (4.2, 8.3.2), and
https://developer.apple.com/documentation/quicktime-file-format (metadata item list).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import BinaryIO

from .chunks import MAX_CHUNKS, MAX_TEXT, Damaged, Texts

KEY = "latentc"
COMMENT = b"\xa9cmt"
_PLACE = (b"moov", b"udta", b"meta", b"ilst", COMMENT, b"data")
_TEXT_ATOM = 8
"""Bytes before the text of a `data` box: its type and its language."""


def kind_of(head: bytes) -> str | None:
    """GIF or MP4, by a file's first 12 bytes; None for any other."""
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "MP4" if head[4:8] == b"ftyp" else None


def read_texts(kind: str, file: BinaryIO, size: int, wanted: Collection[str]) -> Texts:
    """The record in an open file of `size` bytes, under the keyword `latentc`; raises `Damaged`."""
    width, height, comment = (_gif if kind == "GIF" else _mp4)(file, size)
    found = {KEY: comment.decode("utf-8", "replace")} if comment.lstrip().startswith(b"{") and KEY in wanted else {}
    return Texts(width, height, frozenset(found), found, ())


def _gif(file: BinaryIO, size: int) -> tuple[int, int, bytes]:
    """Width, height and first comment."""
    file.seek(0)
    head = file.read(13)
    if len(head) < 13:
        raise Damaged("it is truncated")
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    _skip_colours(file, head[10])
    comment = b""
    for _ in range(MAX_CHUNKS):
        mark = file.read(1)
        if mark == b";" or (not mark and comment):
            return width, height, comment
        if mark == b"!":
            label = file.read(1)
            body = _blocks(file, size, keep=label == b"\xfe" and not comment)
            comment = comment or body
        elif mark == b",":
            place = file.read(9)
            if len(place) < 9:
                raise Damaged("it is truncated")
            _skip_colours(file, place[8])
            file.seek(1, os.SEEK_CUR)
            _blocks(file, size, keep=False)
        else:
            raise Damaged("it is truncated" if not mark else "a block has an unknown type")
    raise Damaged(f"it has more than {MAX_CHUNKS:,} blocks")


def _skip_colours(file: BinaryIO, packed: int) -> None:
    if packed & 0x80:
        file.seek(3 << ((packed & 7) + 1), os.SEEK_CUR)


def _blocks(file: BinaryIO, size: int, *, keep: bool) -> bytes:
    """The sub-blocks that follow, joined if they are kept."""
    kept, total = list[bytes](), 0
    while length := int.from_bytes(file.read(1), "little"):
        if file.tell() + length > size:
            raise Damaged("it is truncated")
        if keep and (total := total + length) <= MAX_TEXT:
            kept.append(file.read(length))
        else:
            file.seek(length, os.SEEK_CUR)
    return b"".join(kept)


def _mp4(file: BinaryIO, size: int) -> tuple[int, int, bytes]:
    """Width and height of the first track, and the comment."""
    width = height = 0
    moov = _find(file, 0, size, (b"moov",))
    if moov is None:
        raise Damaged("it has no moov box, so it is truncated")
    if (track := _find(file, *moov, (b"trak", b"tkhd"))) is not None and track[1] - track[0] >= 8:
        file.seek(track[1] - 8)
        width, height = (int.from_bytes(file.read(4), "big") >> 16 for _ in range(2))
    data = _find(file, *moov, _PLACE[1:])
    if data is None or data[1] - data[0] - _TEXT_ATOM > MAX_TEXT:
        return width, height, b""
    file.seek(data[0] + _TEXT_ATOM)
    return width, height, file.read(max(0, data[1] - data[0] - _TEXT_ATOM))


def _find(file: BinaryIO, begin: int, end: int, path: tuple[bytes, ...]) -> tuple[int, int] | None:
    """Begin and end of the body of a box, by the names of the boxes around it; None if there is none."""
    at = begin
    for _ in range(MAX_CHUNKS):
        if at + 8 > end:
            return None
        file.seek(at)
        head = file.read(16)
        length, name, header = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, header = int.from_bytes(head[8:16], "big"), 16
        elif length == 0:
            length = end - at
        if length < header or at + length > end:
            raise Damaged("a box is longer than what holds it, so it is truncated")
        if name == path[0]:
            inner = at + header + (4 if name == b"meta" else 0)  # version and flags
            return (inner, at + length) if len(path) == 1 else _find(file, inner, at + length, path[1:])
        at += length
    raise Damaged(f"it has more than {MAX_CHUNKS:,} boxes")
