"""Artifacts on disk: what they are keyed by, how they are found, and why one isn't.

<bundle>/engines/<part>-<key>/key.json    the header: what is behind the key, the files' digests, parity figures
<bundle>/engines/<part>-<key>/...         what the runtime wrote; what two wrote alike is one file, linked, as
                                         is what was taken from another bundle
<bundle>/engines/.<name>.build.lock       while it is built; the system frees a dead owner's
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, field_serializer

from ..core.bundle import Bundle, check_path, leads_out, plain_files
from ..core.engine import Engine
from ..core.errors import BundleError
from ..core.files import fresh_folder, read_sealed, sha256, unwritable, write_sealed
from ..core.locks import WAIT_SECONDS, LockedError, held
from ..core.manifest import FileInfo
from ..core.progress import WAITING, Progress, quiet
from ..core.reading import PointerError, refuse_pointer
from ..core.record import Record
from ..runtimes import Runtime
from ..runtimes.base import files_in
from .key import Key

if TYPE_CHECKING:
    from .targets import Wanted

HEADER = "key.json"
SHARED_BYTES = 1 << 20
"""Smaller files are copied: looking whether another artifact has them takes longer."""

LOCK = ".build.lock"
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
"""What `core.files` writes before it takes its place."""
WRITING_SECONDS = 60.0
"""A file that is being written is never older."""

KEPT = "Engines are kept in the bundle: let it be written, or copy it to a folder that can be."


class Parity(Record):
    """How near an engine came to the reference on fixed inputs: worst over its outputs."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    psnr_db: float
    cosine: float
    reference: str
    """Who made the reference: PyTorch at export, or a runtime that ran the exported graph in f32 at this shape."""
    worst: str = ""
    """Output and reference of the PSNR, as `out_sample of whole.0`."""
    graph_run_by: str | None = None
    """The engine's device wasn't here: this is the parity of its graph, run on the CPU by this runtime."""
    compared_on: str | None = None
    """Of the devices that the engine is for, the one that ran it; None where it is for one."""
    text_db: float | None = None
    """Of a denoiser: SNR of what the text changes in its answer, over calls that differ by their text alone."""
    text_share: float = 0.0
    """RMS of that change in the reference, as a share of the answer's."""


class Artifact(Record):
    """`key.json`: one compiled part."""

    part: str
    key: str
    fields: Key
    files: dict[str, FileInfo]
    parity: Parity
    """What it came to where it was built. Each machine proves it by itself before it draws."""
    seconds: float
    """How long compiling or refitting took, the comparison left out."""
    refitted_from: str | None = None
    """Key of the engine that was given these weights; None for one that was compiled."""
    profiles: tuple[str, ...] = ()
    """Names of the profiles that it was built for."""

    @field_serializer("fields")
    def _plain(self, fields: Key) -> dict[str, Any]:
        return fields.plain

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.bytes for file in self.files.values())

    @property
    def name(self) -> str:
        """Folder under `engines/`."""
        return folder_name(self.part, self.key)


def folder_name(part: str, key: str) -> str:
    """Name of an artifact's folder."""
    return f"{part}-{key}"


def find(bundle: Bundle, part: str, key: str) -> Artifact | None:
    """The artifact of this key, if it is whole; file sizes are compared, contents when it is loaded."""
    try:
        return _read(bundle, part, key)
    except OSError:  # `intact` says it
        return None


def _read(bundle: Bundle, part: str, key: str) -> Artifact | None:
    """As `find`; raises `OSError` for what is there and can't be read."""
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
    """The artifact of this key, if it is as it was built, every byte; raises `BundleError` where it can't be read."""
    try:
        artifact = _read(bundle, part, key)
    except OSError as exc:
        raise _unreadable(bundle.engines / folder_name(part, key), exc) from exc
    return artifact if artifact is not None and is_intact(bundle, artifact) else None


def is_intact(bundle: Bundle, artifact: Artifact) -> bool:
    """Whether an artifact's files are what was built, every byte; raises `BundleError` for one that can't be read."""
    return _damaged(bundle, artifact) is None


def artifacts(bundle: Bundle) -> list[Artifact]:
    """Every whole artifact of a bundle; anything else in the folder is passed over."""
    found: list[Artifact] = []
    for path in sorted(bundle.engines.glob(f"*/{HEADER}")):
        part, _, key = path.parent.name.rpartition("-")
        artifact = find(bundle, part, key)
        if artifact is not None:
            found.append(artifact)
    return found


def verify(bundle: Bundle, artifact: Artifact) -> Path:
    """The artifact's folder, once every file has its digest; raises `BundleError` naming the one that hasn't."""
    path = _damaged(bundle, artifact)
    if path:
        try:
            refuse_pointer(path)
        except PointerError as exc:
            raise BundleError(str(exc)) from exc
        known = f" for profile {' or '.join(artifact.profiles)}" if artifact.profiles else ""
        raise BundleError(f"{path} is damaged: it isn't what was built. Run `latentc build`{known} again.")
    return bundle.engines / artifact.name


def loadable(bundle: Bundle, artifact: Artifact) -> Path:
    """As `verify`, for an adapter to load from: in a bundle of links, the folder of plain files instead."""
    folder = verify(bundle, artifact)
    return plain_files(bundle, artifact.name, {name: folder / name for name in artifact.files})


def load_engine(bundle: Bundle, artifact: Artifact, adapter: Runtime, want: Wanted) -> Engine:
    """Load an artifact once every file has its digest; raises `BundleError` where it isn't what is wanted, or damaged.

    Libraries notice less than one would think: OpenVINO loads a graph that was compiled in f16 and calls it f32, ONNX
    Runtime takes one whose layouts were chosen for another CPU.
    """
    if differs := artifact.fields.differences(want.fields):
        what = "; ".join(f"{name}: it has {has!r}, wanted is {wants!r}" for name, (has, wants) in differs.items())
        raise BundleError(f"{bundle.engines / artifact.name} isn't what is wanted ({what}). Run `latentc build`.")
    sizes = {name: info.bytes for name, info in artifact.files.items()}
    return adapter.load(loadable(bundle, artifact), want.target, sizes)


def _damaged(bundle: Bundle, artifact: Artifact) -> Path | None:
    """The first file of an artifact that isn't what was built; raises `BundleError` for one that can't be read."""
    for name, info in artifact.files.items():
        path = bundle.engines / artifact.name / name
        try:
            check_path(bundle.folder, str(path.relative_to(bundle.folder)))
            if not is_whole(path, info):
                return path
        except (BundleError, PointerError):
            return path
        except FileNotFoundError:  # another process removes it
            return path
        except OSError as exc:
            raise _unreadable(path, exc) from exc
    return None


def is_whole(path: Path, info: FileInfo) -> bool:
    """Whether a file is what was built; raises `OSError`, and `ValueError` for what is no file."""
    return path.is_file() and path.stat().st_size == info.bytes and sha256(path) == info.sha256


def damage(path: Path) -> str:
    """What is wrong with what stands where an engine should be, in a sentence."""
    for file in sorted(path.glob("*")):
        try:
            refuse_pointer(file)
        except PointerError as exc:
            return str(exc)
    return f"{path} is damaged, or an engine of another version of latentc."


def _unreadable(path: Path, exc: OSError) -> BundleError:
    return BundleError(f"{path} can't be read ({exc.strerror}). Check the disk, and who may read it.")


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
    )
    keep(folder / HEADER, artifact)
    return artifact


def keep(path: Path, record: Record) -> None:
    """Write what is remembered beside the engines; raises `BundleError` where it can't be."""
    try:
        write_sealed(path, record.model_dump(mode="json"))
    except OSError as exc:
        raise BundleError(unwritable(path, exc, KEPT)) from exc


def share(bundle: Bundle, folder: Path, files: Mapping[str, FileInfo]) -> None:
    """Keep large files that another artifact has too, as the same weights for two GPUs, once on disk.

    Where the file system has no hard links, they stay as they are.
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
    """Whether a file of an artifact is in a library's cache, which it may write to."""
    return Path(name).parent != Path()


def take(bundle: Bundle, other: Bundle, artifact: Artifact) -> Artifact:
    """Bring in an artifact from another bundle, linked where that is on the same disk."""
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
    """Note in an artifact's header that it is a profile's too; by the holder of its lock."""
    stored = find(bundle, artifact.part, artifact.key) or artifact
    if profile not in stored.profiles:
        stored = stored.model_copy(update={"profiles": (*stored.profiles, profile)})
        keep(bundle.engines / artifact.name / HEADER, stored)
    return stored


def built_profiles(bundle: Bundle) -> tuple[str, ...]:
    """Names of the profiles that something is built for."""
    return tuple(dict.fromkeys(name for artifact in artifacts(bundle) for name in artifact.profiles))


@contextmanager
def locked(bundle: Bundle, name: str, on_progress: Progress = quiet) -> Generator[None]:
    """Hold the lock of one artifact, and say at once if that means waiting.

    Raises `BundleError` where the bundle can't be written, and where another process holds it for `WAIT_SECONDS`.
    """
    path = bundle.engines / f".{name}{LOCK}"
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(path, WAIT_SECONDS, lambda: on_progress(f"{name}: {WAITING}", None)))
        except LockedError as exc:
            raise BundleError(
                f"{exc}. Wait until that is done; if nothing is built there any more, remove the file."
            ) from None
        except OSError as exc:
            raise BundleError(unwritable(bundle.engines, exc, KEPT)) from exc
        yield


def check_place(bundle: Bundle) -> None:
    """Raise `BundleError` where no engine can be kept in the bundle, before one is built."""
    try:
        bundle.engines.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=bundle.engines):
            pass
    except OSError as exc:
        raise BundleError(unwritable(bundle.engines, exc, KEPT)) from exc


def is_old(path: Path) -> bool:
    """Whether a file is older than one that is being written, or locked, can be."""
    return time.time() - path.stat().st_mtime > WRITING_SECONDS


def sweep(bundle: Bundle) -> None:
    """Remove what killed builds left among the engines: files that were being written, and locks that nobody holds."""
    for path in bundle.engines.glob(".*"):
        with suppress(OSError):
            if TEMPORARY.fullmatch(path.name) and is_old(path):
                path.unlink()
            elif path.name.endswith(".lock") and path.is_file() and is_old(path):
                with suppress(LockedError), held(path):
                    shutil.rmtree(path.with_name(path.name.removesuffix(".lock") + ".tmp"), ignore_errors=True)


@dataclass(frozen=True)
class Miss:
    """Why there is no artifact: the nearest one, and each field in which it differs as (has, wanted)."""

    nearest: str | None
    """Itself, where it is there and damaged."""
    differences: Mapping[str, tuple[object, object]]


def explain(bundle: Bundle, wanted: Key, among: Sequence[Artifact]) -> Miss:
    """Compare a key with those of the artifacts that its runtime has of the part; the nearest one is reported.

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
