"""Atomic file writes, and digests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from .errors import LatentcError
from .locks import UNSUPPORTED, LockedError, held
from .reading import INFINITE, NAN, TABLE_BYTES, parse_json, read_bounded, regular
from .units import sized

WINDOWS = os.name == "nt"
CHUNK_BYTES = 8 << 20
SEAL = "digest"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FULL_BYTES = 1 << 20
"""A disk with less free space than this counts as full: libraries do not always report it."""


def link(path: Path, target: Path) -> None:
    """Make `path` a link to a file: a symbolic one, or a hard one on Windows, where the other kind takes a privilege.

    Raises `OSError` where neither can be made, for instance across drives.
    """
    try:
        path.symlink_to(target)
    except (OSError, NotImplementedError):
        os.link(target, path)


def sha256(path: Path, on_bytes: Callable[[int], None] | None = None, *, start: int = 0) -> str:
    """Hex SHA-256 of a regular file from a byte on, read in chunks; `on_bytes` is called with the size of each chunk.

    Raises `OSError`, and `ValueError` if it is not a regular file.
    """
    digest = hashlib.sha256()
    with regular(path) as file:
        file.seek(start)
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
            if on_bytes:
                on_bytes(len(piece))
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """Hex SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to disk, if its file system supports that."""
    try:
        descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)  # Windows flushes what is open for writing
    except OSError as exc:
        if path.is_dir() or (WINDOWS and isinstance(exc, PermissionError)):  # folders; files that are read-only
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old content or the new, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file atomically: readers see the old content or the new, never a part.

    Without `replace`, an existing file is kept, and `FileExistsError` is raised.
    """
    fresh = path.with_name(f".{secrets.token_hex(8)}.tmp")  # a short name, for file systems with a length limit
    try:
        fresh.write_bytes(content)
        sync(fresh)
        if replace:
            fresh.replace(path)
        else:
            _add(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync(path.parent)


def unwritable(path: Path, exc: OSError, advice: str = "Choose a writable folder.") -> str:
    """A sentence about a path that cannot be written, and what to do; for a full disk, with the free space."""
    if exc.errno in FULL:
        advice = "Free some space, or choose another folder."
    return f"{path} cannot be written ({why_unwritable(path, exc)}). {advice}"


def why_unwritable(path: Path, exc: OSError) -> str:
    """The system's reason; for a full disk, with the free space."""
    room = _room(path) if exc.errno in FULL else ""
    return f"{exc.strerror or exc}{f': {room}' if room else ''}"


def _room(path: Path) -> str:
    """The free space at a path that may not exist yet; empty if unknown."""
    for folder in (path, *path.parents):
        with suppress(OSError):
            usage = shutil.disk_usage(folder)
            return f"{sized(usage.free)} of {sized(usage.total)} free"
    return ""


def _full(folder: Path) -> str:
    """The free space of a folder whose disk is full; empty if it is not full, or unknown."""
    with suppress(OSError):
        if shutil.disk_usage(folder).free < FULL_BYTES:
            return _room(folder)
    return ""


def _add(fresh: Path, path: Path) -> None:
    try:
        os.link(fresh, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name first, then replace the file
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        fresh.replace(path)


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Atomically write a JSON object, with its own digest as another field."""
    write_text(path, json.dumps({**value, SEAL: sha256_json(dict(value))}, indent=2) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote; raises `ValueError` if it was modified, and `OSError`."""
    found = parse_json(read_bounded(path, TABLE_BYTES), constants=(*INFINITE, *NAN))  # a dB value may be infinite
    value = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    if value.pop(SEAL, None) != sha256_json(value):
        raise ValueError(f"{path} was modified or damaged: its digest does not match")
    return value


@contextmanager
def fresh_folder(target: Path, error: type[LatentcError], needed_bytes: int = 0) -> Generator[Path]:
    """Yield a temporary sibling of `target` to fill; it is renamed to `target` if the block succeeds.

    Leftovers of an interrupted run for the same target are removed first. Raises `error` if `target` exists and is not
    an empty folder, if its parent cannot be written, or if the disk is full or has less than `needed_bytes` free.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise error(f"{target} already exists and is not empty. Remove it, or choose another name.")
    fresh = target.with_name(f".{target.name}.tmp")
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(target.with_name(f".{target.name}.lock")))
        except LockedError as exc:
            raise error(
                f"{target} is being written by another process: {exc}. Wait until it has finished, or choose another "
                "name."
            ) from None
        except OSError as exc:
            raise error(unwritable(target.parent, exc)) from exc
        yield from _filled(target, fresh, error, needed_bytes)


def _filled(target: Path, fresh: Path, error: type[LatentcError], needed_bytes: int) -> Generator[Path]:
    """The work of `fresh_folder`, for the process that holds the lock."""
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        free = shutil.disk_usage(fresh).free
    except OSError as exc:
        raise error(unwritable(target.parent, exc)) from exc
    if free < needed_bytes:
        fresh.rmdir()
        raise error(
            f"{target} needs {sized(needed_bytes)}, but only {sized(free)} are free. Free some space, or choose "
            "another folder."
        )
    try:
        yield fresh
        for path in sorted(fresh.rglob("*")):
            sync(path)
        with suppress(FileNotFoundError):  # Windows can't replace an empty folder
            target.rmdir()
        fresh.replace(target)
        sync(target.parent)
    except OSError as exc:
        raise error(unwritable(target, exc)) from exc
    except LatentcError as exc:
        if (full := _full(target.parent)) and full not in str(exc):
            raise type(exc)(f"{target} cannot be written: {full}. Free some space. The error was: {exc}") from exc
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
