"""What a baseline of another environment exported from a checkpoint, kept for the next run, with how long that took."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from ..line import Prepared

STAMP = "latentc-baseline.json"
MAKE = "Make its environment, or finish it, with: make peers."


def exported(folder: Path, libraries: Sequence[str], export: Callable[[Path], None]) -> Prepared:
    """What `export` writes into a folder: as it is there, if these versions wrote it, else written again.

    `folder` is the checkpoint's alone. It appears whole or not at all.
    """
    versions = {name: metadata.version(name) for name in libraries}
    stamp: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # there is none, or it is damaged
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    if stamp.get("versions") == versions:
        return Prepared(stamp["seconds"], reused=True, bytes=_bytes(folder))
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    start = perf_counter()
    export(fresh)
    seconds = perf_counter() - start
    (fresh / STAMP).write_text(json.dumps({"versions": versions, "seconds": seconds}), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)
    return Prepared(seconds, bytes=_bytes(folder))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
