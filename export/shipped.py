"""The bundle of the shipped checkpoint without PyTorch, from its exported graphs, which ship without their weights.

`scenes/exported.tar.xz` has what an export wrote, as far as it can't be copied from the checkpoint: graphs and files of
weights with zeros where the checkpoint's weights belong, `weights.json` with their places, and the manifest. Filled in,
each file has the digest that the export wrote, or nothing is made.
"""

from __future__ import annotations

import json
import lzma
import tarfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import SHIPPED
from ..checkpoints.stored import StoredTensor, read_header, stored_bytes
from ..core.bundle import MANIFEST, Bundle, open_bundle, proof_digest
from ..core.errors import BundleError, RuntimeMissing
from ..core.files import fresh_folder, sha256, sha256_json, write_sealed
from ..core.install import install
from ..core.manifest import Manifest, ShippedGraphs
from ..core.progress import Progress, quiet
from ..core.references import stored_at
from ..core.standing import SHIPPED_GRAPHS
from ..core.tensors import PERFECT_DB
from ..core.version import __version__
from .export import info_of, versions_of

NAME = "scenes"
ARCHIVE = SHIPPED[NAME].parent / "exported.tar.xz"
REFERENCES = ARCHIVE.with_name("references.tar.xz")
"""PyTorch's references of the same export, with its whole manifest: in wheels made by `make wheel`, not in the
repository.
"""
DEFINITION = "definition.sha256"
"""In the archive of references: digest of the code that defined them."""
DEFINED_IN = ("asked", "control", "hooks", "pictures", "reference", "scheduler", "style", "texts")
"""Modules that define which references an export computes."""
PLACES = "weights.json"
"""In the archive: by file of the bundle and of the checkpoint, the byte, tensor and form of each weight."""
FORMS: Mapping[str, tuple[str, bool]] = {
    "f16": ("<f2", False), "f16.T": ("<f2", True), "f32": ("<f4", False), "f32.T": ("<f4", True)
}  # fmt: skip
"""Forms of a weight in a graph: its type, and whether it is transposed."""
STORED = {"F16": "<f2", "F32": "<f4"}
LIBRARIES = ("onnxruntime", "numpy", "tokenizers")
AGAIN = "Install latentc again."

Places = Mapping[str, Mapping[str, list[tuple[int, str, str]]]]


def export_shipped(folder: Path | str, on_progress: Progress = quiet) -> Bundle:
    """Make the bundle of `scenes` in `folder`, which must not exist, without PyTorch.

    Graphs, weights, tokenizer and configs are those of `export`, byte for byte. With `REFERENCES`, so is the rest, and
    the bundle can be proved. Without it, or with one of another version of the export, which is reported as progress,
    the graphs compute references of their own, as for an adopted bundle: see `core.standing`.
    Raises `RuntimeMissing` without ONNX Runtime where it is needed, and `BundleError` if the folder exists or can't be
    written, or if the archives are damaged. Nothing is left behind after an error.
    """
    whole = _references(_read(ARCHIVE)[0]) if REFERENCES.is_file() else None
    if whole is None and find_spec("onnxruntime") is None:
        raise RuntimeMissing(f"Running graphs needs onnxruntime, which is not installed. {install('onnxruntime')}")
    with fresh_folder(Path(folder).resolve(), BundleError) as fresh:
        if whole is None and REFERENCES.is_file():
            on_progress(f"{REFERENCES.name}: not used, of another version of the export", None)
        on_progress("graphs: unpack", None)
        exported = unpack(fresh)
        made = _with_references(fresh, *whole) if whole else _self_consistent(fresh, exported, on_progress)
        write_sealed(fresh / MANIFEST, made.model_dump(mode="json"))
    return open_bundle(folder)


def unpack(fresh: Path, archive: Path = ARCHIVE) -> Manifest:
    """Write the graphs and everything else that an export writes, but references, into a folder; the export's manifest.

    Raises `BundleError` for a damaged archive, or one of another checkpoint.
    """
    exported, stored = _read(archive)
    places: Places = json.loads(stored.pop(PLACES))
    copies = {sha256(path): path for path in sorted(SHIPPED[NAME].rglob("*")) if path.is_file()}
    for name, info in exported.files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in stored:
            path.write_bytes(_filled(stored[name], places.get(name, {})))
        elif info.sha256 in copies:
            path.write_bytes(copies[info.sha256].read_bytes())
        if not path.is_file() or sha256(path) != info.sha256:
            raise BundleError(f"{name} of {archive} does not belong to the checkpoint {NAME} beside it. {AGAIN}")
    return exported


def members(archive: Path) -> dict[str, bytes]:
    """The files of an archive by name; raises `OSError`, or `TarError`, `LZMAError` or `EOFError` for a damaged one."""
    with tarfile.open(archive, "r:xz") as tar:
        read = ((entry.name, tar.extractfile(entry)) for entry in tar)
        return {name: file.read() for name, file in read if file is not None}


def definition() -> str:
    """Digest of the code that defines references."""
    here = Path(__file__).parent
    paths = [*(here / f"{name}.py" for name in DEFINED_IN), here.parent / "core" / "references.py"]
    return sha256_json([path.read_text(encoding="utf-8") for path in paths])


def _read(archive: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest in an archive, and the other files."""
    with _readable(archive):
        stored = members(archive)
        return Manifest.model_validate_json(stored.pop(MANIFEST)), stored


@contextmanager
def _readable(archive: Path) -> Generator[None]:
    """Report an archive that is damaged or absent."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, lzma.LZMAError) as exc:
        raise BundleError(f"{archive} cannot be read ({exc}). {AGAIN}") from exc


def _references(exported: Manifest) -> tuple[Manifest, dict[str, bytes]] | None:
    """The whole manifest of the export and PyTorch's references; None for those of other code or other graphs, which a
    checkout keeps, and a wheel made of it, until `make graphs`.
    """
    with _readable(REFERENCES):
        stored = members(REFERENCES)
        if stored.pop(DEFINITION, b"") != definition().encode():
            return None
        whole = Manifest.model_validate_json(stored.pop(MANIFEST))
    digests = [{name: part.digest for name, part in one.parts.items()} for one in (whole, exported)]
    return (whole, stored) if digests[0] == digests[1] else None


def _with_references(fresh: Path, whole: Manifest, stored: Mapping[str, bytes]) -> Manifest:
    """Write PyTorch's references; the whole manifest of the export."""
    (fresh / "reference").mkdir()
    for name, content in stored.items():
        (fresh / name).write_bytes(content)
    if any(not (fresh / name).is_file() or sha256(fresh / name) != info.sha256 for name, info in whole.files.items()):
        raise BundleError(f"{REFERENCES} is damaged: its files do not have the digests that it states. {AGAIN}")
    return whole


def _self_consistent(fresh: Path, exported: Manifest, on_progress: Progress) -> Manifest:
    """Compute references with the graphs; the manifest, which says so."""
    from .own_references import OwnReferences

    OwnReferences(Bundle(fresh, exported), on_progress).write(fresh)
    on_progress("digest", None)
    kept = {f"reference/{path.name}": info_of(path) for path in sorted((fresh / "reference").iterdir())}
    parts = {
        name: part.model_copy(
            update={
                "psnr_db": PERFECT_DB,
                "proved": None,
                "compared": proof_digest(part.digest, kept[stored_at(name)].sha256),
            }
        )
        for name, part in exported.parts.items()
    }
    figures = {name: part.psnr_db for name, part in exported.parts.items()}
    graphs = ShippedGraphs(statement=str(SHIPPED_GRAPHS.statement), psnr_db=figures)
    update = {
        "latentc": __version__,
        "source": exported.source.model_copy(update={"graphs": graphs}),
        "parts": parts,
        "files": {**exported.files, **kept},
        "versions": exported.versions | versions_of(LIBRARIES),
    }
    return Manifest.model_validate(exported.model_copy(update=update).model_dump())


def _filled(content: bytes, places: Mapping[str, list[tuple[int, str, str]]]) -> bytes:
    """A file with the weights of the checkpoint in their places."""
    made = bytearray(content)
    for component, weights in places.items():
        tensors, _ = read_header(SHIPPED[NAME] / component)
        for begin, name, form in weights:
            weight = in_form(tensors[name], form)
            made[begin : begin + len(weight)] = weight
    return bytes(made)


def in_form(tensor: StoredTensor, form: str) -> bytes:
    """The bytes of a stored tensor in one of `FORMS`."""
    kind, transposed = FORMS[form]
    array: Any = np.frombuffer(b"".join(stored_bytes(tensor)), STORED[tensor.dtype]).reshape(tensor.shape)
    return (array.T if transposed else array).astype(kind).tobytes()
