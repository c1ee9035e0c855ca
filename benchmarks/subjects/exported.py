"""Keep the exports of baselines for the next run, with the time that they took."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from ...core.install import make
from ..line import Prepared

STAMP = "latentc-baseline.json"


def create() -> str:
    """A sentence on how to make its environment."""
    return f"Create or complete its environment with: {make('peers')}."


def exported(folder: Path, libraries: Sequence[str], export: Callable[[Path], None]) -> Prepared:
    """Run `export` into a folder, unless the same versions have already done so.

    `folder` belongs to one checkpoint and is written atomically.
    """
    versions = {name: metadata.version(name) for name in libraries}
    stamp: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # missing or damaged
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    if stamp.get("versions") == versions:
        return Prepared(stamp["seconds"], reused=True, bytes=_bytes(folder))
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    start = perf_counter()
    export(fresh)
    seconds = perf_counter() - start
    (fresh / STAMP).write_text(json.dumps({"versions": versions, "seconds": seconds}), encoding="utf-8", newline="\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)
    return Prepared(seconds, bytes=_bytes(folder))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
