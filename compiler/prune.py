"""Removal of what a bundle no longer needs: leftovers of killed processes, and engines that can't be loaded here again.

Only what can be identified is removed: names that latentc gives to temporary files, and engines whose intact header
shows that they won't be used again. Engines for other devices stay, as do those of runtimes that are not installed.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from ..core.bundle import ADAPTERS, PART_NAME, PLAIN, Bundle, open_bundle
from ..core.errors import BundleError, LatentcError
from ..core.files import unwritable
from ..core.locks import LockedError, held, is_held
from ..core.reading import is_regular, regular
from ..runtimes import RUNTIMES, runtime
from ..runtimes.base import TIMING
from .cache import HEADER, LOCK, TEMPORARY, Artifact, artifacts, is_old
from .faults import KEY, broken, unpacks
from .lower import LOWERING_VERSION
from .refused import SUFFIX, Refusal, refusals
from .scratch import LOCK as SCRATCH_LOCK
from .scratch import PREFIX

NOTHING = "null"
"""The runtime whose engines compute nothing."""

ENGINE = rf"({PART_NAME.pattern})-{KEY.pattern}"
REFERENCE = rf"reference-{ENGINE}"
REFUSED = re.compile(rf"{ENGINE}{re.escape(SUFFIX)}")
ADAPTED = re.compile(r"\.[0-9a-f]{16}\.(tmp|lock)")
MADE = re.compile(r"[0-9a-f]{16}")
FRESH = re.compile(rf"\.{ENGINE}\.tmp")
PLAINS = re.compile(rf"{re.escape(PLAIN)}({PART_NAME.pattern}|{ENGINE})")
LOCKS = re.compile(rf"\.({ENGINE}|{REFERENCE}|{ADAPTERS}-[0-9a-f]{{16}})(\.build)?\.lock")


@dataclass(frozen=True)
class Leftover:
    """A file or folder that is no longer needed."""

    path: Path
    why: str
    bytes: int
    """Bytes that removing it frees; files with further hard links are not counted."""
    lock: Path | None = None
    """The process that holds this lock uses it."""


@dataclass(frozen=True)
class Pruned:
    """Leftovers that were removed (or would be), those that another process uses, and unknown paths in `engines/`."""

    removed: tuple[Leftover, ...]
    busy: tuple[Leftover, ...]
    unknown: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Bytes that removing all of `removed` frees."""
        return sum(one.bytes for one in self.removed)


def prune(bundle: Bundle, *, dry_run: bool = False) -> Pruned:
    """Remove leftovers and lost engines; with `dry_run`, only list them.

    Raises `BundleError` where one can't be removed.
    """
    removed: list[Leftover] = []
    busy: list[Leftover] = []
    found = unneeded(bundle)
    for one in found:
        gone = (one.lock is None or not is_held(one.lock)) if dry_run else _remove(one)
        (removed if gone else busy).append(one)
    known = {one.path for one in found}
    return Pruned(tuple(removed), tuple(busy), tuple(path for path in _unknown(bundle) if path not in known))


def unneeded(bundle: Bundle) -> tuple[Leftover, ...]:
    """Leftovers and lost engines of a bundle, and of those that were made of it with adapters."""
    each = (bundle, *adapted_bundles(bundle)[0])
    found = {one.path: one for of in each for one in (*leftovers(of), *lost(of))}
    return tuple(found.values())


def adapted_bundles(bundle: Bundle) -> tuple[list[Bundle], list[str]]:
    """The bundles in `BUNDLE/adapters`, and a sentence for each that can't be opened."""
    opened: list[Bundle] = []
    broken: list[str] = []
    for path in _entries(bundle.folder / ADAPTERS):
        if MADE.fullmatch(path.name):
            try:
                opened.append(open_bundle(path))
            except BundleError as exc:
                broken.append(f"{exc} It was made with adapters, and may be removed.")
    return opened, broken


def leftovers(bundle: Bundle) -> tuple[Leftover, ...]:
    """Leftovers of killed processes in a bundle and beside it, without those that another process holds."""
    return tuple(one for one in _leftovers(bundle) if one.lock is None or not is_held(one.lock))


def _leftovers(bundle: Bundle) -> Iterator[Leftover]:
    folder = bundle.folder
    for place in (folder, *(folder / part for part in bundle.manifest.parts), bundle.engines):
        for path in _entries(place):
            if TEMPORARY.fullmatch(path.name) and is_old(path):
                yield _leftover(path, "a file that was being written")
    lock = folder.with_name(f".{folder.name}.lock")
    for path, why in ((folder.with_name(f".{folder.name}.tmp"), "an export that was stopped"), (lock, "its lock")):
        if path.exists():
            yield _leftover(path, why, lock)
    for path in _entries(folder / ADAPTERS):
        if ADAPTED.fullmatch(path.name):
            what = "a bundle that was being fused" if path.suffix == ".tmp" else "a lock that nobody holds"
            yield _leftover(path, what, path.with_suffix(".lock"))
    for path in _entries(bundle.engines):
        if FRESH.fullmatch(path.name):
            yield _leftover(path, "an engine that was being built", path.with_suffix(".lock"))
        elif LOCKS.fullmatch(path.name):
            yield _leftover(path, "a lock that nobody holds", path)
        elif path.name.startswith(PREFIX) and is_regular(path / SCRATCH_LOCK) and not path.is_symlink():
            yield _leftover(path, "a scratch folder", path / SCRATCH_LOCK)
        elif PLAINS.fullmatch(path.name) and is_old(path):  # a newer one is about to be loaded from
            yield _leftover(path, "links to files of the hub's cache, created again when they are needed")


def lost(bundle: Bundle) -> tuple[Leftover, ...]:
    """Engines that can't be loaded again on this machine, and damaged references. None of a package, which can't build
    them again.
    """
    if bundle.manifest.packaged is not None:
        return ()
    found = {bundle.engines / one.name: why for one in artifacts(bundle) if (why := _reason(bundle, one))}
    for path in broken(bundle):
        if not path.is_symlink() and _is_damaged(path / HEADER):
            found[path] = "damaged, or built by another version of latentc"
    names = re.compile(rf"{REFERENCE}\.npz")
    for path in _entries(bundle.engines):
        if names.fullmatch(path.name) and not unpacks(path):
            found[path] = "a damaged reference"
    for path, refused in refusals(bundle).items():
        if why := "a damaged record" if refused is None else _reason(bundle, refused):
            found[path] = f"the record of a refused engine: {why}"
    links = [path for folder in found for path in _files(folder)]
    times = Counter(node for path in links if (node := _node(path)))
    made: list[Leftover] = []
    for path, why in found.items():
        lock = bundle.engines / f".{path.name.removesuffix('.npz').removesuffix(SUFFIX)}{LOCK}"
        made.append(_leftover(path, why, lock, times))
    return tuple(made)


def _is_damaged(header: Path) -> bool:
    """Whether a readable header exists; a folder without one may hold anything."""
    try:
        with regular(header):
            return True
    except (OSError, ValueError):
        return False


def _node(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None where it no longer exists."""
    with suppress(OSError):
        seen = path.stat()
        return seen.st_dev, seen.st_ino
    return None


def _reason(bundle: Bundle, artifact: Artifact | Refusal) -> str | None:
    """Why an engine, or the record of a refused one, won't be used again; None where it may be."""
    fields, name = artifact.fields, artifact.fields.runtime
    if name == NOTHING:
        return "built with the null runtime, which computes nothing"
    part = bundle.manifest.parts.get(artifact.part)
    if part is None or fields.part_digest != part.digest:
        return "built from the graph of another export"
    if name not in RUNTIMES:
        return None
    adapter = runtime(name)
    if fields.adapter != adapter.facts.revision or (adapter.facts.reads_onnx and fields.lowering != LOWERING_VERSION):
        return "built by another version of latentc"
    if adapter.facts.at_load & set(fields.options):
        return "built by an earlier version of latentc, which had load-time options in its keys"
    if adapter.missing(fields.device_name):  # it is for another machine
        return None
    try:
        versions = adapter.versions()
    except LatentcError:
        return None
    if fields.versions == versions:
        return None
    return f"built with {_listed(fields.versions)}; installed: {_listed(versions)}"


def _listed(versions: dict[str, str]) -> str:
    return " ".join(f"{name} {version}" for name, version in versions.items()) or "no version"


def _leftover(
    path: Path, why: str, lock: Path | None = None, times: dict[tuple[int, int], int] | None = None
) -> Leftover:
    """`times`: how many names of each file, by device and inode, are removed in all."""
    freed, seen = 0, set[tuple[int, int]]()
    for file in _files(path):
        found = file.lstat()
        node = found.st_dev, found.st_ino
        if node not in seen and found.st_nlink <= (times or {}).get(node, 1):
            freed += found.st_size
        seen.add(node)
        if times and node in times:
            times[node] = 0  # counted
    return Leftover(path, why, freed, lock)


def _files(path: Path) -> list[Path]:
    try:
        return [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    except OSError:
        return []


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _remove(one: Leftover) -> bool:
    """Remove a leftover, unless another process uses it; returns whether it was removed."""
    try:
        with ExitStack() as stack:
            if one.lock is not None and one.lock.parent != one.path:
                stack.enter_context(held(one.lock))
            elif one.lock is not None and is_held(one.lock):
                return False
            if one.path.is_dir() and not one.path.is_symlink():
                shutil.rmtree(one.path)
            elif one.path != one.lock:  # a lock goes when it is let go
                one.path.unlink(missing_ok=True)
    except LockedError:
        return False
    except OSError as exc:
        raise BundleError(unwritable(one.path, exc, "Remove it by hand.")) from exc
    return True


def _unknown(bundle: Bundle) -> Iterator[Path]:
    """Paths under `engines/` that have no name of latentc's, or hold no intact engine."""
    names = re.compile(rf"{REFERENCE}\.npz")
    whole = {one.name for one in artifacts(bundle)}
    for path in _entries(bundle.engines):
        ours = FRESH.fullmatch(path.name) or LOCKS.fullmatch(path.name) or names.fullmatch(path.name)
        ours = ours or REFUSED.fullmatch(path.name)
        temporary = TEMPORARY.fullmatch(path.name) or path.name.startswith((PREFIX, PLAIN))
        if path.name not in whole and not ours and not temporary and path.name != TIMING:
            yield path
