"""Artifacts on disk: how they are stored, how they are found, and why one is missing.

<bundle>/engines/<part>-<key>/key.json    the header: the fields of the key, the files' digests, parity figures
<bundle>/engines/<part>-<key>/...         files of the runtime; large files that are equal, or were taken from another
                                         bundle, are hard links
<bundle>/engines/.<name>.build.lock       held during a build; the system releases the lock of a dead process
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, field_serializer

from ..core.bundle import Bundle, check_path, leads_out, plain_files
from ..core.engine import Engine
from ..core.errors import BundleError
from ..core.files import fresh_folder, read_sealed, sha256, unwritable, write_sealed
from ..core.locks import WAIT_SECONDS, LockedError, held
from ..core.manifest import FileInfo
from ..core.progress import WAITING, Progress, quiet
from ..core.reading import PointerError, read_plain, refuse_pointer
from ..core.record import Record
from ..runtimes import Runtime
from ..runtimes.base import QUANTIZED, Quantized, files_in
from .key import Key
from .looped import load_part

if TYPE_CHECKING:
    from .targets import Wanted

HEADER = "key.json"
SHARED_BYTES = 1 << 20
"""Smaller files are copied: searching for another artifact with the same file takes longer."""

LOCK = ".build.lock"
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
"""Temporary files of `core.files`, before they are renamed."""
WRITING_SECONDS = 60.0
"""A file that is still being written is never older than this."""

KEPT = "Engines are stored in the bundle: make it writable, or copy it to a writable folder."


class Parity(Record):
    """Agreement of an engine with the reference on fixed inputs: the worst figures over its outputs."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    psnr_db: float
    cosine: float
    reference: str
    """What computed the reference: PyTorch at export, or a runtime that ran the exported graph in f32 at this shape."""
    worst: str = ""
    """Output and reference with the lowest PSNR, such as `out_sample of whole.0`."""
    worst_timestep: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    """Timestep of that reference; None for a part without."""
    graph_run_by: str | None = None
    """Set where the engine's device was absent: the figures are those of its graph, run on the CPU by this runtime."""
    compared_on: str | None = None
    """For an engine of several devices, the one that ran it; None where it is for one device."""
    text_db: float | None = None
    """For a denoiser: SNR of what the text changes in its output, over calls that differ by their text alone."""
    text_share: float = 0.0
    """RMS of that change in the reference, relative to the RMS of the output."""
    control_db: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    control_share: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    """The same figures of what the images of ControlNets change."""
    style_db: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    style_share: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    """The same figures of what a style image changes."""


class Artifact(Record):
    """One compiled part, stored as `key.json`."""

    part: str
    key: str
    fields: Key
    files: dict[str, FileInfo]
    parity: Parity
    """Its figures on the machine that built it. Every machine proves it again before it generates images."""
    seconds: float
    """Time to compile or refit it, without the comparison."""
    refitted_from: str | None = None
    """Key of the engine whose weights were replaced; None for an engine that was compiled."""
    profiles: tuple[str, ...] = ()
    """Names of the profiles that it was built for."""
    quantized: Annotated[Quantized | None, Field(exclude_if=lambda value: value is None)] = None
    """Set where layers were chosen that stay exact."""

    @field_serializer("fields")
    def _plain(self, fields: Key) -> dict[str, Any]:
        return fields.plain

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.bytes for file in self.files.values())

    @property
    def name(self) -> str:
        """Name of its folder under `engines/`."""
        return folder_name(self.part, self.key)


def folder_name(part: str, key: str) -> str:
    """Name of an artifact's folder."""
    return f"{part}-{key}"


def find(bundle: Bundle, part: str, key: str) -> Artifact | None:
    """The artifact of this key if it is complete: file sizes are checked here, contents when it is loaded."""
    try:
        return _read(bundle, part, key)
    except OSError:  # `intact` reports it
        return None


def _read(bundle: Bundle, part: str, key: str) -> Artifact | None:
    """`find` that raises `OSError` for a file that exists and can't be read."""
    folder = bundle.engines / folder_name(part, key)
    try:
        artifact = Artifact.model_validate(read_sealed(folder / HEADER))
        whole = artifact.part == artifact.fields.part == part and artifact.key == artifact.fields.digest == key
        whole = whole and all(
            not leads_out(folder, name) and (folder / name).stat().st_size == info.bytes
            for name, info in artifact.files.items()
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    return artifact if whole else None


def intact(bundle: Bundle, part: str, key: str) -> Artifact | None:
    """The artifact of this key if every byte is as it was built; raises `BundleError` where it can't be read."""
    try:
        artifact = _read(bundle, part, key)
    except OSError as exc:
        raise _unreadable(bundle.engines / folder_name(part, key), exc) from exc
    return artifact if artifact is not None and is_intact(bundle, artifact) else None


def is_intact(bundle: Bundle, artifact: Artifact) -> bool:
    """Whether every byte of an artifact's files is as it was built; raises `BundleError` for an unreadable file."""
    return _damaged(bundle, artifact) is None


def artifacts(bundle: Bundle) -> list[Artifact]:
    """All complete artifacts of a bundle; anything else in the folder is ignored."""
    found: list[Artifact] = []
    for path in sorted(bundle.engines.glob(f"*/{HEADER}")):
        part, _, key = path.parent.name.rpartition("-")
        artifact = find(bundle, part, key)
        if artifact is not None:
            found.append(artifact)
    return found


def verify(bundle: Bundle, artifact: Artifact) -> Path:
    """The artifact's folder, after the digest of every file is checked; raises `BundleError` naming a damaged file."""
    path = _damaged(bundle, artifact)
    if path:
        try:
            refuse_pointer(path)
        except PointerError as exc:
            raise BundleError(str(exc)) from exc
        if bundle.manifest.packaged is not None:
            raise BundleError(incomplete(path))
        with suppress(OSError):
            os.utime(path)  # the build that repairs it would not read it again
        known = f" for profile {' or '.join(artifact.profiles)}" if artifact.profiles else ""
        raise BundleError(f"{path} is damaged: it is not the file that was built. Run `latentc build`{known} again.")
    return bundle.engines / artifact.name


def loadable(bundle: Bundle, artifact: Artifact) -> Path:
    """`verify`, and return the folder that an adapter can load from: in a bundle of links, a folder of plain files."""
    folder = verify(bundle, artifact)
    return plain_files(bundle, artifact.name, {name: folder / name for name in artifact.files})


def load_engine(bundle: Bundle, artifact: Artifact, adapter: Runtime, want: Wanted) -> Engine:
    """Load an artifact after checking its key and its files; raises `BundleError` where it doesn't match or is damaged.

    Libraries don't detect every mismatch: OpenVINO loads a graph that was compiled in f16 and reports it as f32, ONNX
    Runtime loads one whose layouts were chosen for another CPU.
    """
    if differs := artifact.fields.differences(want.fields):
        what = "; ".join(f"{name} is {has!r}, required is {wants!r}" for name, (has, wants) in differs.items())
        raise BundleError(f"{bundle.engines / artifact.name} does not match the profile ({what}). Run `latentc build`.")
    sizes = {name: info.bytes for name, info in artifact.files.items()}
    return load_part(adapter, loadable(bundle, artifact), want.target, sizes)


def _damaged(bundle: Bundle, artifact: Artifact) -> Path | None:
    """The first damaged file of an artifact; raises `BundleError` for a file that can't be read."""
    for name, info in artifact.files.items():
        path = bundle.engines / artifact.name / name
        try:
            check_path(bundle.folder, path.relative_to(bundle.folder).as_posix())
            if not is_whole(path, info):
                return path
        except (BundleError, PointerError):
            return path
        except FileNotFoundError:  # another process removed it
            return path
        except OSError as exc:
            raise _unreadable(path, exc) from exc
    return None


Marks = dict[str, tuple[tuple[int, int], tuple[int, int, int]]]


def marks_of(bundle: Bundle, artifact: Artifact) -> Marks:
    """For each existing file: its device and inode, and its size and times, which change when it is written to."""
    found: Marks = {}
    for name in artifact.files:
        with suppress(OSError):
            seen = (bundle.engines / artifact.name / name).stat()
            found[name] = (seen.st_dev, seen.st_ino), (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    return found


def stays_inside(bundle: Bundle, artifact: Artifact) -> bool:
    """Whether no link leads from an artifact's files out of the bundle."""
    try:
        for name in artifact.files:
            check_path(bundle.folder, (bundle.engines / artifact.name / name).relative_to(bundle.folder).as_posix())
    except BundleError:
        return False
    return True


def incomplete(path: Path) -> str:
    """A sentence for something that a package should have."""
    return f"{path} of this package is missing or damaged. Copy the package again."


def is_whole(path: Path, info: FileInfo) -> bool:
    """Whether a file is as it was built; raises `OSError`, and `ValueError` for anything but a regular file."""
    return path.is_file() and path.stat().st_size == info.bytes and sha256(path) == info.sha256


def damage(path: Path) -> str:
    """A sentence on what is wrong with a path where an engine should be."""
    for file in sorted(path.glob("*")):
        try:
            refuse_pointer(file)
        except PointerError as exc:
            return str(exc)
    return f"{path} is damaged, or was built by another version of latentc."


def _unreadable(path: Path, exc: OSError) -> BundleError:
    return BundleError(f"{path} cannot be read ({exc.strerror}). Check the disk and the file's permissions.")


def seal(
    folder: Path,
    fields: Key,
    parity: Parity,
    seconds: float,
    profile: str,
    refitted_from: str | None = None,
) -> Artifact:
    """Write the header of an artifact whose files are all in `folder`."""
    files = {name: FileInfo(sha256=sha256(folder / name), bytes=size) for name, size in files_in(folder).items()}
    artifact = Artifact(
        part=fields.part,
        key=fields.digest,
        fields=fields,
        files=files,
        parity=parity,
        seconds=round(seconds, 3),
        refitted_from=refitted_from,
        profiles=(profile,),
        quantized=read_plain(folder / QUANTIZED, Quantized) if QUANTIZED in files else None,
    )
    keep(folder / HEADER, artifact)
    usual = stat.S_IMODE((folder / HEADER).stat().st_mode)
    for path in (folder / name for name in files):  # IREE's weights are not readable by others
        path.chmod(stat.S_IMODE(path.stat().st_mode) | usual)
    return artifact


def keep(path: Path, record: Record) -> None:
    """Write a record beside the engines; raises `BundleError` where it can't be written."""
    try:
        write_sealed(path, record.model_dump(mode="json"))
    except OSError as exc:
        raise BundleError(unwritable(path, exc, KEPT)) from exc


def share(bundle: Bundle, folder: Path, files: Mapping[str, FileInfo]) -> None:
    """Replace large files that another artifact has too, such as the same weights for two GPUs, by hard links.

    Does nothing where the file system has no hard links.
    """
    if not any(info.bytes >= SHARED_BYTES for info in files.values()):
        return
    there = {
        info.sha256: bundle.engines / artifact.name / name
        for artifact in artifacts(bundle)
        for name, info in artifact.files.items()
        if not _is_cache(name)
    }
    for name, info in files.items():
        if info.bytes < SHARED_BYTES or _is_cache(name) or (other := there.get(info.sha256)) is None:
            continue
        if sha256(other) != info.sha256:
            continue
        linked = folder / f"{name}.tmp"
        with suppress(OSError):
            os.link(other.resolve(), linked)
            linked.replace(folder / name)


def _is_cache(name: str) -> bool:
    """Whether a file of an artifact is in a library's cache, to which the library may write."""
    return Path(name).parent != Path()


def take(bundle: Bundle, other: Bundle, artifact: Artifact) -> Artifact:
    """Add an artifact from another bundle, as hard links where both are on the same disk."""
    folder, taken = verify(other, artifact), artifact.model_copy(update={"profiles": ()})
    with fresh_folder(bundle.engines / artifact.name, BundleError) as fresh:
        keep(fresh / HEADER, taken)
        for name in artifact.files:
            if _is_cache(name):
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, fresh / name)
                continue
            try:
                os.link((folder / name).resolve(), fresh / name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(folder / name, fresh / name)
    return taken


def claim(bundle: Bundle, artifact: Artifact, profile: str) -> Artifact:
    """Add a profile to an artifact's header; the caller holds its lock."""
    stored = find(bundle, artifact.part, artifact.key) or artifact
    if profile not in stored.profiles:
        stored = stored.model_copy(update={"profiles": (*stored.profiles, profile)})
        keep(bundle.engines / artifact.name / HEADER, stored)
    return stored


def built_profiles(bundle: Bundle) -> tuple[str, ...]:
    """Names of the profiles that engines were built for."""
    return tuple(dict.fromkeys(name for artifact in artifacts(bundle) for name in artifact.profiles))


@contextmanager
def locked(bundle: Bundle, name: str, on_progress: Progress = quiet) -> Generator[None]:
    """Hold the lock of one artifact; waiting for it is reported through `on_progress`.

    Raises `BundleError` where the bundle can't be written, and where another process holds the lock for longer than
    `WAIT_SECONDS`.
    """
    path = bundle.engines / f".{name}{LOCK}"
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(path, WAIT_SECONDS, lambda: on_progress(f"{name}: {WAITING}", None)))
        except LockedError as exc:
            raise BundleError(
                f"{exc}. Wait until the other build has finished. If no build is running, remove the lock file."
            ) from None
        except OSError as exc:
            raise BundleError(unwritable(bundle.engines, exc, KEPT)) from exc
        yield


def check_place(bundle: Bundle) -> None:
    """Raise `BundleError` where engines can't be stored in the bundle, before one is built."""
    try:
        bundle.engines.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=bundle.engines):
            pass
    except OSError as exc:
        raise BundleError(unwritable(bundle.engines, exc, KEPT)) from exc


def is_old(path: Path) -> bool:
    """Whether a file is older than any that is still being written or was just locked."""
    return time.time() - path.stat().st_mtime > WRITING_SECONDS


def sweep(bundle: Bundle) -> None:
    """Remove leftovers of killed builds from `engines/`: partly written files, and locks that no process holds."""
    for path in bundle.engines.glob(".*"):
        with suppress(OSError):
            if TEMPORARY.fullmatch(path.name) and is_old(path):
                path.unlink()
            elif path.name.endswith(".lock") and path.is_file() and is_old(path):
                with suppress(LockedError), held(path):
                    shutil.rmtree(path.with_name(path.name.removesuffix(".lock") + ".tmp"), ignore_errors=True)


@dataclass(frozen=True)
class Miss:
    """Why an artifact is missing: the nearest one, and each field in which it differs, as (actual, required)."""

    nearest: str | None
    """The artifact itself where it exists and is damaged; None where the runtime has none of the part."""
    differences: Mapping[str, tuple[object, object]]


def explain(bundle: Bundle, wanted: Key, among: Sequence[Artifact]) -> Miss:
    """Compare a key with those of the artifacts of the same part and runtime, and report the nearest one.

    `among` are the bundle's artifacts.
    """
    itself = folder_name(wanted.part, wanted.digest)
    if os.path.lexists(bundle.engines / itself):
        return Miss(itself, {})
    candidates = [one for one in among if one.part == wanted.part and one.fields.runtime == wanted.runtime]
    differing = {artifact.name: artifact.fields.differences(wanted) for artifact in candidates}
    if not differing:
        return Miss(None, {})
    nearest = min(differing, key=lambda name: len(differing[name]))
    return Miss(nearest, differing[nearest])
