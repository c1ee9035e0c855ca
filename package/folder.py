"""A package of engines: a folder that a machine with one profile opens as a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..compiler.cache import Artifact, claim, find, take
from ..compiler.cases import kept_reference
from ..compiler.engines import Engines
from ..compiler.refused import record_path
from ..compiler.sized import with_built_sizes
from ..compiler.targets import Wanted
from ..core.bundle import GRAPHS, MANIFEST, Bundle, check_whole, open_bundle, verify_files
from ..core.errors import BundleError, ProfileError
from ..core.files import fresh_folder, sha256, write_sealed, write_text
from ..core.manifest import FileInfo, Manifest, Packaged
from ..core.progress import Progress, quiet
from ..profiles import Profile, load_profile
from ..runtimes import runtime
from .pins import pins
from .pins import text as requirements
from .texts import RUN, about

ABOUT, REQUIREMENTS, SCRIPT = "PACKAGE.md", "requirements.txt", "run.py"


@dataclass(frozen=True)
class Package:
    """A package of engines that was written."""

    folder: Path
    profile: str
    engines: tuple[str, ...]
    """The parts, in the order of the bundle; one with several sizes is there several times."""
    bytes: int
    bundle_bytes: int
    """Size of the whole bundle, with all of its engines."""
    reference_bytes: int
    """Size of the references in it, with which a machine proves the engines."""


def package(
    bundle: Bundle | Path | str, profile: Profile | Path | str, folder: Path | str, on_progress: Progress = quiet
) -> Package:
    """Write the engines of a profile, and what they need, to a folder that `Pipeline.open` opens.

    The engines must be built. Those that this machine has not proved are proved first. Files are hard links to the
    bundle's engines where both are on one disk, and copies otherwise.

    Raises `BundleError` for engines that aren't built, for a folder that isn't empty, and for a package;
    `ProfileError` for a profile whose engines refer to the checkpoint; and what `Engines.check` raises.
    """
    bundle, folder = open_bundle(bundle), Path(folder).absolute()
    check_whole(bundle, "it cannot be packaged again")
    if folder.resolve().is_relative_to(bundle.folder.resolve()):
        raise BundleError(f"{folder} is inside of the bundle. Name a folder elsewhere with -o.")
    profile = load_profile(profile)
    if profile.model_dump() != load_profile(profile.source).model_dump():
        raise ProfileError(f"Profile {profile.name} differs from its file. Save it as a file of its own first.")
    if runtime(profile.runtime).facts.needs_checkpoint:
        raise ProfileError(
            f"Engines of profile {profile.name} run the modules of the checkpoint, which a package does not have. "
            "Package another profile."
        )
    with fresh_folder(folder, BundleError) as fresh:
        with Engines(bundle, with_built_sizes(bundle, profile)) as engines:
            engines.check(on_progress)
            wants = engines.wanted
        pinned = pins(bundle, profile, on_progress)
        artifacts = _write(bundle, profile, wants, fresh, pinned, on_progress)
        made = open_bundle(fresh)
        with Engines(made, with_built_sizes(made, load_profile(fresh / f"{profile.name}.toml"))) as engines:
            engines.check(on_progress)  # as the machine will that gets it
    return Package(
        folder=folder,
        profile=profile.name,
        engines=tuple(one.part for one in artifacts),
        bytes=bytes_in(folder),
        bundle_bytes=bytes_in(bundle.folder),
        reference_bytes=bytes_in(folder / "reference"),
    )


def bytes_in(folder: Path) -> int:
    """Size of the files in a folder; those with several names there are counted once."""
    seen = {
        (one.st_dev, one.st_ino): one.st_size for path in folder.rglob("*") if path.is_file() for one in [path.stat()]
    }
    return sum(seen.values())


def _write(
    bundle: Bundle,
    profile: Profile,
    wants: Iterable[Wanted],
    fresh: Path,
    pinned: tuple[str, ...],
    on_progress: Progress,
) -> list[Artifact]:
    """Fill the folder; returns the engines."""
    manifest, own = bundle.manifest, (f"{profile.name}.toml", REQUIREMENTS, SCRIPT, ABOUT)
    if taken := sorted({*own} & manifest.files.keys()):
        raise BundleError(f"{bundle.folder} has a file {taken[0]} of its own, so it cannot be packaged.")
    graphs = {part.path for part in manifest.parts.values()}
    left_out = tuple(name for name in manifest.files if GRAPHS.search(name) and name not in graphs)
    kept = [name for name in manifest.files if name not in left_out]
    verify_files(bundle, kept)
    for name in kept:
        _copy(bundle.folder / name, fresh / name)
    empty = replace(bundle, folder=fresh)
    artifacts: list[Artifact] = []
    for want in {want.key: want for want in wants}.values():
        on_progress(f"{want.part}: copy", None)
        artifact = find(bundle, want.part, want.key)
        assert artifact is not None  # it was proved just now
        artifacts.append(claim(empty, take(empty, bundle, artifact), profile.name))
        for path in _beside(bundle, want):
            _copy(path, empty.engines / path.name)
    shutil.copyfile(profile.source, fresh / f"{profile.name}.toml")
    write_text(fresh / REQUIREMENTS, requirements(pinned))
    write_text(fresh / SCRIPT, RUN)
    sizes = {"package_bytes": bytes_in(fresh), "bundle_bytes": bytes_in(bundle.folder)}
    write_text(fresh / ABOUT, about(bundle, profile, artifacts, **sizes))
    written = {name: _info(fresh / name) for name in own}
    packaged = Packaged(
        profile=own[0],
        left_out=left_out,
        engines=tuple(one.name for one in artifacts),
        beside={
            path.name: _info(path) for path in sorted(empty.engines.iterdir()) if path.is_file() and path.name[0] != "."
        },
    )
    made = manifest.model_copy(update={"files": {**manifest.files, **written}, "packaged": packaged})
    write_sealed(fresh / MANIFEST, Manifest.model_validate(made.model_dump()).model_dump(mode="json"))
    return artifacts


def _info(path: Path) -> FileInfo:
    return FileInfo(sha256=sha256(path), bytes=path.stat().st_size)


def _beside(bundle: Bundle, want: Wanted) -> list[Path]:
    """Files beside an engine: references of its size, and the records of engines that were refused before it."""
    refused = [record_path(bundle, one.fields) for one in want.refused]
    made = [kept_reference(bundle, want.part, want.target.shape)] if want.target.shape is not None else []
    return [path for path in (*refused, *made) if path.is_file()]


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, to)
