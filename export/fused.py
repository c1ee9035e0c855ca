"""Fusing adapters with a bundle's weights, without PyTorch and without the checkpoint.

The result is a bundle of its own, with the same graphs and other weights, that any runtime builds. No PyTorch reference
stands behind it (`core.standing`): as for an adopted bundle, references are computed from the graphs themselves, run by
ONNX Runtime without optimization, and by latentc's own sampling. An export with the same adapters is proved.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..checkpoints.adapters.adapter import Adapter, Shapes, applied
from ..checkpoints.adapters.fuse import Edit, apart, too_large
from ..checkpoints.adapters.fuse import fuse as fused_weights
from ..checkpoints.adapters.open import open_adapters
from ..checkpoints.embeddings import TextualInversion
from ..checkpoints.families import Family, find_family
from ..core.bundle import (
    MANIFEST,
    Bundle,
    check_whole,
    checked_graph,
    digest,
    graph_path,
    open_bundle,
    proof_digest,
    verify_files,
)
from ..core.errors import BundleError, CheckpointError, CompileError
from ..core.external import Kept, map_values, parameter_of
from ..core.files import fresh_folder, sha256, write_sealed
from ..core.manifest import FileInfo, Fusion, Manifest, Part
from ..core.progress import Progress, quiet
from ..core.quarantine import quarantined
from ..core.references import stored_at
from ..core.standing import FUSED
from ..core.tensors import PERFECT_DB, Array, Shape
from ..core.version import __version__
from .adopt import installed
from .embedded import about_rounding, changed_files, changed_since, embeddings_of, enlarge, table_of, with_rows
from .export import adapter_source, embedding_source, info_of, versions_of
from .weights import DATA, INLINE_BYTES, kind_of, write

if TYPE_CHECKING:
    import onnx_ir as ir

LIBRARIES = ("onnx", "onnx-ir", "onnxruntime", "numpy", "tokenizers")
LIMIT_SECONDS = 6 * 3600.0
CHANGED = "changed.onnx_data"
"""The file of the fused weights beside a part's own."""

ALIGNED = 4096
"""Boundary in bytes at which each of them begins: a file is mapped in pages."""

EXPORT = "Export the checkpoint with --lora or --embedding instead."


def fuse(
    bundle: Bundle | Path | str,
    folder: Path | str,
    loras: Mapping[str, float] = {},
    *,
    embeddings: Collection[str | Path] = (),
    on_progress: Progress = quiet,
) -> Bundle:
    """Make a bundle in `folder`, which must not exist, of another bundle and adapters.

    `loras` are LoRAs and other adapters, files or files on the hub, and their strengths. `embeddings` are textual
    inversions, each `FILE` or `FILE:TOKEN`, whose vectors and tokens are appended. The weights are fused in f32,
    and then rounded to the type in which the bundle stores them. Neither PyTorch nor the checkpoint is needed, and
    PyTorch does not stand behind the result: see `core.standing`. Files that don't change are hard links where
    possible.

    Raises `CheckpointError` for adapters that don't fit, before anything is written; `BundleError` for a bundle whose
    weights can't be changed, and if the folder exists or can't be written; `RuntimeMissing` without ONNX Runtime.
    Nothing is left behind after an error.
    """
    installed()
    opened = open_bundle(bundle)
    changed = _changed(opened, *_adapters(opened, loras, embeddings))
    stored = sum(info.bytes for name in changed for info in opened.files(name).values())
    with fresh_folder(Path(folder).resolve(), BundleError, stored) as fresh:
        quarantined(
            f"{__name__}:fuse_apart",
            {
                "bundle": str(opened.folder),
                "fresh": str(fresh),
                "loras": dict(loras),
                "embeddings": [str(one) for one in embeddings],
            },
            seconds=LIMIT_SECONDS,
            what="Fusing adapters",
            advice=EXPORT,
            on_progress=on_progress,
        )
    return open_bundle(folder)


def _adapters(
    bundle: Bundle, loras: Mapping[str, float], embeddings: Collection[str | Path]
) -> tuple[list[Adapter], tuple[TextualInversion, ...]]:
    """The adapters for a bundle, and the textual inversions; see `adapters_of` and `embeddings_of`."""
    refuse(bundle)
    adapters = adapters_of(bundle, loras) if loras or not embeddings else []
    return adapters, embeddings_of(bundle, embeddings)


def _changed(bundle: Bundle, adapters: Sequence[Adapter], inverted: Sequence[TextualInversion]) -> set[str]:
    """The parts that adapters and textual inversions change."""
    names = {name for one in adapters for name in one.edits} | {name for one in inverted for name in one.rows}
    return names & {*bundle.manifest.parts}


def fuse_apart(
    bundle: str, fresh: str, loras: Mapping[str, float], embeddings: Sequence[str], on_progress: Progress
) -> dict[str, Any]:
    """Run in a separate process: fill the folder `fresh`, manifest included."""
    from .own_references import OwnReferences

    base, place = open_bundle(bundle), Path(fresh)
    manifest = base.manifest
    adapters, inverted = _adapters(base, loras, embeddings)
    changed = _changed(base, adapters, inverted)
    kept: dict[str, Kept] = {name: base.part(name).weights for one in inverted for name in one.rows}
    rounding = about_rounding(inverted, kept)
    verify_files(base, list(manifest.files))
    hashed: dict[str, FileInfo] = {}
    parts: dict[str, Part] = {}
    for name, part in manifest.parts.items():
        if name in changed:
            on_progress(f"{name}: fuse", None)
            edits = [edit for adapter in adapters for edit in adapter.edits.get(name, ())]
            hashed |= _write_fused(base, name, edits, inverted, place)
            own = digest({path: hashed[path] for path in base.files(name) if path in hashed})
            parts[name] = part.model_copy(update={"digest": own})
        else:
            parts[name] = part
    for name, content in changed_files(base, inverted).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
        hashed[name] = info_of(place / name)
    for name, info in manifest.files.items():
        if name not in hashed and not name.startswith("reference/"):
            _link(base.folder / name, place / name)
            hashed[name] = info
    source = manifest.source
    update = {
        "adapters": (*source.adapters, *map(adapter_source, adapters)),
        "fused": Fusion(statement=str(FUSED.statement), base=base.digest),
    }
    made = manifest.model_copy(
        update={
            "latentc": __version__,
            "source": source.model_copy(update=update),
            "model": with_rows(manifest.model, inverted),
            "embeddings": (*manifest.embeddings, *map(embedding_source, inverted)),
            "notices": (*manifest.notices, *rounding, *(notice for one in adapters for notice in one.notices)),
            "parts": parts,
            "files": hashed,
            "versions": {**manifest.versions, **versions_of(LIBRARIES)},
        }
    )
    OwnReferences(Bundle(place, made), on_progress).write(place)
    for one in adapters:
        if sha256(one.file.path) != one.file.sha256:
            raise CheckpointError(f"{one.file.path} was changed while it was fused. Fuse it again.")
    if moved := changed_since(inverted):
        raise CheckpointError(f"{moved} was changed while it was fused. Fuse it again.")
    on_progress("digest", None)
    files = hashed | {f"reference/{path.name}": info_of(path) for path in sorted((place / "reference").iterdir())}
    for name, part in parts.items():
        measured = {
            "psnr_db": PERFECT_DB,
            "proved": None,
            "compared": proof_digest(part.digest, files[stored_at(name)].sha256),
            "bf16_db": 0.0,
        }
        parts[name] = part.model_copy(update=measured)
    whole = Manifest.model_validate(made.model_copy(update={"parts": parts, "files": files}).model_dump())
    write_sealed(place / MANIFEST, whole.model_dump(mode="json"))
    return {}


def adapters_of(bundle: Bundle, loras: Mapping[str, float]) -> list[Adapter]:
    """The adapters for a bundle's weights; only headers are read.

    Raises `CheckpointError` for adapters that don't fit, and `BundleError` for a bundle whose weights can't be changed.
    """
    if not loras:
        raise CheckpointError("No adapter was given. Pass one with --lora FILE:0.8 or --embedding FILE.")
    refuse(bundle)
    installed()
    family = find_family(bundle.manifest.family)
    shapes = shapes_of(bundle, family)
    known = {one.sha256: one.name for one in bundle.manifest.source.adapters}
    found: list[Adapter] = []
    for file, strength in open_adapters(loras):
        if file.sha256 in known:
            raise CheckpointError(
                f"{file.path} was fused with the weights of {bundle.folder} already. Leave it out, or use a bundle "
                "without it."
            )
        known[file.sha256] = file.name
        adapter = applied(file, strength, family, shapes, str(bundle.folder))
        if adapter.unknown:
            raise CheckpointError(
                f"{file.path} changes {', '.join(adapter.unknown)}, which the graphs of {bundle.folder} don't hold as "
                f"weights of their own. {EXPORT}"
            )
        found.append(adapter)
    return found


def refuse(bundle: Bundle) -> None:
    """Raise `BundleError` for a bundle with whose weights no adapter can be fused."""
    manifest, where = bundle.manifest, bundle.folder
    model = manifest.model
    check_whole(bundle, "adapters cannot be fused with it or swapped in")
    if manifest.source.adopted is not None:
        raise BundleError(
            f"{where} was adopted from ONNX graphs, whose weights have no known names. Fuse the adapter with the "
            "checkpoint, and export it to ONNX again."
        )
    special = {
        "has ControlNets": bool(model.controls),
        "has an IP-Adapter": model.takes_style,
        "is a model that needs an image": model.needs_image,
        "is a model of videos": model.reads_image,
        "has a refiner": model.refiner is not None,
        "has a tiny decoder": model.tiny_decoder is not None,
        "has variants of the denoiser": any("@" in name for name in manifest.parts),
    }
    if what := next((what for what, holds in special.items() if holds), None):
        raise BundleError(f"{where} {what}, and adapters cannot be fused with such a bundle yet. {EXPORT}")


def shapes_of(bundle: Bundle, family: Family) -> Shapes:
    """Shapes of the weights of the denoiser and the text encoders. No weight is read."""
    parts = [name for name in (family.denoiser, *family.encoders) if name in bundle.manifest.parts]
    graphs = {name: _load(bundle, name) for name in parts}
    if any(_has_unnamed(graph) for graph in graphs.values()):
        raise BundleError(
            f"The graphs of {bundle.folder} do not name all weights, as those of earlier versions of latentc. Export "
            "the checkpoint again."
        )
    return {
        name: {key: one.shape for key, one in _weights(graph).items() if one.uses == 1}
        for name, graph in graphs.items()
    }


def _has_unnamed(model: ir.Model) -> bool:
    """Whether a linear layer has a weight without a name."""
    multiplied = (node.inputs[1] for node in model.graph if node.op_type == "MatMul")
    return any(
        value is not None and value.name in model.graph.initializers and "." not in str(value.name)
        for value in multiplied
    )


def _uses(value: ir.Value) -> int:
    """How many operators read a weight, also after a cast."""
    nodes = [use.node for use in value.uses()]
    return sum(_uses(node.outputs[0]) if node.op_type == "Cast" else 1 for node in nodes)


def _load(bundle: Bundle, part: str) -> ir.Model:
    import onnx_ir as ir

    return cast("Any", ir).load(checked_graph(bundle, part))


@dataclass(frozen=True)
class _Weight:
    """A weight in a graph."""

    value: ir.Value
    tensor: ir.TensorProtocol
    transposed: bool

    @property
    def uses(self) -> int:
        """How many operators read it: equal small weights of several layers are one in a graph."""
        return _uses(self.value)

    @property
    def shape(self) -> Shape:
        """In the checkpoint's layout."""
        shape = tuple(int(size) for size in self.tensor.shape.numpy())
        return shape[::-1] if self.transposed else shape

    def values(self) -> Array:
        """In f32, in the checkpoint's layout."""
        values = self.tensor.numpy().astype(np.float32)
        return values.T if self.transposed else values


def _weights(model: ir.Model) -> dict[str, _Weight]:
    """The weights of a graph, by the names of the parameters that they hold."""
    found: dict[str, _Weight] = {}
    for name, value in model.graph.initializers.items():
        parameter, transposed = parameter_of(name)
        if value.const_value is not None:
            found[parameter] = _Weight(value, value.const_value, transposed)
    return found


def _write_fused(
    base: Bundle, part: str, edits: Sequence[Edit], inverted: Sequence[TextualInversion], place: Path
) -> dict[str, FileInfo]:
    """Write a part's graph with fused weights; returns its files. The weights of one group are in memory at a time."""
    import onnx_ir as ir

    model = _load(base, part)
    map_values(model)
    weights = _weights(model)
    kind = base.part(part).weights
    for group in apart(edits):
        for name in {name for edit in group for name in edit.names}:
            own = weights[name]
            if own.tensor.nbytes <= INLINE_BYTES:
                own.value.const_value = _fused(weights, name, group, kind)
                continue
            own.value.const_value = cast("Any", ir).LazyTensor(
                partial(_fused, weights, name, group, kind),
                dtype=own.tensor.dtype,
                shape=own.tensor.shape,
                name=own.value.name,
                cache=False,
            )
    rows = [one for one in inverted if part in one.rows]
    if rows and (table := table_of(model)):
        enlarge(table, part, kind, rows)
    path = place / graph_path(part)
    path.parent.mkdir(exist_ok=True)
    write(model, path.parent)
    written = (one for one in (path, path.with_name(DATA)) if one.exists())
    return {one.relative_to(place).as_posix(): info_of(one) for one in written}


@dataclass(frozen=True)
class Changed:
    """A part's graph with fused weights, on disk."""

    graph: Path
    files: Mapping[str, str]
    """SHA-256 of each file in the graph's folder by name: what was to be written, and the manifest's of the others."""

    def verify(self) -> None:
        """Raise `CompileError` for a file that is not what was written, or can't be read."""
        for name, stated in self.files.items():
            path = self.graph.with_name(name)
            try:
                same = sha256(path) == stated
            except (OSError, ValueError):
                same = False
            if not same:
                raise CompileError(
                    f"{path}, which holds weights with adapters, is damaged: it is not what was written. Check the "
                    "disk, and open the pipeline again."
                )


def write_changed(base: Bundle, part: str, edits: Sequence[Edit], place: Path) -> Changed:
    """Write a part's graph with fused weights into the folder `place`.

    Changed weights are in a file of their own, beside a hard link to the bundle's, or a copy where there are none.
    The part's own files were not checked: `Changed.verify` does that. Raises `CheckpointError` as `fuse` does.
    """
    onnx: Any = import_module("onnx")
    model = _load(base, part)
    map_values(model)
    weights, kind = _weights(model), base.part(part).weights
    proto = onnx.load(str(checked_graph(base, part)), load_external_data=False)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    written = hashlib.sha256()
    with (place / CHANGED).open("wb") as file:
        for group in apart(edits):
            for name in sorted({name for edit in group for name in edit.names}):
                content = _fused(weights, name, group, kind).tobytes()
                tensor = tensors[str(weights[name].value.name)]
                del tensor.external_data[:], tensor.float_data[:], tensor.int32_data[:]
                if len(content) <= INLINE_BYTES:
                    tensor.data_location, tensor.raw_data = onnx.TensorProto.DEFAULT, content
                    continue
                padding = bytes(-file.tell() % ALIGNED)
                about = {"location": CHANGED, "offset": file.tell() + len(padding), "length": len(content)}
                for piece in (padding, content):
                    file.write(piece)
                    written.update(piece)
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in about.items():
                    tensor.external_data.add(key=key, value=str(value))
    files = {CHANGED: written.hexdigest()}
    for name, info in base.files(part).items():
        if name != graph_path(part):
            _link(base.folder / name, place / Path(name).name)
            files[Path(name).name] = info.sha256
    path, content = place / Path(graph_path(part)).name, proto.SerializeToString()
    path.write_bytes(content)
    return Changed(path, files | {path.name: hashlib.sha256(content).hexdigest()})


def _fused(weights: Mapping[str, _Weight], name: str, group: Sequence[Edit], kept: Kept) -> ir.TensorProtocol:
    """One weight fused with a group of edits, rounded to `kept`, in the type and layout of the graph."""
    import onnx_ir as ir

    own = weights[name]
    array = fused_weights({one: weights[one].values() for edit in group for one in edit.names}, group)[name]
    with np.errstate(over="ignore"):  # reported below
        rounded = array if kept == "f32" else array.astype(kind_of(kept).numpy())
        rounded = rounded.astype(own.tensor.dtype.numpy())
    if not np.isfinite(rounded.astype(np.float32)).all():
        raise CheckpointError(too_large(name, kept, group))
    return cast("Any", ir).tensor(np.ascontiguousarray(rounded.T) if own.transposed else rounded, name=own.value.name)


def _link(path: Path, copy: Path) -> None:
    """A file of the base in the new bundle: a hard link, or a copy where there are none."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), copy)
    except OSError:
        shutil.copyfile(path, copy)
