"""Read untrusted files, with limits on bytes, depth and counts that are checked before parsing.

Every small file is read with `read_small`, `read_json`, `read_toml` or `read_arrays`. They never wait for a pipe, never
read a device, and raise only the error class they are given. `regular`, `parse_json` and `read_plain` are for callers
that handle `OSError` and `ValueError` themselves. Not read with this module: graphs, weights and engines, whose digests
are compared first, and files that the kernel or our own processes have just written.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

import numpy as np
from pydantic import TypeAdapter

from .errors import LatentcError
from .record import in_a_line
from .tensors import Array

CONFIG_BYTES = 4 << 20
"""Size limit of a config, a profile or a header: published ones have a few kB."""
TABLE_BYTES = 64 << 20
"""Size limit of a tokenizer, a shard index or a manifest: published ones have a few MB."""

MAX_DEPTH = 64
"""Nesting limit of JSON and TOML: files of latentc and diffusers have fewer than ten levels."""
MAX_MARKS = 4_000_000
"""Limit of quotes, commas and brackets in a JSON file: a vocabulary of 49,408 tokens with merges has 600,000."""
MAX_DIGITS = 40
"""Digit limit of an integer: transformers writes 31 digits for a tokenizer without a length limit."""
INFINITE = ("Infinity", "-Infinity")
"""Constants that diffusers writes into some scheduler configs (`lambda_min_clipped`)."""
NAN = ("NaN",)
MAX_BRACKETS = 500
"""Limit of opening brackets in a TOML file, and of dots in one of its lines: a profile has about ten."""
MAX_ARRAYS = 10_000
MAX_AXES = 16

BOM = b"\xef\xbb\xbf"
POINTER = b"version https://git-lfs"
"""First bytes of the pointer that Git LFS leaves in place of a file that is not fetched yet."""

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
_KEPT = frozenset("biufcSU")
"""Accepted kinds of numpy dtypes: numbers and text."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

T = TypeVar("T")


def is_regular(path: Path | str) -> bool:
    """Whether the path is a regular file or a link to one; False for a name that the system rejects."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def is_folder(path: Path | str) -> bool:
    """Whether the path is a folder or a link to one; False for a name that the system rejects."""
    try:
        return stat.S_ISDIR(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


class PointerError(ValueError):
    """The file is a Git LFS pointer."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(
            f"{path} is a Git LFS pointer, not the file itself. Run `git lfs pull` in its folder to fetch it."
        )


@contextmanager
def regular(path: Path | str) -> Generator[BinaryIO]:
    """Open a regular file for reading, without ever blocking.

    Raises `OSError`, `PointerError` for a Git LFS pointer, and `ValueError` if it is not a regular file.
    """
    _check_regular(Path(path).stat())  # opening a device can have side effects
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        _check_regular(os.fstat(descriptor))
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with file:
        if file.peek(len(POINTER)).startswith(POINTER):
            raise PointerError(path)
        yield file


def refuse_pointer(path: Path | str) -> None:
    """Raise `PointerError` for a Git LFS pointer; a file that cannot be read passes."""
    try:
        with regular(path):
            pass
    except PointerError:
        raise
    except (OSError, ValueError):
        return


def read_small(path: Path | str, limit_bytes: int, error: type[LatentcError], advice: str) -> bytes:
    """Read a regular file of at most `limit_bytes`.

    Raises `error`, with `advice` as the last sentence, for anything else, also for a file that grows beyond the limit
    while it is read.
    """
    try:
        return read_bounded(path, limit_bytes)
    except (OSError, ValueError) as exc:
        raise error(unreadable(path, exc, advice)) from exc


def read_json(
    path: Path | str, limit_bytes: int, error: type[LatentcError], advice: str, *, constants: Collection[str] = ()
) -> dict[str, Any]:
    """Read a JSON object from a regular file; raises `error` as `read_small` does, and for invalid JSON."""
    raw = read_small(path, limit_bytes, error, advice)
    try:
        found = parse_json(raw, constants=constants)
    except ValueError as exc:
        raise error(f"{path} is not valid JSON ({exc}). {advice}") from exc
    if not isinstance(found, dict):
        raise error(f"{path} contains a {type(found).__name__}; expected a JSON object. {advice}")
    return cast("dict[str, Any]", found)


def read_toml(path: Path | str, limit_bytes: int, error: type[LatentcError], advice: str) -> dict[str, Any]:
    """Read a TOML file; raises `error` as `read_small` does, and for invalid, too large or too deeply nested TOML."""
    raw = read_small(path, limit_bytes, error, advice)
    try:
        if (brackets := raw.count(b"[") + raw.count(b"{")) > MAX_BRACKETS:
            raise ValueError(f"{brackets:,} brackets; the limit is {MAX_BRACKETS:,}")
        if (dots := max(line.count(b".") for line in raw.split(b"\n"))) > MAX_BRACKETS:  # tomllib would take minutes
            raise ValueError(f"a line with {dots:,} dots; the limit is {MAX_BRACKETS:,}")
        found = tomllib.loads(_text(raw))
        _check_values(found)
    except ValueError as exc:
        raise error(f"{path} is not valid TOML: {exc}. {advice}") from exc
    except RecursionError as exc:
        raise error(f"{path} is not valid TOML: nested too deep. {advice}") from exc
    return found


def read_plain(
    path: Path | str, kind: type[T], limit_bytes: int = CONFIG_BYTES, *, constants: Collection[str] = ()
) -> T:
    """Read a JSON file as a value of a type such as `dict[str, int]`; raises `OSError` or `ValueError`."""
    return TypeAdapter(kind).validate_python(parse_json(read_bounded(path, limit_bytes), constants=constants))


def read_arrays(path: Path | str, limit_bytes: int, error: type[LatentcError], advice: str) -> dict[str, Array]:
    """Read the arrays of an `.npz` file, keyed by name: at most `limit_bytes` in all, and no object arrays.

    Raises `error`, with `advice` as the last sentence, for any other file. Sizes in the zip directory and in each
    array's header are checked before memory is allocated.
    """
    try:
        with regular(path) as file:
            _check_end(file, os.fstat(file.fileno()).st_size)
            with zipfile.ZipFile(file) as archive:
                return _members(archive, limit_bytes)
    except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as exc:
        raise error(unreadable(path, exc, advice)) from exc


def read_bounded(path: Path | str, limit_bytes: int) -> bytes:
    """Like `read_small`, but raises `OSError`, and `ValueError` if it is not a regular file or is larger."""
    with regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        raw = b"" if size > limit_bytes else file.read(limit_bytes + 1)
    if max(size, len(raw)) > limit_bytes:
        raise ValueError(f"it has {max(size, len(raw)):,} bytes; the limit is {limit_bytes:,}")
    return raw


def parse_json(raw: bytes | str, *, constants: Collection[str] = (), most_marks: int = MAX_MARKS) -> Any:
    """Parse JSON: UTF-8, at most `MAX_DEPTH` deep, without duplicate names, infinity or NaN.

    `constants` lists those of `INFINITE` and `NAN` that are accepted nevertheless; `most_marks` limits quotes, commas
    and brackets. Raises only `ValueError`.
    """
    raw = raw.encode("utf-8") if isinstance(raw, str) else raw
    text = _text(raw)
    if sum(map(raw.count, (b'"', b",", b"[", b"{"))) > most_marks:
        raise ValueError(f"more than {most_marks:,} quotes, commas and brackets")
    depth = 0
    for token in _TOKEN.finditer(raw):
        mark = raw[token.start()]
        depth += (mark in b"[{") - (mark in b"]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")

    def constant(name: str) -> float:
        if name not in constants:
            raise ValueError(f"{name}, which is not a JSON number")
        return float(name)

    try:
        found = json.loads(
            text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=constant
        )
        if _SURROGATE.search(raw):
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ValueError("an unpaired surrogate, which is not a character") from exc
    except (RecursionError, MemoryError) as exc:  # the caller's stack is deep, or memory is short
        raise ValueError("too deep or too large to be read here") from exc
    return found


def unreadable(path: Path | str, exc: Exception, advice: str) -> str:
    """A sentence about a file that cannot be read, and what to do."""
    if isinstance(exc, PointerError):
        return str(exc)
    reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else in_a_line(exc)
    return f"{path} cannot be read ({reason}). {advice}"


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = next((name for fits, name in _KINDS if fits(found.st_mode)), "something else")
        raise ValueError(f"it is {what}; expected a file")


def _text(raw: bytes) -> str:
    try:
        return raw.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ValueError(f"byte {exc.start} is not UTF-8") from exc


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"duplicate name {twice[:80]!r}")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number with {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:80]}, which is too large")
    return value


def _check_values(table: dict[str, Any]) -> None:
    """Check that integers fit in 64 bits, as in TOML, and that there is no infinity or NaN, which no setting uses."""
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH):
        level = [value for one in level for value in _inside(one)]
        for value in level:
            if isinstance(value, int) and abs(value) >= 1 << 63:
                raise ValueError("an integer of more than 64 bits")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value}; expected a finite number")
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []


def _check_end(file: BinaryIO, size: int) -> None:
    """Check the zip's end record: no comment, no zip64, and a small directory, because zipfile reads all of it."""
    file.seek(max(0, size - 42))
    tail = file.read(42)
    end = tail[-22:]
    if not end.startswith(b"PK\5\6") or end[20:] != b"\0\0" or tail.startswith(b"PK\6\7"):
        raise ValueError("it is not a complete .npz file")
    if int.from_bytes(end[12:16], "little") > MAX_ARRAYS * 256:
        raise ValueError(f"it has more than {MAX_ARRAYS:,} members")
    file.seek(0)


def _members(archive: zipfile.ZipFile, limit_bytes: int) -> dict[str, Array]:
    members = archive.infolist()
    if len(members) > MAX_ARRAYS or len({member.filename for member in members}) != len(members):
        raise ValueError(f"it has {len(members):,} members: too many, or duplicate names")
    if (total := sum(member.file_size for member in members)) > limit_bytes:
        raise ValueError(f"its arrays need {total:,} bytes; the limit is {limit_bytes:,}")
    found: dict[str, Array] = {}
    for member in members:
        if not member.filename.endswith(".npy") or member.compress_type not in _METHODS:
            raise ValueError(f"its member {member.filename!r} is not an array")
        with archive.open(member) as file:
            found[member.filename.removesuffix(".npy")] = _array(member, file)
    return found


def _array(member: zipfile.ZipInfo, file: IO[bytes]) -> Array:
    """Read an array in `.npy` format; the size in its header must match the zip directory."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as exc:  # numpy evaluates the header's literal, and can raise anything
        raise ValueError(f"its member {member.filename!r} is not an array: {exc}") from exc
    sound = len(shape) <= MAX_AXES and all(type(side) is int and 0 <= side < 1 << 48 for side in shape)
    left = member.file_size - file.tell()
    if dtype.kind not in _KEPT or not dtype.itemsize or not sound or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"its member {member.filename!r} has dtype {dtype} and shape {shape}, but {left:,} bytes")
    room, at = bytearray(left), 0
    while piece := file.read(1 << 20):
        room[at : at + len(piece)] = piece
        at += len(piece)
    if at != left:
        raise ValueError(f"its member {member.filename!r} ends after {at:,} of {left:,} bytes")
    flat: Array = np.frombuffer(room, dtype)
    return flat.reshape(shape[::-1]).transpose() if fortran else flat.reshape(shape)
