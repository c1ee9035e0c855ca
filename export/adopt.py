"""From a folder of ONNX graphs that another tool exported to a bundle, without PyTorch.

No PyTorch reference stands behind such a bundle (`core.standing`): its references are computed from the graphs
themselves, run by ONNX Runtime without optimization, and by latentc's own sampling. So the module is beside the export,
which also writes bundles, and like it opens ONNX Runtime directly instead of through `runtimes/`.

Graphs from elsewhere are run in a separate process, because a library that runs an untrusted graph may crash or hang.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..checkpoints.graphs import Graphs, open_graphs
from ..checkpoints.parts import PartSpec, model_facts, part_specs
from ..checkpoints.plain_tokenizer import complete_plainly
from ..checkpoints.tokenizer import stored_files, tokenizer_class
from ..checkpoints.training import Choices
from ..core.bundle import MANIFEST, Bundle, digest, graph_path, open_bundle, proof_digest
from ..core.errors import BundleError, CheckpointError, RuntimeMissing
from ..core.files import fresh_folder, write_sealed
from ..core.graph_rules import other_operators
from ..core.install import install, need
from ..core.kernels import cpu_kernels
from ..core.manifest import Adopted, FileInfo, License, Manifest, Part, Source
from ..core.model import Model
from ..core.progress import Progress, quiet
from ..core.quarantine import quarantined
from ..core.record import in_a_line
from ..core.records import GRAPH_DB
from ..core.references import stored_at
from ..core.standing import SELF_CONSISTENT
from ..core.tensors import psnr_db
from ..core.version import __version__
from .edges import Fit, adapt, fit, is_narrow
from .expand import EXPANSIONS, MICROSOFT, expand
from .export import check_size, checked_facts, info_of, versions_of, write_configs
from .scheduler import settle
from .sessions import CpuSession
from .weights import DATA, INLINE_BYTES, parameters, write

NEEDED = ("onnx", "onnx_ir", "onnxruntime")
LIBRARIES = ("onnx", "onnx-ir", "onnxruntime", "numpy", "tokenizers")
LIMIT_SECONDS = 6 * 3600.0
ADVICE = "The graphs may be damaged: download them again, or export the model to ONNX again."

ORIGINAL_DB = {None: GRAPH_DB, "float16": 40.0, "bfloat16": 30.0}
"""PSNR that a rewritten graph must reach against the file's own, run as it is, by the type in which that computes."""


@dataclass(frozen=True)
class Computed:
    """How a file's graph computes."""

    narrow: str | None
    """The type, where it is narrower than f32."""
    expanded: tuple[str, ...]
    """Operators for GPUs that were replaced or unpacked."""


def adopt(
    folder: Path | str,
    output: Path | str,
    *,
    family: str | None = None,
    configs: Path | str | None = None,
    parts: Mapping[str, str] = {},
    prediction: str | None = None,
    spacing: str | None = None,
    zero_snr: bool | None = None,
    size: int | None = None,
    scheduler: str | None = None,
    on_progress: Progress = quiet,
) -> Bundle:
    """Make a bundle in `output`, which must not exist, of a folder of ONNX graphs in another tool's layout.

    `family`, `configs` and `parts` are the arguments of `open_graphs`; the others those of `export`. Names, axes and
    types are mapped to latentc's, and a graph of f16 or bf16 is widened. PyTorch is not needed, and stands not behind
    the bundle: see `core.standing`.

    Raises `CheckpointError` for what can't be mapped, before anything is run; `RuntimeMissing` without ONNX Runtime;
    `BundleError` if the folder exists or can't be written. Nothing is left behind after an error.
    """
    installed()
    choices = Choices(prediction, spacing, zero_snr, size)
    asked = {"family": family, "configs": None if configs is None else str(configs), "parts": dict(parts)}
    graphs, fits = _fitted(folder, choices, scheduler, **asked)
    output = Path(output).resolve()
    stored = sum(path.stat().st_size for one in graphs.parts.values() for path in one.files)
    with fresh_folder(output, BundleError, stored) as fresh:
        on_progress("digest", None)
        source = _source(graphs, {str(path): info_of(path) for path in graphs.read})
        made = quarantined(
            f"{__name__}:adopt_apart",
            {
                "folder": str(Path(folder).resolve()),
                "fresh": str(fresh),
                "asked": asked,
                "choices": asdict(choices),
                "scheduler": scheduler,
                "source": source.model_dump(mode="json"),
            },
            seconds=LIMIT_SECONDS,
            what=f"Adopting {', '.join(fits)}",
            advice=ADVICE,
            on_progress=on_progress,
        )
        del made
    return open_bundle(output)


def adopt_apart(
    folder: str,
    fresh: str,
    asked: Mapping[str, Any],
    choices: Mapping[str, Any],
    scheduler: str | None,
    source: Mapping[str, Any],
    on_progress: Progress,
) -> dict[str, Any]:
    """Run in a separate process: fill the folder `fresh`, manifest included."""
    from .own_references import OwnReferences

    place = Path(fresh)
    graphs, fits = _fitted(folder, Choices(**choices), scheduler, **asked)
    checkpoint = graphs.checkpoint
    facts, specs = model_facts(checkpoint), part_specs(checkpoint)
    stated = Source.model_validate(source)
    tokenizers = _tokenizers(graphs)
    notices = [*checkpoint.notices, *(line for one in fits.values() for line in one.notices)]
    notices += _left_out(graphs, specs, fits)
    parts: dict[str, Part] = {}
    exporters: dict[str, str] = {}
    hashed: dict[str, FileInfo] = {}
    computed: dict[str, Computed] = {}
    for name, one in fits.items():
        on_progress(f"{name}: rewrite", None)
        parts[name], exporters[name], computed[name] = _write_part(one, place, hashed)
    facts = facts.with_clip_skip({name: {tensor.name for tensor in part.outputs} for name, part in parts.items()})
    plain = (one.model_copy(update={"hides": False}) for one in facts.text_encoders)  # ids have no such meaning there
    facts = facts.model_copy(update={"text_encoders": tuple(plain)})
    write_configs(checkpoint, [one.spec for one in fits.values()], tokenizers, place)
    stated = stated.model_copy(
        update={"adopted": cast("Adopted", stated.adopted).model_copy(update={"exporters": exporters})}
    )

    def manifest(model: Model, files: Mapping[str, FileInfo]) -> Manifest:
        card = checkpoint.card
        return Manifest(
            latentc=__version__,
            family=checkpoint.family.name,
            source=stated,
            license=License(declared=card.license, name=card.name, link=card.link, files=tuple(card.files)),
            notices=tuple(notices),
            model=model,
            parts=parts,
            files=dict(files),
            versions=versions_of(LIBRARIES),
            trained_for=checkpoint.trained_for,
        )

    bundle = Bundle(place, manifest(facts, hashed))
    references = OwnReferences(bundle, on_progress)
    facts = references.measure_patch(facts)
    check_size(facts, str(graphs.folder))
    bundle = Bundle(place, manifest(facts, hashed))
    references.bundle = bundle
    references.write(place)
    for name, one in fits.items():
        on_progress(f"{name}: compare with the file", None)
        figure, why = _original_db(one, references.samples[name], computed[name])
        notices += [why] if why else []
        fixed = info_of(place / stored_at(name))
        update = {"psnr_db": figure, "compared": proof_digest(parts[name].digest, fixed.sha256)}
        parts[name] = parts[name].model_copy(update=update)
    on_progress("digest", None)
    paths = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}
    files = {name: hashed.get(name) or info_of(path) for name, path in paths.items()}
    write_sealed(place / MANIFEST, manifest(facts, files).model_dump(mode="json"))
    return {}


def installed() -> None:
    """Raise `RuntimeMissing` where graphs can't be read and run."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise RuntimeMissing(
                f"Running graphs needs {', '.join(NEEDED)}, but {name} is not installed. "
                f"{install('build', *need('onnxruntime'))}"
            )


def _fitted(folder: Path | str, choices: Choices, scheduler: str | None, **asked: Any) -> tuple[Graphs, dict[str, Fit]]:
    """The opened folder, with the scheduler of the bundle, and how each graph maps to its part."""
    graphs = open_graphs(folder, choices=choices, **asked)
    opened = settle(graphs.checkpoint, scheduler)
    specs = {spec.name: spec for spec in part_specs(opened)}
    facts = checked_facts(opened, tuple(specs.values()))
    fits: dict[str, Fit] = {}
    for name, spec in specs.items():
        if name not in graphs.parts:
            continue
        if spec.role == "encoder" and _samples(spec, graphs):
            continue
        fits[name] = fit(spec, graphs.parts[name], facts.read_of(name), title=opened.family.title)
    able, expanded = cpu_kernels(), {f"{MICROSOFT}.{op}" for op in EXPANSIONS}
    for name, one in fits.items():
        others = [op for op in other_operators(one.graph.facts) if op not in expanded]
        unable = [op for op in others if able is not None and op not in able]
        if unable:
            raise CheckpointError(
                f"{one.graph.path} uses {', '.join(unable)}, which ONNX Runtime cannot run on the CPU, so there is "
                f"nothing to compare engines of {name} with. Export the model to ONNX again without fusing it for a "
                "GPU."
            )
    return Graphs(graphs.folder, opened, graphs.parts, graphs.tokenizers, graphs.read), fits


def _samples(spec: PartSpec, graphs: Graphs) -> bool:
    """Whether an image encoder returns latents instead of their mean and variance."""
    outputs = graphs.parts[spec.name].facts.outputs
    shape = outputs[0].shape if len(outputs) == 1 else None
    moments, latents = spec.outputs[0].shape[1], graphs.checkpoint.configs[graphs.checkpoint.family.vae]
    return bool(shape) and len(shape) == 4 and shape[1] == latents["latent_channels"] != moments


def _left_out(graphs: Graphs, specs: Sequence[PartSpec], fits: Mapping[str, Fit]) -> list[str]:
    notices: list[str] = []
    for spec in specs:
        if spec.name not in graphs.parts:
            notices.append(
                f"The folder has no {spec.name}, so the bundle has none: it generates images from text only."
            )
        elif spec.name not in fits:
            notices.append(
                f"{spec.name} is left out, because its graph returns latents, and latentc needs their mean and "
                "variance: the bundle generates images from text only."
            )
    return notices


def _source(graphs: Graphs, infos: Mapping[str, FileInfo]) -> Source:
    files: dict[str, FileInfo] = {}
    for path, info in infos.items():
        inside = Path(path).is_relative_to(graphs.folder)
        files[Path(path).relative_to(graphs.folder).as_posix() if inside else path] = info
    return Source(
        kind="onnx",
        location=graphs.checkpoint.source.location,
        random=graphs.checkpoint.source.random,
        adopted=Adopted(statement=str(SELF_CONSISTENT.statement), files=files),
    )


def _tokenizers(graphs: Graphs) -> dict[str, dict[str, bytes]]:
    made: dict[str, dict[str, bytes]] = {}
    checkpoint = graphs.checkpoint
    for facts in checkpoint.family.tokenizers:
        rows = checkpoint.configs[facts.encoder].get("vocab_size")
        cls = tokenizer_class(checkpoint.model_index, facts)
        files = stored_files(graphs.tokenizers[facts.name])
        made[facts.name] = complete_plainly(files, facts, checkpoint.length_of(facts), cls, rows)
    return made


def _write_part(found: Fit, place: Path, hashed: dict[str, FileInfo]) -> tuple[Part, str, Computed]:
    """Rewrite a graph into the bundle; also returns its exporter and how it computed."""
    import onnx_ir as ir

    from ..core.external import map_values

    spec = found.spec
    model: ir.Model = cast("Any", ir).load(found.graph.path)
    exporter = " ".join(filter(None, (model.producer_name, model.producer_version))) or "not stated"
    narrow = is_narrow(model)
    map_values(model)
    expanded = expand(model)
    adapt(model, found)
    path = place / graph_path(spec.name)
    path.parent.mkdir()
    write(model, path.parent)
    own = {one.relative_to(place).as_posix(): one for one in (path, path.with_name(DATA)) if one.exists()}
    hashed |= {name: info_of(one) for name, one in own.items()}
    part = Part(
        path=graph_path(spec.name),
        role=spec.role,
        opset=model.opset_imports[""],
        weights=_stored(model),
        parameters=max(1, parameters(model)),
        inputs=spec.inputs,
        outputs=spec.outputs,
        digest=digest({name: hashed[name] for name in own}),
        psnr_db=0.0,
        compared="",
        bf16_db=0.0,
        operators=tuple(sorted({f"{node.domain}.{node.op_type}" for node in model.graph if node.domain})),
    )
    return part, in_a_line(ValueError(exporter))[:200], Computed(narrow, expanded)


def _stored(model: Any) -> Any:
    """The type in which most of the large float weights are stored."""
    names = {"FLOAT": "f32", "FLOAT16": "f16", "BFLOAT16": "bf16"}
    bytes_: dict[str, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.name in names and tensor.nbytes > INLINE_BYTES:
            bytes_[names[tensor.dtype.name]] = bytes_.get(names[tensor.dtype.name], 0) + tensor.nbytes
    return max(bytes_, key=lambda one: bytes_[one], default="f32")


def _original_db(found: Fit, cases: Sequence[Any], computed: Computed) -> tuple[float, str | None]:
    """The worst PSNR of the rewritten graph's outputs against the file's own, run as it is; and a notice."""
    name, path = found.spec.name, found.graph.path
    try:
        with CpuSession(path) as session:
            figures: list[float] = []
            for case in cases:
                wanted = {found.outputs[key].name: key for key in case.outputs if key in found.outputs}
                outputs = session.run(list(wanted), found.foreign(case.feeds))
                for key, array in zip(wanted.values(), outputs, strict=True):
                    figures.append(psnr_db(case.outputs[key], array.astype(np.float32)))
    except CheckpointError:
        if computed.narrow is None and not computed.expanded:
            raise
        uses, done = list[str](), list[str]()
        if computed.expanded:
            uses.append(f"uses {', '.join(computed.expanded)}")
            done.append("rewritten with operators that it has")
        if computed.narrow is not None:
            uses.append(f"computes in {computed.narrow}")
            done.append("widened to f32")
        return 0.0, (
            f"The graph of {name} {' and '.join(uses)}, and ONNX Runtime cannot run it as it is on the CPU. It was "
            f"{' and '.join(done)}, and not "
            "compared with the file."
        )
    worst = round(min(figures), 2)
    if not worst >= ORIGINAL_DB[computed.narrow]:
        raise CheckpointError(
            f"The graph of {name}, rewritten for latentc, agrees with {path} to {worst:.1f} dB, but "
            f"{ORIGINAL_DB[computed.narrow]:.0f} dB is required. It cannot be adopted; please report it."
        )
    return worst, None
