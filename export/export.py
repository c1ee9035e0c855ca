"""From a checkpoint to a bundle."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoints.controls import about_controls
from ..checkpoints.embeddings import TextualInversion
from ..checkpoints.families import (
    IMAGE_ENCODER,
    IP_ADAPTER,
    PROCESSOR,
    REFINED,
    REFINER,
    REFINER_TEXT,
    REFINER_TOKENIZER,
    TINY_VAE,
)
from ..checkpoints.open import SHIPPED, Checkpoint, CheckpointSource, open_checkpoint
from ..checkpoints.others import controls_of
from ..checkpoints.parts import PartSpec, as_part, model_facts, part_specs
from ..checkpoints.stored import kept_as
from ..checkpoints.tiny import LEAST_ALIKE, unlike
from ..core.bundle import MANIFEST, Bundle, digest, graph_path, open_bundle, proof_digest
from ..core.errors import BundleError, CheckpointError
from ..core.external import Kept
from ..core.files import fresh_folder, sha256, write_sealed
from ..core.limits import is_out_of_memory
from ..core.manifest import (
    AdapterSource,
    Embedding,
    FileInfo,
    License,
    Manifest,
    Other,
    Part,
    Source,
)
from ..core.model import Model
from ..core.progress import Progress, quiet
from ..core.record import in_a_line
from ..core.records import graph_key, remember
from ..core.references import DRAWINGS, DRAWN, stored_at, unpack
from ..core.shapes import size_complaint
from ..core.version import __version__
from ..core.wires import complaint
from ..sampling.wires import uncomputed
from .check import bf16_figure, check, installed, ready
from .embedded import about_rounding
from .scheduler import settle

if TYPE_CHECKING:
    from ..checkpoints.adapters.adapter import Adapter
    from .reference import References
    from .video import VideoReferences

log = logging.getLogger("latentc.export")

WITHOUT_PYTORCH = "Or use the graphs that ship with latentc: `latentc export scenes --shipped-graphs -o BUNDLE`."
LIBRARIES = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def export(
    checkpoint: Checkpoint | Path | str,
    folder: Path | str,
    *,
    revision: str | None = None,
    prediction: str | None = None,
    variant: str | None = None,
    components: Mapping[str, str] = {},
    spacing: str | None = None,
    zero_snr: bool | None = None,
    size: int | None = None,
    scheduler: str | None = None,
    without: Collection[str] = (),
    controlnets: Sequence[str] = (),
    embeddings: Collection[str | Path] = (),
    loras: Mapping[str, float] = {},
    tiny_vae: str | None = None,
    ip_adapter: str | None = None,
    image_encoder: str | None = None,
    refiner: str | None = None,
    on_progress: Progress = quiet,
) -> Bundle:
    """Export a checkpoint to a bundle in `folder`, which must not exist.

    `checkpoint`, `revision`, `prediction`, `spacing`, `zero_snr`, `size`, `variant`, `components`, `without` and
    `embeddings` are the arguments of `open_checkpoint`; `checkpoint` may also be its result. `loras` are LoRAs and
    other adapters, files and their strengths, that the weights are fused with, so that PyTorch's references are those
    of the fused model. `scheduler`, such as `dpm++2m`, replaces the checkpoint's own in the bundle. `controlnets` are
    files, folders or hub ids of ControlNets of the checkpoint's family: they become part of the denoiser's graph, and
    each takes an image of a request. `tiny_vae` is the file, folder or hub id of a tiny decoder (taesd), which becomes
    a part that requests may name. `ip_adapter` is the file of an IP-Adapter, which becomes part of the denoiser's graph
    and of that of its image encoder: `image_encoder`, a folder or hub id, by default the folder of that name beside it.
    `refiner` is a folder, file or hub id of Stable Diffusion XL's refiner, which takes over the last steps.
    Each exported part is compared with PyTorch on fixed inputs.
    A component's weights are kept in f16 or bf16 if all of them are stored so, else in f32; the graph computes in f32.
    Memory: one part at a time in its stored type (the VAE in addition to the UNet, all text encoders together), plus
    activations.

    An export takes minutes. Progress is reported only to `on_progress`, which is called with the current stage, such
    as `unet: trace`, and None; by default nothing is printed. The stages are also logged at INFO by the logger
    `latentc.export`.

    Raises `CheckpointError`, `CompileError`, `ParityError` below 100 dB, `RuntimeMissing` without torch,
    `BundleError` if the folder exists or can't be written. Nothing is left behind after an error.
    """
    installed(WITHOUT_PYTORCH if isinstance(checkpoint, str) and checkpoint in SHIPPED else "")
    given = {TINY_VAE.name: tiny_vae, IP_ADAPTER.name: ip_adapter, IMAGE_ENCODER.name: image_encoder}
    given |= {REFINER.name: refiner}
    added = controls_of(controlnets) | {name: place for name, place in given.items() if place is not None}
    on_progress = _logged(on_progress)
    opened = open_checkpoint(
        checkpoint,
        revision=revision,
        prediction=prediction,
        spacing=spacing,
        zero_snr=zero_snr,
        size=size,
        variant=variant,
        components={**components, **added},
        without=without,
        embeddings=embeddings,
        adapters=loras,
    )
    opened = settle(opened, scheduler)
    specs = part_specs(opened)
    checked_facts(opened, specs)
    ready()  # which takes seconds
    opened.check_modules()
    kept: dict[str, Kept] = {component: kept_as(opened.weights[component].values()) for component in opened.tables}
    more = (*about_controls(opened), *about_rounding(opened.embeddings, kept))
    opened = replace(opened, notices=(*opened.notices, *more))
    tokenizers = {facts.name: opened.tokenizer_files(facts.name) for facts in opened.family.tokenizers}
    if opened.refiner is not None and REFINER_TEXT.name in opened.weights:
        tokenizers[REFINER_TOKENIZER] = opened.refiner.tokenizer_files(opened.refiner.family.tokenizers[0].name)
    from .reference import References, references_of

    folder = Path(folder).resolve()
    refined = [name for name in REFINED if name in opened.weights]
    stored = sum(_bytes(opened, name) for name in (*(one.name for one in opened.family.components), *refined))
    with fresh_folder(folder, BundleError, stored) as fresh:
        references = references_of(opened)
        (fresh / "reference").mkdir()
        prompts = bool(opened.family.tokenizers)
        on_progress("prompts: reference" if prompts else "videos: reference", None)
        with computing_in_torch("text encoders" if prompts else "components"):
            references.read_prompts()
        made = _Made()
        parts = {spec.name: _export_part(opened, spec, references, fresh, made, on_progress) for spec in specs}
        np.savez(fresh / DRAWN, allow_pickle=False, **references.drawn)
        write_json(fresh / DRAWINGS, references.made().model_dump(mode="json"))
        write_configs(opened, specs, tokenizers, fresh)
        on_progress("digest", None)
        share = references.tiny_share if isinstance(references, References) else None
        if share is not None and share < LEAST_ALIKE:
            opened = replace(opened, notices=(*opened.notices, unlike(opened.others[TINY_VAE.name])))
        _write_manifest(opened, parts, made, fresh)
    return open_bundle(folder)


@dataclass
class _Made:
    """What the parts of an export add to the manifest, beside themselves."""

    files: dict[str, FileInfo] = field(default_factory=dict[str, FileInfo])
    """Graphs, weights and references, by their paths in the bundle."""
    preview: tuple[tuple[float, ...], ...] | None = None
    """`Model.preview`, of the VAE's encoder."""


def checked_facts(opened: Checkpoint, specs: Sequence[PartSpec]) -> Model:
    """Facts about the model of a checkpoint with these parts.

    Raises CheckpointError for wires that don't fit the parts, and for a size of its own that it can't generate.
    """
    facts, named, where = model_facts(opened), {spec.name: spec for spec in specs}, opened.source.location
    if wrong := complaint(facts.wires, {name: one for name, one in named.items() if name != REFINER.name}):
        raise CheckpointError(f"{where} {wrong}. Its components do not fit together.")
    if wrong := uncomputed(facts.wires, named):
        raise CheckpointError(f"{where} {wrong}. Add the source to sampling.wires.SOURCES.")
    check_size(facts, where)
    return facts


def check_size(model: Model, where: str) -> None:
    """Raise CheckpointError for a model that can't generate images of its own size."""
    if wrong := size_complaint(model, *model.own_size):
        raise CheckpointError(f"The native size of {where} is not possible. {wrong} Pass another one with --size.")


def _logged(on_progress: Progress) -> Progress:
    """The same function, which also logs each stage."""

    def report(stage: str, share: float | None = None) -> None:
        log.info("%s", stage)
        on_progress(stage, share)

    return report


def _export_part(
    checkpoint: Checkpoint,
    spec: PartSpec,
    references: References | VideoReferences,
    fresh: Path,
    made: _Made,
    on_progress: Progress,
) -> Part:
    """Export a part; adds what belongs to it to `made`."""
    from .preview import fit_preview
    from .trace import OPSET, trace
    from .weights import DATA, beside, computing, parameters, plain_names, store_narrow, write, write_variant

    path = fresh / graph_path(spec.name)
    path.parent.mkdir(exist_ok=True)
    on_progress(f"{spec.name}: read", None)
    kept = kept_as(checkpoint.weights[spec.component].values())
    component = computing(checkpoint, spec.component)
    module = as_part(checkpoint, spec, component, beside(checkpoint, spec))
    on_progress(f"{spec.name}: reference", None)
    with computing_in_torch(spec.component):
        stored = references.take(spec, component, module)
        narrow = bf16_figure(checkpoint, spec, unpack(stored))
        if spec.role == "encoder":
            made.preview = fit_preview(spec, module, references.facts)
    np.savez(fresh / stored_at(spec.name), allow_pickle=False, **stored)
    on_progress(f"{spec.name}: trace", None)
    model = trace(spec, module)
    count = parameters(model)
    if kept != "f32":
        plain_names(model)
        store_narrow(model, kept)
    on_progress(f"{spec.name}: write", None)
    write_variant(model, path) if "@" in spec.name else write(model, path.parent)
    del model, module, component  # the comparison below needs their memory
    gc.collect()
    on_progress(f"{spec.name}: check", None)
    found = check(spec.name, path, unpack(stored))
    own = {one.relative_to(fresh).as_posix(): one for one in (path, path.with_name(DATA)) if one.exists()}
    new = own | {stored_at(spec.name): fresh / stored_at(spec.name)}
    # Variants share their weights.
    made.files |= {name: info_of(one) for name, one in new.items() if name not in made.files}
    graph = digest({name: made.files[name] for name in own})
    fixed = made.files[stored_at(spec.name)].sha256
    remember(graph_key(graph, fixed), found.model_copy(update={"exported_here": True}))
    return Part(
        path=graph_path(spec.name),
        role=spec.role,
        opset=OPSET,
        weights=kept,
        parameters=count,
        inputs=spec.inputs,
        outputs=spec.outputs,
        digest=graph,
        psnr_db=found.psnr_db,
        proved=proof_digest(graph, fixed),
        bf16_db=narrow,
    )


@contextmanager
def computing_in_torch(what: str) -> Generator[None]:
    """Map PyTorch's errors about a config that its library accepted to `CheckpointError`."""
    try:
        yield
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as exc:
        if is_out_of_memory(exc):
            raise
        raise CheckpointError(
            f"PyTorch failed to run the {what} of this checkpoint: {in_a_line(exc).rstrip('.')}. Compare the config "
            "with the one that the checkpoint was published with."
        ) from exc


def _bytes(checkpoint: Checkpoint, component: str) -> int:
    return sum(tensor.end - tensor.begin for tensor in checkpoint.weights[component].values())


def write_configs(
    checkpoint: Checkpoint, specs: Sequence[PartSpec], tokenizers: dict[str, dict[str, bytes]], fresh: Path
) -> None:
    """Write the files that diffusers and Optimum expect next to the graphs."""
    components = {component.name: component for component in checkpoint.family.components}
    family = checkpoint.family
    index: dict[str, Any] = dict(checkpoint.model_index)
    if index.get("_class_name") not in family.pipelines:
        index["_class_name"] = family.pipeline  # Optimum knows it; the checkpoint's own class has the same components
    for spec in (one for one in specs if "@" not in one.name):
        size = (
            {"sample_size": checkpoint.pixels // checkpoint.downscale}
            if checkpoint.size and spec.role == "denoiser"
            else {}
        )
        write_json(fresh / spec.name / "config.json", checkpoint.configs[spec.component] | size)
        if spec.component in (TINY_VAE.name, *REFINED):  # diffusers' pipeline has no such component
            continue
        component = components[spec.component]
        index[spec.name] = [component.library, component.cls]
    index.pop("vae", None)
    for tokenizer, files in tokenizers.items():
        (fresh / tokenizer).mkdir()
        for name, content in files.items():
            (fresh / tokenizer / name).write_bytes(content)
    if family.processor is not None:
        (fresh / family.processor).mkdir()
        write_json(fresh / family.processor / PROCESSOR, checkpoint.processor)
    (fresh / "scheduler").mkdir()
    write_json(fresh / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
    for name, entry in index.items():  # components that aren't in the bundle, such as a safety checker, as in diffusers
        if isinstance(entry, list) and not (fresh / name).is_dir():
            index[name] = [None, None]
    write_json(fresh / "model_index.json", index)
    for name, content in checkpoint.card.files.items():
        (fresh / name).write_bytes(content)


def _write_manifest(checkpoint: Checkpoint, parts: dict[str, Part], made: _Made, fresh: Path) -> None:
    """Write the manifest of all files in `fresh`; those of the parts aren't read again."""
    source, card = checkpoint.source, checkpoint.card
    paths = {path.relative_to(fresh).as_posix(): path for path in sorted(fresh.rglob("*")) if path.is_file()}
    files = {name: made.files.get(name) or info_of(path) for name, path in paths.items()}
    manifest = Manifest(
        latentc=__version__,
        family=checkpoint.family.name,
        source=Source.model_validate(asdict(source) | {"adapters": tuple(map(adapter_source, checkpoint.adapters))}),
        components={
            name: Other.model_validate(asdict(source) | {"digest": checkpoint.digest(name)})
            for name, source in _others(checkpoint).items()
        },
        embeddings=tuple(map(embedding_source, checkpoint.embeddings)),
        left_out=checkpoint.left_out,
        license=License(declared=card.license, name=card.name, link=card.link, files=tuple(card.files)),
        notices=checkpoint.notices,
        model=model_facts(checkpoint).model_copy(update={"preview": made.preview}),
        parts=parts,
        files=files,
        versions=versions_of(LIBRARIES),
        trained_for=checkpoint.trained_for,
    )
    write_sealed(fresh / MANIFEST, manifest.model_dump(mode="json"))


def _others(checkpoint: Checkpoint) -> dict[str, CheckpointSource]:
    """Sources of the components that aren't the checkpoint's own, by name."""
    found = {name: other.source for name, other in checkpoint.others.items()}
    return found if checkpoint.refiner is None else {**found, REFINER.name: checkpoint.refiner.source}


def adapter_source(adapter: Adapter) -> AdapterSource:
    """The record of an adapter in the manifest."""
    file = adapter.file
    return AdapterSource(
        name=file.path.name,
        location=file.source.location,
        revision=file.source.revision,
        sha256=file.sha256,
        weights_sha256=file.weights_sha256,
        strength=adapter.strength,
        kind=file.kind,
    )


def embedding_source(embedding: TextualInversion) -> Embedding:
    """The record of a textual inversion in the manifest."""
    return Embedding(
        token=embedding.token, vectors=embedding.vectors, location=str(embedding.file), sha256=embedding.sha256
    )


def info_of(path: Path) -> FileInfo:
    """Digest and size of a file."""
    return FileInfo(sha256=sha256(path), bytes=path.stat().st_size)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, as diffusers does."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Versions of those of these libraries that are installed."""
    found: dict[str, str] = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
