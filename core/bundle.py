"""The bundle: the folder that an export writes, and that everything downstream reads.

<bundle>/latentc.json               the manifest, sealed with its own digest
<bundle>/model_index.json           as diffusers writes it
<bundle>/<part>/model.onnx          graph; weights in model.onnx_data beside it
<bundle>/<part>/model@<variant>.onnx   another graph over the same weights
<bundle>/tokenizer/, scheduler/     as diffusers writes them
<bundle>/README.md, LICENSE...      the checkpoint's model card and licence, unmodified
<bundle>/reference/                 fixed inputs, and PyTorch's outputs for them (`core.references`)
<bundle>/engines/<key>/             artifacts: the compiler's, not the export's
<bundle>/adapters/<key>/            the bundle fused with adapters: the compiler's too

A package (`latentc package`) is a bundle with the engines of one profile, without weights; see `Manifest.packaged`.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import BundleError
from .files import SEAL, sha256, sha256_json, unwritable
from .graph_rules import check_graph
from .manifest import SCHEMA_VERSION, FileInfo, Manifest, Part
from .model import Role
from .reading import (
    CONFIG_BYTES,
    INFINITE,
    TABLE_BYTES,
    PointerError,
    is_folder,
    is_regular,
    read_json,
    refuse_pointer,
)
from .record import complaints, in_a_line, shown
from .request import TINY, Request
from .standing import Standing
from .wires import complaint

MANIFEST = "latentc.json"
ADAPTERS = "adapters"
"""The folder of the bundles that were made by fusing adapters with this one."""
PLAIN = ".plain-"
"""Name prefix of a folder of plain files, for a bundle whose files are links."""
PART_NAME = re.compile(r"(?!(adapters|engines|reference|scheduler)(@|$))[a-z][a-z0-9_]{0,31}(@[a-z][a-z0-9_]{0,31})?")
"""Valid part names. A part is in a folder of this name; a variant is in the folder of the part before the @."""

GRAPHS = re.compile(r"/model(@[a-z0-9_]+)?\.onnx")
"""Matches the path of a graph, or of its weights."""

AGAIN = "Export the checkpoint again."


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def standing(self) -> Standing:
        """What stands behind its figures: see `Manifest.standing`."""
        return self.manifest.standing

    @property
    def argument(self) -> str:
        """The folder, quoted for a shell."""
        return shlex.quote(str(self.folder))

    @property
    def digest(self) -> str:
        """Digest of the manifest, and so of every exported file."""
        return sha256_json(self.manifest.model_dump(mode="json"))

    @property
    def engines(self) -> Path:
        """The folder of the artifacts."""
        return self.folder / "engines"

    @property
    def drawing(self) -> tuple[str, ...]:
        """Names of the parts used to generate images: all but an encoder of the VAE that nothing reads."""
        model = self.manifest.model
        return tuple(
            name
            for name, part in self.manifest.parts.items()
            if part.role != "encoder" or model.encodes_controls or model.read_of(name)
        )

    @property
    def plainly_drawing(self) -> tuple[str, ...]:
        """The parts of `drawing` that are used if a request names no variant and no decoder, and has no style image."""
        model, parts = self.manifest.model, self.manifest.parts
        spare = {name for name, part in parts.items() if model.takes_style and part.role == "image_encoder"}
        return tuple(name for name in self.drawing if "@" not in name and name not in {*spare, model.tiny_decoder})

    def used_by(self, request: Request) -> tuple[str, ...]:
        """The parts of `drawing` that generate the images of a completed request, with the encoder of the VAE if it
        encodes an image, whichever decoder it names; without parts that only read images that it doesn't have, other
        variants of the denoiser, and a refiner that is not used.
        """
        encoder = self.variants("encoder").get(None)
        used = [*self.drawing, *([encoder] if encoder and request.encodes and encoder not in self.drawing else [])]
        model, unused = self.manifest.model, set[str]()
        if model.takes_style and request.style_strength is None:
            unused |= {name for name in used if self.part(name).role == "image_encoder"}
        if not request.refined:
            unused |= {*model.refiner_parts}
        if encoder and model.encodes_controls and request.control_sha256 is None:
            unused |= set[str]() if request.encodes or model.read_of(encoder) else {encoder}
        denoisers = self.variants("denoiser")
        unused |= {*denoisers.values()} - {denoisers.get(request.variant)}
        return tuple(name for name in used if name not in unused)

    def one(self, role: Role) -> str:
        """Name of the part with this role, not counting variants, the tiny decoder and the refiner; raises
        `BundleError` if there is not exactly one.
        """
        model, parts = self.manifest.model, self.manifest.parts.items()
        also = (model.tiny_decoder, model.refiner and model.refiner.part)
        found = [name for name, part in parts if part.role == role and "@" not in name and name not in also]
        if len(found) != 1:
            raise BundleError(f"{self.folder} has {len(found)} parts with the role {role}; expected one. {AGAIN}")
        return found[0]

    def variants(self, role: Role) -> dict[str | None, str]:
        """Names of the parts with this role but the refiner, keyed by variant; None is the part itself."""
        names = [name for name, part in _own(self.manifest).items() if part.role == role]
        return {name.partition("@")[2] or None: name for name in names}

    @property
    def decoders(self) -> dict[str | None, str]:
        """Names of the decoders, keyed as in `Request.decoder`; raises `BundleError` as `one` does."""
        tiny = self.manifest.model.tiny_decoder
        return {None: self.one("decoder"), **({TINY: tiny} if tiny else {})}

    def part(self, name: str) -> Part:
        """The part with this name; raises `BundleError` if the bundle has none."""
        try:
            return self.manifest.parts[name]
        except KeyError:
            raise BundleError(
                f"{self.folder} has no part {shown(name)}. It has: {', '.join(self.manifest.parts)}."
            ) from None

    def graph(self, part: str) -> Path:
        """Path of the part's `model.onnx`. Use `checked_graph` before a library opens it."""
        return self.folder / self.part(part).path

    def json(self, path: str) -> dict[str, Any]:
        """Read a JSON object of the bundle, as diffusers writes it; raises `BundleError` for anything else."""
        return read_json(self.folder / path, CONFIG_BYTES, BundleError, AGAIN, constants=INFINITE)

    def files(self, part: str) -> dict[str, FileInfo]:
        """The files of a part: everything in its folder except the graphs of other variants."""
        own = self.part(part).path
        prefix, others = own.rsplit("/", 1)[0] + "/", {one.path for one in self.manifest.parts.values()} - {own}
        return {
            path: info for path, info in self.manifest.files.items() if path.startswith(prefix) and path not in others
        }


def open_bundle(folder: Bundle | Path | str) -> Bundle:
    """Open a bundle by reading its manifest, but not its weights; an open `Bundle` is returned unchanged.

    Raises `BundleError` for a missing, damaged or unknown manifest, and for paths that leave the folder.
    """
    if isinstance(folder, Bundle):
        return folder
    folder = _resolved(folder)
    path = folder / MANIFEST
    if not is_folder(folder):
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise BundleError(
            f"{folder} {what}. Check the path, or create a bundle with `latentc export CHECKPOINT -o BUNDLE`."
        )
    if not is_regular(path):
        hint = (
            "It looks like a checkpoint: run `latentc export` on it first."
            if is_regular(folder / "model_index.json")
            else "Create one with `latentc export CHECKPOINT -o BUNDLE`."
        )
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}. {hint}")
    value = read_json(path, TABLE_BYTES, BundleError, AGAIN)
    version = value.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {shown(version)}; this version of latentc reads {SCHEMA_VERSION}. "
            "Export the checkpoint again, or use the version of latentc that wrote it."
        )
    content = {key: item for key, item in value.items() if key != SEAL}
    if value.get(SEAL) != sha256_json(content):
        raise BundleError(f"{path} was modified: its digest does not match its content. Copy or export it again.")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as exc:
        raise BundleError(f"{path}: {complaints(exc, Manifest)}. {AGAIN}") from exc
    bundle = Bundle(folder, manifest)
    if leads_out(folder, "engines/x"):
        raise BundleError(f"{bundle.engines} is a link that leads out of the bundle. Link the whole bundle instead.")
    for name in manifest.files:
        check_path(folder, name)
    tokenizers = {encoder.tokenizer for encoder in manifest.model.every_text_encoder}
    for name, part in manifest.parts.items():
        if (
            not PART_NAME.fullmatch(name)
            or name in tokenizers
            or part.path != graph_path(name)
            or part.path not in manifest.files
        ):
            where = f"{shown(name)} at {shown(part.path)}"
            raise BundleError(
                f"{path} lists a part {where}, which is not a valid part of this bundle. Export it again."
            )
        if part.digest != digest(bundle.files(name)):
            raise BundleError(f"{path}: the digest of {name} does not match its files. Export the checkpoint again.")
    if wrong := _unlike_variants(_own(manifest)):
        raise BundleError(f"{path} {wrong}. {AGAIN}")
    for tokenizer in sorted(tokenizers):
        check_path(folder, tokenizer)
    if wrong := _miswired(manifest):
        raise BundleError(f"{path} {wrong}. {AGAIN}")
    return bundle


def _own(manifest: Manifest) -> dict[str, Part]:
    """The parts but the refiner's denoiser."""
    refiner = manifest.model.refiner
    return {name: part for name, part in manifest.parts.items() if refiner is None or name != refiner.part}


def _miswired(manifest: Manifest) -> str | None:
    """What is wrong with the wires of the model or of its refiner, as a clause; None if nothing is."""
    own, refiner = _own(manifest), manifest.model.refiner
    if refiner is None or (wrong := complaint(manifest.model.wires, own)):
        return complaint(manifest.model.wires, own)
    denoiser = manifest.parts.get(refiner.part)
    if denoiser is None or denoiser.role != "denoiser" or "@" in refiner.part:
        return f"has the refiner {shown(refiner.part)}, which is not a denoiser"
    return wrong or complaint(
        refiner.wires, {name: one for name, one in manifest.parts.items() if one is denoiser or one.role != "denoiser"}
    )


def _unlike_variants(parts: Mapping[str, Part]) -> str | None:
    """What is wrong with the names of denoiser variants, as a clause; None if nothing is."""
    named: dict[str, str] = {}
    for name, part in parts.items():
        whole, at, variant = name.partition("@")
        if at and part.role != "denoiser":
            return f"has a variant {name} with the role {part.role}, and only denoisers have variants"
        if at and (whole not in parts or parts[whole].role != part.role):
            return f"has a variant {name}, and no denoiser {whole}"
        if part.role == "denoiser" and (other := named.setdefault(variant, name)) != name:
            return f"has two denoisers, {other} and {name}, that a request cannot tell apart"
    return None


def digest(files: Mapping[str, FileInfo]) -> str:
    """Digest of a part: of the names and digests of its graph and weights."""
    return sha256_json({name: info.sha256 for name, info in files.items() if GRAPHS.search(name)})


def graph_path(part: str) -> str:
    """Path of a part's graph: `unet/model.onnx`, or `unet/model@shallow.onnx` for a variant."""
    folder, at, variant = part.partition("@")
    return f"{folder}/model{at}{variant}.onnx"


def proof_digest(part: str, references: str) -> str:
    """What a graph's proof is valid for: a digest of the part's digest and that of its reference file."""
    return sha256_json([part, references])


def check_path(folder: Path, name: str) -> None:
    """Refuse a file name that leaves the bundle, or a link that leads out of its repository; a missing file passes.

    Hard links pass, because backups create them: a file's content is compared with its digest before anything opens it.
    Source: the four CVEs of ONNX external data (2022-25882, 2024-27318, 2026-34446, 2026-34447).
    """
    path = folder / name
    if "\\" in name:
        raise BundleError(f"{shown(name)} is not a valid file name in {folder}: it has a backslash. {AGAIN}")
    try:
        out = leads_out(folder, name)
        linked = not out and path.is_symlink() and not _stays(folder, path)
    except (OSError, ValueError, RuntimeError) as exc:  # a name that is too long or has a NUL, or a loop of links
        raise BundleError(f"{shown(name)} is not a valid file name in {folder} ({in_a_line(exc)}). {AGAIN}") from exc
    if out:
        raise BundleError(f"{shown(name)} leads out of {folder}. Do not use this bundle; export the checkpoint again.")
    if linked:
        raise BundleError(
            f"{path} is a link that leads out of the bundle. Only links within the bundle, or into the blobs of the "
            "Hub's cache, are followed. Replace the link by the file itself."
        )


def _stays(folder: Path, path: Path) -> bool:
    """Whether a link leads to a file of the same repository: in the folder, or in the blobs of the Hub's cache.

    The cache has `blobs/<digest>`, and `snapshots/<commit>/NAME` as links to them.
    """
    real, home = path.resolve(), folder.resolve()
    blobs = (above.parent / "blobs" for above in home.parents if above.name == "snapshots")
    return any(real.is_relative_to(place) for place in (home, *blobs))


def _resolved(folder: Path | str) -> Path:
    try:
        return Path(folder).resolve()
    except (OSError, ValueError, RuntimeError) as exc:  # a loop of links, a NUL
        raise BundleError(f"{folder} cannot be opened ({exc}). Check the path.") from exc


def leads_out(folder: Path, name: str) -> bool:
    """Whether a file name leaves the folder, by itself or through a linked folder."""
    inside = (folder / name).parent.resolve().is_relative_to(folder.resolve())
    return Path(name).is_absolute() or ".." in Path(name).parts or not inside


def verify_files(bundle: Bundle, names: list[str]) -> None:
    """Compare files of a bundle with the manifest; raises `BundleError` for the first that differs."""
    present = {*bundle.manifest.present}
    for name in names:
        expected = bundle.manifest.files.get(name)
        if expected is None:
            raise BundleError(f"The manifest of {bundle.folder} does not list {name}. Export the checkpoint again.")
        if name not in present:
            check_whole(bundle, f"it lacks {name}")
        path = bundle.folder / name
        _check_size(bundle, name, expected)
        try:
            same = sha256(path) == expected.sha256
        except OSError as exc:
            raise BundleError(f"{path} cannot be read ({exc.strerror}). Copy or export it again.") from exc
        if not same:
            raise BundleError(f"{path} was modified: its SHA-256 differs from the manifest's. Copy or export it again.")


def check_sizes(bundle: Bundle) -> None:
    """Raise `BundleError` for the first file that is missing or has another size. No file is read."""
    for name in bundle.manifest.present:
        _check_size(bundle, name, bundle.manifest.files[name])


def check_whole(bundle: Bundle, why: str) -> None:
    """Raise `BundleError` for a package; `why` is a clause on what it can't do."""
    if packaged := bundle.manifest.packaged:
        raise BundleError(
            f"{bundle.folder} is a package: it has the engines of profile {packaged.profile_name}, and no weights, so "
            f"{why}. Use the bundle that it was made from."
        )


def _check_size(bundle: Bundle, name: str, expected: FileInfo) -> None:
    path = bundle.folder / name
    check_path(bundle.folder, name)
    if not path.is_file():
        raise BundleError(f"{path} is missing. Export the checkpoint again, or copy the complete bundle.")
    try:
        refuse_pointer(path)
    except PointerError as exc:
        raise BundleError(str(exc)) from exc
    if path.stat().st_size != expected.bytes:
        raise BundleError(
            f"{path} has {path.stat().st_size:,} bytes; the manifest lists {expected.bytes:,}. Copy or export it again."
        )


def checked_graph(bundle: Bundle, part: str) -> Path:
    """Path of the part's `model.onnx`, checked to be safe to open.

    The graph must match the manifest, and look like a graph that our export writes. It is compared with its digest; of
    its external data, only names and sizes are checked here (`verify_files` compares the bytes). Raises `BundleError`.
    """
    info = bundle.part(part)
    verify_files(bundle, [info.path])
    folder = info.path.rpartition("/")[0]
    beside = {name.removeprefix(f"{folder}/"): known.bytes for name, known in bundle.files(part).items()}
    files = {name: size for name, size in beside.items() if "/" not in name and name.startswith("model.onnx_")}
    names = (info.path, *(f"{folder}/{name}" for name in files))
    place = plain_files(bundle, part, {Path(name).name: bundle.folder / name for name in names})
    graph = place / Path(info.path).name
    check_graph(
        graph,
        files,
        opset=info.opset,
        inputs=info.inputs,
        outputs=info.outputs,
        others=info.operators,
        absent=[name for name in files if f"{folder}/{name}" not in bundle.manifest.present],
    )
    return graph


def plain_files(bundle: Bundle, name: str, files: Mapping[str, Path]) -> Path:
    """A folder that holds these files as regular files: most libraries refuse external data that is a link.

    It is the files' own folder. For a bundle of links, it is a folder under `engines` with hard links, or with copies
    if the file system has no hard links. `files` are keyed by their path in that folder. Raises `BundleError`.
    """
    first, path = next(iter(files.items()))
    if not any(each.is_symlink() for each in files.values()):
        return path.parents[len(Path(first).parents) - 1]
    place = bundle.engines / f"{PLAIN}{name}"
    if bundle.engines.is_symlink() or place.is_symlink() or any((place / below).parent.is_symlink() for below in files):
        raise BundleError(f"{place} is a link, so files would be written to its target. Remove it.")
    try:
        for below, each in files.items():
            check_path(bundle.folder, each.relative_to(bundle.folder).as_posix())
            real, plain = each.resolve(), place / below
            if not _same(plain, real):
                plain.parent.mkdir(parents=True, exist_ok=True)
                fresh = place / f".{secrets.token_hex(8)}.tmp"
                try:
                    os.link(real, fresh)
                except OSError:
                    shutil.copy2(real, fresh)
                fresh.replace(plain)
    except OSError as exc:
        raise BundleError(
            unwritable(place, exc, "The bundle's files are links, which libraries refuse. Copy the files.")
        ) from exc
    return place


def _same(plain: Path, real: Path) -> bool:
    """Whether a file is the other, or an exact copy: an existing file may come from the author of the bundle."""
    if plain.is_symlink() or not plain.is_file():
        return False
    return plain.samefile(real) or (plain.stat().st_size == real.stat().st_size and sha256(plain) == sha256(real))
