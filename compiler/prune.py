"""What of a bundle nothing needs any more: leftovers of work that was killed, and engines that nothing here loads.

Only what can be identified is removed: names that latentc gives to temporary files, and engines whose header is whole
and says why nothing will ask for them again. Engines for other devices stay, as do those of runtimes that aren't here.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from ..core.bundle import PART_NAME, PLAIN, Bundle
from ..core.errors import BundleError, LatentcError
from ..core.files import unwritable
from ..core.locks import LockedError, held, is_held
from ..core.reading import is_regular, regular
from ..runtimes import RUNTIMES, runtime
from ..runtimes.base import TIMING
from .cache import HEADER, LOCK, TEMPORARY, Artifact, artifacts, is_old
from .faults import KEY, broken, unpacks
from .lower import LOWERING_VERSION
from .scratch import LOCK as SCRATCH_LOCK
from .scratch import PREFIX

NOTHING = "null"
"""The runtime whose engines draw nothing."""

ENGINE = rf"({PART_NAME.pattern})-{KEY.pattern}"
REFERENCE = rf"reference-{ENGINE}"
FRESH = re.compile(rf"\.{ENGINE}\.tmp")
PLAINS = re.compile(rf"{re.escape(PLAIN)}({PART_NAME.pattern}|{ENGINE})")
LOCKS = re.compile(rf"\.({ENGINE}|{REFERENCE})(\.build)?\.lock")


@dataclass(frozen=True)
class Leftover:
    """Something that nothing needs."""

    path: Path
    why: str
    bytes: int
    """What removing it frees: files that have other names are left out."""
    lock: Path | None = None
    """Who holds this uses it."""


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be; what another process uses; and what is among the engines and isn't known."""

    removed: tuple[Leftover, ...]
    busy: tuple[Leftover, ...]
    unknown: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """What removing frees."""
        return sum(one.bytes for one in self.removed)


def prune(bundle: Bundle, *, dry_run: bool = False) -> Pruned:
    """Remove leftovers and lost engines; with `dry_run`, only say what they are.

    Raises `BundleError` where one can't be removed.
    """
    removed: list[Leftover] = []
    busy: list[Leftover] = []
    for one in (found := (*leftovers(bundle), *lost(bundle))):
        gone = (one.lock is None or not is_held(one.lock)) if dry_run else _remove(one)
        (removed if gone else busy).append(one)
    known = {one.path for one in found}
    return Pruned(tuple(removed), tuple(busy), tuple(path for path in _unknown(bundle) if path not in known))


def leftovers(bundle: Bundle) -> tuple[Leftover, ...]:
    """What work that was killed left in a bundle, and beside it; nothing that another process holds."""
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
    for path in _entries(bundle.engines):
        if FRESH.fullmatch(path.name):
            yield _leftover(path, "an engine that was being built", path.with_suffix(".lock"))
        elif LOCKS.fullmatch(path.name):
            yield _leftover(path, "a lock that nobody holds", path)
        elif path.name.startswith(PREFIX) and is_regular(path / SCRATCH_LOCK) and not path.is_symlink():
            yield _leftover(path, "a scratch folder", path / SCRATCH_LOCK)
        elif PLAINS.fullmatch(path.name) and is_old(path):  # a newer one is about to be loaded from
            yield _leftover(path, "names for files of the hub's cache, given again when they are needed")


def lost(bundle: Bundle) -> tuple[Leftover, ...]:
    """Engines that nothing on this machine will load again, and references that aren't what was written."""
    found = {bundle.engines / one.name: why for one in artifacts(bundle) if (why := _reason(bundle, one))}
    for path in broken(bundle):
        if not path.is_symlink() and _is_damaged(path / HEADER):
            found[path] = "damaged, or of another version of latentc"
    names = re.compile(rf"{REFERENCE}\.npz")
    for path in _entries(bundle.engines):
        if names.fullmatch(path.name) and not unpacks(path):
            found[path] = "a reference that isn't what was written"
    links = [path for folder in found for path in _files(folder)]
    times = Counter(node for path in links if (node := _node(path)))
    made: list[Leftover] = []
    for path, why in found.items():
        lock = bundle.engines / f".{path.name.removesuffix('.npz')}{LOCK}"
        made.append(_leftover(path, why, lock, times))
    return tuple(made)


def _is_damaged(header: Path) -> bool:
    """Whether there is a header that can be read; what has none, or hides it, may be anything."""
    try:
        with regular(header):
            return True
    except (OSError, ValueError):
        return False


def _node(path: Path) -> tuple[int, int] | None:
    """Which file a name is of; None where it is gone."""
    with suppress(OSError):
        seen = path.stat()
        return seen.st_dev, seen.st_ino
    return None


def _reason(bundle: Bundle, artifact: Artifact) -> str | None:
    """Why nothing will ask for an engine again; None where something may."""
    fields, name = artifact.fields, artifact.fields.runtime
    if name == NOTHING:
        return "of the runtime null, which draws nothing"
    part = bundle.manifest.parts.get(artifact.part)
    if part is None or fields.part_digest != part.digest:
        return "of another export's graph"
    if name not in RUNTIMES:
        return None
    adapter = runtime(name)
    if fields.adapter != adapter.revision or (adapter.reads_onnx and fields.lowering != LOWERING_VERSION):
        return "of another version of latentc"
    if adapter.at_load & set(fields.options):
        return "of an earlier latentc, whose keys had options that act at load only"
    if adapter.missing(fields.device_name):  # others' engines are for elsewhere
        return None
    try:
        versions = adapter.versions()
    except LatentcError:
        return None
    if fields.versions == versions:
        return None
    return f"of {_said(fields.versions)}; here is {_said(versions)}"


def _said(versions: dict[str, str]) -> str:
    return " ".join(f"{name} {version}" for name, version in versions.items()) or "no version"


def _leftover(
    path: Path, why: str, lock: Path | None = None, times: dict[tuple[int, int], int] | None = None
) -> Leftover:
    """`times`: how often each file, by device and inode, is removed in all."""
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
    """Remove it, unless another process uses it; whether it is gone."""
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
    """What is among the engines, and isn't named as anything of latentc's, or holds no engine."""
    names = re.compile(rf"{REFERENCE}\.npz")
    whole = {one.name for one in artifacts(bundle)}
    for path in _entries(bundle.engines):
        ours = FRESH.fullmatch(path.name) or LOCKS.fullmatch(path.name) or names.fullmatch(path.name)
        temporary = TEMPORARY.fullmatch(path.name) or path.name.startswith((PREFIX, PLAIN))
        if path.name not in whole and not ours and not temporary and path.name != TIMING:
            yield path
