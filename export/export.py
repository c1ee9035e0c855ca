"""From a checkpoint to a bundle."""

from __future__ import annotations

import gc
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..checkpoints.open import Checkpoint, open_checkpoint
from ..checkpoints.parts import PartSpec, as_part, model_facts, part_specs
from ..core.bundle import MANIFEST, Bundle, FileInfo, Manifest, Part, Source, digest, open_bundle, proof_digest
from ..core.errors import BundleError
from ..core.files import fresh_folder, sha256, write_sealed
from ..core.progress import Progress, quiet
from ..core.records import graph_key, remember
from ..core.references import DRAWINGS, DRAWN, stored_at, unpack
from .check import bf16_figure, check, installed, ready
from .scheduler import settle

if TYPE_CHECKING:
    from .reference import References

LIBRARIES = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def export(
    checkpoint: str,
    folder: Path | str,
    *,
    revision: str | None = None,
    prediction: str | None = None,
    spacing: str | None = None,
    zero_snr: bool | None = None,
    size: int | None = None,
    scheduler: str | None = None,
    on_progress: Progress = quiet,
) -> Bundle:
    """Export a checkpoint to a bundle in `folder`, which must not exist.

    `checkpoint`, `revision`, `prediction`, `spacing`, `zero_snr` and `size` are what `open_checkpoint` takes. The
    bundle draws with `scheduler`, such as `dpm++2m`, in place of the checkpoint's own. Each part is compared with
    PyTorch on fixed inputs as it is written. Weights are kept in f16 where the checkpoint has them so, else in f32;
    the graph computes in f32.
    Memory: one part at a time as it is kept, the VAE beside the UNet, all text encoders while
    prompts are read, and what a call needs.

    Raises `CheckpointError`, `CompileError`, `ParityError` below 100 dB, `RuntimeMissing` without torch,
    `BundleError` where the folder exists or can't be written; then nothing is left.
    """
    installed()
    opened = open_checkpoint(
        checkpoint, revision=revision, prediction=prediction, spacing=spacing, zero_snr=zero_snr, size=size
    )
    opened = settle(opened, scheduler)
    ready()  # which takes seconds
    from .reference import References

    folder = Path(folder).resolve()
    stored = sum(_bytes(opened, component.name) for component in opened.family.components)
    with fresh_folder(folder, BundleError, stored) as fresh:
        references = References(opened)
        (fresh / "reference").mkdir()
        on_progress("prompts: reference", None)
        references.read_prompts()
        parts = {spec.name: _export_part(opened, spec, references, fresh, on_progress) for spec in part_specs(opened)}
        np.savez(fresh / DRAWN, allow_pickle=False, **references.drawn)
        _write_json(fresh / DRAWINGS, references.made().model_dump(mode="json"))
        _write_configs(opened, fresh)
        on_progress("digest", None)
        _write_manifest(opened, parts, fresh)
    return open_bundle(folder)


def _export_part(
    checkpoint: Checkpoint,
    spec: PartSpec,
    references: References,
    fresh: Path,
    on_progress: Progress,
) -> Part:
    from .trace import OPSET, trace
    from .weights import computing, is_half, parameters, plain_names, store_half, write

    place = fresh / spec.name
    place.mkdir()
    on_progress(f"{spec.name}: read", None)
    half = is_half({tensor.dtype for tensor in checkpoint.weights[spec.component].values()})
    component = computing(checkpoint, spec.component)
    module = as_part(checkpoint, spec, component)
    on_progress(f"{spec.name}: reference", None)
    stored = references.take(spec, component, module)
    np.savez(fresh / stored_at(spec.name), allow_pickle=False, **stored)
    narrow = bf16_figure(checkpoint, spec, unpack(stored))
    on_progress(f"{spec.name}: trace", None)
    model = trace(spec, module)
    count = parameters(model)
    if half:
        plain_names(model)
        store_half(model)
    on_progress(f"{spec.name}: write", None)
    write(model, place)
    del model, module, component  # the comparison below needs their memory
    gc.collect()
    on_progress(f"{spec.name}: check", None)
    found = check(spec.name, place / "model.onnx", unpack(stored))
    graph = digest({f"{spec.name}/{path.name}": _info(path) for path in sorted(place.iterdir())})
    fixed = sha256(fresh / stored_at(spec.name))
    remember(graph_key(graph, fixed), found)
    return Part(
        path=f"{spec.name}/model.onnx",
        role=spec.role,
        opset=OPSET,
        weights="f16" if half else "f32",
        parameters=count,
        inputs=spec.inputs,
        outputs=spec.outputs,
        digest=graph,
        psnr_db=found.psnr_db,
        proved=proof_digest(graph, fixed),
        bf16_db=narrow,
    )


def _bytes(checkpoint: Checkpoint, component: str) -> int:
    return sum(tensor.end - tensor.begin for tensor in checkpoint.weights[component].values())


def _write_configs(checkpoint: Checkpoint, fresh: Path) -> None:
    """What diffusers and optimum look for beside the graphs."""
    components = {component.name: component for component in checkpoint.family.components}
    index: dict[str, Any] = dict(checkpoint.model_index)
    for spec in part_specs(checkpoint):
        size = (
            {"sample_size": checkpoint.pixels // checkpoint.downscale}
            if checkpoint.size and spec.name == "unet"
            else {}
        )
        _write_json(fresh / spec.name / "config.json", checkpoint.configs[spec.component] | size)
        component = components[spec.component]
        index[spec.name] = [component.library, component.cls]
    index.pop("vae", None)
    for tokenizer in checkpoint.family.tokenizers:
        (fresh / tokenizer.name).mkdir()
        for name, content in checkpoint.tokenizer_files(tokenizer.name).items():
            (fresh / tokenizer.name / name).write_bytes(content)
    (fresh / "scheduler").mkdir()
    _write_json(fresh / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
    _write_json(fresh / "model_index.json", index)


def _write_manifest(checkpoint: Checkpoint, parts: dict[str, Part], fresh: Path) -> None:
    source = checkpoint.source
    files = {str(path.relative_to(fresh)): _info(path) for path in sorted(fresh.rglob("*")) if path.is_file()}
    manifest = Manifest(
        latentc=__version__,
        family=checkpoint.family.name,
        source=Source(kind=source.kind, location=source.location, revision=source.revision, random=source.random),
        model=model_facts(checkpoint),
        parts=parts,
        files=files,
        versions={name: found for name in LIBRARIES if (found := _version(name))},
        trained_for=checkpoint.trained_for,
        notices=checkpoint.notices,
    )
    write_sealed(fresh / MANIFEST, manifest.model_dump(mode="json"))


def _info(path: Path) -> FileInfo:
    return FileInfo(sha256=sha256(path), bytes=path.stat().st_size)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
