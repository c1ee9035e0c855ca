"""Files of a bundle and its engines that are damaged or were changed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..core.arrays import read_sealed_arrays
from ..core.bundle import Bundle, verify_files
from ..core.errors import BundleError
from ..core.progress import Progress, quiet
from .cache import artifacts, damage, find, incomplete, intact, is_whole, verify
from .key import KEY_LENGTH

KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")
AGAIN = "Remove it, or build its profile again."
"""What to do with a damaged engine. It may belong to no current profile."""


def faults(bundle: Bundle, on_progress: Progress = quiet) -> list[str]:
    """Read every file of a bundle and its engines; returns one sentence for each that isn't as it was written."""
    found: list[str] = []
    for index, name in enumerate(bundle.manifest.present):
        on_progress("files", index / len(bundle.manifest.present))
        try:
            verify_files(bundle, [name])
        except BundleError as exc:
            found.append(str(exc))
    packaged = bundle.manifest.packaged
    found += [incomplete(path) if packaged else _fault(bundle, path) for path in broken(bundle)]
    for artifact in artifacts(bundle):
        on_progress(f"engine {artifact.name}", None)
        try:
            verify(bundle, artifact)
        except BundleError as exc:
            found.append(str(exc))
    if packaged is not None:
        folders = (bundle.engines / name for name in packaged.engines)
        files = ((bundle.engines / name, info) for name, info in packaged.beside.items())
        found += [incomplete(path) for path in folders if not path.is_dir()]
        return found + [incomplete(path) for path, info in files if not is_whole(path, info)]
    damaged = [path for path in bundle.engines.glob("reference-*.npz") if not unpacks(path)]
    return found + [f"{path} is damaged. Remove it, and build again." for path in sorted(damaged)]


def _fault(bundle: Bundle, path: Path) -> str:
    part, _, key = path.name.rpartition("-")
    try:
        intact(bundle, part, key)
    except BundleError as exc:  # it can't be read
        return str(exc)
    return f"{damage(path)} {AGAIN}"


def unpacks(path: Path) -> bool:
    """Whether the outputs of a referee (see `cases`) are intact."""
    try:
        read_sealed_arrays(path, "")
    except BundleError:
        return False
    return True


def broken(bundle: Bundle) -> list[Path]:
    """Paths where an artifact should be, and whose header or file sizes are wrong."""
    named = ((path, *path.name.rpartition("-")[::2]) for path in sorted(bundle.engines.glob("*-*")))
    engines = [(path, part, key) for path, part, key in named if part in bundle.manifest.parts and KEY.fullmatch(key)]
    return [path for path, part, key in engines if find(bundle, part, key) is None and os.path.lexists(path)]
