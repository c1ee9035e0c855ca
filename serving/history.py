"""The history of a server: finished images as PNGs in its state folder, and a table of them.

A file is written before its row, and a row deleted before its file: a crash leaves at most a file without a row, which
the next start removes.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import RequestError
from ..core.files import unwritable, write_bytes
from ..pipelines.png import Drawing, drawings
from ..pipelines.save import encoded
from .errors import ApiError
from .image_job import ImageJob
from .signing import ContentSigner
from .state import ADVICE, StateFolder, damaged

DEFAULT_IMAGES, DEFAULT_BYTES = 10_000, 10 * 10**9
SIDE, QUALITY = 256, 80
"""Of thumbnails: pixels of the longer side, and WebP's quality."""
WRITERS, MOST_WAITING = 4, 16
"""Threads that encode files; jobs whose files wait for them: with more, generation waits."""
BEYOND = """
DELETE FROM pictures WHERE id IN (
    SELECT id FROM (
        SELECT id, ROW_NUMBER() OVER newest AS place, SUM(bytes) OVER newest AS held FROM pictures
        WINDOW newest AS (ORDER BY id DESC)
    ) WHERE place > ? OR held > ?
) RETURNING file
"""
"""Deletes what is beyond a number of images and of bytes, the oldest first."""
COLUMNS = ("id", "created", "waited", "seconds", "model", "api", "seed", "width", "height", "bytes", "request")

_FILE = re.compile(r"[0-9a-f]{32}\.png|\.[0-9a-f]{16}\.tmp")
"""Files of this module, and those of interrupted writes."""

log = logging.getLogger("latentc.serving")


@dataclass
class History:
    """Finished images in a state folder; raises `RequestError` if it can't be used.

    The oldest images are deleted beyond `images` or `held_bytes`, which counts PNGs and thumbnails.
    """

    state: StateFolder
    images: int = DEFAULT_IMAGES
    held_bytes: int = DEFAULT_BYTES
    signer: ContentSigner | None = None
    """What signs the files."""
    _writer: ThreadPoolExecutor = field(init=False)
    _room: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(MOST_WAITING), init=False)

    def __post_init__(self) -> None:
        self._writer = ThreadPoolExecutor(WRITERS, thread_name_prefix="latentc history")
        try:
            self._folder.mkdir(exist_ok=True)
            self._repair()
        except OSError as exc:
            raise RequestError(unwritable(self._folder, exc, ADVICE)) from exc
        except sqlite3.Error as exc:
            raise damaged(self.state.database, exc) from exc

    def close(self) -> None:
        """Finish what was put in."""
        self._writer.shutdown()

    def put(self, job: ImageJob) -> None:
        """Write the images of a completed job, in another thread, and enter them, without those that were filtered;
        `job.stored` gets the ids of the entries by index, without those that could not be written.
        """
        self._room.acquire()
        try:
            written = self._writer.submit(self._write, job)
        except RuntimeError:  # after `close`, or where no thread can be started
            self._room.release()
            if job.stored is not None:
                job.stored.set_result({})
            raise
        written.add_done_callback(lambda _: self._room.release())

    def entries(self, before: int | None, limit: int) -> list[dict[str, Any]]:
        """The newest entries, or those older than an id: request, times in seconds, and sizes."""
        found = self.state.run(
            f"SELECT {', '.join(COLUMNS)} FROM pictures WHERE id < ? ORDER BY id DESC LIMIT ?",
            (before if before is not None else 2**63 - 1, limit),
        )
        return [_entry(row) for row in found]

    def entry(self, number: int) -> dict[str, Any]:
        """An entry; raises `ApiError` 404."""
        found = self.state.run(f"SELECT {', '.join(COLUMNS)} FROM pictures WHERE id = ?", (number,))
        if not found:
            raise missing()
        return _entry(found[0])

    def image(self, number: int) -> bytes:
        """The PNG of an entry; raises `ApiError` 404."""
        found = self.state.run("SELECT file FROM pictures WHERE id = ?", (number,))
        try:
            return (self._folder / found[0][0]).read_bytes()
        except (IndexError, FileNotFoundError) as exc:
            raise missing() from exc

    def thumbnail(self, number: int) -> bytes:
        """A small WebP of an entry; raises `ApiError` 404."""
        found = self.state.run("SELECT thumbnail FROM pictures WHERE id = ?", (number,))
        if not found:
            raise missing()
        return found[0][0]

    def delete(self, number: int) -> None:
        """Delete an entry and its file; raises `ApiError` 404."""
        found = self.state.run("DELETE FROM pictures WHERE id = ? RETURNING file", (number,))
        if not found:
            raise missing()
        self._remove(found[0][0])

    def clear(self) -> int:
        """Delete all entries and their files; returns how many."""
        found = self.state.run("DELETE FROM pictures RETURNING file")
        for (name,) in found:
            self._remove(name)
        return len(found)

    @property
    def _folder(self) -> Path:
        return self.state.folder / "pictures"

    def _remove(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as exc:  # the next start tries it again
            log.warning("a deleted image is still there: %a", str(exc))

    def _write(self, job: ImageJob) -> None:
        result, stored, started = job.result, job.stored, job.started or job.created
        if result is None or stored is None:
            return
        times = {"created": job.finished or started, "waited": started - job.created, "seconds": job.seconds}
        about = {**times, "model": job.model, "api": job.api}
        ids: dict[int, int] = {}
        try:
            for index, (image, drawing) in enumerate(zip(result.images, drawings(result), strict=True)):
                if index not in job.filtered:
                    ids[index] = self._enter(image, drawing, about, job.source)
            self._trim()
        except Exception as exc:
            log.warning("images of job %s are not in the history: %a", job.id[:6], str(exc))
        stored.set_result(ids)

    def _enter(self, image: NDArray[np.uint8], drawing: Drawing, about: Mapping[str, Any], source: bytes | None) -> int:
        content, small = encoded(image, drawing, marked=True), _smaller(image)
        if self.signer is not None:
            content = self.signer.sign(content, "png", drawing.request, source)
        path = self._folder / f"{secrets.token_hex(16)}.png"
        row = {
            **about,
            "file": path.name,
            "seed": str(drawing.request.seed),
            "height": image.shape[0],
            "width": image.shape[1],
            "bytes": len(content) + len(small),
            "request": drawing.request.model_dump_json(),
            "thumbnail": small,
        }
        write_bytes(path, content)
        try:
            marks = ", ".join("?" * len(row))
            statement = f"INSERT INTO pictures ({', '.join(row)}) VALUES ({marks}) RETURNING id"
            return self.state.run(statement, tuple(row.values()))[0][0]
        except sqlite3.Error:
            path.unlink(missing_ok=True)
            raise

    def _trim(self) -> None:
        """Delete the oldest entries beyond the limits."""
        ((count, held),) = self.state.run("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM pictures")
        if count > self.images or held > self.held_bytes:
            for (name,) in self.state.run(BEYOND, (self.images, self.held_bytes)):
                self._remove(name)

    def _repair(self) -> None:
        """Remove files without entries and entries without files, and apply the limits."""
        entered = {name for (name,) in self.state.run("SELECT file FROM pictures")}
        there = {path.name for path in self._folder.iterdir()}
        for name in there - entered:
            if _FILE.fullmatch(name):
                (self._folder / name).unlink(missing_ok=True)
        for name in entered - there:
            self.state.run("DELETE FROM pictures WHERE file = ?", (name,))
        self._trim()


def missing() -> ApiError:
    """The error for an entry that was deleted, or never existed."""
    return ApiError(404, "The history has no such image.", code="image_not_found")


def _entry(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row as clients see it. Seeds are texts: JavaScript rounds numbers above 2**53."""
    found = dict(zip(COLUMNS, row, strict=True))
    path = f"/v1/history/{found['id']}"
    request = {**json.loads(found["request"]), "seed": found["seed"]}
    return {**found, "request": request, "image": f"{path}/image", "thumbnail": f"{path}/thumbnail"}


def _smaller(image: NDArray[np.uint8]) -> bytes:
    """A WebP of an image, [height, width, 3], at most `SIDE` pixels long."""
    small, buffer = Image.fromarray(image), BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()
