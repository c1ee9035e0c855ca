"""The part of protobuf's wire format that ONNX files use: fields of messages, read in place and within limits."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from .errors import BundleError

MAX_BYTES = 2**31 - 1
"""Protobuf's size limit of a message."""
MAX_FIELDS = 4_000_000
MAX_UNKNOWN = 1000
"""Limit of fields that the schemas do not know: a newer ONNX may write a few."""
MAX_NAME = 4096

MANY = 256
"""Flag of a repeated field."""
INT, FIXED64, LEN, FIXED32 = 1 << 0, 1 << 1, 1 << 2, 1 << 5

Schema = Mapping[int, int]
"""Allowed wire types of each field number, as bits."""


def schema(fields: Mapping[int, Iterable[int]]) -> Schema:
    """Build a schema from field numbers, keyed by wire type."""
    return {number: kind for kind, numbers in fields.items() for number in numbers}


Span = tuple[int, int]


@contextmanager
def mapped(path: Path, advice: str) -> Generator[mmap.mmap]:
    """Memory-map a regular file. Raises `BundleError`, ending in `advice`."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            raise BundleError(f"{path} is a link; expected a regular file. Replace the link by the file itself.")
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as exc:
        raise BundleError(f"{path} cannot be read ({getattr(exc, 'strerror', None) or exc}). {advice}") from exc
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{path} is not a regular file. {advice}")
        if not 0 < found.st_size <= MAX_BYTES:
            raise BundleError(
                f"{path} has {found.st_size:,} bytes; an ONNX graph has 1 to {MAX_BYTES:,} bytes. {advice}"
            )
        try:
            data = mmap.mmap(descriptor, found.st_size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as exc:
            raise BundleError(f"{path} cannot be read ({exc}). {advice}") from exc
    finally:
        os.close(descriptor)
    try:
        yield data
    finally:
        data.close()


def signed(value: int) -> int:
    """Reinterpret a varint as a signed 64-bit number."""
    return value - 2**64 if value >= 2**63 else value


class Reader:
    """Reads messages from a file's bytes, at most `MAX_FIELDS` fields in all."""

    def __init__(self, data: mmap.mmap, path: Path, advice: str) -> None:
        self.data, self.path, self._advice = data, path, advice
        self._left, self._unknown = MAX_FIELDS, 0

    def fail(self, what: str) -> BundleError:
        """The error for a file with this problem."""
        return BundleError(f"{self.path} is not a usable ONNX graph: {what}. {self._advice}")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """An unsigned number of up to 64 bits, and where it ends."""
        value = shift = 0
        while at < end:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 2**64:
                    break
                return value, at
            shift += 7
            if shift >= 70:
                break
        raise self.fail(f"a number near byte {at} has no end or more than 64 bits")

    def fields(self, span: Span, schema: Schema) -> Generator[tuple[int, int, int, int]]:
        """Iterate over the known fields of a message, as (number, wire type, begin, end); a varint's value replaces
        `begin`.
        """
        data, (at, end), seen = self.data, span, 0
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise self.fail(f"it has more than {MAX_FIELDS:,} fields")
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = self._varint(at - 1, end)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                begin, at = self._varint(at, end)
                stop = at
            elif wire == 2:
                size, begin = self._varint(at, end)
                at = stop = begin + size
            elif wire in (1, 5):
                begin = at
                at = stop = begin + (8 if wire == 1 else 4)
            else:
                raise self.fail(f"byte {at} has wire type {wire}")
            if at > end:
                raise self.fail(
                    f"a field near byte {min(at, len(data))} ends beyond its message; the file is truncated"
                )
            if not 0 < number < 2**29:
                raise self.fail(f"a field near byte {at} has number {number}")
            allowed = schema.get(number)
            if allowed is None:
                self._unknown += 1
                if self._unknown > MAX_UNKNOWN:
                    raise self.fail(f"it has more than {MAX_UNKNOWN:,} fields that ONNX does not define")
                continue
            if not allowed >> wire & 1:
                raise self.fail(f"field {number} near byte {at} has wire type {wire}")
            if not allowed & MANY:
                if seen >> number & 1:
                    raise self.fail(f"field {number} near byte {at} occurs twice")
                seen |= 1 << number
            yield number, wire, begin, stop

    def text(self, begin: int, end: int) -> str:
        """Decode a name."""
        if end - begin > MAX_NAME:
            raise self.fail(f"a name at byte {begin} has {end - begin:,} bytes; at most {MAX_NAME:,} are accepted")
        try:
            return self.data[begin:end].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"the name at byte {begin} is not UTF-8") from None

    def integers(self, wire: int, begin: int, end: int) -> Generator[int]:
        """Iterate over the signed 64-bit numbers of a repeated field, packed or not."""
        if wire == 0:
            yield signed(begin)
            return
        while begin < end:
            self._left -= 1
            if self._left < 0:
                raise self.fail(f"it has more than {MAX_FIELDS:,} fields")
            value, begin = self._varint(begin, end)
            yield signed(value)
